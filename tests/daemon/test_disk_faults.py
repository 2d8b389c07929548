"""
The real kmd on a disk that fails: syncs fail or take long, nothing can be written, and then it is well again.

Meanwhile MCP traffic crosses as ever and nothing is acknowledged that was not committed; afterwards everything is
on km-server once, byte-equal. kmd keeps its connection: after a sync that failed SQLite rolls back, and the next
try writes the whole transaction again (tests/daemon/test_power_loss.py shows that nothing is lost by that).
"""

import os
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.powerloss_library import FAULTS, build_library, watch
from tests.support.processes import (
    WAIT_S,
    Running,
    command,
    create_key,
    flush,
    quick_km,
    read_status,
    running_server,
    start_kmd,
    wait_for,
    write_config,
)
from tests.support.raw_relay import RawRelay, connected, session_name

RAW_LINE = b"a line of a relay by hand\n"
FAILING = ("fsync-eio", "write-enospc")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("library"))


class Echo:
    """A session of `cat` through km. `cross` sends lines and reads each back at once."""

    def __init__(self, home: Path, name: str) -> None:
        words = quick_km(home, name, "cat")
        self.name = name
        self.lines: list[bytes] = []
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def cross(self, count: int) -> None:
        assert self._process.stdin is not None
        for _ in range(count):
            line = b"%s %06d " % (self.name.encode(), len(self.lines)) + b"x" * (len(self.lines) * 37 % 3000)
            self._process.stdin.write(line + b"\n")
            assert self._receive(len(line) + 1) == line + b"\n"
            self.lines.append(line)

    def _receive(self, size: int) -> bytes:
        assert self._process.stdout is not None
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        data = b""
        while len(data) < size:
            assert poll.poll(WAIT_S * 1000), "the traffic has stopped"
            data += os.read(self._process.stdout.fileno(), size - len(data))
        return data

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(WAIT_S) == 0


@dataclass(slots=True)
class Bench:
    """kmd on a disk that can be made to fail, and a km-server that gets everything."""

    library: Path
    folder: Path
    url: str
    key: str
    kmd: Running

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @contextmanager
    def failing(self, fault: str) -> Iterator[Path]:
        """The disk fails in that way for as long as the block runs."""
        switch = self.folder / FAULTS / fault
        switch.touch()
        try:
            yield switch
        finally:
            switch.unlink(missing_ok=True)

    def restart(self, signum: int) -> None:
        """End kmd and start it again on a disk that is well."""
        self.kmd.stop(signum)
        self.kmd = start_kmd(self.home, watch(self.library, self.home, self.folder, is_traced=False))

    def outbox(self) -> dict[str, Any]:
        outbox: dict[str, Any] = read_status(self.home)["outbox"]
        return outbox

    def wait_error(self) -> str:
        """Until status shows that commits fail."""
        return str(wait_for(lambda: self.outbox()["last_error"], "the error in status"))

    def read_server(self) -> dict[tuple[str, str], list[bytes]]:
        """What km-server has of each server's streams, in order; an event that is there twice is there twice."""
        streams: dict[tuple[str, str], list[tuple[int, bytes]]] = {}
        cursor = ""
        with httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=60) as client:
            while True:
                query = {"limit": "1000", "include": "payload", **({"cursor": cursor} if cursor else {})}
                page = client.get("/api/v1/activity", params=query).raise_for_status().json()
                for item in page["items"]:
                    found = streams.setdefault((item["server"], item["stream"]), [])
                    found.append((item["offset"], item["payload"].encode()))
                cursor = page["next_cursor"] or ""
                if not cursor:
                    return {key: [payload for _, payload in sorted(found)] for key, found in streams.items()}

    def check(self, *echoes: Echo, raw_lines: int = 0) -> None:
        """
        End the sessions; everything that crossed is on km-server exactly once, and commits succeed.

        raw_lines: of a relay by hand, whose session km-server may find too old; they are counted in the outbox.
        """
        for echo in echoes:
            echo.end()
        expected = {(e.name, stream): e.lines for e in echoes for stream in ("to_server", "to_client")}
        count = raw_lines + sum(map(len, expected.values()))
        wait_for(lambda: self.outbox()["events"] >= count, "the commits")
        wait_for(lambda: flush(self.home)["done"], "the delivery")
        assert self.read_server() == expected
        assert self.outbox()["events"] == count
        assert self.outbox()["last_error"] is None
        assert self.outbox()["gap_bytes"] == 0


@pytest.fixture
def bench(library: Path, tmp_path: Path) -> Iterator[Bench]:
    database = tmp_path / "server.db"
    with running_server(database) as server:
        key = create_key(database)
        home = tmp_path / "home"
        write_config(home, ("team", server.url, key))
        kmd = start_kmd(home, watch(library, home, tmp_path, is_traced=False))
        bench = Bench(library, tmp_path, server.url, key, kmd)
        try:
            yield bench
        finally:
            bench.kmd.stop()


def is_silent(relay: RawRelay) -> bool:
    """Whether kmd has said nothing on this connection."""
    return not select.select([relay._sock], [], [], 0)[0]


@pytest.mark.parametrize("fault", FAILING)
def test_while_the_disk_fails_nothing_is_acknowledged_and_afterwards_nothing_is_missing(
    bench: Bench, fault: str
) -> None:
    pid = bench.kmd.process.pid
    early = Echo(bench.home, "early")
    early.cross(50)
    wait_for(lambda: bench.outbox()["events"] == 100, "the first commits")
    with connected(bench.home, session_name(1)) as relay:
        with bench.failing(fault):
            relay.data(0, 0, RAW_LINE * 3)
            early.cross(300)
            assert bench.wait_error().startswith("the outbox cannot be written")
            late = Echo(bench.home, "late")
            late.cross(300)
            assert bench.outbox()["events"] == 100
            assert is_silent(relay)
        relay.wait_acked(len(RAW_LINE) * 3)
        relay.bye()
        relay.wait_bye()
    early.cross(50)
    bench.check(early, late, raw_lines=3)
    assert bench.kmd.process.pid == read_status(bench.home)["daemon"]["pid"] == pid


@pytest.mark.parametrize("fault", FAILING)
def test_a_session_that_begins_while_the_disk_fails_is_shown_in_status_and_loses_nothing(
    bench: Bench, fault: str
) -> None:
    with bench.failing(fault):
        echo = Echo(bench.home, "begin")
        echo.cross(200)
        assert bench.wait_error().startswith("the outbox cannot be written")
        assert bench.outbox()["events"] == 0
    bench.check(echo)


def test_one_sync_that_fails_costs_one_try(bench: Bench) -> None:
    echo = Echo(bench.home, "once")
    for number in range(5):
        with bench.failing("fsync-eio-once") as switch:
            echo.cross(20)
            wait_for(lambda switch=switch: not switch.exists(), f"sync {number} to fail")  # type: ignore[misc]
            wait_for(lambda: bench.outbox()["events"] == 2 * len(echo.lines), "the commits")
    bench.check(echo)
    assert "commit failed, trying again" in bench.kmd.log.read_text()


def test_slow_syncs_slow_down_nobody_but_the_disk(bench: Bench) -> None:
    echo = Echo(bench.home, "slow")
    with bench.failing("fsync-slow"):
        for _ in range(5):
            echo.cross(100)
            assert bench.outbox()["last_error"] is None
        wait_for(lambda: bench.outbox()["events"] == 1000, "the commits")
    bench.check(echo)


@pytest.mark.parametrize("fault", FAILING)
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_kmd_that_ends_while_the_disk_fails_leaves_the_next_one_everything(
    bench: Bench, fault: str, signum: int
) -> None:
    echo = Echo(bench.home, "restart")
    echo.cross(50)
    wait_for(lambda: bench.outbox()["events"] == 100, "the first commits")
    with bench.failing(fault):
        echo.cross(100)
        bench.wait_error()
        bench.restart(signum)
    echo.cross(50)
    bench.check(echo)


@pytest.mark.parametrize("fault", FAILING)
def test_a_kmd_that_starts_on_a_failing_disk_says_so_and_starts_later(bench: Bench, fault: str) -> None:
    echo = Echo(bench.home, "start")
    echo.cross(50)
    bench.kmd.stop(signal.SIGKILL)
    environ = {**os.environ, **watch(bench.library, bench.home, bench.folder, is_traced=False)}
    with bench.failing(fault):
        done = subprocess.run(
            [command("kmd"), "--home", str(bench.home)], env=environ, capture_output=True, text=True, timeout=WAIT_S
        )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert re.search("^error: .* cannot be written", done.stderr, re.MULTILINE)
        echo.cross(50)
    bench.restart(signal.SIGKILL)
    bench.check(echo)

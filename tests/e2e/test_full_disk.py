"""
A small disk that fills up under traffic, and one that is full when kmd starts. A real tmpfs, so this needs root.

The traffic must not notice; what could not be kept is counted to the byte; capture goes on by itself.
"""

import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.processes import (
    WAIT_S,
    create_key,
    flush,
    quick_km,
    read_status,
    running_kmd,
    running_server,
    start_kmd,
    wait_for,
    write_config,
)

DISK_BYTES = 24 << 20
LINE_BYTES = 50_000


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home that is a disk of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs")
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    options = f"size={DISK_BYTES},mode=0700"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Talk:
    """A session of `cat` through km; every line comes back at once, or the test fails."""

    def __init__(self, home: Path, name: str) -> None:
        self.name = name
        self.lines: list[bytes] = []
        self._process = subprocess.Popen(
            quick_km(home, name, "cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def cross(self, count: int) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        for _ in range(count):
            line = b"%s %06d " % (self.name.encode(), len(self.lines)) + os.urandom(LINE_BYTES // 2).hex().encode()
            self._process.stdin.write(line + b"\n")
            data = b""
            while len(data) <= len(line):
                assert poll.poll(WAIT_S * 1000), "the traffic has stopped"
                data += os.read(self._process.stdout.fileno(), 1 << 20)
            assert data == line + b"\n"
            self.lines.append(line)

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        assert self._process.wait(WAIT_S) == 0
        self._process.stdout.close()


def fill(home: Path) -> Path:
    """Take all the space that is left."""
    junk = home / "lost+found"  # a name that kmd finds in the root of a disk
    with junk.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while file.write(b"j" * size) == size:
                    pass
            except OSError:
                continue
    assert os.statvfs(home).f_bavail == 0
    return junk


def outbox(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_status(home)["outbox"]
    return found


def has_delivered(home: Path, events: int) -> bool:
    return outbox(home)["events"] == events and bool(flush(home)["done"])


def has_caught_up(home: Path, talk: Talk) -> bool:
    """Cross one line: whether kmd gets that one next, and nothing that had to wait before it."""
    before = received_bytes(home)
    talk.cross(1)
    with suppress(TimeoutError):  # the relay is still full, and this line is in the gap
        wait_for(lambda: received_bytes(home) != before, "the line", 1.0)
    return received_bytes(home) - before == len(talk.lines[-1]) + 1


def received_bytes(home: Path) -> int:
    (session,) = read_status(home)["sessions"]
    return int(session["bytes_to_client"])


def read_server(url: str, key: str) -> dict[str, list[bytes]]:
    """What km-server has of each stream, in order."""
    streams: dict[str, list[tuple[int, bytes]]] = {}
    cursor = ""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        while True:
            query = {"limit": "100", "include": "payload", **({"cursor": cursor} if cursor else {})}
            page = client.get("/api/v1/activity", params=query).raise_for_status().json()
            for item in page["items"]:
                streams.setdefault(item["stream"], []).append((item["offset"], item["payload"].encode()))
            cursor = page["next_cursor"] or ""
            if not cursor:
                return {stream: [payload for _, payload in sorted(found)] for stream, found in streams.items()}


@pytest.mark.timeout(180)
def test_a_disk_that_fills_up_under_traffic_costs_an_exact_gap_and_nothing_else(home: Path, tmp_path: Path) -> None:
    database = tmp_path / "server.db"
    with running_server(database) as server:
        key = create_key(database)
        write_config(home, ("team", server.url, key))
        with running_kmd(home):
            talk = Talk(home, "full")
            talk.cross(20)
            wait_for(lambda: outbox(home)["events"] == 40, "the first commits")
            junk = fill(home)
            talk.cross(800)  # more than outbox, spool and the relay's memory can hold
            assert wait_for(lambda: outbox(home)["last_error"], "the error in status")
            talk.cross(50)
            junk.unlink()
            wait_for(lambda: outbox(home)["last_error"] is None, "the commits to go on", 40)
            wait_for(lambda: has_caught_up(home, talk), "capture to go on by itself", 40)
            talk.cross(50)
            talk.end()
            wait_for(lambda: not read_status(home)["sessions"] and not list(home.glob("spool/*")), "the session's end")
            wait_for(lambda: flush(home)["done"], "the delivery")
            kept, gap_bytes = read_server(server.url, key), outbox(home)["gap_bytes"]
    crossed = set(talk.lines)
    for payloads in kept.values():
        assert crossed.issuperset(payloads)
        assert [line for line in talk.lines if line in set(payloads)] == payloads
        assert payloads[:20] == talk.lines[:20]
        assert payloads[-1] == talk.lines[-1]
    kept_bytes = sum(len(payload) + 1 for payloads in kept.values() for payload in payloads)
    assert kept_bytes + gap_bytes == 2 * sum(len(line) + 1 for line in talk.lines)
    assert gap_bytes > 0


@pytest.mark.timeout(180)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_kmd_starts_on_a_full_disk_and_goes_on_when_there_is_space(home: Path, signum: int) -> None:
    kmd = start_kmd(home)
    talk = Talk(home, "start")
    talk.cross(20)
    wait_for(lambda: outbox(home)["events"] == 40 and list(home.glob("*.ballast")), "the commits and the ballast")
    kmd.stop(signum)
    junk = fill(home)
    with running_kmd(home):
        assert outbox(home)["events"] == 40
        talk.cross(20)
        junk.unlink()
        talk.end()
        wait_for(lambda: outbox(home)["events"] == 80, "the commits to go on", 40)
        assert outbox(home)["gap_bytes"] == 0


@pytest.mark.timeout(180)
def test_on_a_full_disk_what_is_delivered_makes_way_for_what_is_new(home: Path, tmp_path: Path) -> None:
    database = tmp_path / "server.db"
    with running_server(database) as server:
        write_config(home, ("team", server.url, create_key(database)))
        with running_kmd(home):
            talk = Talk(home, "way")
            talk.cross(100)
            wait_for(lambda: outbox(home)["events"] == 200 and flush(home)["done"], "the delivery")
            wait_for(lambda: (home / "outbox.db").stat().st_size > 200 * LINE_BYTES, "the log to be folded")
            fill(home)
            for events in range(240, 601, 40):
                talk.cross(20)
                wait_for(partial(has_delivered, home, events), "room for the new", 40)
            talk.end()
            wait_for(lambda: outbox(home)["events"] == 600, "everything to be committed", 40)
            assert outbox(home)["gap_bytes"] == 0
            assert set(outbox(home)["evicted"]) == {"payloads of settled events"}

"""What takes minutes: a line of 100 MiB, memory under a kmd that hangs, a million messages while kmd comes and goes."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.processes import Running, read_status, start_kmd, wait_for
from tests.transparency.client import Client
from tests.transparency.stage import Stage, bare, km, observe
from tests.transparency.test_away import LEAVES_S, behind, hung

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]

RESIDENT_MAX_KIB = 24 << 10
MESSAGES = 500_000
"""Each is echoed, so twice as many cross the relay."""
RESTART_S = 2.0
DRAIN_S = 400.0
"""For kmd to take in what waits in spools."""


def peak_kib(pid: int) -> int:
    """The most that a process has had resident."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1])


def relay_of(stage: Stage, client: Client) -> int:
    return wait_for(lambda: next((pid for pid in stage.running() if pid != client.process.pid), None), "the relay")


def test_a_line_of_100_mib(tmp_path: Path) -> None:
    def act(stage: Stage) -> dict[str, object]:
        return stage.probe("echo").finish(b'{"a":"' + b"z" * (100 << 20) + b'"}\n')

    assert observe(act, km, tmp_path) == observe(act, bare, tmp_path)


def test_memory_stays_small_while_kmd_hangs(tmp_path: Path) -> None:
    place = tmp_path / "stage"
    place.mkdir()
    home = tmp_path / "home"
    with hung(home), Stage(place, behind(home)) as stage:
        client = stage.probe("echo")
        client.send(b"x")
        client.receive(1)
        relay = relay_of(stage, client)
        block = b'{"id":1,"method":"m"}\n' * 50_000
        for _ in range(200):
            assert client.converse(block) == block
        small = peak_kib(relay)
        for _ in range(10):
            client.converse(b"y" * (16 << 20))
        assert (small <= RESIDENT_MAX_KIB, peak_kib(relay) <= RESIDENT_MAX_KIB) == (True, True), (
            small,
            peak_kib(relay),
        )
        client.finish()


@contextmanager
def kmd_that_comes_and_goes(home: Path) -> Iterator[list[Running]]:
    """kmd, killed and started again every RESTART_S; at the end one is running."""
    running = [start_kmd(home)]
    enough = threading.Event()

    def disturb() -> None:
        while not enough.wait(RESTART_S):
            running[-1].stop(9)
            running.append(start_kmd(home))

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield running
    finally:
        enough.set()
        thread.join(60)
        running[-1].stop()


def test_a_million_messages_while_kmd_comes_and_goes(tmp_path: Path) -> None:
    """Bytes equal on both sides, memory small, and every message captured."""
    place = tmp_path / "stage"
    place.mkdir()
    home = tmp_path / "home"
    peak = 0
    with kmd_that_comes_and_goes(home) as running, Stage(place, behind(home)) as stage:
        client = stage.probe("echo")
        relay = relay_of(stage, client)
        for number in range(MESSAGES):
            line = b'{"jsonrpc":"2.0","method":"n","params":{"n":%d}}\n' % number
            client.send(line)
            assert client.receive(len(line)) == line
            if number % 1000 == 0:
                peak = max(peak, peak_kib(relay))
        client.finish()
        assert stage.left(LEAVES_S) == []
        restarts = len(running) - 1
    kmd = start_kmd(home)
    try:
        deadline = time.monotonic() + DRAIN_S
        while (events := read_status(home)["outbox"]["events"]) < 2 * MESSAGES and time.monotonic() < deadline:
            time.sleep(1)
    finally:
        kmd.stop()
    assert peak <= RESIDENT_MAX_KIB
    assert restarts > 3
    assert events == 2 * MESSAGES

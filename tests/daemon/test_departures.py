"""A relay that is killed ends its session, by name; one that lives, or of which that is not known, does not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from kmd.intake import departures, relay_life
from kmd.intake.adoption import Adopter
from kmd.intake.capacity import Capacity
from kmd.intake.departures import Departures
from kmd.intake.relay_life import is_gone, read_boot, read_born, read_mark
from kmd.intake.sessions import Sessions
from kmd.mcp.names import Stream
from kmd.mcp.row import SessionStart
from kmd.outbox.outbox import Intake, Outbox
from kmd.outbox.writer import Writer
from tests.daemon.rows import message
from tests.daemon.test_spool import session_id, spool_bytes
from tests.server.clients import ask_file
from tests.support.processes import (
    WAIT_S,
    create_key,
    quick_km,
    running_kmd,
    running_server,
    start_kmd,
    wait_for,
    write_config,
)
from tests.support.torture import find_relay

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
ME = session_id(1)
LINE = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'


@contextmanager
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until its stdin is closed."""
    words = [sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        yield process


def kill_unseen(process: subprocess.Popen[bytes]) -> None:
    """Kill it and leave it a zombie: nobody asks for its status."""
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_a_mark_names_one_process_of_one_boot() -> None:
    with child() as process:
        mark = read_mark(process.pid)
        assert not is_gone(mark)
        boot, pid, born = mark.split()
        assert (boot, pid) == (read_boot(), str(process.pid))
        assert is_gone(f"{boot} {pid} {int(born) - 1}")  # the number was given to another one
        assert is_gone(f"another-boot {pid} {born}")
        assert not is_gone(f"- {pid} -")
        kill_unseen(process)
        assert is_gone(mark)
        assert read_mark(process.pid) == ""
    assert is_gone(mark)
    assert (read_mark(0), read_born(-1)) == ("", None)


@pytest.mark.parametrize("mark", ["", "-", "x y z", "boot -1 5", "boot  7", "\ud800 a b"])
def test_what_is_no_mark_is_never_gone(mark: str) -> None:
    assert not is_gone(mark)


def test_where_there_is_no_proc_a_signal_that_does_nothing_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_life, "BOOT_ID", Path("/nonexistent"))
    with child() as process:
        mark = read_mark(process.pid)
        assert mark == f"- {process.pid} -"
        assert not is_gone(mark)
        process.kill()
    assert is_gone(mark)


@asynccontextmanager
async def watching(folder: Path) -> AsyncIterator[tuple[Outbox, Sessions, Departures]]:
    with Outbox(folder / "outbox.db") as outbox:
        writer = Writer(outbox, lambda: None)
        sessions = Sessions(writer, Capacity(100), 1 << 20, keep_payloads=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            with trio.fail_after(WAIT_S):
                yield outbox, sessions, Departures(outbox, sessions, folder / "spool")
            nursery.cancel_scope.cancel()


async def connect(sessions: Sessions, pid: int, events: int = 0) -> None:
    """A relay comes, sends so many events, and its connection breaks."""
    async with sessions.enter(SessionStart(ME, "s", "c", 1, 5, pid)) as (_, known):
        messages = [message(offset) for offset in range(events)]
        await sessions.writer.commit(Intake(known.session_id, messages, {Stream.TO_SERVER: events}))


@pytest.mark.trio
async def test_a_killed_relay_is_named_and_a_living_one_is_not(tmp_path: Path) -> None:
    async with watching(tmp_path) as (outbox, sessions, watch):
        with child() as process:
            await connect(sessions, process.pid)
            await watch.look()
            assert outbox.read_ends(0, 10) == []
            left_at_ns = sessions.left_at_ns[ME]
            async with sessions.enter(SessionStart(ME, "s", "c", 1, 5, process.pid)):
                assert sessions.left_at_ns == {}
                kill_unseen(process)
                await watch.look()  # what it sent last is still being taken in
                assert outbox.read_ends(0, 10) == []
            await connect(sessions, 0)  # of this one nobody knows
            await watch.look()
            assert outbox.read_ends(0, 10) == []
            assert sessions.left_at_ns == {}
        with child() as process:
            await connect(sessions, process.pid)
        await watch.look()
        (end,) = outbox.read_ends(0, 10)
        assert (end.start.session, end.closed_first) == (ME, "relay")
        assert left_at_ns < end.ended_at_ns


@pytest.mark.trio
async def test_after_a_restart_its_end_is_when_it_was_last_heard_of(tmp_path: Path) -> None:
    with child() as process:
        async with watching(tmp_path) as (_, sessions, _):
            await connect(sessions, process.pid, events=3)
    async with watching(tmp_path) as (outbox, _, watch):
        await watch.look()
        (end,) = outbox.read_ends(0, 10)
        assert (end.closed_first, end.ended_at_ns) == ("relay", message(2).at_ns)


@pytest.mark.trio
async def test_no_session_ends_later_than_now_whatever_its_clock_said(tmp_path: Path) -> None:
    tomorrow_ns = time.time_ns() + 86_400 * 10**9
    late = msgspec.structs.replace(message(0), at_ns=tomorrow_ns)
    with child() as process:
        start = SessionStart(ME, "s", "c", 1, 5, process.pid)
        async with watching(tmp_path) as (_, sessions, _), sessions.enter(start) as (_, known):
            await sessions.writer.commit(Intake(known.session_id, [late], {Stream.TO_SERVER: 1}))
    async with watching(tmp_path) as (outbox, _, watch):
        await watch.look()
        (end,) = outbox.read_ends(0, 10)
        assert end.ended_at_ns <= time.time_ns() < tomorrow_ns


@pytest.mark.trio
async def test_a_relay_that_comes_again_takes_its_end_back(tmp_path: Path) -> None:
    """Nothing is left of an end that was none; the one that BYE brings is told anew."""
    async with watching(tmp_path) as (outbox, sessions, watch):
        with child() as process:
            await connect(sessions, process.pid)
        await watch.look()
        async with sessions.enter(SessionStart(ME, "s", "c", 1, 5)) as (_, known):
            assert outbox.read_ends(0, 10) == []
            assert (known.closed_first, known.ended_at_ns is None) == ("relay", False)
            await sessions.writer.commit(Intake(known.session_id, [], {}, ended_at_ns=9))
        (end,) = outbox.read_ends(0, 10)
        assert (end.end_seq, end.ended_at_ns, end.closed_first) == (2, 9, "")


@pytest.mark.trio
async def test_a_spool_without_an_end_ends_with_it_unless_there_was_one(tmp_path: Path) -> None:
    spool = tmp_path / "spool" / f"{ME}.spool"
    spool.parent.mkdir()
    async with watching(tmp_path) as (outbox, sessions, watch):
        with child() as process:
            await connect(sessions, process.pid)
        spool.write_bytes(spool_bytes(1))
        os.utime(spool, ns=(7_000, 7_000))
        await watch.look()
        assert outbox.read_ends(0, 10) == []  # there is more to come
        assert await Adopter(spool.parent, sessions).take_in() == 1
        assert sessions.left_at_ns == {}
        (end,) = outbox.read_ends(0, 10)
        assert (end.ended_at_ns, end.closed_first) == (7_000, "relay")
        async with sessions.enter(SessionStart(ME, "s", "c", 1, 5)) as (_, known):
            await sessions.writer.commit(Intake(known.session_id, [], {}, ended_at_ns=9, closed_first="client"))
        spool.write_bytes(spool_bytes(1))
        assert await Adopter(spool.parent, sessions).take_in() == 1
        (end,) = outbox.read_ends(0, 10)
        assert (end.ended_at_ns, end.closed_first) == (9, "client")


@pytest.mark.trio
async def test_it_looks_when_a_relay_has_left_and_again_while_it_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departures, "FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(departures, "LOOK_AGAIN_S", (0.01,) * 1000)
    async with watching(tmp_path) as (outbox, sessions, watch), trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await trio.testing.wait_all_tasks_blocked(0.02)
        with child() as process:
            await connect(sessions, process.pid)
            await trio.testing.wait_all_tasks_blocked()
            kill_unseen(process)
            while not outbox.read_ends(0, 10):  # noqa: ASYNC110 - bounded by `watching`
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("with_kmd", [True, False])
def test_the_server_hears_of_it(tmp_path: Path, with_kmd: bool) -> None:  # noqa: FBT001
    """km's relay is killed beside kmd, or while kmd is away."""
    home, database, name = tmp_path / "home", tmp_path / "server.db", f"victim-{os.getpid()}-{with_kmd}"
    with running_server(database) as server:
        write_config(home, ("team", server.url, create_key(database)))
        kmd = start_kmd(home)
        client = subprocess.Popen(quick_km(home, name, "cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(LINE)
            client.stdin.flush()
            assert client.stdout.readline() == LINE
            with Outbox(home / "outbox.db") as reader:
                wait_for(lambda: reader.read_last_seq() == 2, "both messages")
                if not with_kmd:
                    kmd.stop(signal.SIGKILL)
                relay = wait_for(lambda: find_relay(name), "the relay")
                os.kill(relay, signal.SIGKILL)
            if with_kmd:
                check_server(database)
        finally:
            client.kill()
            client.communicate()
            kmd.stop()
        if not with_kmd:
            with running_kmd(home):
                check_server(database)


def check_server(database: Path) -> None:
    """The session's end is on the server, with its reason."""
    query = "SELECT closed_first FROM sessions WHERE ended_at_ns IS NOT NULL"
    wait_for(lambda: ask_file(database, query) == [("relay",)], "the end of the session")

"""The pump between real pipes, sockets and files: bytes, ends and back-pressure, with each way of not waiting."""

import contextlib
import fcntl
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kmd.record import TO_CLIENT, TO_SERVER
from kmd.shim import pump as pump_module
from kmd.shim.link import Ending
from kmd.shim.pump import BY_FLAG, BY_NOWAIT, BY_TURNS, GOES_ON, Pump, Way, mode_of
from kmd.shim.spool import Spool
from kmd.shim.tap import Tap
from tests.support.processes import WAIT_S
from tests.support.raw_relay import session_name

MANY = bytes(range(256)) * 12_000
"""3 MB: far more than all the buffers on its way."""
Ends = tuple[int, int]


def pipe_ends() -> Ends:
    return os.pipe()


def socket_ends() -> Ends:
    """To read from, to write to."""
    one, other = socket.socketpair()
    return one.detach(), other.detach()


@dataclass(frozen=True, slots=True)
class Talk:
    """The outer ends: what client and server would have. `tap` has what was kept."""

    client_out: int
    client_in: int
    server_out: int
    server_in: int
    pump: Pump
    ending: Ending
    tap: Tap


@pytest.fixture(params=["pipes", "sockets", "pipes by turns", "sockets by turns"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Ends]:
    """By turns: as on a system that has neither /proc nor RWF_NOWAIT."""
    if "turns" in request.param:
        monkeypatch.setattr(pump_module, "mode_of", lambda *_: BY_TURNS)
    return pipe_ends if "pipes" in request.param else socket_ends


@pytest.fixture
def talk(kind: Callable[[], Ends], tmp_path: Path) -> Iterator[Talk]:
    """A pump at work between two sides."""
    wake_in, wake_out = os.pipe()
    os.set_blocking(wake_out, False)
    (near, client_out), (client_in, far) = kind(), kind()
    (server_in, to_server), (from_server, server_out) = kind(), kind()
    tap, ending = Tap(wake_out, Spool(str(tmp_path), session_name(1), b"session=x")), Ending()
    pump = Pump(tap, ending, [(near, to_server, TO_SERVER), (from_server, far, TO_CLIENT)])
    pump.load_tee()
    thread = threading.Thread(target=pump.run, daemon=True)
    thread.start()
    yield Talk(client_out, client_in, server_out, server_in, pump, ending, tap)
    for fd in (client_out, client_in, server_out, server_in, wake_in):
        with contextlib.suppress(OSError):  # the test has closed it
            os.close(fd)
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert ending.ended
    os.close(wake_out)


def send(fd: int, data: bytes) -> threading.Thread:
    """Write and close, beside."""

    def write() -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.close(fd)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


def read_all(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 1 << 16):
        parts.append(part)
    return b"".join(parts)


def is_readable(fd: int, wait_s: float = WAIT_S) -> bool:
    return bool(select.select([fd], [], [], wait_s)[0])


def test_both_sides_write_a_lot_before_either_reads(talk: Talk) -> None:
    writers = [send(talk.client_out, MANY), send(talk.server_out, MANY[::-1])]
    assert is_readable(talk.server_in)
    assert is_readable(talk.client_in)
    assert read_all(talk.server_in) == MANY
    assert read_all(talk.client_in) == MANY[::-1]
    for writer in writers:
        writer.join(WAIT_S)
    talk.pump.wait()
    assert talk.tap.kept_bytes == 2 * len(MANY)


def test_a_side_that_does_not_read_holds_up_its_own_direction_alone(talk: Talk) -> None:
    stuck = send(talk.client_out, MANY)
    for number in range(200):
        os.write(talk.server_out, b"%d\n" % number)
        assert os.read(talk.client_in, 100) == b"%d\n" % number
    assert stuck.is_alive()
    assert read_all(talk.server_in) == MANY


def test_each_direction_ends_by_itself(talk: Talk) -> None:
    os.write(talk.client_out, b"last")
    os.close(talk.client_out)
    assert read_all(talk.server_in) == b"last"
    os.write(talk.server_out, b"answer")
    assert os.read(talk.client_in, 100) == b"answer"
    os.close(talk.server_out)
    assert read_all(talk.client_in) == b""


def test_the_end_of_a_reader_is_seen_while_nothing_is_said(talk: Talk) -> None:
    os.close(talk.server_in)
    poll = select.poll()
    poll.register(talk.client_out, 0)
    assert poll.poll(WAIT_S * 1000)
    with pytest.raises(BrokenPipeError):
        os.write(talk.client_out, b"x")


def test_a_reader_that_goes_in_the_middle_ends_its_direction_alone(talk: Talk) -> None:
    failed = threading.Event()

    def write() -> None:
        try:
            while True:
                os.write(talk.client_out, MANY)
        except OSError:
            failed.set()

    threading.Thread(target=write, daemon=True).start()
    assert is_readable(talk.server_in)
    os.close(talk.server_in)
    assert failed.wait(WAIT_S)
    os.write(talk.server_out, b"still here")
    assert os.read(talk.client_in, 100) == b"still here"


def test_what_somebody_else_has_read_does_not_make_it_wait(kind: Callable[[], Ends]) -> None:
    """Two processes may share a stdin: the other one was quicker between the poll and the read."""
    (near, client_out), (server_in, far) = kind(), kind()
    way = Way(near, far, TO_SERVER)
    if way.near_mode != BY_TURNS:  # there a read would wait, as it would bare
        assert way.read() == -1
    os.close(client_out)
    assert way.read() == 0
    way.close()
    os.close(server_in)


def test_reading_the_server_never_waits(kind: Callable[[], Ends]) -> None:
    (near, server_out), (client_in, far) = kind(), kind()
    way = Way(near, far, TO_CLIENT)
    assert not os.get_blocking(near)
    assert way.read() == -1
    way.close()
    os.close(server_out)
    os.close(client_in)


def test_the_flags_that_others_share_stay_as_they_are(tmp_path: Path) -> None:
    for ends, expected in ((pipe_ends(), BY_FLAG), (socket_ends(), BY_NOWAIT)):
        shared = os.dup(ends[1])
        flags = fcntl.fcntl(shared, fcntl.F_GETFL)
        assert mode_of(ends[1], os.O_WRONLY) == expected
        assert fcntl.fcntl(shared, fcntl.F_GETFL) == flags
        assert os.path.samestat(os.fstat(shared), os.fstat(ends[1]))
        for fd in (*ends, shared):
            os.close(fd)
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    assert mode_of(file, os.O_WRONLY) == BY_FLAG
    os.close(file)


def test_a_pipe_that_keeps_packets_is_not_opened_again() -> None:
    read_end, write_end = os.pipe2(os.O_DIRECT)
    assert mode_of(write_end, os.O_WRONLY) == BY_TURNS
    os.close(read_end)
    os.close(write_end)


def test_a_step_with_nothing_to_read_goes_on(tmp_path: Path) -> None:
    read_end, write_end = pipe_ends()
    wake_in, wake_out = os.pipe()
    far_reader, far = pipe_ends()
    tap = Tap(wake_out, Spool(str(tmp_path), session_name(1), b"session=x"))
    pump = Pump(tap, Ending(), [(read_end, far, TO_SERVER)])
    assert pump._pass(pump._ways[read_end]) == GOES_ON  # noqa: SLF001 - only a race gets there from outside
    for fd in (read_end, write_end, wake_in, wake_out, far_reader, far):
        os.close(fd)

"""The pump between real pipes, sockets and files: bytes, ends and back-pressure, with each way of not waiting."""

import contextlib
import fcntl
import os
import random
import select
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import ENOMEM
from pathlib import Path

import pytest

from kmd.record import RUN, TO_CLIENT, TO_SERVER, parse_fields, parse_run
from kmd.shim import pump as pump_module
from kmd.shim import slabs
from kmd.shim.link import Ending
from kmd.shim.pump import BY_FLAG, BY_NOWAIT, BY_TURNS, GOES_ON, Pump, Way, mode_of
from kmd.shim.spool import Spool
from kmd.shim.tap import Tap
from tests.daemon.test_tap import connected, joined, receive
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
    wake_in: int


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
    yield Talk(client_out, client_in, server_out, server_in, pump, ending, tap, wake_in)
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
    assert talk.tap.inbox.kept_bytes == 2 * len(MANY)


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
        assert way.read(memoryview(bytearray(9))) == -1
    os.close(client_out)
    assert way.read(memoryview(bytearray(9))) == 0
    way.close()
    os.close(server_in)


def test_reading_the_server_never_waits(kind: Callable[[], Ends]) -> None:
    (near, server_out), (client_in, far) = kind(), kind()
    way = Way(near, far, TO_CLIENT)
    assert not os.get_blocking(near)
    assert way.read(memoryview(bytearray(9))) == -1
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


def test_what_crosses_piece_by_piece_is_kept_as_it_was(talk: Talk) -> None:
    """Both sides read slowly, so chunks cross in part, while the link takes in and memory is used again."""
    done = threading.Event()

    def absorb() -> None:
        while not done.is_set():
            talk.tap.absorb()

    def write(fd: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.close(fd)

    there, back = random.Random(1).randbytes(len(MANY)), random.Random(2).randbytes(len(MANY))
    threads = [
        threading.Thread(target=absorb, daemon=True),
        threading.Thread(target=write, args=(os.dup(talk.client_out), there), daemon=True),
        threading.Thread(target=write, args=(os.dup(talk.server_out), back), daemon=True),
    ]
    for thread in threads:
        thread.start()
    got = {talk.server_in: bytearray(), talk.client_in: bytearray()}
    while len(got[talk.server_in]) < len(there) or len(got[talk.client_in]) < len(back):
        for fd, data in got.items():
            if is_readable(fd, 0):
                data += os.read(fd, 7_001)
    done.set()
    for thread in threads:
        thread.join(WAIT_S)
    talk.tap.absorb()
    with connected(talk.tap) as far:
        assert joined(receive(far, talk.tap))[:2] == [there, back]


def test_what_never_crossed_takes_no_memory(talk: Talk) -> None:
    os.set_blocking(talk.client_out, False)
    while select.select([], [talk.client_out], [], 0.2)[1]:
        os.write(talk.client_out, bytes(9_000))
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (talk.server_in, talk.client_in, talk.client_out, talk.server_out):
        os.dup2(null, fd)  # the fixture closes them
    os.close(null)
    talk.pump.wait()
    every = talk.tap._slabs._slabs  # noqa: SLF001 - nothing else shows it
    talk.tap._held.replace((), ())  # noqa: SLF001
    assert [slab.claims - slab.dropped for slab in every] == [0] * len(every)


def test_the_link_is_told_in_a_pause(talk: Talk) -> None:
    os.write(talk.client_out, b"one message")
    assert is_readable(talk.server_in)
    assert is_readable(talk.wake_in)
    talk.tap.absorb()
    assert not talk.tap.is_stirred


@pytest.mark.parametrize("why", [OSError(ENOMEM, "Cannot allocate memory"), MemoryError(), RuntimeError("a fault")])
def test_without_memory_bytes_cross_and_the_gap_is_exact(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, why: Exception
) -> None:
    def no_memory() -> memoryview:
        raise why

    monkeypatch.setattr(slabs, "new_memory", no_memory)
    data = random.Random(3).randbytes(900_000)
    for start in range(0, len(data), 9_000):
        os.write(talk.client_out, data[start : start + 9_000])
        crossed = b""
        while len(crossed) < 9_000:
            crossed += os.read(talk.server_in, 9_000)
        assert crossed == data[start : start + 9_000]
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (talk.client_out, talk.server_out):
        os.dup2(null, fd)  # the fixture closes them
    os.close(null)
    talk.pump.wait()
    with connected(talk.tap) as far:
        assert talk.tap.go_on()
        records = receive(far, talk.tap)
    got = [chunk for record in records if record.type == RUN for chunk in parse_run(record.body)]
    for stream, offset, chunk, _ in got:
        assert stream == TO_SERVER
        assert chunk == data[offset : offset + len(chunk)]
    assert 0 < talk.tap.skipped_bytes < len(data)
    assert sum(len(chunk) for _, _, chunk, _ in got) + talk.tap.skipped_bytes == len(data)
    assert parse_fields(records[-1].body)["length.0"] == b"%d" % len(data)

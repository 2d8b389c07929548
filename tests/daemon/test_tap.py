"""The tap: what a pump gives it goes to the socket, to memory or to the spool, in order, and nowhere else."""

import os
import random
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from kmd.record import (
    ACK,
    BYE,
    DATA,
    HEADER_BYTES,
    HELLO,
    RUN,
    STREAMS,
    Record,
    RecordReader,
    parse_run,
    render_offsets,
)
from kmd.shim.bulk import (
    BULK_MAX_SEGMENTS,
    Piece,
    Segment,
    are_plain_pipes,
    load_tee,
    split_window,
)
from kmd.shim.held import Entry
from kmd.shim.slabs import CHUNK_BYTES, Chunk, copy_of
from kmd.shim.spool import Spool
from kmd.shim.tap import DIRECT_MAX_BYTES, HELD_MAX_BYTES, SPILL_ABOVE_BYTES, Tap
from tests.support.processes import WAIT_S
from tests.support.raw_relay import session_name


@contextmanager
def tap_in(home: Path) -> Iterator[tuple[Tap, Spool]]:
    """A tap without a link."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    spool = Spool(str(home), session_name(1), b"session=x")
    try:
        yield Tap(write_end, spool), spool
    finally:
        os.close(read_end)
        os.close(write_end)


@contextmanager
def connected(
    tap: Tap, durable: tuple[int, int, int] = (0, 0, 0), buffer_bytes: int | None = None
) -> Iterator[socket.socket]:
    """kmd's end of a connection that the tap sends on. buffer_bytes: what it takes of a kmd that does not read."""
    near, far = socket.socketpair()
    if buffer_bytes is not None:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    far.setblocking(False)
    tap.attach(near, durable)
    with far:
        yield far
    tap.detach()


def joined(records: list[Record]) -> list[bytes]:
    """Each stream's bytes. Fails where one does not begin where the one before ends."""
    streams = [bytearray() for _ in range(STREAMS)]
    for record in records:
        found = parse_run(record.body) if record.type == RUN else []
        if record.type == DATA:
            found = [(record.stream, record.offset, record.body, record.at_ns)]
        for stream, offset, chunk, _ in found:
            assert offset <= len(streams[stream])
            streams[stream][offset:] = chunk
    return [bytes(stream) for stream in streams]


def receive(far: socket.socket, tap: Tap, begun: bytes = b"") -> list[Record]:
    """Everything that the tap has for kmd, drained as the link does; *begun* had come before."""
    data = bytearray(begun)
    while True:
        try:
            data += far.recv(1 << 20)
        except BlockingIOError:
            moved = tap.drain(CHUNK_BYTES)
            tap.go_on()
            if not moved and not tap.poll_state()[1]:
                return list(RecordReader().feed(bytes(data)))
            tap.flush()


def spooled(home: Path) -> list[Record]:
    reader = RecordReader(salvage=True)
    (path,) = (home / "spool").iterdir()
    return [record for record in [*reader.feed(path.read_bytes()), *reader.finish()] if record.type != HELLO]


def test_small_chunks_of_one_moment_travel_as_one_record_in_the_order_in_which_they_crossed(tmp_path: Path) -> None:
    with tap_in(tmp_path) as (tap, _), connected(tap) as far:
        assert tap.go_on()
        for number in range(5):
            tap.keep(number % 2, memoryview(b"%d\n" % number), 100 + number)
        assert tap.is_stirred
        assert tap.absorb() == 5
        (record,) = receive(far, tap)
        assert record.type == RUN
        assert [chunk for _, _, chunk, _ in parse_run(record.body)] == [b"%d\n" % number for number in range(5)]


def test_an_acknowledgement_lets_go_of_what_it_covers_and_of_nothing_else(tmp_path: Path) -> None:
    with tap_in(tmp_path) as (tap, _), connected(tap) as far:
        tap.go_on()
        for chunk in (b"first\n", b"second\n", b"thi"):
            tap.keep(0, memoryview(chunk), 0)
            tap.absorb()
        far.sendall(render_offsets(ACK, (len(b"first\nsecond\n"), 0, 0)))
        assert tap.read_acks()
        assert tap.durable == (13, 0, 0)
        tap.leave_to_spool()
        assert [parse_run(record.body) for record in spooled(tmp_path)] == [[(0, 13, b"thi", 0)]]


def test_without_kmd_and_without_a_disk_the_tap_stays_in_its_bound_and_counts(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    with tap_in(blocked) as (tap, _):
        chunk = memoryview(b"x" * CHUNK_BYTES)
        crossed = 0
        while crossed < 3 * HELD_MAX_BYTES:
            tap.keep(1, chunk, 0)
            crossed += len(chunk)
        tap.absorb()
        with connected(tap) as far:
            held = sum(len(chunk) for record in receive(far, tap) for _, _, chunk in chunks_of(record))
        assert SPILL_ABOVE_BYTES < held <= HELD_MAX_BYTES
        assert held + tap.skipped_bytes == crossed


def test_what_the_connection_had_is_not_sent_again_when_the_tap_stands_aside(tmp_path: Path) -> None:
    with tap_in(tmp_path) as (tap, spool), connected(tap) as far:
        tap.go_on()
        line = memoryview(b"y" * (CHUNK_BYTES - 1) + b"\n")
        for _ in range(3 * SPILL_ABOVE_BYTES // CHUNK_BYTES):
            tap.keep(0, line, 5)
        tap.absorb()
        was_aside = tap.must_drain
        assert was_aside
        tap.keep(0, memoryview(b"last\n"), 6)
        tap.close({}, 7)
        records = receive(far, tap)
        assert not tap.must_drain
        assert joined(records)[0] == bytes(line) * (3 * SPILL_ABOVE_BYTES // CHUNK_BYTES) + b"last\n"
        offsets = [offset for record in records for _, offset, _ in chunks_of(record)]
        assert offsets == sorted(set(offsets))
        assert records[-1].type == BYE
        length = sum(map(len, joined(records)))
        far.sendall(render_offsets(ACK, (length, 0, 0)))
        assert tap.read_acks()
        assert spool.size_bytes == 0
        assert not list((tmp_path / "spool").iterdir())


@pytest.mark.parametrize("read_first", [0, 5_000, 40_000])
def test_a_record_that_was_broken_off_is_finished_and_not_sent_again(tmp_path: Path, read_first: int) -> None:
    """Its beginning is with kmd when the tap stands aside: the rest follows, then what is new, none of it twice."""
    with tap_in(tmp_path) as (tap, _), connected(tap, buffer_bytes=20_000) as far:
        tap.go_on()
        count = 3 * SPILL_ABOVE_BYTES // CHUNK_BYTES
        lines = [b"%08d" % number + b"y" * (CHUNK_BYTES - 9) + b"\n" for number in range(count)]
        tap.keep(0, memoryview(lines[0]), 5)
        tap.absorb()
        data = bytearray()
        while len(data) < read_first:
            data += far.recv(read_first - len(data))
            tap.flush()
        for line in lines[1:]:
            tap.keep(0, memoryview(line), 5)
        tap.absorb()
        assert tap.must_drain
        data += far.recv(1 << 20)
        assert sum(HEADER_BYTES + len(record.body) for record in RecordReader().feed(bytes(data))) < len(data)
        records = receive(far, tap, bytes(data))
        pieces = [piece for record in records for piece in chunks_of(record)]
        ends = [offset + len(chunk) for _, offset, chunk in pieces]
        assert [offset for _, offset, _ in pieces] == [0, *ends[:-1]]
        assert b"".join(chunk for _, _, chunk in pieces) == b"".join(lines)


def test_a_new_connection_is_sent_the_spool_before_anything_newer(tmp_path: Path) -> None:
    with tap_in(tmp_path) as (tap, _):
        sent = bytearray()
        generator = random.Random(4)
        for number in range(400):
            chunk = generator.randbytes(generator.choice((3, 300, 20_000, CHUNK_BYTES)))
            tap.keep(number % 2, memoryview(chunk), number)
            if number % 2 == 0:
                sent += chunk
            if number % 7 == 0:
                tap.absorb()
        for _ in range(2):  # the second connection is lost as well, and the third is told what the first made durable
            with connected(tap) as far:
                receive(far, tap)
        with connected(tap, (len(sent) // 2, 0, 0)) as far:
            tap.close({}, 0)
            records = receive(far, tap)
        assert records[-1].type == BYE
        found = {offset: bytes(chunk) for r in records for stream, offset, chunk in chunks_of(r) if stream == 0}
        for offset, chunk in found.items():
            assert sent[offset : offset + len(chunk)] == chunk
        assert max(offset + len(chunk) for offset, chunk in found.items()) == len(sent)


def chunks_of(record: Record) -> list[tuple[int, int, bytes]]:
    if record.type == RUN:
        return [(stream, offset, chunk) for stream, offset, chunk, _ in parse_run(record.body)]
    return [(record.stream, record.offset, record.body)] if record.type == DATA else []


@pytest.mark.skipif(load_tee() is None, reason="tee(2) is Linux's")
def test_a_bulk_is_what_went_by_in_order_with_what_came_before_and_after(tmp_path: Path) -> None:
    tee = load_tee()
    assert tee is not None
    near, feed = os.pipe()
    generator = random.Random(5)
    sent = bytearray()
    with tap_in(tmp_path) as (tap, _):
        for _ in range(3):
            sent += b"before\n"
            tap.keep(1, memoryview(b"before\n"), 1)
            for _ in range(8 * BULK_MAX_SEGMENTS):
                os.write(feed, chunk := generator.randbytes(CHUNK_BYTES))
                sent += chunk
                segment = tap.open_segment(1)
                assert segment is not None
                assert tee(near, segment.write_end) == CHUNK_BYTES
                assert os.read(near, CHUNK_BYTES) == chunk
                tap.keep_segment(1, segment, CHUNK_BYTES, 2)
            sent += b"after\n"
            tap.keep(1, memoryview(b"after\n"), 3)
        gathered = [tap.inbox.has_bulk]
        tap.absorb()
        assert [*gathered, tap.inbox.has_bulk] == [True, False]
        with connected(tap) as far:
            assert joined(receive(far, tap))[1] == sent
    os.close(near)
    os.close(feed)


@pytest.mark.skipif(load_tee() is None, reason="tee(2) is Linux's")
def test_a_small_bulk_goes_to_a_kmd_that_keeps_up_without_a_file(tmp_path: Path) -> None:
    tee = load_tee()
    assert tee is not None
    near, feed = os.pipe()
    with tap_in(tmp_path) as (tap, spool), connected(tap) as far:
        tap.go_on()
        os.write(feed, b"z" * CHUNK_BYTES)
        segment = tap.open_segment(0)
        assert segment is not None
        tap.keep_segment(0, segment, tee(near, segment.write_end), 2)
        tap.absorb()
        assert joined(receive(far, tap))[0] == b"z" * CHUNK_BYTES
        assert CHUNK_BYTES < DIRECT_MAX_BYTES
        assert spool.size_bytes == 0
    os.close(near)
    os.close(feed)


def test_only_plain_pipes_of_the_usual_size_carry_a_bulk(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    left, right = socket.socketpair()
    with left, right, (tmp_path / "file").open("wb") as file:
        assert are_plain_pipes(read_end, write_end)
        assert not are_plain_pipes(read_end, left.fileno())
        assert not are_plain_pipes(read_end, file.fileno())
    import fcntl

    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 1 << 18)
    assert not are_plain_pipes(read_end, write_end)
    os.close(read_end)
    os.close(write_end)
    assert not are_plain_pipes(read_end)


def test_an_entry_is_durable_when_every_stream_is() -> None:
    entry = Entry(DATA, 0, 5, 0, (b"xyz",), (8, 2, 0), 3)
    assert entry.is_durable((8, 2, 0))
    assert not entry.is_durable((7, 2, 0))
    assert not entry.is_durable((8, 1, 0))


def test_a_bulk_each_way_at_once_makes_few_records_and_keeps_each_stream_in_order() -> None:
    first, second = Segment(), Segment()
    window: list[Chunk | Piece] = []
    for number in range(6):
        window += [Piece(0, first, CHUNK_BYTES, number), Piece(1, second, CHUNK_BYTES, number)]
    tail: list[Chunk | Piece] = [copy_of(0, memoryview(b"tail\n"), 7), Piece(0, first, 5, 8)]
    chunks, pieces, rest = split_window([*window, *tail])
    assert chunks == []
    assert pieces == window[::2]
    assert rest == [*window[1::2], *tail]
    assert split_window(rest) == ([], window[1::2], tail)
    assert split_window(tail) == ([tail[0]], [], [tail[1]])
    assert split_window([]) == ([], [], [])
    many = [Piece(0, first, CHUNK_BYTES, number) for number in range(16)]
    _, pieces, rest = split_window([*many])
    assert len(pieces) == 15
    assert pieces + rest == many
    first.close()
    second.close()


class SlowSpool(Spool):
    """On a disk that stalls once."""

    stall_s = 0.15

    def append(self, entries: Sequence[Entry]) -> bool:
        time.sleep(self.stall_s)
        self.stall_s = 0.0
        return super().append(entries)


def test_a_disk_that_has_stalled_is_left_alone_for_a_while_and_then_used_again(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    spool = SlowSpool(str(tmp_path), session_name(1), b"session=x")
    tap = Tap(write_end, spool)
    chunk = memoryview(bytes(CHUNK_BYTES - 1))

    def fill(size_bytes: int) -> None:
        for at_ns in range(size_bytes // len(chunk)):
            tap.keep(0, chunk, at_ns)
        tap.absorb()

    fill(SPILL_ABOVE_BYTES + (2 << 20))
    stalled_at = spool.size_bytes
    assert stalled_at > 0
    fill(1 << 20)
    assert spool.size_bytes == stalled_at
    deadline = time.monotonic() + WAIT_S
    while spool.size_bytes == stalled_at and time.monotonic() < deadline:
        time.sleep(0.1)
        fill(2 << 20)
    assert spool.size_bytes > stalled_at
    os.close(read_end)
    os.close(write_end)

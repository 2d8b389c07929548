"""
Tap and spool against a model: whatever comes between them and kmd, kmd gets every byte in its place.

The machine plays pumps, link, kmd and disk. Its kmd is the simplest that keeps the protocol: it appends what stands at
the end of what it has, passes over what it has already, and takes nothing behind a hole unless the tap has skipped.
"""

import os
import socket
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kmd.record import (
    ACK,
    BYE,
    DATA,
    HELLO,
    RUN,
    STREAMS,
    Record,
    RecordReader,
    parse_fields,
    parse_run,
    render_offsets,
)
from kmd.shim.bulk import load_tee
from kmd.shim.slabs import CHUNK_BYTES
from kmd.shim.spool import Spool
from kmd.shim.tap import DIRECT_MAX_BYTES, Tap
from tests.support.raw_relay import session_name

SIZES = st.sampled_from((1, 7, 300, 5_000, 20_000, CHUNK_BYTES))
STREAM_NUMBERS = st.integers(0, 1)
TEE = load_tee()


class Kmd:
    """What it has of each stream, and what it has acknowledged."""

    def __init__(self) -> None:
        self.streams = [bytearray() for _ in range(STREAMS)]
        self.acked = (0, 0, 0)
        self.lengths: dict[str, bytes] | None = None

    def take(self, record: Record) -> None:
        if record.type == RUN:
            for stream, offset, chunk, _ in parse_run(record.body):
                self._add(stream, offset, chunk)
        elif record.type == DATA:
            self._add(record.stream, record.offset, record.body)
        elif record.type == BYE:
            self.lengths = parse_fields(record.body)

    def _add(self, stream: int, offset: int, chunk: bytes) -> None:
        have = self.streams[stream]
        assert offset <= len(have), "a hole"
        assert have[offset : offset + len(chunk)] == chunk[: len(have) - offset], "other bytes than before"
        have += chunk[len(have) - offset :]

    def restart(self) -> None:
        """Killed: it has what is durable, and nothing else."""
        for have, durable in zip(self.streams, self.acked, strict=True):
            del have[durable:]

    def acknowledge(self, part: float) -> tuple[int, int, int]:
        """Everything, or some of what is not acknowledged yet: a line may be incomplete."""
        ends = [old + int((len(have) - old) * part) for old, have in zip(self.acked, self.streams, strict=True)]
        self.acked = ends[0], ends[1], ends[2]
        return self.acked


class TapAgainstModel(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="km-tap-")
        self.wake_in, self.wake_out = os.pipe()
        os.set_blocking(self.wake_in, False)
        os.set_blocking(self.wake_out, False)
        self.spool = Spool(self.folder.name, session_name(1), b"session=x")
        self.tap = Tap(self.wake_out, self.spool)
        self.kmd = Kmd()
        self.crossed = [bytearray() for _ in range(STREAMS)]
        self.far: socket.socket | None = None
        self.reader = RecordReader()
        self.pipes = [os.pipe() for _ in range(2)]
        self.seed = 0

    def chunk(self, size: int) -> bytes:
        """Different bytes each time."""
        self.seed += 1
        return (b"%d," % self.seed * (size // 2 + 1))[:size]

    @rule(stream=STREAM_NUMBERS, size=SIZES, count=st.integers(1, 9), is_absorbed=st.booleans())
    def pump(self, stream: int, size: int, count: int, is_absorbed: bool) -> None:  # noqa: FBT001
        for _ in range(count):
            chunk = self.chunk(size)
            self.tap.keep(stream, memoryview(chunk), self.seed)
            self.crossed[stream] += chunk
        if is_absorbed:
            self.tap.absorb()

    @precondition(lambda self: TEE is not None)
    @rule(stream=STREAM_NUMBERS, count=st.integers(1, 20), tail=st.sampled_from((CHUNK_BYTES, 30_000)))
    def pump_bulk(self, stream: int, count: int, tail: int) -> None:
        near, feed = self.pipes[stream]
        for size in [CHUNK_BYTES] * (count - 1) + [tail]:
            chunk = self.chunk(size)
            os.write(feed, chunk)
            segment = self.tap.open_segment(stream)
            assert segment is not None
            assert TEE is not None
            assert TEE(near, segment.write_end) == size
            assert os.read(near, CHUNK_BYTES) == chunk
            self.tap.keep_segment(stream, segment, size, self.seed)
            self.crossed[stream] += chunk

    @rule()
    def absorb(self) -> None:
        self.tap.absorb()

    @precondition(lambda self: self.far is None)
    @rule()
    def connect(self) -> None:
        near, self.far = socket.socketpair()
        self.far.setblocking(False)
        self.reader = RecordReader()
        self.tap.attach(near, self.kmd.acked)
        self.tap.go_on()

    @precondition(lambda self: self.far is not None)
    @rule(is_killed=st.booleans())
    def lose_connection(self, is_killed: bool) -> None:  # noqa: FBT001
        assert self.far is not None
        if is_killed:
            self.kmd.restart()
        self.far.close()
        self.far = None
        self.tap.detach()

    @precondition(lambda self: self.far is not None)
    @rule(steps=st.integers(1, 12))
    def drain(self, steps: int) -> None:
        for _ in range(steps):
            if not self.tap.drain(DIRECT_MAX_BYTES):
                break
        self.tap.go_on()

    @precondition(lambda self: self.far is not None)
    @rule(reads=st.integers(1, 6), size=st.sampled_from((100, 70_000, 1 << 20)))
    def kmd_reads(self, reads: int, size: int) -> None:
        assert self.far is not None
        for _ in range(reads):
            try:
                data = self.far.recv(size)
            except BlockingIOError:
                break
            for record in self.reader.feed(data):
                self.kmd.take(record)
        self.tap.flush()

    @precondition(lambda self: self.far is not None)
    @rule(part=st.sampled_from((0.0, 0.4, 1.0)))
    def kmd_acknowledges(self, part: float) -> None:
        assert self.far is not None
        self.far.send(render_offsets(ACK, self.kmd.acknowledge(part)))
        self.tap.read_acks()

    @invariant()
    def kmd_has_a_beginning_of_what_crossed(self) -> None:
        for have, crossed in zip(self.kmd.streams, self.crossed, strict=True):
            assert crossed.startswith(have)
        assert self.tap.skipped_bytes == 0

    def teardown(self) -> None:
        """The session ends; half the time kmd is there, else the spool is what remains."""
        self.tap.close({}, 0)
        if self.far is not None and self.seed % 2:
            self.finish_with_kmd()
        else:
            self.tap.detach()
            self.finish_with_spool()
        assert self.kmd.streams == self.crossed
        assert self.kmd.lengths is not None
        assert self.kmd.lengths["length.1"] == b"%d" % len(self.crossed[1])
        for descriptor in (self.wake_in, self.wake_out, *self.pipes[0], *self.pipes[1]):
            os.close(descriptor)
        self.tap.detach()
        if self.far is not None:
            self.far.close()
        self.spool.discard()
        self.folder.cleanup()

    def finish_with_kmd(self) -> None:
        for _ in range(10_000):
            self.drain(9)
            self.kmd_reads(6, 1 << 20)
            if self.kmd.lengths is not None:
                return
        raise AssertionError("the tap does not come to its end")

    def finish_with_spool(self) -> None:
        self.tap.leave_to_spool()
        reader = RecordReader(salvage=True)
        reader.trusts_bodies = False
        (path,) = Path(self.folder.name, "spool").iterdir()
        for record in [*reader.feed(path.read_bytes()), *reader.finish()]:
            if record.type != HELLO:
                self.kmd.take(record)
        assert reader.lost_bytes == 0


TestTapAgainstModel = TapAgainstModel.TestCase
TestTapAgainstModel.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

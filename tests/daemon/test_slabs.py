"""Slabs: memory is used again when nobody needs what is in it, and never before."""

import random
import sys
from pathlib import Path

import pytest

from kmd.record import ACK, render_offsets
from kmd.shim.slabs import (
    CHUNK_BYTES,
    READY_SLABS,
    SLAB_BYTES,
    Chunk,
    Slab,
    Slabs,
    claims_of,
    drop,
    new_memory,
    parts_of,
)
from kmd.shim.tap import Tap
from tests.daemon.test_tap import connected, joined, receive, tap_in


def put(slab: Slab, stream: int, data: bytes) -> Chunk:
    """As a pump does."""
    start = slab.used_bytes
    slab.memory[start : start + len(data)] = data
    slab.used_bytes += len(data)
    slab.claims += 1
    return stream, slab, start, len(data), 1


def test_a_slab_is_used_again_when_all_its_chunks_are_dropped() -> None:
    slabs = Slabs()
    first = slabs.take()
    chunks = [put(first, 0, b"one"), put(first, 1, b"two")]
    second = slabs.take()
    assert second is not first
    drop(claims_of(chunks[:1]))
    put(second, 0, b"three")
    assert slabs.take() not in (first, second)
    drop(claims_of(chunks[1:]))
    assert slabs.take() is first
    assert first.used_bytes == 0


def test_some_are_ready_before_the_first_message() -> None:
    slabs = Slabs()
    slabs.prepare()
    taken = []
    slabs.prepare()
    for _ in range(READY_SLABS + 1):
        taken.append(slabs.take())
        put(taken[-1], 0, b"x")
    assert len(set(taken)) == READY_SLABS + 1
    assert [len(slab.memory) for slab in taken[1:]] == [SLAB_BYTES] * READY_SLABS
    assert all(slab.last_start + CHUNK_BYTES == len(slab.memory) for slab in taken)
    before = len(slabs._slabs)  # noqa: SLF001 - nothing else shows whether there was one more
    slabs.take()
    assert len(slabs._slabs) == before + 1  # noqa: SLF001


def test_there_is_memory_without_the_module_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no descriptor left nothing can be imported."""
    monkeypatch.setitem(sys.modules, "mmap", None)
    slabs = Slabs()
    slabs.prepare()
    assert [len(slab.memory) for slab in slabs._slabs[1:]] == [SLAB_BYTES] * READY_SLABS  # noqa: SLF001


def test_neighbours_are_one_part_and_others_are_not() -> None:
    one, other = Slab(new_memory()), Slab(new_memory())
    a, b, c = put(one, 0, b"aa"), put(one, 1, b"bbb"), put(other, 0, b"c")
    d = put(one, 0, b"d")
    assert [bytes(part) for part in parts_of([a, b, c, d])] == [b"aabbb", b"c", b"d"]
    assert [bytes(part) for part in parts_of([b, a])] == [b"bbb", b"aa"]
    assert parts_of([]) == []
    assert claims_of([a, b, c]) == {one: 2, other: 1}


class Feeder:
    """Puts chunks into a tap the way the pump does, and remembers what they were."""

    def __init__(self, tap: Tap, seed: int) -> None:
        self._tap = tap
        self.slab = tap.next_slab()
        self._random = random.Random(seed)
        self.sent = [bytearray(), bytearray(), bytearray()]

    def feed(self, count: int) -> None:
        for _ in range(count):
            if self.slab.used_bytes > self.slab.last_start:
                self.slab = self._tap.next_slab()
            data = self._random.randbytes(self._random.choice((1, 300, 5_000, 40_000)))
            stream = self._random.randrange(2)
            self.sent[stream] += data
            self._tap.take(put(self.slab, stream, data))


def test_memory_that_is_written_again_never_changes_what_kmd_gets(tmp_path: Path) -> None:
    """kmd reads too little, so records go in part, spill, and are sent again to the next connection."""
    with tap_in(tmp_path) as (tap, spool):
        feeder = Feeder(tap, 7)
        for _ in range(4):
            with connected(tap, buffer_bytes=20_000) as far:
                while not tap.go_on():
                    assert tap.drain(CHUNK_BYTES) or far.recv(1 << 20)
                before = spool.size_bytes
                while spool.size_bytes < before + (1 << 20):
                    feeder.feed(8)
                    tap.absorb()
                feeder.feed(200)
                tap.absorb()
            with connected(tap) as far:
                assert joined(receive(far, tap)) == [bytes(stream) for stream in feeder.sent]


def test_a_record_that_went_in_part_is_finished_with_the_bytes_it_began_with(tmp_path: Path) -> None:
    with tap_in(tmp_path) as (tap, spool), connected(tap, buffer_bytes=20_000) as far:
        assert tap.go_on()
        feeder = Feeder(tap, 9)
        while not spool.size_bytes:
            feeder.feed(8)
            tap.absorb()
        feeder.feed(800)  # over all that has been spooled
        tap.absorb()
        assert joined(receive(far, tap)) == [bytes(stream) for stream in feeder.sent]


def test_memory_stays_flat_while_kmd_keeps_up(tmp_path: Path) -> None:
    seen = set()
    with tap_in(tmp_path) as (tap, _), connected(tap) as far:
        tap.go_on()
        feeder = Feeder(tap, 11)
        for _ in range(60):
            feeder.feed(40)
            seen.add(feeder.slab)
            tap.absorb()
            receive(far, tap)
            far.sendall(render_offsets(ACK, (len(feeder.sent[0]), len(feeder.sent[1]), 0)))
            assert tap.read_acks()
        assert sum(map(len, feeder.sent)) > 20 << 20
        assert len(seen) < 20


def test_memory_stays_flat_when_nobody_takes_anything(tmp_path: Path) -> None:
    seen = set()
    with tap_in(tmp_path / "missing" / "folder") as (tap, spool):
        feeder = Feeder(tap, 13)
        for _ in range(60):
            feeder.feed(40)
            seen.add(feeder.slab)
        assert not spool.size_bytes
        assert tap.skipped_bytes > 10 << 20
        assert len(seen) * SLAB_BYTES < 14 << 20

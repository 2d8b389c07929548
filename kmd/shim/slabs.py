"""
Slabs: the memory in which chunks lie from their read on, until kmd or the spool has them.

The pump reads into a slab, writes on from there, and leaves the chunk in its place. So nothing is copied and nothing
allocated while a message crosses: fresh memory costs as much as a system call for every page of it.
"""

import os
from _collections_abc import Iterable

CHUNK_BYTES = 64 << 10
"""Most that is read at once: a pipe's capacity on Linux."""
SLAB_BYTES, FIRST_SLAB_BYTES = 256 << 10, 128 << 10
SPARE_BYTES = 4 << 10
READY_SLABS = 3
"""So many are touched beforehand."""


class Slab:
    """
    used_bytes: how far it is filled, from the start; beyond last_start there is no room for a whole chunk. Each chunk
    in it is a claim: `claims` counts all that there have been and is its pump's alone; `dropped` those that are over,
    and belongs to who holds the tap's lock.
    """

    __slots__ = ("claims", "dropped", "last_start", "memory", "used_bytes")

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self.last_start = len(memory) - CHUNK_BYTES
        self.used_bytes = 0
        self.claims = self.dropped = 0


Chunk = tuple[int, Slab, int, int, int]
"""What has crossed: stream, slab, start there, bytes, Unix ns. It has a claim on the slab."""
Claims = dict[Slab, int]


class Slabs:
    """All slabs of one pump, used again in the order in which they were made: so few pages are ever touched."""

    def __init__(self) -> None:
        self._slabs = [Slab(memoryview(bytearray(FIRST_SLAB_BYTES)))]
        self._is_ready = False

    def take(self) -> Slab:
        """One with nothing in it, for the pump alone."""
        for slab in self._slabs:
            if slab.claims == slab.dropped:
                slab.used_bytes = 0
                return slab
        slab = Slab(new_memory())
        self._slabs.append(slab)
        return slab

    def prepare(self) -> None:
        """Touch every page of some, as the pump should not have to; done once. Called by the link."""
        if self._is_ready:
            return
        self._is_ready = True
        try:
            zeros = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return  # no descriptor left
        try:
            for _ in range(READY_SLABS):
                memory = new_memory()
                os.readv(zeros, (memory,))  # unlike a loop of ours it leaves the interpreter to the pump
                self._slabs.append(Slab(memory))
        except (OSError, MemoryError):
            pass  # the pump will do without
        finally:
            os.close(zeros)


def new_memory() -> memoryview:
    """Pages that do not exist before they are touched; without mmap others. Raises OSError, MemoryError."""
    try:
        import mmap  # noqa: PLC0415 - the first message need not wait for it
    except ImportError:
        return memoryview(bytearray(SLAB_BYTES))  # no descriptor is left to read the module
    return memoryview(mmap.mmap(-1, SLAB_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def spare_slab() -> Slab:
    """One that is not big enough for a chunk, for when there is no memory."""
    return Slab(memoryview(bytearray(SPARE_BYTES)))


def is_spare(slab: Slab) -> bool:
    """Whether a pump reads there only because there is no memory."""
    return slab.last_start < 0


def copy_of(stream: int, data: memoryview, at_ns: int) -> Chunk:
    """A chunk with a slab of its own, for a pump that reads by other means."""
    slab = Slab(memoryview(bytes(data)))
    slab.claims = 1
    return stream, slab, 0, len(data), at_ns


def parts_of(chunks: Iterable[Chunk]) -> list[memoryview]:
    """What *chunks* hold, in order; neighbours in one piece."""
    parts: list[memoryview] = []
    slab: Slab | None = None
    start = end = 0
    for _, next_slab, next_start, size, _ in chunks:
        if next_slab is not slab or next_start != end:
            if slab is not None:
                parts.append(slab.memory[start:end])
            slab, start = next_slab, next_start
        end = next_start + size
    if slab is not None:
        parts.append(slab.memory[start:end])
    return parts


def claims_of(chunks: Iterable[Chunk]) -> Claims:
    """How many of *chunks* lie in each slab."""
    claims: Claims = {}
    for chunk in chunks:
        claims[chunk[1]] = claims.get(chunk[1], 0) + 1
    return claims


def drop(claims: Claims) -> None:
    """Nobody needs these any more. Only for who holds the tap's lock."""
    for slab, count in claims.items():
        slab.dropped += count

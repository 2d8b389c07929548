"""
The inbox: what has crossed and has not been taken in yet. The pump adds to it, which is one append, because whatever a
pump does there stands between a request and its answer; who holds the tap's lock takes out of it.
"""

from kmd.record import STREAMS
from kmd.shim.bulk import RUN_MAX_CHUNKS, Bulk, Piece, Segment, split_window
from kmd.shim.slabs import Chunk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
else:
    from _collections import deque

CALL_ABOVE_BYTES, FULL_BYTES, MAX_BYTES = 3 << 20, 5 << 20, 6 << 20
"""With the first in it the link is called. With the second the pump takes some in itself, as the link does not get a
turn, or, with the third, waits until the link has done so. Each call costs the traffic a message or two that take
longer, so there are few."""
CALL_ABOVE_CHUNKS, FULL_CHUNKS = 2_000, 20_000
"""Likewise. The first is some 20 ms of the densest traffic: no longer is capture in memory alone."""
CHUNK_OVERHEAD_BYTES = 192
"""What a chunk costs beside its bytes, so that tiny messages cannot outgrow a bound."""


class Inbox:
    """
    Chunks in slabs, and the places of those that lie in bulks, in the order in which they crossed.

    put_bytes, teed_bytes: all that has come so far, per stream; each is written by that stream's pump alone.
    """

    __slots__ = ("_entries", "_taken_bytes", "bulks", "put_bytes", "teed_bytes")

    def __init__(self) -> None:
        self._entries: deque[Chunk | Piece] = deque()
        self._taken_bytes = 0
        self.put_bytes = [0] * STREAMS
        self.teed_bytes = [0] * STREAMS
        self.bulks = tuple(Bulk() for _ in range(STREAMS))

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, chunk: Chunk) -> int:
        """Returns how many there are now."""
        self.put_bytes[chunk[0]] += chunk[3]
        self._entries.append(chunk)
        return len(self._entries)

    def add_piece(self, stream: int, segment: Segment, size: int, at_ns: int) -> None:
        """The next *size* bytes in the pipe of *segment* have crossed."""
        segment.taken_in += 1
        self.teed_bytes[stream] += size
        self._entries.append(Piece(stream, segment, size, at_ns))

    @property
    def kept_bytes(self) -> int:
        """All that has crossed."""
        return sum(self.put_bytes) + sum(self.teed_bytes)

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        return sum(self.put_bytes) - self._taken_bytes + CHUNK_OVERHEAD_BYTES * len(self._entries)

    @property
    def calls(self) -> bool:
        """Whether there is so much that the link should take it in now, before the pump has to."""
        if len(self._entries) > CALL_ABOVE_CHUNKS or self.size_bytes > CALL_ABOVE_BYTES:
            return True
        return any(bulk.is_nearly_full for bulk in self.bulks)

    @property
    def has_bulk(self) -> bool:
        """Whether large chunks have gathered, so that there is something to do in a quiet moment."""
        return not all(bulk.is_empty for bulk in self.bulks)

    def take(self) -> tuple[list[Chunk], list[Piece]]:
        """What comes next and makes one record: one of the two is empty, both when there is nothing."""
        entries = self._entries
        window = [entries.popleft() for _ in range(min(len(entries), RUN_MAX_CHUNKS))]
        chunks, pieces, rest = split_window(window)
        entries.extendleft(reversed(rest))
        self._taken_bytes += sum(chunk[3] for chunk in chunks)
        return chunks, pieces

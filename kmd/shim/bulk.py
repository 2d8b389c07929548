"""
The bulk of a stream: large chunks that have crossed, kept where they lie instead of being copied.

On Linux tee(2) gives a second pipe the very pages that wait in the first, and splice(2) moves those on to the far side;
the bytes never come to this process. The second pipe is a *segment*. When the traffic pauses, or the segments are full,
the link empties them. So a message of many megabytes takes no longer than through a program that copies it, and what
has to be copied for kmd is copied afterwards.

tee(2) wants pipes on both sides. Where it cannot be had, the pumps read and write, and nothing here is used.
"""

import os
import stat
from _collections_abc import Callable

from kmd.shim.slabs import CHUNK_BYTES, Chunk

CHUNK_SLOTS = 16
"""So many buffers a pipe of CHUNK_BYTES has; a tee takes at most all of them."""
SEGMENT_PIPE_BYTES = 1 << 20
"""What the kernel allows everyone (/proc/sys/fs/pipe-max-size)."""
BULK_MAX_SEGMENTS = 18
"""Most that one stream keeps so, a message of 16 MiB and some. The kernel allows a user 64 MiB of pipes
(pipe-user-pages-soft)."""

RUN_MAX_CHUNKS, RUN_MAX_BYTES = 512, 256 << 10
"""Of what one record takes from the inbox: a pump that wants the interpreter waits for no more."""
PIECES_MAX_BYTES = 960 << 10
"""Of what one record takes from a bulk; with its table it is within kmd.record.BODY_MAX_BYTES."""
SPLICE_NONBLOCK = getattr(os, "SPLICE_F_NONBLOCK", 0)
"""For tee(2) and splice(2): the pump waits for all its ends at once, and never in one of them."""

Tee = Callable[[int, int], int]


def load_tee() -> Tee | None:
    """tee(2) as `tee(from, to)`: bytes, 0 at the end of file, -1 for any error. None where there is none."""
    if not hasattr(os, "splice"):
        return None
    try:
        import ctypes  # noqa: PLC0415 - Linux only, and the pumps are running by now

        function = ctypes.CDLL(None).tee
    except (ImportError, OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
    function.restype = ctypes.c_ssize_t

    def tee(source: int, target: int) -> int:
        return int(function(source, target, CHUNK_BYTES, SPLICE_NONBLOCK))

    return tee


def are_plain_pipes(*descriptors: int) -> bool:
    """Whether tee(2) and splice(2) work on all of these, and take no more than CHUNK_SLOTS at once."""
    import fcntl  # noqa: PLC0415 - only where there is a bulk

    try:
        return all(
            stat.S_ISFIFO(os.fstat(fd).st_mode) and fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) <= CHUNK_BYTES
            for fd in descriptors
        )
    except OSError:
        return False


class Segment:
    """
    A pipe with chunks in it. `taken_in` counts what its pump has put there, `taken_out` what has been read out of it
    again; each is written by one thread. `is_spoilt` when the pipe holds bytes that have not crossed.
    """

    __slots__ = ("_slots", "is_spoilt", "read_end", "taken_in", "taken_out", "write_end")

    def __init__(self) -> None:
        """Raises OSError when the kernel does not give a pipe of that size."""
        self.taken_in = self.taken_out = 0
        self.is_spoilt = False
        self.read_end, self.write_end = os.pipe()
        try:
            self._resize(SEGMENT_PIPE_BYTES)
        except OSError:
            self.close()
            raise

    @property
    def is_full(self) -> bool:
        """Whether a tee might have to wait for room."""
        waiting = self.taken_in - self.taken_out
        return (waiting + 1) * CHUNK_SLOTS > self._slots or self.is_spoilt

    @property
    def is_empty(self) -> bool:
        return self.taken_in == self.taken_out

    def shrink(self) -> None:
        """It has been read empty, but its pump may wait in it: small, so that it counts for little."""
        try:
            self._resize(CHUNK_BYTES)
        except OSError:
            pass  # a chunk has come meanwhile

    def close(self) -> None:
        os.close(self.read_end)
        os.close(self.write_end)

    def _resize(self, size: int) -> None:
        import fcntl  # noqa: PLC0415 - see above

        self._slots = fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, size) // (CHUNK_BYTES // CHUNK_SLOTS)


class Piece:
    """A chunk's place in the inbox whose bytes are in a segment."""

    __slots__ = ("at_ns", "segment", "size", "stream")

    def __init__(self, stream: int, segment: Segment, size: int, at_ns: int) -> None:
        self.stream = stream
        self.segment = segment
        self.size = size
        self.at_ns = at_ns


def split_window(window: list[Chunk | Piece]) -> tuple[list[Chunk], list[Piece], list[Chunk | Piece]]:
    """
    What of *window*, the front of the inbox, makes the next record: (chunks, pieces, rest), one of the first two empty.

    Chunks are taken as far as there are some. Pieces of one segment are taken over those of other streams between
    them, so that a bulk each way at once makes few records; each stream keeps its order.
    """
    if window and isinstance(window[0], Piece):
        pieces, rest = split_pieces(window[0], window)
        return [], pieces, rest
    chunks: list[Chunk] = []
    size = 0
    for entry in window:
        if isinstance(entry, Piece) or size > RUN_MAX_BYTES:
            break
        chunks.append(entry)
        size += entry[3]
    return chunks, [], window[len(chunks) :]


def split_pieces(first: Piece, window: list[Chunk | Piece]) -> tuple[list[Piece], list[Chunk | Piece]]:
    """The pieces that go with *first*, and the rest."""
    pieces: list[Piece] = []
    rest: list[Chunk | Piece] = []
    size, is_open = 0, True
    for entry in window:
        if isinstance(entry, Piece) and entry.segment is first.segment:
            size += entry.size
            is_open = is_open and size <= PIECES_MAX_BYTES
            if is_open:
                pieces.append(entry)
                continue
        elif stream_of(entry) == first.stream:
            is_open = False
        rest.append(entry)
    return pieces, rest


def stream_of(entry: Chunk | Piece) -> int:
    return entry.stream if isinstance(entry, Piece) else entry[0]


class Bulk:
    """One stream's segments, oldest first. Its pump opens new ones; who holds the tap's lock drops those read out."""

    def __init__(self) -> None:
        self._segments: list[Segment] = []

    @property
    def is_empty(self) -> bool:
        return all(segment.is_empty for segment in self._segments)

    @property
    def is_nearly_full(self) -> bool:
        """Not yet with a message of 16 MiB: it crosses before anything is done with it."""
        return len(self._segments) >= BULK_MAX_SEGMENTS - 1

    def open_segment(self) -> Segment | None:
        """Where the next chunk goes; None when there is no room or no pipe to be had. Only for the pump."""
        if self._segments and not self._segments[-1].is_full:
            return self._segments[-1]
        if len(self._segments) >= BULK_MAX_SEGMENTS:
            return None
        try:
            self._segments.append(Segment())
        except OSError:
            return None
        return self._segments[-1]

    def drop(self, segment: Segment, count: int) -> None:
        """*count* chunks have been read out of *segment*, the oldest that has any."""
        segment.taken_out += count
        while len(self._segments) > 1 and self._segments[0].is_empty:
            self._segments.pop(0).close()
        if len(self._segments) == 1 and self._segments[0].is_empty:
            self._segments[0].shrink()

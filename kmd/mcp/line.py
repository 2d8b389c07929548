"""
Bytes to lines. A *line* is what stands between two newlines of one stream, named by the offset of its first byte.

No decoding, no `splitlines`: only 0x0A ends a line, and the line keeps every other byte, a final CR included.
A line longer than the bound is kept as its prefix with its true size and SHA-256, in flat memory.
"""

import hashlib
from collections.abc import Iterator
from typing import Protocol

import msgspec


class Hash(Protocol):
    """What hashlib's objects have in common."""

    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class Line(msgspec.Struct, frozen=True, gc=False):
    """
    One line without its newline.

    offset: of its first byte in the stream. size_bytes: its true length; more than len(payload) only when
    *sha256* (hex, of the whole line) is set. at_ns: when its last byte was read, Unix nanoseconds.
    """

    offset: int
    payload: bytes
    size_bytes: int
    at_ns: int
    sha256: str | None = None


_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


def is_object(payload: bytes) -> bool:
    """Whether *payload* is one whole JSON object; the end of a longer one never is, its brackets do not match."""
    try:
        _OBJECT.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


class LineAssembler:
    """
    Cuts one stream into lines, from any chunks.

    `complete_offset` is where the first line that is not complete yet begins: everything before it has been
    handed out. After a gap the rest of the broken line is skipped too, up to the next newline;
    `gap_bytes` counts what was skipped below `complete_offset`. While a line is broken that offset stays
    one byte short of the gap's end: who goes on from there finds a gap again, and takes no rest for a line.
    """

    __slots__ = (
        "_at_ns",
        "_broken",
        "_hash",
        "_max_bytes",
        "_parts",
        "_size",
        "complete_offset",
        "gap_bytes",
    )

    def __init__(self, offset: int, max_bytes: int) -> None:
        self.complete_offset = offset
        self.gap_bytes = 0
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self._at_ns = 0
        self._hash: Hash | None = None
        self._broken = False

    @property
    def next_offset(self) -> int:
        """The offset of the byte that comes next."""
        return self.complete_offset + self._size

    def feed(self, offset: int, chunk: bytes, at_ns: int) -> Iterator[Line]:
        """
        Yield each line that *chunk*, whose first byte stands at *offset*, completes.

        What was fed before is passed over, so a resend is harmless; what is missing counts as a gap.
        """
        known = self.next_offset - offset
        if known > 0:
            chunk = chunk[known:]
        elif known < 0:
            self.skip(self.next_offset, -known)
        *ends, rest = chunk.split(b"\n")
        for piece in ends:
            if self._size:
                yield from self._finish(piece, at_ns)
            else:
                yield self._whole(piece, at_ns)
        if rest:
            self._append(rest)
            self._at_ns = at_ns

    def skip(self, offset: int, length: int) -> None:
        """*length* bytes from *offset* on were not captured: the line they belong to is broken."""
        end = offset + length
        if end <= self.next_offset:
            return
        self.gap_bytes += end - 1 - self.complete_offset
        self.complete_offset = end - 1
        self._forget()
        self._size = 1
        self._broken = True

    def finish(self) -> Iterator[Line]:
        """The stream has ended: what is left is a line without its newline, or a gap."""
        if self._size:
            yield from self._finish(b"", self._at_ns, terminator=0)

    def abandon(self) -> None:
        """Nothing more comes and nobody knows where the stream ended: what is left of a line counts as a gap."""
        self.gap_bytes += self._size
        self.complete_offset += self._size
        self._forget()
        self._broken = False

    def _whole(self, piece: bytes, at_ns: int) -> Line:
        offset = self.complete_offset
        self.complete_offset = offset + len(piece) + 1
        if len(piece) <= self._max_bytes:
            return Line(offset, piece, len(piece), at_ns)
        return Line(offset, piece[: self._max_bytes], len(piece), at_ns, hashlib.sha256(piece).hexdigest())

    def _finish(self, piece: bytes, at_ns: int, terminator: int = 1) -> Iterator[Line]:
        self._append(piece)
        offset, size = self.complete_offset, self._size
        payload = b"".join(self._parts)
        if not self._broken:
            yield Line(offset, payload, size, at_ns, self._hash.hexdigest() if self._hash else None)
        elif self._hash is None and is_object(payload):
            self.gap_bytes += 1  # the gap's last byte stood for it so far: it was the newline before this line
            yield Line(offset + 1, payload, size - 1, at_ns)
        else:
            self.gap_bytes += size + terminator
        self.complete_offset = offset + size + terminator
        self._forget()
        self._broken = False

    def _append(self, piece: bytes) -> None:
        """Add to the open line; past the bound only its size and hash go on."""
        room = self._max_bytes - self._size
        self._size += len(piece)
        if len(piece) <= room:
            self._parts.append(piece)
            return
        if self._hash is None:
            self._hash = hashlib.sha256(b"".join(self._parts))
            self._parts.append(piece[: max(room, 0)])
        self._hash.update(piece)

    def _forget(self) -> None:
        self._parts.clear()
        self._size = 0
        self._hash = None

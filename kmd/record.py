"""
Records: what a relay tells kmd, over the socket and in a spool file alike.

A record is a fixed header and a body. HELLO opens a session; DATA carries bytes of one stream and the offset
of the first; GAP says that bytes from an offset on were skipped, and how many; BYE closes the session.
kmd answers WELCOME and ACK: for each stream the offset up to which everything is durable.
The CRC-32 covers header and body, so a torn or altered record is found wherever it lay.
Standard library only, and little of it: the relay imports this while the server starts beside it.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping

PROTOCOL = 1
HELLO, DATA, GAP, BYE, WELCOME, ACK = range(1, 7)

TO_SERVER, TO_CLIENT, STDERR = range(3)
"""Stream numbers, in the order of kmd.mcp.names.Stream (which the shim must not import; a test compares)."""
STREAMS = 3
NO_STREAM = 255

BODY_MAX_BYTES = 1 << 20
"""Largest body that a reader accepts: room for any chunk (64 KiB) and any HELLO; checked before allocating."""
POSITION_MAX = 1 << 60
"""Largest offset or gap that a reader accepts: sums of a few of them still fit a signed 64-bit integer."""
TIME_MAX_NS = (1 << 63) - 1

_HEADER = struct.Struct("<BBHIQQ")
"""type, stream, what the CRC covers, body bytes, offset, wall-clock ns."""
_CRC = struct.Struct("<I")
_LENGTH = struct.Struct("<Q")
_OFFSETS = struct.Struct("<QQQ")
CRC_OF_ALL, CRC_OF_HEAD = range(2)
"""In files the CRC covers header and body. On a socket it need not: a chunk's would take as long as its copy."""
HEADER_BYTES = _HEADER.size + _CRC.size


class RecordError(ValueError):
    """The bytes are no record: wrong CRC, unknown type or a body over the bound. Never shows the bytes."""


class Record:
    """One record as read: `body` is the bytes of DATA, fields for HELLO and BYE, numbers for the rest."""

    __slots__ = ("at_ns", "body", "offset", "stream", "type")

    def __init__(self, type: int, stream: int, offset: int, at_ns: int, body: bytes) -> None:  # noqa: A002
        self.type = type
        self.stream = stream
        self.offset = offset
        self.at_ns = at_ns
        self.body = body


def render_head(type: int, stream: int, offset: int, at_ns: int, body: bytes) -> bytes:  # noqa: A002
    """The header that goes before *body*; apart from it, so that a chunk need not be copied to be written."""
    head = _HEADER.pack(type, stream, CRC_OF_ALL, len(body), offset, at_ns)
    return head + _CRC.pack(zlib.crc32(body, zlib.crc32(head)))


def render_light_head(type: int, stream: int, offset: int, at_ns: int, body: bytes) -> bytes:  # noqa: A002
    """The same with a CRC over the header alone, for a socket: the kernel does not alter what it passes on."""
    head = _HEADER.pack(type, stream, CRC_OF_HEAD, len(body), offset, at_ns)
    return head + _CRC.pack(zlib.crc32(head))


def render_gap(length: int) -> bytes:
    """The body of a GAP record: how many bytes were not captured."""
    return _LENGTH.pack(length)


def parse_gap(body: bytes) -> int:
    """How many bytes a GAP record skips. Raises RecordError."""
    if len(body) != _LENGTH.size:
        raise RecordError("a gap without its length")
    length: int = _LENGTH.unpack(body)[0]
    if length > POSITION_MAX:
        raise RecordError("a gap longer than any stream")
    return length


def render_offsets(type: int, offsets: tuple[int, int, int]) -> bytes:  # noqa: A002
    """A whole WELCOME or ACK record: for each stream, in its number's order, what is durable."""
    body = _OFFSETS.pack(*offsets)
    return render_head(type, NO_STREAM, 0, 0, body) + body


def parse_offsets(body: bytes) -> tuple[int, int, int]:
    """The offsets of a WELCOME or ACK record. Raises RecordError."""
    if len(body) != _OFFSETS.size:
        raise RecordError("offsets of another size")
    to_server, to_client, stderr = _OFFSETS.unpack(body)
    return to_server, to_client, stderr


def render_fields(fields: Mapping[str, bytes]) -> bytes:
    """The body of a HELLO or BYE record: NUL-separated `key=value`, which takes any path or argument as it is."""
    return b"\0".join(key.encode() + b"=" + value for key, value in fields.items())


def parse_fields(body: bytes) -> dict[str, bytes]:
    """The fields of a HELLO or BYE record; values are raw bytes. Raises RecordError."""
    fields = {}
    for entry in body.split(b"\0") if body else ():
        key, equals, value = entry.partition(b"=")
        if not equals or not key or not key.isascii():
            raise RecordError("a field without a name")
        fields[key.decode("ascii")] = value
    return fields


class RecordReader:
    """
    Cuts a byte stream into records. `feed` takes any split of it; at most one body is held back.

    With *salvage*, for spool files, damage is passed over up to the next record that holds together;
    `lost_bytes` counts what was passed over. Without it, for sockets, damage raises RecordError.
    """

    __slots__ = ("_buffer", "_salvage", "lost_bytes")

    def __init__(self, *, salvage: bool = False) -> None:
        self._buffer = bytearray()
        self._salvage = salvage
        self.lost_bytes = 0

    def feed(self, chunk: bytes) -> Iterator[Record]:
        """Yield each record that *chunk* completes. Raises RecordError; the reader is of no use after that."""
        self._buffer += chunk
        return self._cut(is_end=False)

    def finish(self) -> Iterator[Record]:
        """The stream has ended: yield what can still be salvaged behind a damaged length; the torn rest is lost."""
        return self._cut(is_end=True)

    def _cut(self, *, is_end: bool) -> Iterator[Record]:
        buffer, start = self._buffer, 0
        try:
            while len(buffer) - start >= HEADER_BYTES:
                try:
                    record = parse_record(buffer, start)
                except RecordError:
                    if not self._salvage:
                        raise
                    start += 1
                    self.lost_bytes += 1
                    continue
                if record is None:
                    if not (is_end and self._salvage):
                        break
                    start += 1
                    self.lost_bytes += 1
                    continue
                start += HEADER_BYTES + len(record.body)
                yield record
            if is_end:
                self.lost_bytes += len(buffer) - start
                start = len(buffer)
        finally:
            del buffer[:start]


def parse_record(buffer: bytearray, start: int) -> Record | None:
    """The record at *start*, where a whole header stands; None while its body is not there. Raises RecordError."""
    type_, stream, covers, length, offset, at_ns = _HEADER.unpack_from(buffer, start)
    if not HELLO <= type_ <= ACK or covers > CRC_OF_HEAD or length > BODY_MAX_BYTES:
        raise RecordError("not a record")
    if offset > POSITION_MAX or at_ns > TIME_MAX_NS:
        raise RecordError("a record from beyond any stream or time")
    body_start = start + HEADER_BYTES
    if body_start + length > len(buffer):
        return None
    body = bytes(buffer[body_start : body_start + length])
    (crc,) = _CRC.unpack_from(buffer, start + _HEADER.size)
    expected = zlib.crc32(buffer[start : start + _HEADER.size])
    if crc != (expected if covers == CRC_OF_HEAD else zlib.crc32(body, expected)):
        raise RecordError("a record with a wrong CRC")
    return Record(type_, stream, offset, at_ns, body)

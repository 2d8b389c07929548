"""
Records: what a relay tells kmd, over the socket and in a spool file alike.

A record is a fixed header and a body. HELLO opens a session; DATA carries a chunk of one stream and the offset
of its first byte; RUN carries many small chunks of all streams in the order in which they crossed; GAP says that
bytes from an offset on were skipped, and how many; BYE closes the session.
kmd answers WELCOME and ACK: for each stream the offset up to which everything is durable.
The CRC-32 covers header and body, so a torn or altered record is found wherever it lay.
Standard library only, and little of it: the relay imports this while the server starts beside it.
"""

import struct
import zlib
from _collections_abc import Iterator, Mapping, Sequence

PROTOCOL = 2
PROTOCOLS = frozenset((1, 2))
"""What a reader understands: 1 has no RUN."""
HELLO, DATA, GAP, BYE, WELCOME, ACK, RUN = range(1, 8)

TO_SERVER, TO_CLIENT, STDERR = range(3)
"""Stream numbers, in the order of kmd.mcp.names.Stream (which the shim must not import; a test compares)."""
STREAMS = 3
NO_STREAM = 255

BODY_MAX_BYTES = 1 << 20
"""Largest body that a reader accepts: room for any chunk (64 KiB) and any HELLO; checked before allocating."""
EFFORT_BYTES, EFFORT_SHARE = 256 << 20, 16
"""How much of bodies that turned out to be none a reader goes through in a damaged file: so much at first, and so much
for each byte of it. A flipped bit costs one body; bytes that look like header after header would take for ever."""
POSITION_MAX = 1 << 60
"""Largest offset or gap that a reader accepts: sums of a few of them still fit a signed 64-bit integer."""
TIME_MAX_NS = (1 << 63) - 1

_HEADER = struct.Struct("<BBHIQQ")
"""type, stream, what the CRC covers, body bytes, offset, wall-clock ns."""
_CRC = struct.Struct("<I")
_LENGTH = struct.Struct("<Q")
_OFFSETS = struct.Struct("<QQQ")
_RUN_HEAD = struct.Struct("<IQQQ")
"""How many chunks, and for each stream the offset of its first byte here."""
_RUN_ENTRY_BYTES = 1 + 4 + 8
CRC_OF_ALL, CRC_OF_HEAD = range(2)
"""In files the CRC covers header and body. On a socket it need not: a chunk's would take as long as its copy. In a
file a large chunk may have the short kind at first; it is sealed when its relay leaves (see kmd.shim.spool)."""
HEADER_BYTES = _HEADER.size + _CRC.size
_PLAUSIBLE_HEAD = rb"[\x01-\x07].[\0\1]\0..[\0-\x10]\0.{7}[\0-\x10].{7}[\0-\x7f]"
"""What `parse_head` lets pass, nearly: one search passes gigabytes of damage in seconds, a try per byte takes hours."""


class RecordError(ValueError):
    """The bytes are no record: wrong CRC, unknown type or a body over the bound. Never shows the bytes."""


class Record:
    """
    One record as read: `body` is the bytes of DATA, fields for HELLO and BYE, numbers for the rest.

    is_sealed: whether the CRC covered the body.
    """

    __slots__ = ("at_ns", "body", "is_sealed", "offset", "stream", "type")

    def __init__(self, type: int, stream: int, offset: int, at_ns: int, body: bytes, *, is_sealed: bool) -> None:  # noqa: A002
        self.is_sealed = is_sealed
        self.type = type
        self.stream = stream
        self.offset = offset
        self.at_ns = at_ns
        self.body = body


def render_head(type: int, stream: int, offset: int, at_ns: int, *body: bytes | memoryview) -> bytes:  # noqa: A002
    """The header that goes before the parts of *body*; apart from them, so that nothing is copied to be written."""
    head = _HEADER.pack(type, stream, CRC_OF_ALL, sum(map(len, body)), offset, at_ns)
    crc = zlib.crc32(head)
    for part in body:
        crc = zlib.crc32(part, crc)
    return head + _CRC.pack(crc)


def render_light_head(type: int, stream: int, offset: int, at_ns: int, length: int) -> bytes:  # noqa: A002
    """The header of a body of *length* bytes, with a CRC over the header alone."""
    head = _HEADER.pack(type, stream, CRC_OF_HEAD, length, offset, at_ns)
    return head + _CRC.pack(zlib.crc32(head))


def render_run(starts: Sequence[int], streams: bytes, lengths: Sequence[int], times_ns: Sequence[int]) -> bytes:
    """
    What goes before the chunks in a RUN's body.

    starts: per stream the offset of its first byte. For each chunk in order: its stream, its length, when it crossed.
    """
    count = len(streams)
    return b"".join(
        (
            _RUN_HEAD.pack(count, *starts),
            streams,
            struct.pack(f"<{count}I", *lengths),
            struct.pack(f"<{count}Q", *times_ns),
        )
    )


def parse_run(body: bytes) -> list[tuple[int, int, bytes, int]]:
    """The chunks of a RUN: (stream, offset, bytes, Unix ns) each. Raises RecordError."""
    if len(body) < _RUN_HEAD.size:
        raise RecordError("a run without its head")
    count, *ends = _RUN_HEAD.unpack_from(body)
    table = _RUN_HEAD.size + count
    at = _RUN_HEAD.size + count * _RUN_ENTRY_BYTES
    if at > len(body):
        raise RecordError("a run without its table")
    streams = body[_RUN_HEAD.size : table]
    lengths = struct.unpack_from(f"<{count}I", body, table)
    times_ns = struct.unpack_from(f"<{count}Q", body, table + 4 * count)
    if at + sum(lengths) != len(body) or max(streams, default=0) >= STREAMS or max(times_ns, default=0) > TIME_MAX_NS:
        raise RecordError("a run that does not add up")
    if max(ends) > POSITION_MAX:
        raise RecordError("a run from beyond any stream")
    chunks = []
    for stream, length, at_ns in zip(streams, lengths, times_ns, strict=True):
        chunks.append((stream, ends[stream], body[at : at + length], at_ns))
        ends[stream] += length
        at += length
    return chunks


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
    trusts_bodies: whether a body is believed that no CRC covers; no, for a file that a power loss may have torn.
    """

    __slots__ = ("_buffer", "_effort_bytes", "_salvage", "lost_bytes", "trusts_bodies")

    def __init__(self, *, salvage: bool = False) -> None:
        self._buffer = bytearray()
        self._salvage = salvage
        self._effort_bytes = EFFORT_BYTES
        self.lost_bytes = 0
        self.trusts_bodies = True

    def feed(self, chunk: bytes) -> Iterator[Record]:
        """Yield each record that *chunk* completes. Raises RecordError; the reader is of no use after that."""
        self._buffer += chunk
        self._effort_bytes += EFFORT_SHARE * len(chunk)
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
                    start = self._pass_over(start)
                    continue
                if record is None:
                    if not (is_end and self._salvage):
                        break
                    start = self._pass_over(start)
                    continue
                start += HEADER_BYTES + len(record.body)
                if record.is_sealed or self.trusts_bodies:
                    yield record
                else:
                    self.lost_bytes += HEADER_BYTES + len(record.body)
            if is_end:
                self.lost_bytes += len(buffer) - start
                start = len(buffer)
        finally:
            del buffer[:start]

    def _pass_over(self, start: int) -> int:
        """No record begins at *start*: where the next one may. Raises RecordError: looking for it takes too long."""
        self._effort_bytes -= min(claimed_bytes(self._buffer, start), len(self._buffer) - start)
        if self._effort_bytes < 0:
            raise RecordError("it is damaged beyond reading")
        following = find_plausible_head(self._buffer, start + 1)
        self.lost_bytes += following - start
        return following


def claimed_bytes(buffer: bytearray, start: int) -> int:
    """How long the body is that a header at *start* speaks of; 0 where there is no header."""
    try:
        return parse_head(buffer, start).length
    except RecordError:
        return 0


def find_plausible_head(buffer: bytearray, start: int) -> int:
    """The first place from *start* on where `parse_head` may find a header, or one may begin that is not whole yet."""
    import re  # noqa: PLC0415 - only kmd reads damaged files, and the relay is to start quickly

    found = re.compile(_PLAUSIBLE_HEAD, re.DOTALL).search(buffer, start)
    return found.start() if found else max(start, len(buffer) - HEADER_BYTES + 1)


class Head:
    """A header as read: the record's numbers, what its CRC covers, and how long its body is."""

    __slots__ = ("at_ns", "covers", "length", "offset", "stream", "type")

    def __init__(self, type: int, stream: int, covers: int, length: int, offset: int, at_ns: int) -> None:  # noqa: A002
        self.type = type
        self.stream = stream
        self.covers = covers
        self.length = length
        self.offset = offset
        self.at_ns = at_ns


def parse_head(buffer: bytes | bytearray, start: int = 0) -> Head:
    """The header at *start*; its CRC is not looked at. Raises RecordError for numbers that no record has."""
    try:
        head = Head(*_HEADER.unpack_from(buffer, start))
    except struct.error:
        raise RecordError("a torn header") from None
    if not HELLO <= head.type <= RUN or head.covers > CRC_OF_HEAD or head.length > BODY_MAX_BYTES:
        raise RecordError("not a record")
    if head.offset > POSITION_MAX or head.at_ns > TIME_MAX_NS:
        raise RecordError("a record from beyond any stream or time")
    return head


def parse_record(buffer: bytearray, start: int) -> Record | None:
    """The record at *start*, where a whole header stands; None while its body is not there. Raises RecordError."""
    head = parse_head(buffer, start)
    body_start = start + HEADER_BYTES
    if body_start + head.length > len(buffer):
        return None
    body = bytes(memoryview(buffer)[body_start : body_start + head.length])
    (crc,) = _CRC.unpack_from(buffer, start + _HEADER.size)
    expected = zlib.crc32(buffer[start : start + _HEADER.size])
    if crc != (expected if head.covers == CRC_OF_HEAD else zlib.crc32(body, expected)):
        raise RecordError("a record with a wrong CRC")
    is_sealed = head.covers == CRC_OF_ALL
    return Record(head.type, head.stream, head.offset, head.at_ns, body, is_sealed=is_sealed)

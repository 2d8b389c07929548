"""
A request's body, bounded in every direction: packed bytes, inflated bytes, and the time that it may take.

One event may carry a payload of 16 MiB, which JSON escapes and base64 make longer: the bounds leave room.
"""

import asyncio
import zlib
from enum import StrEnum

import zstandard
from aiohttp import StreamReader, web

from km_server.errors import ApiError

PACKED_MAX_BYTES = 32 * 2**20
"""Of a body as it is sent."""

INFLATED_MAX_BYTES = 64 * 2**20
"""Of a body once unpacked."""

PIECE_BYTES = 2**20
"""How much is unpacked at a time before the bound is looked at."""

WINDOW_MAX_BYTES = 8 * 2**20
"""Memory that a zstd frame may ask for. Source: RFC 8878 section 3.1.1.1.2."""

GZIP_WBITS = 31
"""zlib's way to say: gzip, the largest window."""


class Encoding(StrEnum):
    """The content codings that a body may have."""

    IDENTITY = "identity"
    GZIP = "gzip"
    ZSTD = "zstd"


def parse_encoding(header: str) -> Encoding:
    """The coding that Content-Encoding names. Raises ApiError 415."""
    try:
        return Encoding(header.strip().lower() or "identity")
    except ValueError:
        accepted = "zstd, gzip, identity"
        raise ApiError(
            415,
            "unknown_encoding",
            "this Content-Encoding is not taken",
            hint=f"use one of {accepted}",
            headers={"Accept-Encoding": accepted},  # RFC 9110 section 12.5.3: what to use instead
        ) from None


def require_json(content_type: str) -> None:
    """Raises ApiError 415 unless the media type is JSON. Takes it without parameters."""
    if content_type != "application/json":
        raise ApiError(415, "unknown_type", "the body must be JSON", hint="send Content-Type: application/json")


async def read_packed(request: web.Request, timeout_s: float) -> bytes:
    """The body as sent. Raises ApiError: 413 too long, 408 not whole within *timeout_s* seconds."""
    if (request.content_length or 0) > PACKED_MAX_BYTES:
        raise too_large("the body", PACKED_MAX_BYTES)
    try:
        async with asyncio.timeout(timeout_s):
            return await collect(request.content)
    except TimeoutError:
        raise ApiError(
            408,
            "slow_body",
            f"the body was not there within {timeout_s:g} s",
            hint="send smaller batches",
            headers={"Connection": "close"},
        ) from None


async def collect(content: StreamReader) -> bytes:
    """Everything up to the end. Raises ApiError 413 as soon as it is too much."""
    packed = bytearray()
    async for piece in content.iter_any():
        packed += piece
        if len(packed) > PACKED_MAX_BYTES:
            raise too_large("the body", PACKED_MAX_BYTES)
    return bytes(packed)


def inflate(encoding: Encoding, packed: bytes, limit_bytes: int = INFLATED_MAX_BYTES) -> bytes:
    """The body unpacked. Pure. Raises ApiError: 413 beyond *limit_bytes*, 400 when it is damaged."""
    try:
        match encoding:
            case Encoding.IDENTITY:
                body = packed
            case Encoding.GZIP:
                body = inflate_gzip(packed, limit_bytes)
            case Encoding.ZSTD:
                body = inflate_zstd(packed, limit_bytes)
    except (zlib.error, zstandard.ZstdError, EOFError):
        raise ApiError(
            400, "damaged_body", f"the body is no valid {encoding}", hint="check the sender's compression"
        ) from None
    if len(body) > limit_bytes:
        raise too_large("the unpacked body", limit_bytes)
    return body


def inflate_gzip(packed: bytes, limit_bytes: int) -> bytes:
    """Every member of a gzip body, up to one byte over the limit. Raises zlib.error, EOFError: cut short."""
    body = bytearray()
    while packed and len(body) <= limit_bytes:
        member = zlib.decompressobj(GZIP_WBITS)
        body += member.decompress(packed, limit_bytes + 1 - len(body))
        if not member.eof and len(body) <= limit_bytes:
            raise EOFError
        packed = member.unused_data
    return bytes(body)


def inflate_zstd(packed: bytes, limit_bytes: int) -> bytes:
    """Every frame of a zstd body, until it is over the limit. Raises zstandard.ZstdError."""
    pieces: list[bytes] = []
    length = 0
    unpacker = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX_BYTES)
    with unpacker.stream_reader(packed, read_across_frames=True) as reader:
        while length <= limit_bytes and (piece := reader.read(PIECE_BYTES)):
            pieces.append(piece)
            length += len(piece)
    return b"".join(pieces)


def too_large(what: str, limit_bytes: int) -> ApiError:
    """The answer to a body beyond a bound."""
    return ApiError(413, "too_large", f"{what} is over {limit_bytes // 2**20} MiB", hint="send fewer events at once")

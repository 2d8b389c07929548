"""
A request's body, bounded in every direction: packed bytes, inflated bytes, the ratio of the two, the time that it
may take, and what all bodies together may hold.

One event may carry a payload of 24 MiB, which base64 makes 32 MiB long: the bounds leave room.
"""

import asyncio
import zlib
from dataclasses import dataclass
from enum import StrEnum

import zstandard
from aiohttp import web

from km_server.config import ServerConfig
from km_server.errors import ApiError
from km_server.limits import Lease

RATIO_FREE_BYTES = 33 * 2**20
"""Up to here any ratio is fine: one payload may be 24 MiB of the same byte. Whatever is longer can be halved."""

PIECE_BYTES = 2**20
"""How much is unpacked at a time before the bound is looked at."""

WINDOW_MAX_BYTES = 8 * 2**20
"""Memory that a zstd frame may ask for. Source: RFC 8878 section 3.1.1.1.2."""

GZIP_MEMBERS_MAX = 64
"""Each member costs a copy of the rest: a body of a million empty ones would take minutes."""

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


@dataclass(frozen=True, slots=True)
class InflationLimit:
    """How long a body may become: *max_bytes*, and beyond RATIO_FREE_BYTES *max_ratio* times its packed length."""

    max_bytes: int
    max_ratio: int

    def bound(self, packed_bytes: int) -> int:
        """The bound for a body that was sent as *packed_bytes*."""
        return min(self.max_bytes, max(RATIO_FREE_BYTES, self.max_ratio * packed_bytes))

    def refusal(self, packed_bytes: int) -> ApiError:
        """The answer to a body that goes on beyond its bound."""
        if self.bound(packed_bytes) < self.max_bytes:
            return ApiError(
                413,
                "too_dense",
                f"the body unpacks to over {self.max_ratio} times its length",
                hint="send fewer events at once, or without compression",
            )
        return too_large("the unpacked body", self.max_bytes)


async def read_packed(request: web.Request, config: ServerConfig, lease: Lease) -> bytes:
    """The body as sent. Raises ApiError: 413 too long, 408 not whole in time, 400 gone, 503 too much held."""
    if (request.content_length or 0) > config.max_body_bytes:
        raise too_large("the body", config.max_body_bytes)
    try:
        async with asyncio.timeout(config.body_timeout_s):
            return await collect(request, config.max_body_bytes, lease)
    except TimeoutError:
        raise ApiError(
            408,
            "slow_body",
            f"the body was not there within {config.body_timeout_s:g} s",
            hint="send smaller batches",
            headers={"Connection": "close"},
        ) from None
    except ConnectionError:
        hint = "send it again"  # for the log and the counters alone: nobody is there to read it
        raise ApiError(400, "broken_body", "the sender has gone before the end of the body", hint=hint) from None


async def collect(request: web.Request, limit_bytes: int, lease: Lease) -> bytes:
    """Everything up to the end. Raises ApiError 413 as soon as it is too much, 503."""
    packed = bytearray()
    async for piece in request.content.iter_any():
        if len(packed) + len(piece) > limit_bytes:
            raise too_large("the body", limit_bytes)
        lease.take(len(piece))
        packed += piece
    return bytes(packed)


def inflate(encoding: Encoding, packed: bytes, limit: InflationLimit) -> bytes:
    """The body unpacked. Pure. Raises ApiError: 413 beyond *limit*, 400 when it is damaged."""
    limit_bytes = limit.bound(len(packed))
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
        raise limit.refusal(len(packed))
    return body


def inflate_gzip(packed: bytes, limit_bytes: int) -> bytes:
    """Every member of a gzip body, up to one byte over the limit. Raises zlib.error, EOFError: no whole members."""
    body = bytearray()
    members = 0
    while packed and len(body) <= limit_bytes:
        members += 1
        if members > GZIP_MEMBERS_MAX:
            raise EOFError
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
    return ApiError(413, "too_large", f"{what} is over {limit_bytes:,} bytes", hint="send fewer events at once")

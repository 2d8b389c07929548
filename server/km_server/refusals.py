"""Errors to answers: one shape for every answer that is no success, whoever refused."""

import traceback
from collections.abc import Mapping

import msgspec
import structlog
from aiohttp import web

from km_server.errors import ApiError, StoreBusy, StoreError

AWAY_RETRY_S = 30
"""A store that is away is mended by a person or by its own restart."""

log = structlog.get_logger("km_server.http")


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong: for programs, for people, and the next thing to do."""

    code: str
    message: str
    hint: str


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer that is no success."""

    error: ErrorDetail


HTTP_HINTS = {404: "see /api/openapi.json for the paths", 405: "see the Allow header"}


def translate(error: Exception) -> ApiError:
    """The answer to an exception. One that nobody foresaw is logged by its place, without its text."""
    match error:
        case ApiError():
            return error
        case StoreBusy():
            return ApiError(
                503,
                "store_busy",
                str(error),
                hint=error.hint,
                headers={"Retry-After": str(error.retry_after_s)},
            )
        case StoreError():
            return ApiError(503, "store_away", str(error), hint=error.hint, headers={"Retry-After": str(AWAY_RETRY_S)})
        case web.HTTPException():
            return http_error(error)
        case _:
            frames = traceback.extract_tb(error.__traceback__)
            place = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
            log.error("unforeseen", error=type(error).__name__, place=place)
            return ApiError(500, "internal", "the server failed; its log says where")


def http_error(error: web.HTTPException) -> ApiError:
    """aiohttp's own refusals (404, 405, 413, 417) in our shape."""
    code = (error.reason or "error").lower().replace(" ", "_")
    kept = {name: value for name, value in error.headers.items() if name.lower() == "allow"}
    return ApiError(error.status, code, error.reason, hint=HTTP_HINTS.get(error.status, ""), headers=kept)


def encode_error(error: ApiError) -> bytes:
    """The JSON of an error."""
    return msgspec.json.encode(ErrorBody(ErrorDetail(error.code, error.message, error.hint)))


FIXED_HEADERS = {"X-Content-Type-Options": "nosniff", "Server": "km-server", "Cache-Control": "no-store"}
"""Nothing of the API is to be kept by a cache or guessed at by a browser."""


def render_error(error: ApiError) -> web.Response:
    """The answer that tells a client of *error*."""
    return web.Response(
        status=error.status,
        body=encode_error(error),
        content_type="application/json",
        headers={**FIXED_HEADERS, **error.headers},
    )


def render_raw(error: ApiError, more: Mapping[str, str]) -> bytes:
    """The answer as bytes, with *more* headers, for a connection that has no request."""
    body = encode_error(error)
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **FIXED_HEADERS,
        **more,
        **error.headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {error.status} {error.code}\r\n{lines}\r\n".encode("ascii") + body

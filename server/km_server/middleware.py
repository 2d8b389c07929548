"""
Around every request: one log line, the security headers, and one shape for every error.

The log says method, route, status and time. It never says a path, a query, a header, a body or an exception's text.
"""

import time
import traceback

import msgspec
import structlog
from aiohttp import web

from km_server.auth import Handler
from km_server.errors import ApiError, StoreBusy, StoreError

log = structlog.get_logger("km_server.http")


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong: for programs, for people, and the next thing to do."""

    code: str
    message: str
    hint: str


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer that is no success."""

    error: ErrorDetail


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into its answer, and log the request."""
    started = time.monotonic()
    resource = request.match_info.route.resource
    route = resource.canonical if resource else "none"  # a path of no route is the sender's own text
    try:
        response = await handler(request)
    except web.HTTPException as exc:
        response = render_error(http_error(exc))
    except Exception as exc:  # noqa: BLE001 - the last one to hear of it; it answers and logs
        response = render_error(translate(exc))
    took_ms = round((time.monotonic() - started) * 1000, 1)
    log.info("request", method=request.method, route=route, status=response.status, took_ms=took_ms)
    return response


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
            return ApiError(503, "store_away", str(error), hint=error.hint, headers={"Retry-After": "30"})
        case _:
            frames = traceback.extract_tb(error.__traceback__)
            place = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
            log.error("unforeseen", error=type(error).__name__, place=place)
            return ApiError(500, "internal", "the server failed; its log says where")


def http_error(error: web.HTTPException) -> ApiError:
    """aiohttp's own refusals (404, 405, 413) in our shape."""
    code = (error.reason or "error").lower().replace(" ", "_")
    kept = {name: value for name, value in error.headers.items() if name.lower() == "allow"}
    return ApiError(error.status, code, error.reason, hint=HTTP_HINTS.get(error.status, ""), headers=kept)


HTTP_HINTS = {404: "see docs/http-api.md for the paths", 405: "see the Allow header"}


def render_error(error: ApiError) -> web.Response:
    """The JSON answer."""
    body = ErrorBody(ErrorDetail(error.code, error.message, error.hint))
    return web.Response(
        status=error.status,
        body=msgspec.json.encode(body),
        content_type="application/json",
        headers=error.headers,
    )


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Nothing of the API is to be kept by a cache or guessed at by a browser."""
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Server"] = "km-server"
    if request.path.startswith("/api"):
        response.headers["Cache-Control"] = "no-store"

"""
Around every request: an id, one log line, the numbers, the headers of every answer, one shape for every error.

The log says method, route, status, time and the client's address. It never says a path, a query, a header, a
body or an exception's text.
"""

import re
import secrets
import time

import structlog
from aiohttp import web

from km_server.auth import Handler
from km_server.connections import Connection
from km_server.context import DOOR, METRICS, PROXIES, RATE_HEADERS, REQUEST_ID
from km_server.metrics import METHODS
from km_server.refusals import FIXED_HEADERS, render_error, translate

REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._:-]{1,64}")
"""What a proxy's X-Request-Id may look like; anything else is replaced."""

PROBED = frozenset({"/health/live", "/health/ready", "/metrics"})
"""Asked every few seconds: only a failure is worth a line."""

log = structlog.get_logger("km_server.http")


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into its answer, count and log the request."""
    if isinstance(request.protocol, Connection):
        request.protocol.begin()
    started = time.monotonic()
    client = request.app[PROXIES].identify(request.remote or "", request.scheme, request.headers)
    request[REQUEST_ID] = choose_id(request.headers.get("X-Request-Id", "") if client.trusted else "")
    resource = request.match_info.route.resource
    route = resource.canonical if resource else "none"  # a path of no route is the sender's own text
    metrics = request.app[METRICS]
    with structlog.contextvars.bound_contextvars(request_id=request[REQUEST_ID]):
        try:
            response = await handler(request)
        except Exception as exc:  # noqa: BLE001 - the last one to hear of it; it answers and logs
            error = translate(exc)
            metrics.refused.labels(error.code).inc()
            response = render_error(error)
        took_s = time.monotonic() - started
        if request.app[DOOR].draining.is_set():
            response.force_close()
        method = request.method if request.method in METHODS else "other"
        metrics.count_request(method, route, response.status, took_s)
        if route not in PROBED or response.status >= 400:
            log.info(
                "request",
                method=method,
                route=route,
                status=response.status,
                took_ms=round(took_s * 1000, 1),
                client=client.address,
                scheme=client.scheme,
            )
    return response


def choose_id(given: str) -> str:
    """The id that a trusted proxy gave, else a new one."""
    return given if REQUEST_ID_PATTERN.fullmatch(given) else secrets.token_hex(8)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """What every answer carries. Called before the first byte of each."""
    response.headers.update(FIXED_HEADERS)
    if REQUEST_ID in request:
        response.headers["X-Request-Id"] = request[REQUEST_ID]
    response.headers.update(request.app[DOOR].limit_headers)
    response.headers.update(request.get(RATE_HEADERS, {}))

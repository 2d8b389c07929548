"""
A client's connection: aiohttp's, bounded where aiohttp is not.

The head (request line and headers) must be there within its time, counted from the connection's start or from
the first byte after an answer; dripping does not extend it. A reader that takes nothing of its answer is cut off.
There are at most so many connections. Whatever is no HTTP gets an error of our shape.
"""

import asyncio
from dataclasses import dataclass, field

import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest

from km_server.config import ServerConfig
from km_server.errors import ApiError
from km_server.limits import describe_limits
from km_server.metrics import Metrics
from km_server.refusals import http_error, render_error, render_raw

HEAD_MAX_BYTES = 16 * 1024
"""Of one header line, and of the request line: a question with every filter at its longest."""

HEADERS_MAX = 128
LINGER_S = 2.0
"""For the rest of a refused body: closing at once would reset the connection and lose the answer."""

BUSY_RETRY_S = 2

log = structlog.get_logger("km_server.http")


@dataclass(slots=True)
class Door:
    """What all connections of a process share. `draining`: the server was told to end."""

    config: ServerConfig
    metrics: Metrics
    open: "set[Connection]" = field(default_factory=set)
    busy: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    limit_headers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.limit_headers = describe_limits(self.config)

    def changed(self, step: int) -> None:
        """A request began (+1) or is answered (-1)."""
        self.busy += step
        self.metrics.in_flight.set(self.busy)
        if self.busy:
            self.idle.clear()
        else:
            self.idle.set()


class Connection(RequestHandler):
    """One connection. `begin` is called by the middleware: from then on the head is there."""

    __slots__ = ("_answering", "_door", "_head_timer", "_send_timer")

    def __init__(self, manager: web.Server, door: Door, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            manager,
            loop=loop,
            keepalive_timeout=door.config.idle_timeout_s,
            access_log=None,  # type: ignore[arg-type]
            auto_decompress=False,  # bodies stay packed until our own bounds have looked at them (ingest.body)
            max_line_size=HEAD_MAX_BYTES,
            max_field_size=HEAD_MAX_BYTES,
            max_headers=HEADERS_MAX,
            lingering_time=LINGER_S,
        )
        self._door = door
        self._answering = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        door = self._door
        door.open.add(self)
        door.metrics.connections.set(len(door.open))
        if len(door.open) > door.config.max_connections:
            self._refuse(
                ApiError(
                    503,
                    "too_many_connections",
                    "this server has too many connections",
                    hint="the same request may succeed in a moment",
                    headers={"Retry-After": str(BUSY_RETRY_S)},
                )
            )
        else:
            self._expect_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._door.open.discard(self)
        self._door.metrics.connections.set(len(self._door.open))
        for timer in (self._head_timer, self._send_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if data and not self._answering and self._head_timer is None:
            self._expect_head()
        super().data_received(data)

    def _expect_head(self) -> None:
        self.keep_alive(True)  # no longer idle: stops the timer that would close it without a word  # noqa: FBT003
        self._head_timer = self._loop.call_later(self._door.config.head_timeout_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self._answering:
            seconds = self._door.config.head_timeout_s
            self._refuse(
                ApiError(
                    408,
                    "slow_head",
                    f"the request's line and headers were not there within {seconds:g} s",
                    hint="send them at once",
                )
            )

    def begin(self) -> None:
        """A request's head is complete and it is being answered."""
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if not self._answering:
            self._answering = True
            self._door.changed(+1)

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer; aiohttp's own refusals, which come from outside of every handler, in our shape."""
        if isinstance(resp, web.HTTPException):
            resp = render_error(http_error(resp))
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self.end()

    def end(self) -> None:
        """The answer is on its way, or will never be."""
        if self._answering:
            self._answering = False
            self._door.changed(-1)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._send_timer is None:
            self._send_timer = self._loop.call_later(self._door.config.send_timeout_s, self._reader_is_stuck)

    def resume_writing(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None
        super().resume_writing()

    def _reader_is_stuck(self) -> None:
        self._send_timer = None
        log.info("stuck_reader")
        if self.transport is not None:
            self.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        """Answer without a request, and hang up."""
        log.info("refused", status=error.status, code=error.code)
        self._door.metrics.refused.labels(error.code).inc()
        if self.transport is not None:
            self.transport.write(render_raw(error, self._door.limit_headers))
        self.force_close()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP. *message* is left out of answer and log: it would quote what came."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun")
        self._door.metrics.malformed.inc()
        log.info("malformed", status=status, error=type(exc).__name__)
        response = render_error(describe_malformed(status, exc))
        response.headers.update(self._door.limit_headers)
        response.force_close()
        return response


def describe_malformed(status: int, exc: BaseException | None) -> ApiError:
    """The error for a request that the parser, or aiohttp itself, gave up on."""
    if isinstance(exc, LineTooLong):
        return ApiError(
            431, "head_too_large", f"a header or the request line is over {HEAD_MAX_BYTES} bytes", hint="shorten it"
        )
    if status >= 500:
        return ApiError(status, "internal", "the server failed; its log says where")
    return ApiError(status, "bad_request", "this is no request of HTTP/1.1", hint="check the client")


@dataclass(frozen=True, slots=True)
class Factory:
    """Makes connections for `loop.create_server`."""

    server: web.Server
    door: Door
    loop: asyncio.AbstractEventLoop

    def __call__(self) -> Connection:
        return Connection(self.server, self.door, self.loop)

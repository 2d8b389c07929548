"""Composition: the application, and serving it until a signal comes."""

import asyncio
import gc
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import structlog
from aiohttp import web

from km_server.api.export import EXPORTS, EXPORTS_MAX
from km_server.api.live import LIVE, LIVE_MAX
from km_server.api.operations import make_routes
from km_server.api.routes import OPERATIONS
from km_server.api.streams import Places
from km_server.config import ServerConfig, read_version
from km_server.connections import Door, Factory
from km_server.context import BODIES, CONFIG, DOOR, EVENT_RATE, METRICS, PROXIES, REQUEST_RATE, STORE
from km_server.errors import AddressError, ConfigError
from km_server.ingest.senders import SENDERS, NotedSenders
from km_server.limits import BodyBudget, Rate, RateLimiter
from km_server.metrics import Metrics
from km_server.middleware import add_headers, answer_errors
from km_server.proxies import Proxies
from km_server.store.opening import open_store
from km_server.upkeep import keep_up

CLOSING_S = 2.0
"""For the last bytes of answers once every request is answered, and for those that never end by themselves."""

BACKLOG = 1024
"""Connections that wait to be accepted: many senders come back at once after a restart."""

TLS_HANDSHAKE_S = 20.0

PREPARING_THREADS = 2
"""Bodies unpacked and rows prepared at once: they share the interpreter, and the event loop waits behind each."""

SWITCH_INTERVAL_S = 0.0005
"""A busy thread keeps the interpreter's lock this long. Python's 5 ms would be paid by each SQLite step."""

GC_THRESHOLDS = (100_000, 20, 100)
"""Objects made before the interpreter looks for cycles. A batch is many thousand objects and none of them is in one:
with Python's 700 the search took a fifth of the processor time of ingestion."""

log = structlog.get_logger("km_server")


@dataclass(slots=True)
class Rates:
    """The rates of all keys; workers that were forked share them."""

    requests: RateLimiter
    events: RateLimiter

    @classmethod
    def of(cls, config: ServerConfig) -> "Rates":
        return cls(
            RateLimiter(Rate(config.rate_requests_per_s, config.rate_requests_burst)),
            RateLimiter(Rate(config.rate_events_per_s, config.rate_events_burst)),
        )


def create_app(config: ServerConfig, rates: Rates | None = None) -> web.Application:
    """Wire routes and lifetimes; opens nothing before start-up."""

    async def store_ctx(app: web.Application) -> AsyncIterator[None]:
        async with open_store(config.database_url) as app[STORE]:
            yield

    async def upkeep_ctx(app: web.Application) -> AsyncIterator[None]:
        upkeep = asyncio.create_task(keep_up(app[STORE], app[METRICS], config.retention_check_s))
        yield
        upkeep.cancel()
        with suppress(asyncio.CancelledError):
            await upkeep

    rates = rates or Rates.of(config)
    app = web.Application(middlewares=[answer_errors], client_max_size=config.max_body_bytes)
    app[CONFIG] = config
    app[METRICS] = Metrics()
    app[PROXIES] = Proxies.parse(config.trusted_proxies)
    app[BODIES] = BodyBudget(config.max_in_flight_bytes, app[METRICS].body_bytes.set)
    app[DOOR] = Door(config, app[METRICS])
    app[REQUEST_RATE], app[EVENT_RATE] = rates.requests, rates.events
    app[EXPORTS], app[LIVE] = Places(EXPORTS_MAX, "exports"), Places(LIVE_MAX, "live feeds")
    app[SENDERS] = NotedSenders()
    app.cleanup_ctx.append(store_ctx)
    app.cleanup_ctx.append(upkeep_ctx)
    app.on_response_prepare.append(add_headers)
    app.add_routes(make_routes(OPERATIONS))
    return app


async def serve(config: ServerConfig, listening: socket.socket, announce: Callable[[], None], rates: Rates) -> None:
    """
    Serve on a bound socket until SIGTERM or SIGINT. `announce` is called once requests are taken.

    Raises StoreError: the database cannot be opened. ConfigError: the certificate cannot be used.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.freeze()  # what is there now stays to the end
    gc.set_threshold(*GC_THRESHOLDS)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(PREPARING_THREADS, thread_name_prefix="km-server-prepare"))

    def end(*_: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)

    # Not add_signal_handler: the loop would give the signals back as it closes, and so would the interpreter as it
    # ends: a second one would kill the process on its way out.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    async with serving(create_app(config, rates), listening):
        log.info("started", version=read_version(), pid=os.getpid())
        announce()
        await stop.wait()
        log.info("stopping")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    log.info("stopped")


@asynccontextmanager
async def serving(app: web.Application, listening: socket.socket) -> AsyncIterator[None]:
    """
    Take requests inside the block. At its end no new connection is taken, requests under way are answered
    within the configured time, and the store is closed.
    """
    config, door = app[CONFIG], app[DOOR]
    tls = load_tls(config)
    runner = web.AppRunner(app, shutdown_timeout=CLOSING_S)
    try:
        await runner.setup()
        if runner.server is None:
            raise RuntimeError("the runner is not set up")
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            Factory(runner.server, door, loop),
            sock=listening,
            ssl=tls,
            backlog=BACKLOG,
            ssl_handshake_timeout=TLS_HANDSHAKE_S if tls else None,
        )
        try:
            yield
        finally:
            server.close()
            await drain(door, config.shutdown_timeout_s)
    finally:
        await runner.cleanup()


async def drain(door: Door, timeout_s: float) -> None:
    """Wait until every request is answered, *timeout_s* at most."""
    door.draining.set()
    if not door.busy:
        return
    log.info("draining", requests=door.busy)
    try:
        async with asyncio.timeout(timeout_s):
            await door.idle.wait()
    except TimeoutError:
        log.warning("cut_off", requests=door.busy)


def load_tls(config: ServerConfig) -> ssl.SSLContext | None:
    """The server's certificate; None when it serves plain HTTP. Raises ConfigError."""
    if not config.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # the empty password: a prompt would hang a service
        context.load_cert_chain(config.tls_cert, config.tls_key or None, password=str)
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and not isinstance(exc, ssl.SSLError) else "no such pair"
        raise ConfigError(
            f"the TLS certificate cannot be used: {reason or type(exc).__name__}",
            hint="check --tls-cert and --tls-key: PEM files that belong together, the key without a password",
        ) from None
    return context


def bind(config: ServerConfig) -> socket.socket:
    """A bound socket. Raises AddressError."""
    try:
        places = socket.getaddrinfo(config.host or None, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = places[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, OverflowError, UnicodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else type(exc).__name__
        raise AddressError(
            f"cannot listen on {config.host}:{config.port}: {reason}",
            hint="choose another --host or --port (0 takes a free one)",
        ) from exc


def describe_url(config: ServerConfig, listening: socket.socket) -> str:
    """Where the server can be reached from this machine."""
    host, port = listening.getsockname()[:2]
    scheme = "https" if config.tls_cert else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

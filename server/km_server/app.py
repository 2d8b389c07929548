"""Composition: the application, and serving it until a signal comes."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable

import structlog
from aiohttp import web

from km_server.api import health
from km_server.api import routes as api
from km_server.config import ServerConfig, read_version
from km_server.context import CONFIG, STORE
from km_server.errors import AddressError
from km_server.ingest import routes as ingest
from km_server.ingest.body import PACKED_MAX_BYTES
from km_server.middleware import add_headers, answer_errors
from km_server.store.sqlite import linked_version, open_store

SHUTDOWN_S = 5.0
"""For requests that are being answered when the signal comes."""

SWITCH_INTERVAL_S = 0.0005
"""A busy thread keeps the interpreter's lock this long. Python's 5 ms would be paid by each SQLite step."""

log = structlog.get_logger("km_server")


def create_app(config: ServerConfig) -> web.Application:
    """Wire routes and lifetimes; opens nothing before start-up."""

    async def store_ctx(app: web.Application) -> AsyncIterator[None]:
        async with open_store(config.database_url) as app[STORE]:
            yield

    app = web.Application(middlewares=[answer_errors], client_max_size=PACKED_MAX_BYTES)
    app[CONFIG] = config
    app.cleanup_ctx.append(store_ctx)
    app.on_response_prepare.append(add_headers)
    app.add_routes([*ingest.ROUTES, *api.ROUTES, *health.ROUTES])
    return app


async def serve(config: ServerConfig, announce: Callable[[str], None]) -> None:
    """
    Serve until SIGTERM or SIGINT. `announce` gets the server's URL once it listens.

    Raises StoreError: the database cannot be opened. AddressError: nobody can listen there.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # Bodies stay packed until our own bounds have looked at them (ingest.body).
    runner = web.AppRunner(create_app(config), access_log=None, shutdown_timeout=SHUTDOWN_S, auto_decompress=False)
    try:
        await runner.setup()
        url = await listen(runner, config)
        log.info("started", url=url, version=read_version(), sqlite=linked_version())
        announce(url)
        await stop.wait()
        log.info("stopping")
    finally:
        await runner.cleanup()


async def listen(runner: web.AppRunner, config: ServerConfig) -> str:
    """Bind and listen. Returns the URL. Raises AddressError."""
    try:
        await web.TCPSite(runner, config.host, config.port).start()
    except (OSError, OverflowError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else type(exc).__name__
        raise AddressError(
            f"cannot listen on {config.host}:{config.port}: {reason}",
            hint="choose another --host or --port (0 takes a free one)",
        ) from exc
    host, port = runner.addresses[0][:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"

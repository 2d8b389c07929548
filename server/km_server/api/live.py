"""
`GET /api/v1/live`: what is committed from now on, as server-sent events.

Each event's data is an item of the feed, without its payload. The `id` is a mark: a client that comes again with it
in Last-Event-ID goes on from there, and may see a few events twice, never miss one.
Source: HTML Living Standard, section 9.2 "Server-sent events".
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta, UnsetType

from km_server.api.answers import render_item
from km_server.api.operations import Operation, Success
from km_server.api.parameters import NUMBER_MAX_CHARS, Filters, bad_parameter, given, parse_filter, parse_parameters
from km_server.api.streams import Places, send
from km_server.context import DOOR, KEY, METRICS, STORE
from km_server.store.protocol import TenantStore
from km_server.store.values import Filter, News, Scope

HEARTBEAT_S = 15.0
"""Proxies close what is silent for 30 to 60 s; it also notices a reader that is gone, and a key that was revoked."""

PAUSE_S = 0.1
"""Between two looks, so that a busy store is not asked after every commit."""

PORTION = 500
LIVE_MAX = 200
RETRY_MS = 2_000

LIVE = web.AppKey("live", Places)


class LiveParameters(Filters, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """Of GET /api/v1/live."""

    after: Annotated[str, Meta(pattern="^[0-9]{1,19}$", description="A mark: go on from there.")] | UnsetType = UNSET


async def get_live(request: web.Request, store: TenantStore) -> web.StreamResponse:
    """Events as they are committed, until the reader or the server goes."""
    asked = parse_parameters(request.query, LiveParameters)
    where = parse_filter(asked)
    mark = parse_mark(given(asked.after) or request.headers.get("Last-Event-ID") or "")
    response = web.StreamResponse(headers={"X-Accel-Buffering": "no"})
    response.content_type = "text/event-stream"
    response.charset = "utf-8"
    places, gauge = request.app[LIVE], request.app[METRICS].live_feeds
    with places.take():
        gauge.set(places.taken)
        try:
            return await send(request, response, follow(request, store, mark, where))
        finally:
            gauge.set(places.taken - 1)


def parse_mark(text: str) -> int | None:
    """A mark; None for none. Raises ApiError 400."""
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= NUMBER_MAX_CHARS and int(text) < 2**63):
        raise bad_parameter("after", "is no mark of this server")
    return int(text)


async def follow(request: web.Request, store: TenantStore, mark: int | None, where: Filter) -> AsyncIterator[bytes]:
    """The bytes of the feed, portion by portion, until the server ends or the key does."""
    draining, clock = request.app[DOOR].draining, asyncio.get_running_loop().time
    news = await store.read_news(mark, where, PORTION)
    allowed_at = clock()
    yield f"retry: {RETRY_MS}\n\n".encode() + render_news(news, store.tenant.usd_per_kb)
    while not draining.is_set():
        if not (news.events or news.has_more):
            await first_of(store.wait_news(HEARTBEAT_S), draining.wait())
        if clock() - allowed_at >= HEARTBEAT_S:  # however the waits were cut up, and however much there was to tell
            if not await still_allowed(request):
                return
            allowed_at = clock()
        await first_of(asyncio.sleep(PAUSE_S), draining.wait())
        news = await store.read_news(news.mark, where, PORTION)
        yield render_news(news, store.tenant.usd_per_kb)


async def first_of(*waits: Awaitable[object]) -> None:
    """Return when one of them has; the others are given up. Raises what it raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
    for task in done:
        task.result()


async def still_allowed(request: web.Request) -> bool:
    """Whether the key that opened the feed is still alive."""
    key = await request.app[STORE].find_key(request[KEY].digest)
    return key is not None and Scope.READ in key.scopes


def render_news(news: News, usd_per_kb: float) -> bytes:
    """A portion; the mark goes with its last event, and alone it says that the line is alive."""
    pieces = []
    for place, stored in enumerate(news.events):
        last = f"id: {news.mark}\n".encode() if place == len(news.events) - 1 else b""
        data = msgspec.json.encode(render_item(stored, usd_per_kb, payloads=False))
        pieces.append(last + b"event: event\ndata: " + data + b"\n\n")
    return b"".join(pieces) or f": alive\nid: {news.mark}\n\n".encode()


OPERATIONS = (
    Operation(
        "GET",
        "/api/v1/live",
        "followActivity",
        "Events as they are committed, as server-sent events.",
        Success("Server-sent events; each `data` is an item of the feed.", media_types=("text/event-stream",)),
        Scope.READ,
        get_live,
        parameters=LiveParameters,
    ),
)

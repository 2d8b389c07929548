"""The reading routes: `GET /api/v1/activity` and `GET /api/v1/stats`."""

import msgspec
from aiohttp import web

from km_server.api.answers import Page, StatsAnswer, render_page, render_stats
from km_server.api.parameters import parse_activity, parse_span
from km_server.auth import guarded
from km_server.store.protocol import TenantStore
from km_server.store.values import Scope, StatsQuery


async def get_activity(request: web.Request, store: TenantStore) -> web.Response:
    """What happened, newest first."""
    query = parse_activity(request.query)
    page = await store.read_activity(query)
    return answer(render_page(page, store.tenant.usd_per_kb, payloads=query.payloads))


async def get_stats(request: web.Request, store: TenantStore) -> web.Response:
    """What it came to."""
    span = parse_span(request.query)
    stats = await store.read_stats(StatsQuery(span))
    return answer(render_stats(stats, span, store.tenant.usd_per_kb))


def answer(body: Page | StatsAnswer) -> web.Response:
    """A success."""
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


ROUTES = (
    web.get("/api/v1/activity", guarded(Scope.READ, get_activity)),
    web.get("/api/v1/stats", guarded(Scope.READ, get_stats)),
)

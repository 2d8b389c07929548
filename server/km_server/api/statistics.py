"""`GET /api/v1/stats`: what it came to."""

import time

from aiohttp import web

from km_server.api.figures import StatsAnswer, render_stats
from km_server.api.operations import Operation, Success, answer
from km_server.api.parameters import StatsParameters, parse_stats
from km_server.store.protocol import TenantStore
from km_server.store.values import Scope


async def get_stats(request: web.Request, store: TenantStore) -> web.Response:
    """The figures of a span, by group and over time."""
    query = parse_stats(request.query, time.time_ns())
    return answer(render_stats(await store.read_stats(query), query, store.tenant.usd_per_kb))


OPERATIONS = (
    Operation(
        "GET",
        "/api/v1/stats",
        "readStats",
        "Calls, errors, bytes, latency and cost of a span, by group and over time.",
        Success("The figures.", StatsAnswer),
        Scope.READ,
        get_stats,
        parameters=StatsParameters,
    ),
)

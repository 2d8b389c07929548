"""`POST /api/v1/events/batch` and `POST /api/v1/events`: take events in, answer once they are committed."""

import asyncio
import time
from collections.abc import Callable

import msgspec
from aiohttp import web

from km_server.auth import guarded
from km_server.config import ServerConfig
from km_server.context import BODIES, CONFIG, EVENT_RATE, KEY, METRICS
from km_server.ingest.body import Encoding, InflationLimit, inflate, parse_encoding, read_packed, require_json
from km_server.ingest.check import BatchBounds, CheckedBatch, parse_batch, parse_single
from km_server.limits import Lease, too_many
from km_server.store.protocol import TenantStore
from km_server.store.values import Arrival, Scope
from kmd.wire import Receipt, Status, Verdict

Parse = Callable[[bytes, int, BatchBounds], CheckedBatch]


async def post_batch(request: web.Request, store: TenantStore) -> web.Response:
    """Many events at once."""
    return await take_in(request, store, parse_batch)


async def post_single(request: web.Request, store: TenantStore) -> web.Response:
    """One event, answered as a batch of one."""
    return await take_in(request, store, parse_single)


async def take_in(request: web.Request, store: TenantStore, parse: Parse) -> web.Response:
    """Read, check, store, answer. Raises ApiError, StoreBusy."""
    require_json(request.content_type)
    encoding = parse_encoding(request.headers.get("Content-Encoding", ""))
    config, metrics = request.app[CONFIG], request.app[METRICS]
    with request.app[BODIES].lease() as lease:
        packed = await read_packed(request, config, lease)
        metrics.body_bytes.set(request.app[BODIES].used_bytes)
        batch = await asyncio.to_thread(unpack, encoding, packed, config, lease, parse)
        metrics.count_body(len(packed), lease.held_bytes - len(packed))
        charge_events(request, len(batch.judged))
        stored: list[Verdict] = []
        if batch.sessions or batch.arrivals:
            stored = await store.ingest(batch.sessions, batch.arrivals)
    metrics.body_bytes.set(request.app[BODIES].used_bytes)
    receipt = Receipt(batch_id=batch.batch_id, verdicts=merge_verdicts(batch, stored))
    metrics.count_verdicts(receipt.verdicts)
    return web.Response(body=msgspec.json.encode(receipt), content_type="application/json")


def unpack(encoding: Encoding, packed: bytes, config: ServerConfig, lease: Lease, parse: Parse) -> CheckedBatch:
    """From the body as sent to what can be stored; runs in a thread. Raises ApiError."""
    body = inflate(encoding, packed, InflationLimit(config.max_inflated_bytes, config.max_inflation_ratio))
    lease.take(len(body))
    bounds = BatchBounds(config.max_batch_events, config.max_event_bytes)
    return parse(body, time.time_ns(), bounds)


def charge_events(request: web.Request, count: int) -> None:
    """Count events against their key's rate, before any is stored. Raises ApiError 429."""
    grant = request.app[EVENT_RATE].ask(request[KEY].id, time.monotonic(), count)
    if grant is not None and grant.wait_s:
        raise too_many("events", grant)


def merge_verdicts(batch: CheckedBatch, stored: list[Verdict]) -> tuple[Verdict, ...]:
    """One verdict per event of the batch: the store's for those that it was given, ours for the others."""
    remaining = iter(stored)
    return tuple(
        next(remaining) if isinstance(judged, Arrival) else Verdict(Status.REJECTED, judged) for judged in batch.judged
    )


ROUTES = (
    web.post("/api/v1/events/batch", guarded(Scope.INGEST, post_batch)),
    web.post("/api/v1/events", guarded(Scope.INGEST, post_single)),
)

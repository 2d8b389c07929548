"""`POST /api/v1/events/batch` and `POST /api/v1/events`: take events in, answer once they are committed."""

import asyncio
import time
from collections.abc import Callable

import msgspec
from aiohttp import web

from km_server.auth import guarded
from km_server.context import CONFIG
from km_server.ingest.body import inflate, parse_encoding, read_packed, require_json
from km_server.ingest.check import CheckedBatch, parse_batch, parse_single
from km_server.store.protocol import Arrival, Scope, TenantStore
from kmd.wire import Receipt, Status, Verdict

Parse = Callable[[bytes, int], CheckedBatch]


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
    packed = await read_packed(request, request.app[CONFIG].body_timeout_s)
    now_ns = time.time_ns()
    batch = await asyncio.to_thread(lambda: parse(inflate(encoding, packed), now_ns))
    stored: list[Verdict] = []
    if batch.sessions or batch.arrivals:
        stored = await store.ingest(batch.sessions, batch.arrivals)
    receipt = Receipt(batch_id=batch.batch_id, verdicts=merge_verdicts(batch, stored))
    return web.Response(body=msgspec.json.encode(receipt), content_type="application/json")


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

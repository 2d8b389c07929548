"""`POST /api/v1/events/batch` and `POST /api/v1/events`: take events in, answer once they are committed."""

import asyncio
import time
from collections.abc import Callable

import msgspec
from aiohttp import web

from km_server.api.operations import Operation, Success
from km_server.config import ServerConfig
from km_server.context import BODIES, CONFIG, EVENT_RATE, KEY, METRICS
from km_server.ingest.body import Encoding, InflationLimit, inflate, parse_encoding, read_packed, require_json
from km_server.ingest.check import BatchBounds, CheckedBatch, parse_batch, parse_single
from km_server.ingest.form import BatchBody, SingleBody
from km_server.ingest.senders import SENDERS
from km_server.limits import Lease, too_many
from km_server.refusals import ErrorDetail
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
        batch = await asyncio.to_thread(unpack, encoding, packed, config, lease, parse)
        metrics.count_body(len(packed), lease.held_bytes - len(packed))
        charge_events(request, len(batch.judged))
        stored: list[Verdict] = []
        if batch.arrivals or (batch.sessions and not batch.judged):
            stored = await store.ingest(batch.sessions, batch.arrivals)
        await request.app[SENDERS].note(store, batch.sent_by, batch.lost_events)
    receipt = Receipt(batch_id=batch.batch_id, verdicts=merge_verdicts(batch, stored))
    metrics.count_verdicts(receipt.verdicts)
    if batch.judged and not batch.arrivals:
        return refuse_all(receipt)
    return web.Response(body=msgspec.json.encode(receipt), content_type="application/json")


class RefusedReceipt(Receipt, frozen=True, kw_only=True):
    """The receipt of a batch of which no event can be stored, however often it is sent; nothing was stored."""

    error: ErrorDetail


def refuse_all(receipt: Receipt) -> web.Response:
    """422: not one event was what it must be. The receipt is there all the same."""
    first = next(iter(receipt.verdicts)).reason
    body = RefusedReceipt(
        batch_id=receipt.batch_id,
        verdicts=receipt.verdicts,
        error=ErrorDetail("rejected", f"no event of it can be stored; the first: {first}", "see docs/http-api.md"),
    )
    return web.Response(status=422, body=msgspec.json.encode(body), content_type="application/json")


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


OPERATIONS = (
    Operation(
        "POST",
        "/api/v1/events/batch",
        "sendBatch",
        "Take in many events; answered once they are committed.",
        Success("A verdict for each event, in their order.", Receipt),
        Scope.INGEST,
        post_batch,
        body=BatchBody,
        refusal=RefusedReceipt,
    ),
    Operation(
        "POST",
        "/api/v1/events",
        "sendEvent",
        "Take in one event: a batch of one.",
        Success("A verdict for the event.", Receipt),
        Scope.INGEST,
        post_single,
        body=SingleBody,
        refusal=RefusedReceipt,
    ),
)

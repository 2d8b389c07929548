"""What the tests of the store's contract tell: conversations, stores to tell them to, and recounts."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from km_server.store.opening import open_store
from km_server.store.protocol import Store, TenantStore
from km_server.store.rollup import MINUTE_NS
from km_server.store.values import (
    Filter,
    SessionQuery,
    Stats,
    StatsQuery,
    StoredEvent,
)

from kmd.mcp.names import Outcome
from kmd.wire import Event
from tests.server.clients import NOW_NS, WAIT_S, make_answer, make_event, make_session, make_tenant

NAMES = {"s1": "files", "s2": "git", "s3": "git"}
SESSIONS = [make_session(session, name) for session, name in NAMES.items()]


@asynccontextmanager
async def opened(store_url: str) -> AsyncIterator[tuple[Store, TenantStore]]:
    """The store, and a tenant of it."""
    async with asyncio.timeout(4 * WAIT_S), open_store(store_url) as store:
        yield store, store.bind(await make_tenant(store, "acme"))


def conversation(exchanges: int, session: str = "s1", seed: int = 1) -> list[Event]:
    """Requests and answers over some hours, with errors, several targets, and odd latencies."""
    chance = random.Random(seed)
    events = []
    for number in range(exchanges):
        at_ns = NOW_NS - chance.randrange(6 * 3600) * 10**9
        target = chance.choice(["read", "write", None])
        events.append(make_event(number, session, at_ns=at_ns, target=target))
        outcome = chance.choice([Outcome.OK, Outcome.OK, Outcome.TOOL_ERROR, Outcome.RPC_ERROR])
        answer = make_answer(number, chance.randrange(1, 10**9), outcome, session)
        events.append(make_event(number, session, **{**fields_of(answer), "target": target, "at_ns": at_ns + 5}))
    return events


def fields_of(event: Event) -> dict[str, Any]:
    return {name: getattr(event, name) for name in event.__struct_fields__ if name != "session"}


def identify(event: Event) -> tuple[str, str, int, int]:
    return event.session, event.stream, event.offset, event.index


async def read_all(store: TenantStore, where: Filter | None = None) -> list[StoredEvent]:
    return [stored async for portion in store.export(where or Filter()) for stored in portion]


def recount(events: Sequence[StoredEvent]) -> Counter[str]:
    """The totals, counted one by one."""
    counted: Counter[str] = Counter()
    for stored in events:
        event = stored.event
        counted["events"] += 1
        counted["messages"] += event.kind != "batch" and event.stream != "stderr"
        counted["calls"] += event.kind == "request"
        counted["errors"] += event.outcome == "rpc_error"
        counted["tool_errors"] += event.outcome == "tool_error"
        if event.index == 0 and event.stream != "stderr":
            counted[f"bytes_{event.stream}"] += event.size_bytes
        counted["answers"] += event.took_ns is not None
    return +counted


def count_stats(stats: Stats) -> Counter[str]:
    figures = {name: getattr(stats.totals, name) for name in stats.totals.__slots__}
    return +Counter({**figures, "answers": sum(stats.latencies.values())})


async def assert_figures_are_a_recount(store: TenantStore) -> None:
    """Of everything, of each hour of a time series, and of each session."""
    events = await read_all(store)
    stats = await store.read_stats(StatsQuery(bucket_minutes=60))
    assert count_stats(stats) == recount(events)
    assert sum(bucket.figures.events for bucket in stats.buckets) == len(events)
    hours = Counter(stored.event.at_ns // (60 * MINUTE_NS) * 60 for stored in events)
    assert {bucket.first_minute: bucket.figures.events for bucket in stats.buckets} == hours
    sessions = (await store.list_sessions(SessionQuery(limit=100))).sessions
    assert {one.session.session: one.figures.events for one in sessions if one.figures.events} == Counter(
        stored.event.session for stored in events
    )
    for one in sessions:
        times = [stored.event.at_ns for stored in events if stored.event.session == one.session.session]
        if times:
            assert (one.first_at_ns, one.last_at_ns) == (min(times), max(times))

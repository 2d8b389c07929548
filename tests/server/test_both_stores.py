"""
The contract of the store, told once and kept by both, SQLite and PostgreSQL: events in, questions answered.

What belongs to one of them alone is in test_store.py and test_postgres.py.
"""

import asyncio
import random
import secrets
from collections import Counter

import pytest
from km_server.store import feed
from km_server.store.rollup import MINUTE_NS
from km_server.store.values import (
    ActivityQuery,
    Arrival,
    Dimension,
    Filter,
    Order,
    Position,
    SessionQuery,
    Span,
    StatsQuery,
    StoredEvent,
)

from kmd.mcp.names import Kind, Stream
from kmd.wire import Event, Session, Status, payload_bytes
from tests.server.clients import NOW_NS, arrive, make_event, make_tenant
from tests.server.story import (
    NAMES,
    SESSIONS,
    assert_figures_are_a_recount,
    conversation,
    identify,
    opened,
    read_all,
)


def test_twice_in_parallel_and_out_of_order_changes_nothing(store_url: str) -> None:
    events = [event for session in NAMES for event in conversation(60, session)]
    batches = [events[start : start + 40] for start in range(0, len(events), 40)]
    again = batches * 3  # with the other tenant's 54 requests at once: fewer than may wait
    random.Random(7).shuffle(again)

    async def scenario() -> None:
        async with opened(store_url) as (store, tenant):
            other = store.bind(await make_tenant(store, "other"))
            verdicts = await asyncio.gather(
                *(one.ingest(SESSIONS, arrive(batch)) for batch in again for one in (tenant, other))
            )
            accepted = [verdict.status for answer in verdicts for verdict in answer].count(Status.ACCEPTED)
            assert accepted == 2 * len(events)
            for one in (tenant, other):
                stored = await read_all(one)
                assert sorted(identify(found.event) for found in stored) == sorted(map(identify, events))
                await assert_figures_are_a_recount(one)
            before = await tenant.read_stats(StatsQuery())
            await asyncio.gather(*(tenant.ingest(SESSIONS, arrive(batch)) for batch in again))
            assert await tenant.read_stats(StatsQuery()) == before

    asyncio.run(scenario())


def test_an_event_comes_back_as_it_was(store_url: str) -> None:
    """Every field, payloads of any bytes and size, extra fields, a risk, a session's details."""
    payloads = [
        b"",
        b"\x00\xff" * 600,
        b'{"a": 1}' * 500,
        secrets.token_bytes(5000),
        "é".encode() * 300,
        b"\x28\xb5\x2f\xfd",
    ]
    session = Session(
        session="s1", name="files", command="cat", host="h", started_at_ns=5, ended_at_ns=9, closed_first="client"
    )

    async def scenario() -> None:
        async with opened(store_url) as (_, tenant):
            arrivals = [
                Arrival(
                    make_event(
                        number, size_bytes=len(payload), payload=None, sha256="ab" * 32, error_code=-7, truncated=False
                    ),
                    payload,
                    risk=number,
                    extra=b'{"new": [1]}',
                )
                for number, payload in enumerate(payloads)
            ]
            await tenant.ingest([session], [*arrivals, Arrival(make_event(99, payload=None), None)])
            found = await read_all(tenant)
            assert [stored.payload for stored in found] == [*payloads, None]
            assert [stored.event for stored in found[:-1]] == [arrival.event for arrival in arrivals]
            assert {(stored.extra, stored.server) for stored in found[:-1]} == {(b'{"new": [1]}', "files")}
            assert [stored.risk for stored in found] == [*range(len(payloads)), None]
            one = await tenant.find_event(found[2].id)
            assert one == found[2]
            assert await tenant.find_event(10**12) is None
            kept = await tenant.find_session("s1")
            assert kept is not None
            assert kept.session == session

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        (Filter(target="write"), lambda event: event.target == "write"),
        (Filter(stream="to_client"), lambda event: event.stream is Stream.TO_CLIENT),
        (Filter(stream="nowhere"), lambda event: False),
        (Filter(risk_at_least=70), lambda event: event.offset >= 3500 and event.offset % 200 == 100),
        (Filter(text="TOOLS/c"), lambda event: True),
        (Filter(text='"ID": 17,'), lambda event: event.offset == 1700),
        (Filter(text='"id": 17,', session="s2"), lambda event: event.offset == 1700 and event.session == "s2"),
        (Filter(text="no such text"), lambda event: False),
        (Filter(server="git", outcome="ok"), lambda event: NAMES[event.session] == "git" and event.outcome == "ok"),
        (Filter(session="s3", kind="request"), lambda event: event.session == "s3" and event.kind is Kind.REQUEST),
    ],
)
@pytest.mark.parametrize("few", [True, False])
def test_filters_in_both_directions(
    store_url: str,
    where: Filter,
    wanted: object,
    few: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pages of a few, in small steps, give what a look at everything gives; a session is found either way."""
    monkeypatch.setattr(feed, "SCAN_MAX", 1000 if few else 40)
    monkeypatch.setattr(feed, "SEARCH_STEP", 16)
    monkeypatch.setattr(feed, "SEARCH_MAX", 48)

    async def scenario() -> None:
        async with opened(store_url) as (_, tenant):
            events = [event for session in NAMES for event in conversation(40, session, seed=len(session))]
            await tenant.ingest(SESSIONS, [Arrival(event, payload_bytes(event), risk_of(event)) for event in events])
            expected = [stored for stored in await read_all(tenant) if callable(wanted) and wanted(stored.event)]
            for order in Order:
                found: list[StoredEvent] = []
                after: Position | None = None
                while True:
                    page = await tenant.read_activity(ActivityQuery(7, after, True, where, order))
                    assert len(page.events) <= 7
                    found += page.events
                    after = page.next
                    if after is None:
                        break
                assert found == (expected if order is Order.OLDEST_FIRST else expected[::-1])

    asyncio.run(scenario())


def risk_of(event: Event) -> int | None:
    number = event.offset // 100
    return None if number % 2 == 0 else number * 2


def test_statistics_by_any_dimension_and_filter(store_url: str) -> None:
    async def scenario() -> None:
        async with opened(store_url) as (_, tenant):
            events = [event for session in NAMES for event in conversation(50, session, seed=len(session))]
            await tenant.ingest(SESSIONS, arrive(events))
            for group_by in ((), (Dimension.SERVER,), (Dimension.TARGET,), (Dimension.TARGET, Dimension.SERVER)):
                stats = await tenant.read_stats(StatsQuery(group_by=group_by))
                expected = Counter(tuple(part_of(event, dimension) for dimension in group_by) for event in events)
                found = {
                    tuple(getattr(group.series, dimension) for dimension in group_by): group for group in stats.groups
                }
                assert {key: group.figures.events for key, group in found.items()} == (expected if group_by else {})
                for key, group in found.items():
                    answers = [
                        e for e in events if e.took_ns is not None and key == tuple(part_of(e, d) for d in group_by)
                    ]
                    assert sum(group.latencies.values()) == len(answers)
            only = await tenant.read_stats(StatsQuery(server="git", target="read", bucket_minutes=7))
            wanted = [event for event in events if NAMES[event.session] == "git" and event.target == "read"]
            assert only.totals.events == len(wanted) == sum(bucket.figures.events for bucket in only.buckets)
            assert only.sessions == 2
            assert all(bucket.first_minute % 7 == 0 for bucket in only.buckets)
            hour = NOW_NS // MINUTE_NS // 60 * 60 - 120
            span = await tenant.read_stats(StatsQuery(Span(hour + 7, hour + 100)))
            inside = [event for event in events if hour + 7 <= event.at_ns // MINUTE_NS < hour + 100]
            assert span.totals.events == len(inside) > 0

    asyncio.run(scenario())


def part_of(event: Event, dimension: Dimension) -> str:
    if dimension is Dimension.SERVER:
        return NAMES[event.session]
    return (event.method if dimension is Dimension.METHOD else event.target) or ""


def test_the_list_of_sessions(store_url: str) -> None:
    async def scenario() -> None:
        async with opened(store_url) as (_, tenant):
            sessions = [
                Session(session=f"s{number}", name="git" if number % 2 else "files", started_at_ns=number // 2)
                for number in range(9)
            ]
            events = [make_event(1, session.session, at_ns=NOW_NS + number) for number, session in enumerate(sessions)]
            await tenant.ingest(sessions, arrive(events))
            found: list[str] = []
            query = SessionQuery(limit=2)
            while True:
                page = await tenant.list_sessions(query)
                found += [one.session.session for one in page.sessions]
                if page.next is None:
                    break
                query = SessionQuery(limit=2, after=page.next)
            assert found == [f"s{number}" for number in range(8, -1, -1)]
            odd = await tenant.list_sessions(SessionQuery(limit=9, server="git"))
            assert {one.session.session for one in odd.sessions} == {"s1", "s3", "s5", "s7"}
            twins = [Session(session=name, name="new", started_at_ns=NOW_NS) for name in ("t2", "t3", "t1")]
            await tenant.ingest(twins, [])
            alike = await tenant.list_sessions(SessionQuery(limit=9, server="new"))
            assert [one.session.session for one in alike.sessions] == ["t3", "t2", "t1"]
            some = await tenant.list_sessions(SessionQuery(limit=9, from_ns=NOW_NS + 3, to_ns=NOW_NS + 5))
            assert {one.session.session for one in some.sessions} == {"s3", "s4"}
            assert await tenant.find_session("s99") is None

    asyncio.run(scenario())


def test_no_tenant_sees_or_changes_another(store_url: str) -> None:
    """Every question and every change of one tenant, beside another with the same sessions."""

    async def scenario() -> None:
        async with opened(store_url) as (store, tenant):
            other = store.bind(await make_tenant(store, "other"))
            await tenant.ingest(SESSIONS, arrive(conversation(10)))
            (first, *_) = await read_all(tenant)
            assert await other.find_event(first.id) is None
            assert await other.find_session("s1") is None
            assert await read_all(other) == []
            assert (await other.read_activity(ActivityQuery(5, where=Filter(session="s1")))).events == ()
            assert (await other.read_news(0)).events == []
            assert (await other.list_sessions(SessionQuery(5))).sessions == []
            assert (await other.read_stats(StatsQuery())).totals.events == 0
            assert (await other.ingest([], arrive([make_event(1)])))[0].status is Status.REJECTED
            assert (await other.delete_session("s1")).events == 0
            assert (await other.delete_span(None, None)).events == 0
            assert [progress async for progress in other.rebuild_rollups()] == []
            assert len(await read_all(tenant)) == 20
            await assert_figures_are_a_recount(tenant)

    asyncio.run(scenario())


def test_one_bad_batch_costs_no_other(store_url: str) -> None:
    """Something that the database cannot take (the API would have refused it) fails alone."""

    async def scenario() -> None:
        async with opened(store_url) as (_, tenant):
            good = [arrive([make_event(n)]) for n in range(20)]
            bad = [Arrival(make_event(77, size_bytes=2**70), b"x")]
            results = await asyncio.gather(
                *(tenant.ingest(SESSIONS, batch) for batch in [*good[:10], bad, *good[10:]]), return_exceptions=True
            )
            assert [isinstance(result, BaseException) for result in results].count(True) == 1
            assert isinstance(results[10], BaseException)
            assert len(await read_all(tenant)) == 20
            await assert_figures_are_a_recount(tenant)

    asyncio.run(scenario())

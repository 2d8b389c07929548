"""The contract of the store, kept by both: what is removed, rebuilt, followed, expired; keys and tenants."""

import asyncio
import secrets
import time
from collections import Counter

import pytest
from km_server.store import removal
from km_server.store.asked import AskedStore
from km_server.store.opening import open_store
from km_server.store.rollup import DAY_NS
from km_server.store.values import (
    Filter,
    Scope,
    SessionQuery,
    StatsQuery,
)

from kmd.wire import Session, Status
from tests.server.clients import NOW_NS, arrive, make_event, make_tenant
from tests.server.story import (
    NAMES,
    SESSIONS,
    assert_figures_are_a_recount,
    conversation,
    count_stats,
    fields_of,
    identify,
    opened,
    read_all,
)


def test_deleting_takes_the_figures_along(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session, then a span, then all, in steps of a few events; the other tenant keeps everything."""
    monkeypatch.setattr(removal, "STEP_EVENTS", 17)

    async def scenario() -> None:
        async with opened(store_url) as (store, tenant):
            other = store.bind(await make_tenant(store, "other"))
            events = [event for session in NAMES for event in conversation(40, session, seed=len(session))]
            for one in (tenant, other):
                await one.ingest(SESSIONS, arrive(events))
            gone = await tenant.delete_session("s2")
            assert (gone.events, gone.sessions) == (80, 1)
            await assert_figures_are_a_recount(tenant)
            cut_ns = NOW_NS - 2 * 3600 * 10**9
            before = len([event for event in events if event.session != "s2" and event.at_ns < cut_ns])
            assert (await tenant.delete_span(None, cut_ns)).events == before > 0
            await assert_figures_are_a_recount(tenant)
            assert await tenant.delete_session("s2") == await tenant.delete_session("nobody")
            everything = await tenant.delete_span(None, None)
            assert (everything.events, everything.sessions) == (160 - before, 2)
            empty = await tenant.read_stats(StatsQuery(bucket_minutes=60))
            assert (empty.sessions, count_stats(empty), empty.groups, empty.buckets) == (0, Counter(), [], [])
            assert (await other.read_stats(StatsQuery())).totals.events == len(events)
            await assert_figures_are_a_recount(other)
            await tenant.ingest(SESSIONS, arrive(events))  # what was deleted may come again: it is new then
            await assert_figures_are_a_recount(tenant)

    asyncio.run(scenario())


def test_more_bytes_than_a_number_holds_are_added_and_taken_away(store_url: str) -> None:
    """They stay what fits: nobody sends so much, but whoever says so gets no error, nor do those who ask."""
    most = 2**63 - 1

    async def scenario() -> None:
        async with opened(store_url) as (_, tenant):
            huge = [
                make_event(n, session, at_ns=NOW_NS - n * 3600 * 10**9, size_bytes=most, payload=None)
                for session in ("s1", "s2")
                for n in range(4)
            ]
            verdicts = await tenant.ingest(SESSIONS, arrive(huge))
            assert {verdict.status for verdict in verdicts} == {Status.ACCEPTED}
            assert (await tenant.read_stats(StatsQuery())).totals.bytes_to_server >= most
            for name, left in (("s1", 4), ("s2", 0)):
                assert (await tenant.delete_session(name)).events == 4
                stats = await tenant.read_stats(StatsQuery(bucket_minutes=60))
                assert stats.totals.events == left
                assert all(one.figures.bytes_to_server >= 0 for one in stats.buckets)
            await assert_figures_are_a_recount(tenant)

    asyncio.run(scenario())


def test_deleting_while_events_come_in(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "STEP_EVENTS", 10)

    async def scenario() -> None:
        async with opened(store_url) as (_, tenant):
            events = conversation(200)
            batches = [events[start : start + 20] for start in range(0, len(events), 20)]
            jobs = [tenant.ingest(SESSIONS, arrive(batch)) for batch in batches]
            deletions = [tenant.delete_span(None, None), tenant.delete_session("s1")]
            await asyncio.gather(*jobs[:10], *deletions, *jobs[10:])
            await assert_figures_are_a_recount(tenant)

    asyncio.run(scenario())


def test_rebuilt_figures_are_the_same(store_url: str) -> None:
    async def scenario() -> None:
        async with opened(store_url) as (_, tenant):
            events = [event for session in NAMES for event in conversation(60, session, seed=len(session))]
            events.append(make_event(999, at_ns=NOW_NS - 40 * DAY_NS))
            await tenant.ingest(SESSIONS, arrive(events))
            query = StatsQuery(bucket_minutes=60)
            before = await tenant.read_stats(query)
            assert [progress async for progress in tenant.rebuild_rollups()][-1].done == len(events)
            assert await tenant.read_stats(query) == before

            async def rebuild() -> None:
                async for _ in tenant.rebuild_rollups():
                    pass

            more = conversation(100, "s1", seed=5)
            more = [
                make_event(1000 + place, **{**fields_of(event), "offset": 10**6 + place})
                for place, event in enumerate(more)
            ]
            await asyncio.gather(
                *(tenant.ingest(SESSIONS, arrive(more[n : n + 20])) for n in range(0, 200, 20)), rebuild()
            )
            await assert_figures_are_a_recount(tenant)

    asyncio.run(scenario())


def test_news_are_complete_while_many_write(store_url: str) -> None:
    """A follower hears of every event once, in the order of the ids, whoever commits first."""

    async def scenario() -> None:
        async with opened(store_url) as (store, tenant), open_store(store_url) as second:
            elsewhere = second.bind(tenant.tenant)
            other = store.bind(await make_tenant(store, "other"))
            mark = (await tenant.read_news(None)).mark
            batches = [[make_event(n * 10 + k, f"s{n % 3 + 1}") for k in range(10)] for n in range(40)]
            writing = asyncio.gather(
                *((elsewhere if n % 2 else tenant).ingest(SESSIONS, arrive(batch)) for n, batch in enumerate(batches)),
                *(other.ingest(SESSIONS, arrive(batch)) for batch in batches),
            )
            heard: list[int] = []
            seen: list[tuple[str, str, int, int]] = []
            while len(seen) < 400:
                await tenant.wait_news(0.05)
                news = await tenant.read_news(mark, limit=64)
                mark = news.mark
                heard += [stored.id for stored in news.events]
                seen += [identify(stored.event) for stored in news.events]
            await writing
            assert heard == sorted(heard)
            assert sorted(seen) == sorted(identify(event) for batch in batches for event in batch)
            assert (await tenant.read_news(mark)).events == []
            only = await tenant.read_news(0, Filter(session="s2", text="tools"), limit=1000)
            assert {stored.event.session for stored in only.events} == {"s2"}

    asyncio.run(scenario())


def test_what_a_tenant_does_not_keep_goes_and_does_not_come_back(store_url: str) -> None:
    async def scenario() -> None:
        async with opened(store_url) as (store, tenant):
            other = store.bind(await make_tenant(store, "other"))
            events = conversation(30)
            old = [make_event(5000 + n, "s2", at_ns=NOW_NS - 10 * DAY_NS + n) for n in range(20)]
            for one in (tenant, other):
                await one.ingest(SESSIONS, arrive([*events, *old]))
            changed = await store.set_tenant("acme", 0.5, 7)
            assert changed is not None
            assert (changed.retention_days, changed.usd_per_kb) == (7, 0.5)
            assert await store.set_tenant("nobody", 0.5, 7) is None
            assert (await store.maintain()).events_expired == 20
            keeping = store.bind(changed)
            assert len(await read_all(keeping)) == 60
            await assert_figures_are_a_recount(keeping)
            assert (await keeping.list_sessions(SessionQuery(limit=9, server="git"))).sessions[
                0
            ].session.session != "s2"
            assert len(await read_all(other)) == 80
            verdicts = await keeping.ingest(SESSIONS, arrive([*old, events[0]]))
            assert Counter(verdict.status for verdict in verdicts) == {Status.REJECTED: 20, Status.DUPLICATE: 1}
            assert {verdict.reason for verdict in verdicts[:-1]} == {"it is older than what this tenant keeps"}
            assert await keeping.read_refusals() == {"expired": 20}
            assert await other.read_refusals() == {}
            empty = [empty_session("done", 10, 9), empty_session("goes on", 10), empty_session("new", 1)]
            for one in (keeping, other):
                await one.ingest(empty, [])
            await store.maintain()
            left = [name for name in ("done", "goes on", "new", "s1") if await keeping.find_session(name)]
            assert left == ["new", "s1"]
            assert await other.find_session("done")
            assert [progress async for progress in keeping.rebuild_rollups()]
            await assert_figures_are_a_recount(keeping)

    asyncio.run(scenario())


def empty_session(name: str, began: int, ended: int | None = None) -> Session:
    """A session without events that began, and perhaps ended, so many days ago."""
    ended_at_ns = None if ended is None else NOW_NS - ended * DAY_NS
    return Session(session=name, name="files", started_at_ns=NOW_NS - began * DAY_NS, ended_at_ns=ended_at_ns)


def uuid7(at_ns: int, tail: int = 1) -> str:
    stamp = f"{at_ns // 10**6:012x}"
    return f"{stamp[:8]}-{stamp[8:]}-7000-8000-{tail:012x}"


def test_sessions_of_odd_times(store_url: str) -> None:
    """From the far past: kept. From the future: refused and counted. Sent again: the same."""
    times = {
        "today": 0,
        "last week": -7 * DAY_NS,
        "last year": -300 * DAY_NS,
        "long ago": -900 * DAY_NS,
        "soon": DAY_NS // 2,
    }
    names = {label: uuid7(NOW_NS + shift) for label, shift in times.items()}
    future = uuid7(NOW_NS + 3 * DAY_NS)

    async def scenario() -> None:
        async with opened(store_url) as (store, tenant):
            sessions = [Session(session=name, name="files") for name in [*names.values(), future]]
            arrivals = arrive([make_event(n, name) for name in [*names.values(), future] for n in range(3)])
            for status in (Status.ACCEPTED, Status.DUPLICATE):
                verdicts = await tenant.ingest(sessions, arrivals)
                assert [verdict.status for verdict in verdicts] == [status] * 15 + [Status.REJECTED] * 3
                assert verdicts[-1].reason == "its session begins over 24 h ahead of this server's clock"
                await store.maintain()
            assert await tenant.read_refusals() == {"ahead": 6}
            assert len(await read_all(tenant)) == 15
            await assert_figures_are_a_recount(tenant)
            assert (await store.facts()).misfiled == 0

    asyncio.run(scenario())


def test_the_life_of_a_key(store_url: str) -> None:
    async def scenario() -> None:
        async with opened(store_url) as (store, _):
            digests = [secrets.token_bytes(32) for _ in range(4)]
            scopes = frozenset({Scope.READ, Scope.INGEST})
            made = await store.create_key("team", digests[0], scopes)
            assert await store.find_key(digests[0]) == made
            assert (made.tenant.name, made.scopes, made.expires_at_ns) == ("team", scopes, None)
            rotated = await store.rotate_key(made.id, digests[1], 3600)
            assert rotated is not None
            assert (rotated.tenant, rotated.scopes) == (made.tenant, scopes)
            still = await store.find_key(digests[0])
            assert still is not None
            assert still.expires_at_ns is not None
            assert 0 < still.expires_at_ns - time.time_ns() <= 3600 * 10**9
            at_once = await store.rotate_key(rotated.id, digests[2], 0)
            assert at_once is not None
            assert await store.find_key(digests[1]) is None
            assert await store.rotate_key(rotated.id, digests[3], 0) is None
            assert await store.revoke_key(at_once.id)
            assert await store.find_key(digests[2]) is None
            assert not await store.revoke_key(10**9)
            past = await store.create_key("team", digests[3], scopes, expires_at_ns=1)
            assert await store.find_key(digests[3]) is None
            assert past.id in [key.id for key in await store.list_keys()]
            assert [tenant.name for tenant in await store.list_tenants()] == ["acme", "team"]

    asyncio.run(scenario())


def test_the_last_use_of_a_key_is_noted(store_url: str) -> None:
    async def scenario() -> None:
        async with opened(store_url) as (store, _):
            digest = secrets.token_bytes(32)
            made = await store.create_key("team", digest, frozenset())
            await store.find_key(digest)
            assert isinstance(store, AskedStore)
            await store.settle()
            (noted,) = [key for key in await store.list_keys() if key.id == made.id]
            assert noted.last_used_at_ns is not None

    asyncio.run(scenario())

"""What only PostgreSQL has: row-level security, partitions, migrations under a lock, a pool fit for PgBouncer."""

import asyncio
import time
from pathlib import Path

import asyncpg
import pytest
from km_server.errors import StoreBusy, StoreError
from km_server.store import figures
from km_server.store.opening import open_store, read_schema
from km_server.store.postgres import driver, partitions
from km_server.store.postgres.migrate import read_scripts
from km_server.store.postgres.partitions import Week, wanted_weeks, week_of
from km_server.store.rollup import DAY_NS
from km_server.store.values import StatsQuery

from kmd.wire import Session
from tests.server.clients import NOW_NS, arrive, make_event, make_tenant
from tests.server.story import SESSIONS, assert_figures_are_a_recount, conversation, opened, read_all
from tests.server.test_both_upkeep import uuid7
from tests.support.postgres import Cluster

GUARDED = ("sessions", "events", "series", "rollups", "latencies", "refusals", "senders")


@pytest.fixture
def url(postgres: Cluster) -> str:
    return postgres.new_database()


async def ask(url: str, question: str, *, setting: str = "") -> list[tuple[object, ...]]:
    """One statement as km-server's own role, outside of km-server."""
    connection = await asyncpg.connect(url)
    try:
        if setting:
            await connection.execute(setting)
        return [tuple(row) for row in await connection.fetch(question)]
    finally:
        await connection.close()


def test_no_row_without_its_tenant_being_named(url: str) -> None:
    """The role that owns the tables sees nothing but what a transaction has said it is for; partitions too."""

    async def scenario() -> None:
        async with opened(url) as (store, tenant):
            other = store.bind(await make_tenant(store, "other"))
            for one in (tenant, other):
                await one.ingest(SESSIONS, arrive(conversation(5)))
            names = [
                row[0]
                for row in await ask(url, "SELECT relname FROM pg_class WHERE relname LIKE 'events%' AND relkind = 'r'")
            ]
            for table in [*GUARDED, *names]:
                assert await ask(url, f"SELECT * FROM {table}") == []  # noqa: S608 - our own tables
            as_tenant = f"SET km.tenant_id = '{tenant.tenant.id}'"
            counted = await ask(url, "SELECT DISTINCT tenant_id FROM events", setting=as_tenant)
            assert counted == [(tenant.tenant.id,)]
            theirs = other.tenant.id
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await ask(url, f"UPDATE sessions SET tenant_id = {theirs}", setting=as_tenant)  # noqa: S608
            taken = f"DELETE FROM events WHERE tenant_id = {theirs} RETURNING 1"  # noqa: S608 - a number of ours
            assert await ask(url, taken, setting=as_tenant) == []
            assert len(await read_all(other)) == 10

    asyncio.run(scenario())


def test_every_table_with_a_tenant_is_guarded(url: str) -> None:
    async def scenario() -> None:
        async with opened(url):
            unguarded = await ask(
                url,
                "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'"
                " WHERE c.relkind IN ('r', 'p') AND NOT (c.relrowsecurity AND c.relforcerowsecurity)"
                " AND c.relnamespace = current_schema()::regnamespace",
            )
            assert unguarded == [("api_keys",)]  # looked up before a tenant is known

    asyncio.run(scenario())


def test_a_superuser_is_said_to_be_unbound(postgres: Cluster, url: str) -> None:
    async def scenario() -> None:
        async with open_store(url) as store:
            assert (await store.facts()).problem == ""
        async with open_store(postgres.as_superuser(url)) as store:
            assert "row-level security" in (await store.facts()).problem

    asyncio.run(scenario())


def test_weeks() -> None:
    monday = week_of(NOW_NS // DAY_NS)
    assert all(week_of(monday.first + day) == monday for day in range(7))
    assert week_of(monday.end) == Week(monday.first + 7)
    assert time.strptime(monday.table.removeprefix("events_"), "%Y%m%d").tm_wday == 0
    assert [week.first for week in wanted_weeks(NOW_NS)] == [monday.first + 7 * number for number in range(5)]


def test_partitions_are_there_ahead_of_time(url: str) -> None:
    """After opening; and after upkeep some months later."""

    async def scenario() -> None:
        async with opened(url) as (store, _):
            facts = await store.facts()
            assert (facts.partitions, facts.partitions_ahead, facts.misfiled) == (5, 4, 0)
        later_ns = NOW_NS + 100 * DAY_NS
        async with driver.open_pool(url) as pool:
            made = await partitions.keep(pool, [], later_ns)
            assert made.partitions_made == 5
            assert (await partitions.keep(pool, [], later_ns)).partitions_made == 0
            async with driver.transaction(pool, partitions.UPKEEP) as connection:
                assert set(await partitions.read_weeks(connection)) >= set(wanted_weeks(later_ns))

    asyncio.run(scenario())


def test_what_was_misfiled_is_moved_to_where_it_belongs(url: str) -> None:
    """A session of seven weeks ago: an alarm until upkeep, nothing lost, sent again it is known."""
    old = Session(session=uuid7(NOW_NS - 50 * DAY_NS), name="files")
    events = arrive([make_event(number, old.session) for number in range(20)])

    async def scenario() -> None:
        async with opened(url) as (store, tenant):
            await tenant.ingest([old], events)
            facts = await store.facts()
            assert (facts.misfiled, "default partition" in facts.problem) == (20, True)
            done = await store.maintain()
            assert (done.partitions_made, done.events_refiled) == (1, 20)
            facts = await store.facts()
            assert (facts.misfiled, facts.problem, facts.partitions) == (0, "", 6)
            await tenant.ingest([old], events)
            assert len(await read_all(tenant)) == 20
            await assert_figures_are_a_recount(tenant)

    asyncio.run(scenario())


def test_a_partition_goes_as_a_whole_when_nothing_in_it_is_kept(url: str) -> None:
    """Not while another tenant keeps its part; then with its sessions and figures."""
    session = Session(session=uuid7(NOW_NS - 60 * DAY_NS), name="files")
    events = arrive([make_event(n, session.session, at_ns=NOW_NS - 60 * DAY_NS + n) for n in range(20)])

    async def scenario() -> None:
        async with opened(url) as (store, tenant):
            other = store.bind(await make_tenant(store, "other"))
            for one in (tenant, other):
                await one.ingest([session, *SESSIONS], [*events, *arrive(conversation(5))])
            await store.maintain()
            await store.set_tenant("acme", 0.001, 30)
            first = await store.maintain()
            assert (first.partitions_dropped, first.events_expired) == (0, 20)
            await store.set_tenant("other", 0.001, 40)
            second = await store.maintain()
            assert (second.partitions_dropped, second.events_expired) == (1, 20)
            for one in (tenant, other):
                assert len(await read_all(one)) == 10
                await assert_figures_are_a_recount(one)
                assert await one.find_session(session.session) is None

    asyncio.run(scenario())


def test_servers_that_start_together_migrate_once(url: str) -> None:
    async def start() -> int:
        async with open_store(url) as store:
            return (await store.facts()).schema

    async def scenario() -> None:
        assert await asyncio.gather(*(start() for _ in range(5))) == [len(read_scripts())] * 5
        assert await ask(url, "SELECT count(*) FROM schema_migrations") == [(len(read_scripts()),)]

    asyncio.run(scenario())


def test_a_newer_schema_is_refused(url: str) -> None:
    async def scenario() -> None:
        async with open_store(url):
            pass
        await ask(url, "INSERT INTO schema_migrations (version) VALUES (999)")
        assert (await read_schema(url)).version == 999
        with pytest.raises(StoreError, match="newer"):
            async with open_store(url):
                pass

    asyncio.run(scenario())


def test_nothing_is_left_on_a_connection(url: str) -> None:
    """What PgBouncer in transaction mode could give to somebody else: no named statement, setting or lock."""

    async def scenario() -> None:
        async with opened(url) as (store, tenant):
            await tenant.ingest(SESSIONS, arrive(conversation(20)))
            await tenant.delete_session("s1")
            await tenant.read_stats(StatsQuery(bucket_minutes=60))
            await store.maintain()
            engine = store._engine  # type: ignore[attr-defined]
            async with engine._pool.acquire() as connection:
                left = await connection.fetch(
                    "SELECT (SELECT count(*) FROM pg_prepared_statements WHERE name <> ''),"
                    " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),"
                    " coalesce(current_setting('km.tenant_id', true), ''),"
                    " coalesce(current_setting('km.upkeep', true), ''),"
                    " current_setting('statement_timeout')"
                )
                assert tuple(left[0]) == (0, 0, "", "", "0")

    asyncio.run(scenario())


@pytest.mark.parametrize("url_text", ["postgresql://km@127.0.0.1:1/km", "postgresql://km@[/km", "postgresql://h:x/km"])
def test_a_database_that_cannot_be_reached(url_text: str) -> None:
    async def scenario() -> None:
        async with open_store(url_text):
            pass

    with pytest.raises(StoreError) as refusal:
        asyncio.run(scenario())
    assert refusal.value.hint
    assert "km@" not in str(refusal.value)


def test_a_question_that_takes_too_long_is_broken_off(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LOCK_MS", 200)

    async def scenario() -> None:
        async with opened(url) as (_, tenant):
            holder = await asyncpg.connect(url)
            async with holder.transaction():
                await holder.execute("LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE")
                with pytest.raises(StoreBusy):
                    await tenant.ingest(SESSIONS, arrive(conversation(1)))
                with pytest.raises(StoreBusy):
                    await tenant.find_session("s1")
            await holder.close()
            await tenant.ingest(SESSIONS, arrive(conversation(1)))

    asyncio.run(scenario())


def test_groups_beyond_the_limit_are_omitted_and_counted(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On both stores."""
    monkeypatch.setattr(figures, "GROUPS_MAX", 3)

    async def scenario() -> None:
        async with opened(store_url) as (_, tenant):
            events = [make_event(n, target=f"t{n % 5}", took_ns=n) for n in range(23)]
            await tenant.ingest(SESSIONS, arrive(events))
            stats = await tenant.read_stats(StatsQuery())
            assert [(group.series.target, group.figures.events) for group in stats.groups] == [
                ("t0", 5),
                ("t1", 5),
                ("t2", 5),
            ]
            assert (stats.omitted, stats.totals.events) == (2, 23)
            assert [sum(group.latencies.values()) for group in stats.groups] == [5, 5, 5]

    asyncio.run(scenario())


def test_migrations_are_numbered_without_gaps() -> None:
    folder = Path(partitions.__file__).parents[1] / "migrations" / "postgres"
    names = sorted(file.name for file in folder.glob("*.sql"))
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    assert len(read_scripts()) == len(names)

"""
What only a PgBouncer in transaction mode can break: several servers behind it, its end, and connections to wait for.

The story that every store has to keep runs behind it too (see conftest.STORES).
"""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg
import msgspec
import pytest
from km_server.errors import StoreBusy
from km_server.store.opening import open_store
from km_server.store.postgres import driver
from km_server.store.postgres.migrate import read_scripts

from kmd.wire import Session
from tests.server.clients import NOW_NS, WAIT_S, Api, arrive, make_batch, make_event, new_key, open_api
from tests.server.story import SESSIONS, conversation, opened
from tests.server.test_live import following
from tests.support.pgbouncer import POOL_SIZE, Bouncer, running_pgbouncer
from tests.support.postgres import OWNER, Cluster
from tests.support.processes import Running, start_server, wait_for

TENANTS = ("acme", "other")
BATCHES, BATCH_EVENTS = 12, 25
GUIDE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")


@pytest.fixture
def url(postgres: Cluster, bouncer: Bouncer) -> str:
    """A new database, by way of PgBouncer."""
    return bouncer.through(postgres.new_database())


@pytest.fixture
def own_bouncer(postgres: Cluster) -> Iterator[Bouncer]:
    """One that may be ended, and that lets nobody wait for long."""
    with running_pgbouncer(postgres, pool_size=2, wait_s=1) as running:
        yield running


def guide_settings() -> str:
    """The guide's settings, letter by letter but for what is different on every machine."""
    settings = GUIDE.partition("```ini\n")[2].partition("```")[0]
    for theirs, ours in (
        ("kilometers = host=db.internal port=5432", "* = host={host} port={postgres}"),
        ("listen_port = 6432", "listen_port = {port}\nunix_socket_dir ="),
        ("/etc/pgbouncer/userlist.txt", "{folder}/users.txt"),
    ):
        assert settings.count(theirs) == 1
        settings = settings.replace(theirs, ours)
    return settings


def test_the_guides_settings_work_as_written(postgres: Cluster) -> None:
    async def scenario(url: str) -> str:
        async with open_store(url) as store:
            return (await store.facts()).kind

    with running_pgbouncer(postgres, template=guide_settings()) as bouncer:
        assert asyncio.run(scenario(bouncer.through(postgres.new_database()))) == "postgresql"


@contextmanager
def two_crews(url: str, folder: Path) -> Iterator[list[Running]]:
    """Two servers of two workers each that start together on a database without a schema."""
    with ThreadPoolExecutor() as starters, ExitStack() as ending:
        starting = [
            starters.submit(start_server, folder / f"crew-{n}", extra=("--workers", "2"), database_url=url)
            for n in range(2)
        ]
        crews = [one.result(4 * WAIT_S) for one in starting]
        for crew in crews:
            ending.callback(crew.stop)
        yield crews


@asynccontextmanager
async def holding(url: str, count: int) -> AsyncIterator[None]:
    """So many transactions that do nothing, on connections of their own."""
    holders = [await asyncpg.connect(url, statement_cache_size=0) for _ in range(count)]
    try:
        for holder in holders:
            await holder.execute("BEGIN; SELECT 1")
        yield
    finally:
        for holder in holders:
            await holder.close()


def make_bodies(session: Session) -> list[bytes]:
    """Batches of a session's events, as they are posted."""
    return [
        msgspec.json.encode(
            make_batch([make_event(first + n, session.session, at_ns=NOW_NS) for n in range(BATCH_EVENTS)], [session])
        )
        for first in range(0, BATCHES * BATCH_EVENTS, BATCH_EVENTS)
    ]


def send_until_taken(api: Api, body: bytes) -> None:
    """As kmd does: whatever is not an answer about this batch is tried again."""
    wait_for(lambda: api.post(body).status_code == 200, "a batch to be taken", WAIT_S)


def test_two_crews_two_tenants_every_batch_to_both(postgres: Cluster, url: str, tmp_path: Path) -> None:
    """Every figure of each tenant is its own and counts once, though few connections serve all of them."""
    with two_crews(url, tmp_path) as crews, ExitStack() as closing:
        ways: dict[str, list[Api]] = {}
        for tenant in TENANTS:
            key = new_key(url, tenant)
            ways[tenant] = [Api(crew.url, key) for crew in crews]
            for api in ways[tenant]:
                closing.enter_context(api.http)
        wrong: list[object] = []

        def send(api: Api, tenant: str) -> None:
            for body in make_bodies(Session(session="s1", name=tenant)):
                send_until_taken(api, body)
                seen = {item["server"] for item in api.activity(limit=5)["items"]}
                wrong.extend(seen - {tenant})

        threads = [threading.Thread(target=send, args=(api, tenant)) for tenant in TENANTS for api in ways[tenant]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(3 * WAIT_S)
        assert not any(thread.is_alive() for thread in threads)
        assert wrong == []
        for tenant, apis in ways.items():
            for api in apis:
                assert api.stats()["totals"]["events"] == BATCHES * BATCH_EVENTS
                assert {item["server"] for item in api.feed()} == {tenant}
                assert len(api.feed(session="s1")) == BATCHES * BATCH_EVENTS
        name = url.rpartition("/")[2]
        used = postgres.ask(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'")  # noqa: S608
        assert 0 < used[0][0] <= POOL_SIZE
        assert all("Traceback" not in crew.log.read_text() for crew in crews)


def test_a_feed_follows_what_another_server_takes_in(url: str, tmp_path: Path) -> None:
    """Nothing listens (LISTEN would not work here): a feed asks again and again."""
    with two_crews(url, tmp_path) as crews:
        key = new_key(url, "acme")
        reader, writer = (Api(crew.url, key) for crew in crews)
        with reader.http, writer.http, following(reader) as follower:
            assert follower.started.wait(WAIT_S)
            for number in range(20):
                assert writer.send(make_batch([make_event(number)])) == ["accepted"]
            items = [follower.next() for _ in range(20)]
            assert [item and item["offset"] for item in items] == [number * 100 for number in range(20)]


def test_servers_that_start_together_migrate_once(url: str) -> None:
    """The lock lives as long as a step's transaction; more of them wait for it than there are connections."""

    async def start() -> int:
        async with open_store(url) as store:
            return (await store.facts()).schema

    async def scenario() -> None:
        assert await asyncio.gather(*(start() for _ in range(2 * POOL_SIZE))) == [len(read_scripts())] * 2 * POOL_SIZE

    asyncio.run(scenario())


def test_connections_break_under_traffic(postgres: Cluster, own_bouncer: Bouncer, tmp_path: Path) -> None:
    """PostgreSQL's, then PgBouncer itself, which comes back: what was acknowledged is there, all of it once."""
    url = own_bouncer.through(postgres.new_database())
    name = url.rpartition("/")[2]
    cut = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{name}'"  # noqa: S608
    running = start_server(tmp_path / "behind", database_url=url)
    try:
        with open_api(running.url, url, "acme") as api:
            for number, body in enumerate(make_bodies(SESSIONS[0])):
                if number == 3:
                    assert postgres.ask(cut)[0][0] > 0
                elif number == 6:
                    own_bouncer.stop(signal.SIGKILL)
                    answer = api.post(body)
                    assert (answer.status_code, int(answer.headers["Retry-After"]) > 0) == (503, True)
                    own_bouncer.start()
                send_until_taken(api, body)
            assert api.stats()["totals"]["events"] == BATCHES * BATCH_EVENTS
    finally:
        assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


def test_all_connections_are_taken(postgres: Cluster, own_bouncer: Bouncer) -> None:
    """Whom PgBouncer sends away when it has none left comes again."""
    url = own_bouncer.through(postgres.new_database())

    async def scenario() -> None:
        async with opened(url) as (_, tenant):
            async with holding(url, 2):
                with pytest.raises(StoreBusy):
                    await tenant.ingest(SESSIONS, arrive(conversation(1)))
                with pytest.raises(StoreBusy) as refusal:
                    await tenant.find_session("s1")
                assert isinstance(refusal.value.__cause__, asyncpg.PostgresConnectionError)
            await tenant.ingest(SESSIONS, arrive(conversation(1)))

    asyncio.run(scenario())


def test_nobody_waits_for_a_connection_without_a_bound(
    postgres: Cluster, bouncer: Bouncer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PgBouncer itself may let wait for minutes, and PostgreSQL's time-outs do not run meanwhile."""
    url = bouncer.through(postgres.new_database())

    async def scenario() -> None:
        async with opened(url) as (_, tenant):
            async with holding(url, POOL_SIZE):
                monkeypatch.setattr(driver.Terms, "begin_s", 0.1)
                with pytest.raises(StoreBusy) as refusal:
                    await tenant.find_session("s1")
                assert isinstance(refusal.value.__cause__, TimeoutError)
                monkeypatch.undo()
            await tenant.ingest(SESSIONS, arrive(conversation(1)))

    asyncio.run(scenario())


@pytest.mark.parametrize(("part", "wrong"), [(f":{OWNER}@", ":wrong@"), ("/km_test_", "/no_test_")])
def test_what_pgbouncer_refuses_is_said_without_the_secret(url: str, part: str, wrong: str) -> None:
    async def scenario() -> None:
        async with open_store(url.replace(part, wrong)):
            pass

    with pytest.raises(StoreBusy, match="PgBouncer") as refusal:
        asyncio.run(scenario())
    assert "password" in (refusal.value.hint or "")
    assert OWNER not in str(refusal.value)

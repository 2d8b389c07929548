"""The SQLite file: made privately, migrated as a whole, refused when it is not ours, shared with others."""

import asyncio
import stat
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

import httpx
import msgspec
import pytest
from km_server.config import ServerConfig
from km_server.errors import StoreBusy, StoreError
from km_server.store import keys
from km_server.store.asked import AskedStore
from km_server.store.fate import Clock
from km_server.store.opening import open_store
from km_server.store.sqlite import connection, insert, writer
from km_server.store.sqlite.connection import migrate, open_reader, open_writer, parse_database_url, read_migrations
from km_server.store.sqlite.driver import is_affected, require_sound, sqlite3
from km_server.store.sqlite.insert import Transaction
from km_server.store.sqlite.store import SqliteEngine
from km_server.store.sqlite.writer import Writer
from km_server.store.values import StatsQuery

from kmd.wire import Status
from tests.server.clients import (
    NOW_NS,
    WAIT_S,
    app_in_thread,
    arrive,
    ask_file,
    database_url,
    make_batch,
    make_event,
    make_session,
    open_api,
    open_file,
    open_tenant,
)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "data" / "server.db"


def open_and_close(database: Path) -> None:
    async def scenario() -> None:
        async with open_store(database_url(database)) as store:
            await store.check()

    asyncio.run(scenario())


def test_the_file_and_its_folder_are_private(database: Path) -> None:
    with_files: list[int] = []

    async def scenario() -> None:
        async with open_tenant(database):
            with_files.extend(stat.S_IMODE(file.stat().st_mode) for file in database.parent.iterdir())

    asyncio.run(scenario())
    assert with_files == [0o600] * 3
    assert stat.S_IMODE(database.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "url", ["", "server.db", "sqlite://", "sqlite:///", "sqlite:///:memory:", "postgresql://host/db", "sqlite:///a\0"]
)
def test_urls_that_name_no_file(url: str) -> None:
    with pytest.raises(StoreError) as refusal:
        parse_database_url(url)
    assert refusal.value.hint


def test_urls() -> None:
    assert parse_database_url("sqlite:///a/b.db") == Path("a/b.db")
    assert parse_database_url("sqlite:////a/b%20 ?.db") == Path("/a/b%20 ?.db")


def test_a_path_may_have_any_characters(tmp_path: Path) -> None:
    odd = tmp_path / "a b?c#d%20é.db"
    open_and_close(odd)
    assert odd.stat().st_size > 0


def test_files_that_are_not_ours_are_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_bytes(b"not a database, but long enough to look at" * 100)
    other = tmp_path / "other.db"
    made = open_file(other)
    made.execute("CREATE TABLE theirs (x)")
    made.close()
    for file in (text, other):
        before = file.read_bytes()
        with pytest.raises(StoreError) as refusal:
            open_writer(file)
        assert str(file) in str(refusal.value)
        assert file.read_bytes() == before


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file" / "x.db", tmp_path):
        with pytest.raises(StoreError):
            open_writer(bad)


def test_a_newer_schema_is_refused(database: Path) -> None:
    open_and_close(database)
    made = open_file(database)
    made.execute("PRAGMA user_version = 999")
    made.close()
    with pytest.raises(StoreError, match="newer") as refusal:
        open_writer(database)
    assert "upgrade" in refusal.value.hint


def test_a_migration_happens_as_a_whole_or_not_at_all(database: Path) -> None:
    opened = open_writer(database)
    steps = read_migrations()
    broken = "CREATE TABLE more (x TEXT);\n-- ;\nINSERT INTO more VALUES ('a;b');\nINSERT INTO nowhere VALUES (1);"
    with pytest.raises(sqlite3.OperationalError):
        migrate(opened, [*steps, broken])
    assert connection.read_pragma(opened, "user_version") == len(steps)
    assert opened.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'more'").fetchone() == (0,)
    migrate(opened, [*steps, broken.replace("nowhere", "more")])
    assert opened.execute("SELECT x FROM more").fetchall() == [("a;b",), ("1",)]
    opened.close()


def test_migrations_are_numbered_without_gaps() -> None:
    folder = Path(connection.__file__).parents[1] / "migrations" / "sqlite"
    names = sorted(file.name for file in folder.glob("*.sql"))
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    assert len(read_migrations()) == len(names)


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), True),
        ((3, 53, 4), False),
    ],
)
def test_an_affected_sqlite_is_refused(version: tuple[int, int, int], affected: bool) -> None:  # noqa: FBT001
    assert is_affected(version) is affected
    if affected:
        with pytest.raises(StoreError, match="lose"):
            require_sound(version)
    else:
        require_sound(version)


def test_the_linked_sqlite_is_sound_and_syncs_every_commit(database: Path) -> None:
    require_sound()
    opened = open_writer(database)
    assert opened.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert opened.execute("PRAGMA synchronous").fetchone() == (2,)
    opened.close()


def test_a_reader_cannot_write(database: Path) -> None:
    open_and_close(database)
    reader = open_reader(database)
    with pytest.raises(sqlite3.OperationalError):
        reader.execute("DELETE FROM events")
    reader.close()


def test_a_job_that_fails_takes_no_other_along(database: Path) -> None:
    """Three jobs in one group; the middle one breaks: the others are committed, it is told."""

    async def scenario() -> None:
        gate = asyncio.Event()
        loop = asyncio.get_running_loop()
        one = Writer(lambda: open_writer(database))

        def hold(transaction: Transaction) -> None:
            asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(WAIT_S)

        def put(number: int, transaction: Transaction) -> int:
            statement = "INSERT INTO tenants (name, created_at_ns) VALUES (?, 0)"
            transaction.connection.execute(statement, (f"t{number}",))
            if number == 2:
                raise ZeroDivisionError
            return number

        holding = asyncio.create_task(one.submit(hold))
        await asyncio.sleep(0)
        jobs = [asyncio.create_task(one.submit(partial(put, number))) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        gate.set()
        await holding
        results = await asyncio.gather(*jobs, return_exceptions=True)
        await one.aclose()
        assert results[0] == 1
        assert isinstance(results[1], ZeroDivisionError)
        assert results[2] == 3

    asyncio.run(scenario())
    assert ask_file(database, "SELECT name FROM tenants ORDER BY 1") == [("t1",), ("t3",)]


def test_a_full_queue_says_come_again(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "QUEUE_MAX_JOBS", 2)

    async def scenario() -> None:
        gate = asyncio.Event()
        entered = asyncio.Event()
        loop = asyncio.get_running_loop()
        one = Writer(lambda: open_writer(database))

        def hold(transaction: Transaction) -> None:
            loop.call_soon_threadsafe(entered.set)
            asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(WAIT_S)

        jobs = [asyncio.create_task(one.submit(hold))]
        await asyncio.wait_for(entered.wait(), WAIT_S)
        jobs += [asyncio.create_task(one.submit(lambda transaction: None)) for _ in range(3)]
        await asyncio.sleep(0)
        gate.set()
        results = await asyncio.gather(*jobs, return_exceptions=True)
        await one.aclose()
        assert results[:3] == [None] * 3
        assert isinstance(results[3], StoreBusy)

    asyncio.run(scenario())


def test_questions_do_not_wait_for_a_write(database: Path) -> None:
    """A statistics answer comes back while the writer's transaction is open."""

    async def scenario() -> None:
        async with open_store(database_url(database)) as opened:
            store = cast("AskedStore", opened)
            key = await store.create_key("acme", b"d" * 32, frozenset())
            gate, entered = asyncio.Event(), asyncio.Event()
            loop = asyncio.get_running_loop()

            def hold(transaction: Transaction) -> None:
                insert.ingest(transaction, key.tenant, Clock(NOW_NS), [make_session()], arrive([make_event(1)]))
                loop.call_soon_threadsafe(entered.set)
                asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(WAIT_S)

            writing = asyncio.create_task(cast("SqliteEngine", store._engine)._writer.submit(hold))
            await asyncio.wait_for(entered.wait(), WAIT_S)
            tenant = store.bind(key.tenant)
            assert (await asyncio.wait_for(tenant.read_stats(StatsQuery()), WAIT_S)).totals.events == 0
            gate.set()
            await writing
            assert (await tenant.read_stats(StatsQuery())).totals.events == 1

    asyncio.run(scenario())


def test_a_locked_store_is_busy_and_recovers(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process holds the write lock: 503 with a time to come back, reads go on; then all is well."""
    monkeypatch.setattr(connection, "BUSY_TIMEOUT_MS", 50)
    config = ServerConfig(database_url(database), port=0)
    batch = make_batch([make_event(1)])
    with app_in_thread(config) as url, open_api(url, database, "acme") as api:
        api.stats()
        holder = open_file(database)
        holder.execute("BEGIN IMMEDIATE")
        answer = api.post(msgspec.json.encode(batch))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_busy")
        assert int(answer.headers["Retry-After"]) > 0
        ready = httpx.get(url + "/health/ready", timeout=WAIT_S)
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "not_ready")
        assert httpx.get(url + "/health/live", timeout=WAIT_S).status_code == 200
        assert api.stats()["totals"]["events"] == 0
        holder.execute("ROLLBACK")
        holder.close()
        assert api.send(batch) == ["accepted"]
        assert httpx.get(url + "/health/ready", timeout=WAIT_S).json()["status"] == "ok"


def test_a_full_disk_is_busy_and_stores_nothing_by_halves(database: Path) -> None:
    def open_small() -> sqlite3.Connection:
        opened = open_writer(database)
        pages = connection.read_pragma(opened, "page_count")
        opened.execute(f"PRAGMA max_page_count = {pages + 20}")
        return opened

    async def scenario() -> None:
        one = Writer(open_small)
        key = await one.submit(lambda t: t.run(keys.create_key("acme", b"d", frozenset(), None, 0)))
        events = [make_event(n, payload="x" * 1000, size_bytes=1000) for n in range(300)]

        def put(transaction: Transaction) -> Sequence[object]:
            return insert.ingest(transaction, key.tenant, Clock(NOW_NS), [make_session()], arrive(events))

        with pytest.raises(StoreBusy, match="full") as refusal:
            await one.submit(put)
        assert refusal.value.retry_after_s > 1
        await one.aclose()

    asyncio.run(scenario())
    assert ask_file(database, "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM rollups)") == [(0, 0)]


def test_what_was_committed_is_there_after_opening_again(database: Path) -> None:
    async def store_some() -> None:
        async with open_tenant(database) as store:
            await store.ingest([make_session()], arrive([make_event(1), make_event(2)]))

    async def read_again() -> None:
        async with open_tenant(database, "acme2") as other:
            assert (await other.read_stats(StatsQuery())).totals.events == 0
            verdicts = await other.ingest([make_session()], arrive([make_event(1)]))
            assert verdicts[0].status is Status.ACCEPTED

    asyncio.run(store_some())
    asyncio.run(read_again())
    assert ask_file(database, "SELECT count(*) FROM events") == [(3,)]


def test_many_rows_and_odd_counts(database: Path) -> None:
    async def scenario() -> None:
        async with open_tenant(database) as store:
            total = 0
            for count in (1, insert.ROWS_PER_INSERT - 1, insert.ROWS_PER_INSERT, insert.ROWS_PER_INSERT + 1, 1000):
                events = [make_event(total + n) for n in range(count)]
                verdicts = await store.ingest([make_session()], arrive(events))
                assert {verdict.status for verdict in verdicts} == {Status.ACCEPTED}
                total += count
            assert (await store.read_stats(StatsQuery())).totals.events == total

    asyncio.run(scenario())

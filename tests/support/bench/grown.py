"""
Questions to a store that has grown: the same ones to 100 thousand events and to ten million, in turns.

Both are spread over the same 60 days and 200 series; the durations of one series lie within a factor of 1.8. The events
are made by PostgreSQL itself; their figures by km-server's own rebuilding, so that what is asked is what it would have.
"""

import asyncio
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import httpx
from km_server.store.opening import open_store
from km_server.store.postgres.partitions import Week, make_partition, week_of
from km_server.store.rollup import DAY_NS
from rich.progress import Progress

from tests.support.bench.report import Budget, Section, Sheet
from tests.support.postgres import FAST, Cluster, running_postgres
from tests.support.processes import create_key, running_server

SMALL_EVENTS = 100_000
DAYS = 60
SESSION_EVENTS = 1000
STEP_EVENTS = 250_000
TENANT = "acme"

FILL = """
INSERT INTO events (id, tenant_id, session_id, position, member, series_id, at_ns, size_bytes, took_ns, day, stream,
    bucket, truncated, packed, kind, method, target, rpc_id, outcome, payload)
SELECT g, 1, 1 + g / 1000, g * 100, 0, 1 + g % 200, at_ns, 200, CASE WHEN g % 2 = 1 THEN 5000000 END,
    at_ns / 86400000000000, g % 2, CASE WHEN g % 2 = 1 THEN 250 + g % 200 + g / 200 % 12 END, 0, 0,
    CASE WHEN g % 2 = 1 THEN 'response' ELSE 'request' END, 'method' || g % 200 % 4, 'target' || g % 200 / 4 % 5,
    g::text, CASE WHEN g % 2 = 1 THEN 'ok' END, convert_to(repeat(md5(g::text), 4), 'UTF8')
FROM (SELECT g, $3::bigint + g / 1000 * 1000 * $4::bigint + g % 1000 * 1000000 AS at_ns
    FROM generate_series($1::bigint, $2::bigint) AS g) AS made
"""
FILL_SESSIONS = """
INSERT INTO sessions (tenant_id, session, name, command, host, started_at_ns, day, first_at_ns, last_at_ns, events)
SELECT 1, 's' || n, 'server' || n % 10, '', '', at_ns, at_ns / 86400000000000, at_ns, at_ns + 999000000, 1000
FROM (SELECT n, $2::bigint + n * 1000 * $3::bigint AS at_ns FROM generate_series(0, $1::bigint - 1) AS n) AS made
"""
FILL_SERIES = """
INSERT INTO series (tenant_id, key, server, method, target)
SELECT 1, convert_to(n::text, 'UTF8'), 'server' || n / 20, 'method' || n % 4, 'target' || n / 4 % 5
FROM generate_series(0, 199) AS n
"""

Ask = Callable[[], httpx.Response]


def measure_questions(section: Section, folder: Path, events: int, rounds: int) -> None:
    """The same questions to both, in turns; p95 of each kind."""
    with running_postgres(FAST) as cluster:
        small, large = (grow(cluster, count) for count in (SMALL_EVENTS, events))
        with (
            running_server(folder / "small.db", database_url=small) as first,
            running_server(folder / "large.db", database_url=large) as second,
        ):
            clients = [
                open_client(folder, first.url, small),
                open_client(folder, second.url, large),
            ]
            rows: list[tuple[str | float, ...]] = []
            for name, path, questions in list_questions():
                took = ask_in_turns(clients, path, questions, rounds)
                cuts = [statistics.quantiles(times, n=20)[18] * 1000 for times in took]
                rows.append((name, cuts[0], cuts[1], f"{cuts[1] / cuts[0]:.2f}"))
                budget = Budget(f"{name}, p95 at {events:,} events against {SMALL_EVENTS:,}", cuts[1] / cuts[0], 1.5)
                section.budgets.append(budget)
            columns = ("PostgreSQL, p95 in ms", f"{SMALL_EVENTS:,} events", f"{events:,} events", "ratio")
            section.sheets.append(Sheet("questions", columns, rows))


def list_questions() -> list[tuple[str, str, list[dict[str, str]]]]:
    """Name, path and parameters of what is asked."""
    now_s = time.time()
    week, odd = f"{now_s - 7 * 86_400:.0f}", f"{now_s - 20 * 86_400 + 1234:.0f}"
    return [
        (
            "activity",
            "/api/v1/activity",
            [{}, {"limit": "200"}, {"to": odd}, {"session": "s42"}, {"method": "method1"}],
        ),
        ("stats", "/api/v1/stats", [{}, {"from": week}, {"from": odd, "to": week}]),
    ]


def open_client(folder: Path, url: str, database_url: str) -> httpx.Client:
    """A client with a key of the tenant that has the events."""
    key = create_key(folder / "key.db", TENANT, database_url=database_url)
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)


def ask_in_turns(
    clients: list[httpx.Client], path: str, questions: list[dict[str, str]], rounds: int
) -> list[list[float]]:
    """Seconds per question, for each client."""
    took: list[list[float]] = [[] for _ in clients]
    for number in range(-2, rounds):
        for question in questions:
            for client, times in zip(clients, took, strict=True):
                began = time.perf_counter()
                answer = client.get(path, params=question)
                seconds = time.perf_counter() - began
                assert answer.status_code == 200, answer.text
                if number >= 0:
                    times.append(seconds)
    return took


def grow(cluster: Cluster, events: int) -> str:
    """A database with so many events of one tenant. Returns its URL."""
    url = cluster.new_database()
    asyncio.run(fill(cluster, url, events))
    return url


async def fill(cluster: Cluster, url: str, events: int) -> None:
    """Make the events, and have the server count them."""
    begin_ns = time.time_ns() - DAYS * DAY_NS
    gap_ns = DAYS * DAY_NS // events
    async with open_store(url) as store:
        await store.create_key(TENANT, b"grown", frozenset())
    connection = await asyncpg.connect(cluster.as_superuser(url), command_timeout=600)
    try:
        first = week_of(begin_ns // DAY_NS).first
        for number in range(DAYS // 7 + 1):
            async with connection.transaction():
                await make_partition(connection, Week(first + 7 * number))
        await connection.execute(FILL_SERIES)
        await connection.execute(FILL_SESSIONS, events // SESSION_EVENTS, begin_ns, gap_ns)
        with Progress(transient=True) as progress:
            filling = progress.add_task(f"making {events:,} events", total=events)
            for start in range(0, events, STEP_EVENTS):
                end = min(start + STEP_EVENTS, events)
                await connection.execute(FILL, start, end - 1, begin_ns, gap_ns)
                progress.update(filling, completed=end)
        await connection.execute("SELECT setval('event_blocks', $1)", events // 1024 + 2)
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()
    async with open_store(url) as store:
        (tenant,) = await store.list_tenants()
        async for _ in store.bind(tenant).rebuild_rollups():
            pass
    connection = await asyncpg.connect(cluster.as_superuser(url), command_timeout=600)
    await connection.execute("VACUUM ANALYZE")
    await connection.close()

"""
km-server: ingestion against each store's own bulk load of the same rows, batch latency, and questions as data grows.

Eight clients send ready-made bodies, so that what is measured is the server and not the making of traffic. The bare
loop writes the very rows that the server wrote, with the same schema, indexes and durability, ROWS_PER_COMMIT to a
transaction: `executemany` for SQLite, COPY → temporary table → INSERT … ON CONFLICT DO
NOTHING for PostgreSQL, a throw-away server with fsync on.
"""

import asyncio
import http.client
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import msgspec
import zstandard
from km_server.store.opening import open_store
from km_server.store.postgres.load import COLUMN_NAMES
from km_server.store.sqlite.connection import open_writer, transaction
from km_server.store.sqlite.insert import OWN_COLUMNS

from kmd.wire import Batch, Event, Session
from tests.support.bench import grown
from tests.support.bench.report import Budget, Options, Section, Sheet
from tests.support.bench.side_by_side import SPREAD, median_ratio, spread, time_together
from tests.support.postgres import Cluster, running_postgres
from tests.support.processes import create_key, running_server

CLIENTS = 8
BATCH_EVENTS = 500
SMALL_BATCH_EVENTS = 100
PAYLOAD_CHARS = 600
ROWS_PER_COMMIT = 2000
HEADERS = {"Content-Type": "application/json", "Content-Encoding": "zstd"}
DURABLE = ("fsync=on", "synchronous_commit=on")
WORDS = ("file", "path", "server", "result", "error", "line", "function", "return", "value", "import", "class")
TOOLS = ("read_file", "write_file", "search", "list")


@dataclass(frozen=True, slots=True)
class Effort:
    rounds: int = 3
    events: int = 160_000
    small_batches: int = 1_600
    grown_events: int = 10_000_000
    questions: int = 60


QUICK = Effort(rounds=1, events=40_000, small_batches=400, grown_events=1_000_000, questions=30)


@dataclass(frozen=True, slots=True)
class Place:
    """A store to measure: a new one each time, and its bare loop, which takes what the server stored."""

    name: str
    make: Callable[[], str]
    bulk_load: Callable[[str, str], float]
    bare_copy: Callable[[str, str], float] | None = None


def measure_server(options: Options) -> Section:
    section, effort = Section("server"), QUICK if options.quick else Effort()
    with tempfile.TemporaryDirectory(prefix="km-bench-") as folder, running_postgres(DURABLE) as cluster:
        for place in list_places(Path(folder), cluster):
            measure_ingest(section, effort, place, Path(folder))
            measure_small_batches(section, effort, place, Path(folder))
        grown.measure_questions(section, Path(folder), effort.grown_events, effort.questions)
    return section


def list_places(folder: Path, cluster: Cluster) -> list[Place]:
    numbers = iter(range(10**6))

    def make_file() -> str:
        return f"sqlite:///{folder / f'store{next(numbers)}.db'}"

    return [
        Place("SQLite", make_file, load_sqlite),
        Place(
            "PostgreSQL",
            cluster.new_database,
            partial(load_postgres, cluster),
            partial(load_postgres, cluster, deduplicate=False),
        ),
    ]


def make_body(session: str, first: int, events: int) -> bytes:
    """A packed batch of requests and their answers."""
    now_ns = time.time_ns()
    made = []
    for number in range(first, first + events):
        answer, exchange = number % 2 == 1, number // 2
        payload = json.dumps({"jsonrpc": "2.0", "id": exchange, "text": make_text(number)})
        made.append(
            Event(
                session=session,
                stream="to_client" if answer else "to_server",  # type: ignore[arg-type]
                offset=exchange * 1000,
                at_ns=now_ns + number * 1000,
                kind="response" if answer else "request",  # type: ignore[arg-type]
                method="tools/call",
                target=TOOLS[exchange % len(TOOLS)],
                rpc_id=str(exchange),
                size_bytes=len(payload),
                took_ns=1_000_000 + exchange * 997 % 10**9 if answer else None,
                outcome="ok" if answer else None,  # type: ignore[arg-type]
                payload=payload,
            )
        )
    described = Session(session=session, name="bench", started_at_ns=now_ns)
    batch = Batch(batch_id=f"{session}-{first}", sessions=(described,), events=tuple(made))
    return zstandard.compress(msgspec.json.encode(batch), 3)


def make_text(number: int) -> str:
    """Words and numbers, which pack as messages do: to about a half."""
    return " ".join(
        f"{WORDS[number * place % len(WORDS)]}{number * place % 89}" for place in range(1, PAYLOAD_CHARS // 8)
    )


def make_bodies(events: int, batch_events: int) -> list[list[bytes]]:
    """Bodies for each client, of a session of its own."""
    each = events // CLIENTS
    return [
        [make_body(f"s{client}", first, batch_events) for first in range(0, each, batch_events)]
        for client in range(CLIENTS)
    ]


def send_all(url: str, key: str, bodies: list[list[bytes]]) -> tuple[float, list[float]]:
    """Every client sends its bodies one after the other. Returns the seconds in all, and of each request."""
    took: list[float] = []

    def send(own: list[bytes]) -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        headers = {**HEADERS, "Authorization": f"Bearer {key}"}
        for body in own:
            while True:
                began = time.perf_counter()
                connection.request("POST", "/api/v1/events/batch", body, headers)
                answer = connection.getresponse()
                text = answer.read()
                if answer.status in (429, 503):
                    time.sleep(float(answer.headers["Retry-After"]))
                    continue
                assert answer.status == 200, text
                took.append(time.perf_counter() - began)
                break
        connection.close()

    return time_together(partial(send, own) for own in bodies), took


@contextmanager
def serving(database_url: str, folder: Path) -> Iterator[tuple[str, str]]:
    """A server on the store, and a key."""
    os.sync()  # or what was written before stands in the way of its own writes
    with running_server(folder / "server.db", database_url=database_url) as running:
        yield running.url, create_key(folder / "server.db", database_url=database_url)


def measure_ingest(section: Section, effort: Effort, place: Place, folder: Path) -> None:
    """The server and the bare loop in turn, each on a new store."""
    bodies = make_bodies(effort.events, BATCH_EVENTS)
    served, bare, copied = [], [], []
    for _ in range(effort.rounds):
        source, target = place.make(), place.make()
        with serving(source, folder) as (url, key):
            seconds, _ = send_all(url, key, bodies)
        served.append(effort.events / seconds)
        os.sync()
        bare.append(effort.events / place.bulk_load(source, target))
        if place.bare_copy is not None:
            copied.append(effort.events / place.bare_copy(source, place.make()))
    rows = [spread("km-server", served), spread("bulk load", bare)]
    if copied:
        rows.append(spread("bare COPY, which takes no duplicate", copied))
    section.sheets.append(Sheet(f"{place.name}: events per second, batches of {BATCH_EVENTS}, 8 clients", SPREAD, rows))
    ratio = median_ratio(served, bare)
    section.budgets.append(Budget(f"{place.name}: ingest against its own bulk load", ratio, 0.5, at_least=True))


def measure_small_batches(section: Section, effort: Effort, place: Place, folder: Path) -> None:
    """Eight clients without a pause: each request waits behind seven others."""
    bodies = make_bodies(effort.small_batches * SMALL_BATCH_EVENTS, SMALL_BATCH_EVENTS)
    with serving(place.make(), folder) as (url, key):
        send_all(url, key, [own[:20] for own in make_bodies(20 * CLIENTS, 1)])
        _, took = send_all(url, key, bodies)
    cuts = statistics.quantiles([seconds * 1000 for seconds in took], n=100)
    rows: list[tuple[str | float, ...]] = [("8 clients", cuts[49], cuts[98])]
    section.sheets.append(Sheet(f"{place.name}: a batch of {SMALL_BATCH_EVENTS}, ms", ("", "p50", "p99"), rows))
    section.budgets.append(Budget(f"{place.name}: p99 of a 100-event batch under load", cuts[98], 100, "ms"))


def load_sqlite(source: str, target: str) -> float:
    """The rows of one file into another by executemany; seconds."""
    columns = f"tenant_id, session_id, packed, {OWN_COLUMNS}"
    old = open_writer(Path(source.removeprefix("sqlite:///")))
    rows = old.execute(f"SELECT {columns} FROM events ORDER BY id").fetchall()  # noqa: S608 - constants
    old.close()
    new = open_writer(Path(target.removeprefix("sqlite:///")))
    new.execute("PRAGMA foreign_keys = OFF")
    insert = f"INSERT INTO events ({columns}) VALUES ({', '.join('?' * len(rows[0]))}) ON CONFLICT DO NOTHING"  # noqa: S608 - constants
    began = time.perf_counter()
    for start in range(0, len(rows), ROWS_PER_COMMIT):
        with transaction(new):
            new.executemany(insert, rows[start : start + ROWS_PER_COMMIT])
    seconds = time.perf_counter() - began
    new.close()
    return seconds


def load_postgres(cluster: Cluster, source: str, target: str, *, deduplicate: bool = True) -> float:
    """
    The rows of one database into another; seconds.

    deduplicate: by COPY into a temporary table and INSERT … ON CONFLICT DO NOTHING, which is PostgreSQL's bulk load for
    rows that may come twice. Else by bare COPY, which fails on the first one. (By the superuser: COPY is not for roles
    that row-level security binds.)
    """

    async def run() -> float:
        async with open_store(target):
            pass  # makes the schema and the partitions
        columns = ("tenant_id", *COLUMN_NAMES)
        names = ", ".join(columns)
        old = await asyncpg.connect(cluster.as_superuser(source))
        rows = [tuple(row) for row in await old.fetch(f"SELECT {names} FROM events ORDER BY id")]  # noqa: S608 - constants
        await old.close()
        new = await asyncpg.connect(cluster.as_superuser(target))
        await new.execute("CREATE TEMP TABLE incoming (LIKE events) ON COMMIT DELETE ROWS")
        began = time.perf_counter()
        for start in range(0, len(rows), ROWS_PER_COMMIT):
            part = rows[start : start + ROWS_PER_COMMIT]
            async with new.transaction():
                table = "incoming" if deduplicate else "events"
                await new.copy_records_to_table(table, records=part, columns=columns)
                if deduplicate:
                    await new.fetch(
                        f"INSERT INTO events ({names}) SELECT {names} FROM incoming"  # noqa: S608 - constants
                        " ON CONFLICT DO NOTHING RETURNING id"
                    )
        seconds = time.perf_counter() - began
        await new.close()
        return seconds

    return asyncio.run(run())

"""
Several workers that count into the same rows: `python -m tests.support.bench.hot_rows`.

Eight clients send to one km-server with 1, 2 or 4 workers on PostgreSQL (fsync on): once all of them into the same
minute and series (one row per width that everybody updates), once each into series of its own. Meanwhile what the
connections wait for is looked at every SAMPLE_S. If the rows were hot, the first way would be the slower one, and the
waits would be for `transactionid` or `tuple`.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import asyncpg
import msgspec
import zstandard

from kmd.wire import Batch
from tests.support.bench.server import CLIENTS, DURABLE, make_body, send_all
from tests.support.postgres import OWNER, Cluster, running_postgres
from tests.support.processes import create_key, start_server

SAMPLE_S = 0.005
LOOK = f"""
SELECT CASE state WHEN 'active' THEN coalesce(wait_event_type || ':' || wait_event, 'running') ELSE state END
FROM pg_stat_activity WHERE usename = '{OWNER}' AND state <> 'idle'
"""  # noqa: S608 - a constant
DEADLOCKS = "SELECT coalesce(sum(deadlocks), 0)::bigint FROM pg_stat_database"
ROW_WAITS = ("Lock:transactionid", "Lock:tuple")


def make_bodies(events: int, batch_events: int, *, same: bool) -> list[list[bytes]]:
    """Bodies for each client; all of one server's name, or each of its own."""
    each = events // CLIENTS
    return [
        [
            body if same else rename(body, f"own{client}")
            for body in (make_body(f"s{client}", first, batch_events) for first in range(0, each, batch_events))
        ]
        for client in range(CLIENTS)
    ]


def rename(body: bytes, name: str) -> bytes:
    """The body with its sessions' server called otherwise."""
    batch = msgspec.json.decode(zstandard.decompress(body), type=Batch)
    sessions = tuple(msgspec.structs.replace(session, name=name) for session in batch.sessions)
    return zstandard.compress(msgspec.json.encode(msgspec.structs.replace(batch, sessions=sessions)), 3)


@contextmanager
def watching(cluster: Cluster) -> Iterator[Counter[str]]:
    """Counts what the server's connections were seen at."""
    seen: Counter[str] = Counter()
    over = threading.Event()

    async def watch() -> None:
        connection = await asyncpg.connect(cluster.url)
        try:
            while not over.is_set():
                seen.update(row[0] for row in await connection.fetch(LOOK))
                await asyncio.sleep(SAMPLE_S)
        finally:
            await connection.close()

    thread = threading.Thread(target=asyncio.run, args=(watch(),))
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def measure(cluster: Cluster, workers: int, bodies: list[list[bytes]], folder: Path) -> dict[str, object]:
    """One run on a new database: the rate, the requests' times, and what was seen meanwhile."""
    url, before = cluster.new_database(), cluster.ask(DEADLOCKS)[0][0]
    running = start_server(folder / "hot", extra=("--workers", str(workers)), database_url=url)
    try:
        key = create_key(folder / "hot", database_url=url)
        with watching(cluster) as seen:
            seconds, took = send_all(running.url, key, bodies)
    finally:
        running.stop()
    cuts = statistics.quantiles([one * 1000 for one in took], n=100)
    return {
        "requests_per_s": round(len(took) / seconds, 1),
        "p50_ms": round(cuts[49]),
        "p99_ms": round(cuts[98]),
        "row_waits_percent": round(100 * sum(seen[wait] for wait in ROW_WAITS) / max(seen.total(), 1), 1),
        "deadlocks": cluster.ask(DEADLOCKS)[0][0] - before,
        "seen": dict(seen.most_common(8)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().partition("\n\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--events", type=int, default=80_000)
    parser.add_argument("--batch", type=int, default=500, help="events in a batch")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    ways = {name: make_bodies(given.events, given.batch, same=name == "same") for name in ("same", "own")}
    with tempfile.TemporaryDirectory(prefix="km-hot-") as folder, running_postgres(DURABLE) as cluster:
        for workers, _, (name, bodies) in product(given.workers, range(given.rounds), ways.items()):
            figures = measure(cluster, workers, bodies, Path(folder))
            print(json.dumps({"workers": workers, "series": name, "batch": given.batch, **figures}), flush=True)


if __name__ == "__main__":
    main()

"""
kill -9 of km-server and of PostgreSQL itself during ingestion: everything acknowledged is there, once, and the figures
equal a recount.

The server outlives its database: while that is away it says so, and goes on by itself afterwards.
"""

import asyncio
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import msgspec
import pytest
from km_server.store.opening import open_store
from km_server.store.values import Filter, StatsQuery

from kmd.wire import Receipt
from tests.server.clients import Api, make_answer, make_batch, make_event, new_key
from tests.server.story import assert_figures_are_a_recount
from tests.support.postgres import Cluster, running_postgres
from tests.support.processes import Running, start_server, wait_for

EXCHANGES = 25
SENDERS = 3
ACKED_BEFORE_KILL = 4 * 2 * EXCHANGES
WAIT_S = 60
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def durable() -> Iterator[Cluster]:
    """A PostgreSQL of its own, as it is in production: to be killed."""
    with running_postgres(()) as cluster:
        if cluster.folder is None:
            pytest.skip("an existing PostgreSQL is not ours to kill")
        yield cluster


@dataclass
class Sender:
    """One client that sends batch after batch of a session of its own, each until it is acknowledged."""

    session: str
    stop: threading.Event
    url: str = ""
    acked: set[int] = field(default_factory=set)
    next: int = 0

    def run(self, key: str) -> None:
        """Send until told to stop; whatever goes wrong, send the same again."""
        while not self.stop.is_set():
            numbers = range(self.next, self.next + EXCHANGES)
            events = [make_event(number, self.session) for number in numbers]
            events += [make_answer(number, 1000 + number, session=self.session) for number in numbers]
            body = msgspec.json.encode(make_batch(events))
            with closing(Api(self.url, key).http) as http:
                try:
                    answer = http.post(
                        "/api/v1/events/batch", content=body, headers={"Content-Type": "application/json"}
                    )
                except httpx.TransportError:
                    self.stop.wait(0.05)
                    continue
            if answer.status_code == 503:
                assert int(answer.headers["Retry-After"]) > 0
                self.stop.wait(0.05)
                continue
            assert answer.status_code == 200, answer.text
            receipt = msgspec.json.decode(answer.content, type=Receipt)
            assert {verdict.status for verdict in receipt.verdicts} <= {"accepted", "duplicate"}
            self.acked.update(numbers)
            self.next += EXCHANGES


def count_acked(senders: list[Sender]) -> int:
    return 2 * sum(len(sender.acked) for sender in senders)


def kill_in_turns(cluster: Cluster, folder: Path, rounds: int, seed: int) -> None:
    """Traffic, and one of the two killed at a random moment, again and again; then the books."""
    chance = random.Random(seed)
    url = cluster.new_database()
    key = new_key(url, "acme")
    stop = threading.Event()
    senders = [Sender(f"s{number}", stop) for number in range(SENDERS)]
    running = begin(folder, url, senders)
    threads = [threading.Thread(target=sender.run, args=(key,)) for sender in senders]
    for thread in threads:
        thread.start()
    try:
        for number in range(rounds):
            wanted = count_acked(senders) + ACKED_BEFORE_KILL
            wait_for(partial(has_acked, senders, wanted), "acknowledgements", WAIT_S)
            stop.wait(chance.random() * 0.05)
            if number % 2:
                cluster.stop(signal.SIGKILL)
                cluster.start_again()
            else:
                assert running.stop(signal.SIGKILL) == -signal.SIGKILL
                running = begin(folder, url, senders)
        wait_for(partial(has_acked, senders, count_acked(senders) + ACKED_BEFORE_KILL), "acknowledgements", WAIT_S)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        running.stop()
    asyncio.run(balance(url, senders))


def begin(folder: Path, url: str, senders: list[Sender]) -> Running:
    """Start a server and tell the senders where it is."""
    running = start_server(folder / "server", database_url=url)
    for sender in senders:
        sender.url = running.url
    return running


def has_acked(senders: list[Sender], count: int) -> bool:
    return count_acked(senders) >= count


async def balance(url: str, senders: list[Sender]) -> None:
    """Acknowledged are stored, nothing twice, and the figures of everything equal a recount and a rebuilding."""
    async with open_store(url) as store:
        (tenant,) = await store.list_tenants()
        bound = store.bind(tenant)
        await assert_figures_are_a_recount(bound)
        for sender in senders:
            found = [
                (stored.event.stream, stored.event.offset)
                async for portion in bound.export(Filter(session=sender.session), payloads=False)
                for stored in portion
            ]
            assert len(found) == len(set(found))
            acked = {(stream, number * 100) for number in sender.acked for stream in ("to_server", "to_client")}
            assert set(found) >= acked
            # what was stored and not acknowledged is at most the batch that was on its way
            assert len(set(found) - acked) <= 2 * EXCHANGES
        query = StatsQuery(bucket_minutes=1)
        before = await bound.read_stats(query)
        assert [step async for step in bound.rebuild_rollups()]
        assert await bound.read_stats(query) == before


def test_kills_of_server_and_database(durable: Cluster, tmp_path: Path) -> None:
    kill_in_turns(durable, tmp_path, rounds=4, seed=1)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_fifty_kills_of_server_and_database(durable: Cluster, tmp_path: Path) -> None:
    kill_in_turns(durable, tmp_path, rounds=50, seed=2)

"""kill -9 in the middle of ingestion: everything acknowledged is there, once, and the figures agree."""

import signal
import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import msgspec

from kmd.wire import Receipt
from tests.server.clients import Api, make_batch, make_event, new_key
from tests.support.processes import running_server, start_server, wait_for

BATCH_EVENTS = 50
KILLS = 4
ACKED_BEFORE_KILL = 5


@dataclass
class Sender:
    """One client that sends batch after batch of a session of its own; knows what was acknowledged."""

    session: str
    acked: set[int] = field(default_factory=set)
    sent: int = 0

    def run(self, url: str, key: str) -> None:
        """Send until the server is gone. What was on its way then is sent again first, later."""
        api = Api(url, key)
        with api.http:
            while True:
                numbers = range(self.sent, self.sent + BATCH_EVENTS)
                events = [make_event(number, self.session) for number in numbers]
                try:
                    answer = api.post(msgspec.json.encode(make_batch(events)))
                except httpx.TransportError:
                    return
                receipt = msgspec.json.decode(answer.content, type=Receipt)
                assert {verdict.status for verdict in receipt.verdicts} <= {"accepted", "duplicate"}
                self.acked.update(numbers)
                self.sent += BATCH_EVENTS


def has_acked(senders: list[Sender], count: int) -> bool:
    return sum(len(sender.acked) for sender in senders) >= count


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    database = tmp_path / "server.db"
    key = new_key(database, "acme")
    senders = [Sender(f"s{number}") for number in range(3)]
    for _ in range(KILLS):
        running = start_server(database)
        before = sum(len(sender.acked) for sender in senders)
        threads = [threading.Thread(target=sender.run, args=(running.url, key)) for sender in senders]
        for thread in threads:
            thread.start()
        wait_for(partial(has_acked, senders, before + ACKED_BEFORE_KILL * BATCH_EVENTS), "acknowledgements")
        assert running.stop(signal.SIGKILL) == -signal.SIGKILL
        for thread in threads:
            thread.join()

    with running_server(database) as running:
        api = Api(running.url, key)
        with api.http:
            stored = [(item["session"], item["offset"]) for item in api.feed(limit=1000)]
            totals = api.stats()["totals"]
    acked = {(sender.session, number * 100) for sender in senders for number in sender.acked}
    assert len(stored) == len(set(stored))
    assert set(stored) >= acked
    assert (totals["events"], totals["calls"]) == (len(stored), len(stored))
    # what was stored and not acknowledged is at most the batch that each sender had on its way
    assert len(set(stored) - acked) <= len(senders) * BATCH_EVENTS

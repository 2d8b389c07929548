"""What a bound or a damaged file has cost is told to the destination with the next batch."""

import time
from pathlib import Path

import msgspec
import pysqlite3
import pytest

from kmd.mcp.names import Stream
from kmd.outbox.bounds import Limits
from kmd.outbox.outbox import Intake, Outbox
from kmd.outbox.salvage import LOST
from kmd.sync.plan import render_batch
from kmd.wire import Batch
from tests.daemon.rig import rig
from tests.daemon.rows import START, message, row
from tests.support.misbehaving import misbehaving


@pytest.mark.trio
async def test_the_next_batch_says_how_many_events_will_never_come(tmp_path: Path) -> None:
    with misbehaving() as server:
        async with rig(tmp_path, server.url, events=20) as running:
            await running.settle()
            outbox = running.outbox
            outbox.room.set_limits(Limits(max_bytes=1))
            assert outbox.room.make_room(0, time.time_ns())  # as when a second destination has had none of them
            assert outbox.read_lost_events() == 20
            session_id = outbox.open_session(START).session_id
            outbox.commit([Intake(session_id, [message(500)], {Stream.TO_SERVER: 503})])
            await running.settle()
        first, *_, last = server.requests
        assert "lost_events" not in first.batch
        assert last.batch["lost_events"] == 20


def test_losses_by_damage_count_and_what_every_destination_had_does_not(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with Outbox(path) as outbox:
        session_id = outbox.open_session(START).session_id
        outbox.commit([Intake(session_id, [message(offset, b"x" * 2000) for offset in range(20)], {})])
        outbox.room.set_limits(Limits(max_bytes=1))
        while outbox.room.make_room(20, 0) and outbox.read_totals(0).events:
            pass
        assert outbox.read_totals(0).evicted
        assert outbox.read_lost_events() == 0
    raw = pysqlite3.connect(str(path))
    raw.execute("INSERT INTO evictions VALUES (?, 7, 0, 0)", (LOST,))
    raw.commit()
    raw.close()
    with Outbox(path) as outbox:
        assert outbox.read_lost_events() == 7


def test_a_batch_without_losses_is_as_it_was() -> None:
    assert b"lost_events" not in render_batch([row(1)], "b", "", "")
    assert msgspec.json.decode(render_batch([row(1)], "b", "", "", 3), type=Batch).lost_events == 3

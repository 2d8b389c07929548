"""All destinations together: a change of the configuration leaves no moment without them and none running twice."""

from pathlib import Path

import pytest
import trio

from kmd.config import Config, parse_config
from kmd.mcp.names import Stream
from kmd.outbox.outbox import Intake, Outbox
from kmd.sync.destination import Sender, State
from kmd.sync.fleet import RESTART_S, Fleet
from tests.daemon.rows import START, message
from tests.support.misbehaving import misbehaving, say

WAIT_S = 15.0


def config(*urls: str) -> Config:
    return parse_config("\n".join(f'[[destinations]]\nname = "d{n}"\nurl = "{url}"' for n, url in enumerate(urls)), {})


def fill(outbox: Outbox, events: int) -> None:
    session_id = outbox.open_session(START).session_id
    messages = list(map(message, range(events)))
    outbox.commit([Intake(session_id, messages, {Stream.TO_SERVER: events}, ended_at_ns=outbox.last_end_seq)])


@pytest.mark.trio
async def test_while_the_configuration_is_read_again_nothing_unsettled_seems_settled(tmp_path: Path) -> None:
    with misbehaving(say(503)) as server, Outbox(tmp_path / "outbox.db") as outbox:
        fill(outbox, 5)
        async with trio.open_nursery() as nursery:
            fleet = Fleet(outbox, trio.CapacityLimiter(1), Sender("test", "host"), nursery)
            await fleet.apply(config(server.url))
            seen = set()

            async def watch() -> None:
                while True:
                    seen.add((fleet.lowest_cursor, fleet.told_end_seq, len(fleet.loops)))
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(watch)
            for _ in range(20):
                await fleet.apply(config(server.url))
            assert seen == {(0, 0, 1)}
            nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_reading_it_again_ends_every_wait_and_a_start_does_not(tmp_path: Path) -> None:
    """A server asked for patience; kmd keeps to that over a restart, until somebody has acted."""
    with misbehaving(say(503, Retry_After="600")) as server, Outbox(tmp_path / "outbox.db") as outbox:
        fill(outbox, 5)
        for is_restart in (False, True):
            async with trio.open_nursery() as nursery:
                fleet = Fleet(outbox, trio.CapacityLimiter(1), Sender("test", "host"), nursery)
                await fleet.apply(config(server.url))
                with trio.fail_after(WAIT_S):
                    while fleet.loops[0].next_attempt_s is None:  # noqa: ASYNC110 - a wait that is gone on with is not announced
                        await trio.sleep(0.01)
                    assert len(server.requests) == 1
                    if is_restart:
                        server.script = server.behave
                        await fleet.apply(config(server.url))
                        while fleet.loops[0].pending:
                            await fleet.loops[0].wait_progress()
                nursery.cancel_scope.cancel()
        assert len(server.stored) == 5


@pytest.mark.trio
async def test_reading_it_again_many_times_at_once_leaves_each_destination_running_once(tmp_path: Path) -> None:
    with misbehaving() as first, misbehaving() as second, Outbox(tmp_path / "outbox.db") as outbox:
        async with trio.open_nursery() as nursery:
            fleet = Fleet(outbox, trio.CapacityLimiter(1), Sender("test", "host"), nursery)
            async with trio.open_nursery() as readers:
                for _ in range(10):
                    readers.start_soon(fleet.apply, config(first.url, second.url))
            fill(outbox, 50)
            fleet.notice()
            with trio.fail_after(WAIT_S):
                for loop in fleet.loops:
                    while loop.pending:
                        await loop.wait_progress()
            await trio.sleep(0.4)  # a second loop for the same destination would send within this
            nursery.cancel_scope.cancel()
        assert [outbox.read_destination(name).settled for name in ("d0", "d1")] == [50, 50]
    assert (first.duplicates, second.duplicates, len(first.stored), len(second.stored)) == (0, 0, 50, 50)


@pytest.mark.trio
async def test_without_a_destination_nothing_is_pending(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db") as outbox:
        fill(outbox, 5)
        async with trio.open_nursery() as nursery:
            fleet = Fleet(outbox, trio.CapacityLimiter(1), Sender("test", "host"), nursery)
            await fleet.apply(config())
            assert (fleet.lowest_cursor, fleet.told_end_seq, fleet.loops) == (5, 1, [])


@pytest.mark.trio
async def test_a_fault_of_ours_in_one_destination_is_shown_and_the_loop_is_started_again(tmp_path: Path) -> None:
    with misbehaving() as server, Outbox(tmp_path / "outbox.db") as outbox:
        fill(outbox, 5)
        async with trio.open_nursery() as nursery:
            fleet = Fleet(outbox, trio.CapacityLimiter(1), Sender("test", "a lone \ud800"), nursery)
            await fleet.apply(config(server.url))
            (loop,) = fleet.loops
            with trio.fail_after(WAIT_S):
                while not loop.last_error:
                    await loop.wait_progress()
            assert (loop.state, loop.last_error) == (State.RETRYING, "a fault in kmd (UnicodeEncodeError)")
            assert loop.hint
            assert 0 < (loop.next_attempt_s or 0) <= RESTART_S
            nursery.cancel_scope.cancel()
    assert not server.requests

"""What a destination learns is kept: how long to wait, which encoding, how many events at once, which ends it knows."""

from math import ceil
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from kmd.mcp.row import Row, SessionStart
from kmd.outbox.outbox import Intake, Outbox
from kmd.sync.course import WAIT_MAX_S, Course, mark_of, parse_course, render_course
from kmd.sync.destination import State
from kmd.sync.plan import (
    GROW_AFTER,
    Limit,
    Suspect,
    learn_refused,
    learn_taken,
    limit_events,
    narrow,
    plan_batch,
    widen,
)
from tests.daemon.rig import check_all_settled, rig
from tests.daemon.rows import START, row
from tests.support.misbehaving import Act, Misbehaving, Request, Script, misbehaving, render_answer, say

MARK = mark_of("http://a", "k")
NOW_S = 1_800_000_000.0


# Between two runs of kmd.


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 2**40))
def test_a_course_comes_back_for_the_same_url_and_key_only(error: str, at_s: float, attempt: int) -> None:
    course = Course(MARK, attempt, at_s, is_paused=True, codec="gzip", limit=Limit(3, 2, 1), error=error)
    assert parse_course(render_course(course), MARK) == course
    for other in (mark_of("http://a", "other"), mark_of("http://b", "k")):
        assert parse_course(render_course(course), other) == Course(other)


@given(st.text() | st.sampled_from(["", "{}", "null", "[]", '{"limit":7}', '{"mark":"x"}', "[" * 5000]))
def test_a_course_that_is_none_is_a_fresh_one(text: str) -> None:
    assert parse_course(text, MARK) == Course(MARK)


@pytest.mark.parametrize(
    ("ahead_s", "wait_s"), [(60.0, 60.0), (0.0, 0.0), (-1e9, 0.0), (3e7, WAIT_MAX_S), (1e300, WAIT_MAX_S)]
)
def test_however_the_clock_was_set_no_wait_is_longer_than_the_longest(ahead_s: float, wait_s: float) -> None:
    assert Course(MARK, attempt=3, next_attempt_at_s=NOW_S + ahead_s).wait_s(NOW_S) == wait_s


@pytest.mark.trio
@pytest.mark.parametrize(("status", "state"), [(503, State.RETRYING), (401, State.PAUSED)])
async def test_a_restart_waits_for_what_was_waited_for_and_shows_why(tmp_path: Path, status: int, state: State) -> None:
    with misbehaving(say(status, Retry_After="600")) as server:
        async with rig(tmp_path, server.url) as running:
            await running.wait_trouble()
            error = running.loop.last_error
        async with rig(tmp_path, server.url) as running:
            await running.wait_trouble()
            await trio.testing.wait_all_tasks_blocked()
            assert (running.loop.state, running.loop.last_error) == (state, error)
            assert 200 < (running.loop.next_attempt_s or 0) <= 600
            assert len(server.requests) == 1
        server.script = server.behave
        async with rig(tmp_path, server.url, key="another") as running:
            await running.wait(lambda: not running.loop.pending)
            assert len(server.requests) == 2


@pytest.mark.trio
async def test_the_encoding_that_was_found_is_used_after_a_restart(tmp_path: Path) -> None:
    with misbehaving() as server:
        server.script = lambda request: (
            Act(render_answer(415))
            if request.headers.get("content-encoding", "identity") != "identity"
            else server.behave(request)
        )
        async with rig(tmp_path, server.url, 10) as running:
            await running.settle()
        async with rig(tmp_path, server.url, 20) as running:
            await running.settle()
    encodings = [request.headers.get("content-encoding", "identity") for request in server.requests]
    assert encodings == ["zstd", "gzip", "identity", "identity"]


# How many events at once.


def at_most(server: Misbehaving, events: int, status: int = 413) -> Script:
    """Refuses a batch with more events, and behaves otherwise."""
    return lambda request: Act(render_answer(status)) if len(request.offsets) > events else server.behave(request)


@pytest.mark.trio
@pytest.mark.parametrize("status", [413, 400])
async def test_a_servers_limit_is_learnt_once_and_kept_over_restarts(tmp_path: Path, status: int) -> None:
    with misbehaving() as server:
        server.script = at_most(server, 100, status)
        async with rig(tmp_path, server.url, 1500) as running:
            await running.settle()
            check_all_settled(running, server, 1500)
        assert len(server.requests) <= 12 + ceil(1500 / 50)
        before = len(server.requests)
        async with rig(tmp_path, server.url, 2500) as running:
            await running.settle()
            check_all_settled(running, server, 2500)
    again = server.requests[before:]
    assert sum(len(request.offsets) > 100 for request in again) <= 1
    assert len(again) <= 2 + ceil(1000 / 50)
    assert server.duplicates == 0


def deliver(rows: list[Row], limit: Limit, most: int, batch_events: int) -> tuple[Limit, list[int]]:
    """What the loop does against a server that takes *most* events at once: the limit then, and each try's size."""
    cursor, suspect, sizes = 0, None, list[int]()
    while waiting := [row for row in rows if row.seq > cursor]:
        batch = plan_batch(waiting[: limit_events(limit, batch_events)], suspect)
        sizes.append(len(batch))
        if len(batch) > most:
            if suspect is None and (known := learn_refused(limit, len(batch))):
                limit = known
                continue
            suspect = narrow(batch)
            assert suspect is not None, "no event is to blame"
            continue
        cursor = batch[-1].seq
        limit = learn_taken(limit, suspect, cursor, len(batch), batch_events)
        suspect = widen(suspect, cursor, len(batch))
    return limit, sizes


@given(st.integers(1, 120), st.integers(1, 100), st.integers(1, 600))
def test_no_event_is_blamed_for_a_limit_and_refusals_become_rare(most: int, batch_events: int, count: int) -> None:
    limit, sizes = deliver([row(seq) for seq in range(1, count + 1)], Limit(), most, batch_events)
    assert sum(size for size in sizes if size <= most) == count
    refused = sum(size > most for size in sizes)
    assert refused <= 8 + len(sizes) / GROW_AFTER
    assert limit_events(limit, batch_events) >= 1


def test_a_server_that_takes_more_again_gets_more_again() -> None:
    limit, _ = deliver([row(seq) for seq in range(1, 300)], Limit(), 10, 100)
    assert limit.events <= 10
    limit, sizes = deliver([row(seq) for seq in range(1, 20_000)], limit, 1000, 100)
    assert max(sizes) == 100
    assert limit == Limit()


def test_a_stretch_with_an_offender_teaches_no_limit() -> None:
    assert learn_taken(Limit(), Suspect(until_seq=10, max_events=1, taken_events=5), 9, 1, 500) == Limit()


def test_a_known_limit_explains_only_refusals_of_more() -> None:
    """A batch that small holds an offender: to try it again unchanged would never end."""
    assert learn_refused(Limit(200, 100), 101) == Limit(100, 100)
    assert learn_refused(Limit(200, 100), 100) is None


def test_a_limit_grows_up_to_what_is_configured() -> None:
    assert learn_taken(Limit(300, 300, GROW_AFTER - 1), None, 1, 300, 500) == Limit(500, 300)


# The ends of sessions.


def end_session(outbox: Outbox, start: SessionStart = START, at_ns: int = 77) -> None:
    session_id = outbox.open_session(start).session_id
    outbox.commit([Intake(session_id, [], {}, ended_at_ns=at_ns, closed_first="client")])


def told(request: Request) -> list[tuple[str, int | None, str | None]]:
    """Of each session in a batch: its name, end and who closed first."""
    return [(s["session"], s.get("ended_at_ns"), s.get("closed_first")) for s in request.batch.get("sessions", [])]


@pytest.mark.trio
async def test_the_end_of_a_session_is_told_by_itself_and_once(tmp_path: Path) -> None:
    with misbehaving() as server:
        async with rig(tmp_path, server.url) as running:
            await running.settle()
            end_session(running.outbox)
            running.loop.notice()
            await running.wait(lambda: len(server.requests) == 2)
            assert server.requests[1].offsets == []
            assert told(server.requests[1]) == [(START.session, 77, "client")]
            await running.wait(lambda: not running.loop.owes_ends)
        async with rig(tmp_path, server.url, 21) as running:
            await running.settle()
            assert not running.loop.owes_ends
    assert len(server.requests) == 3


@pytest.mark.trio
async def test_an_end_that_came_with_its_events_is_not_told_again(tmp_path: Path) -> None:
    with misbehaving(say(503)) as server:
        async with rig(tmp_path, server.url) as running:
            await running.wait_trouble()
            end_session(running.outbox)
            server.script = server.behave
            await running.wait(lambda: not running.loop.pending and not running.loop.owes_ends, nudge=True)
    *refused, taken = server.requests
    assert refused
    assert {len(request.offsets) for request in server.requests} == {20}, "an end by itself comes without events"
    assert told(taken) == [(START.session, 77, "client")]


@pytest.mark.trio
@pytest.mark.parametrize("status", [503, 401, 415, 400])
async def test_trouble_with_an_end_is_trouble_like_any_and_passes(tmp_path: Path, status: int) -> None:
    with misbehaving() as server:
        async with rig(tmp_path, server.url) as running:
            await running.settle()
            server.script = say(status)
            end_session(running.outbox)
            running.loop.notice()
            if status == 400:  # no event hangs on it, so it is not kept for ever
                await running.wait(lambda: not running.loop.owes_ends)
                return
            await running.wait_trouble()
            assert running.loop.owes_ends
            server.script = server.behave
            await running.wait(lambda: not running.loop.owes_ends, nudge=True)
            assert told(server.requests[-1]) == [(START.session, 77, "client")]
            assert running.loop.last_error == ""

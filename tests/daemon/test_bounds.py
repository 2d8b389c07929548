"""The outbox's bounds: what goes, in which order, and that every event that went is counted."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmd.mcp.message import Message
from kmd.mcp.names import Kind, Stream
from kmd.mcp.row import SessionStart
from kmd.outbox.bounds import (
    STEP_EVENTS,
    VACUUM_PAGES,
    Limits,
    Step,
    Usage,
    estimate_waiting,
    fill_level,
    plan_eviction,
)
from kmd.outbox.outbox import Intake, Outbox
from tests.support.processes import (
    create_key,
    flush,
    quick_km,
    read_status,
    running_kmd,
    running_server,
    wait_for,
    write_config,
)

DAY_NS = 86_400 * 10**9
A_PAGE = 7000
"""A payload that has a page of the file to itself."""


def fill(outbox: Outbox, count: int, size: int, at_ns: int = 1) -> None:
    """Commit *count* events of *size* bytes each, as a session of its own."""
    start = SessionStart(f"session-{outbox.last_seq}", "s", "c", 1, 1)
    known = outbox.open_session(start)
    messages = [
        Message(
            stream=Stream.TO_SERVER,
            offset=n * (size + 1),
            at_ns=at_ns + n,
            kind=Kind.NOT_JSON,
            size_bytes=size,
            payload=b"%08d" % n + b"x" * (size - 8),
        )
        for n in range(count)
    ]
    outbox.commit([Intake(known.session_id, messages, {Stream.TO_SERVER: count * (size + 1)})])


def work(outbox: Outbox, settled_seq: int, now_ns: int = 2) -> int:
    """Take steps until nothing is due; returns how many."""
    steps = 0
    while outbox.room.make_room(settled_seq, now_ns):
        steps += 1
        assert steps < 1000
    return steps


@given(
    used=st.integers(0, 2000),
    first=st.integers(1, 50_000),
    kept=st.integers(1, 50_000),
    stripped=st.integers(0, 100_000),
    settled=st.integers(0, 100_000),
)
def test_unsettled_events_go_only_when_nothing_settled_is_left(
    used: int, first: int, kept: int, stripped: int, settled: int
) -> None:
    usage = Usage(used, first, first + kept - 1, stripped, min(settled, first + kept - 1), oldest_at_ns=0)
    eviction = plan_eviction(usage, Limits(1000), 0, is_over=False)
    assert (eviction is None) == (used <= 1000)
    if eviction is None:
        return
    assert first <= eviction.from_seq <= eviction.until_seq < eviction.from_seq + STEP_EVENTS
    assert eviction.until_seq <= usage.last_seq
    if eviction.step is Step.DELETE_UNSETTLED:
        assert usage.settled_seq < first
    else:
        assert eviction.until_seq <= usage.settled_seq
    if eviction.step is Step.STRIP_SETTLED:
        assert eviction.from_seq > stripped, "what is stripped already would be stripped for ever"
    if eviction.step is Step.DELETE_SETTLED:
        assert stripped >= usage.settled_seq


@given(
    st.integers(1, 10**9), st.integers(1, 9000), st.integers(1, 9000), st.integers(0, 20_000), st.integers(0, 20_000)
)
def test_what_waits_is_estimated_within_what_is_there(
    used: int, first: int, kept: int, stripped: int, settled: int
) -> None:
    last = first + kept - 1
    waiting = estimate_waiting(Usage(used, first, last, stripped, min(settled, last), 0))
    assert 0 <= waiting <= used
    assert settled < last or waiting == 0
    assert settled >= first or estimate_waiting(Usage(used, first, last, 0, settled, 0)) == used


@pytest.mark.parametrize(("share", "level"), [(0, 0), (0.79, 0), (0.8, 80), (0.94, 80), (0.95, 95), (1, 95), (3, 95)])
def test_undelivered_events_warn_before_they_go(share: float, level: int) -> None:
    assert fill_level(int(share * 1000), Limits(1000)) == level


def test_settled_payloads_go_first_and_what_went_is_counted(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db", Limits(2 << 20)) as outbox:
        fill(outbox, 1000, 3000)
        assert work(outbox, settled_seq=600) >= 1
        rows = outbox.read_events(0, 2000)
        totals = outbox.read_totals(600)
        assert totals.bytes <= 2 << 20
        assert len(rows) == totals.events == 1000
        stripped = [row.seq for row in rows if row.message.payload is None]
        assert stripped == list(range(1, len(stripped) + 1))
        assert max(stripped) <= 600
        assert totals.evicted == {Step.STRIP_SETTLED: (len(stripped), 3000 * len(stripped))}


def test_without_anything_settled_the_oldest_go_and_what_is_left_has_no_holes(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db", Limits(2 << 20)) as outbox:
        fill(outbox, 700, 3000)
        fill(outbox, 5000, 700)
        work(outbox, settled_seq=0)
        rows, totals = outbox.read_events(0, 10_000), outbox.read_totals(0)
        assert [row.seq for row in rows] == list(range(totals.first_seq, 5701))
        assert totals.bytes <= 2 << 20
        events, size = totals.evicted[Step.DELETE_UNSETTLED]
        assert events == totals.first_seq - 1 == outbox.room.deleted_seq
        assert size == 3000 * min(events, 700) + 700 * max(0, events - 700)
    with Outbox(tmp_path / "outbox.db", Limits(2 << 20)) as outbox:
        assert outbox.room.deleted_seq == totals.first_seq - 1


def test_an_emptied_outbox_never_numbers_an_event_twice(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db", Limits(1 << 20, DAY_NS)) as outbox:
        fill(outbox, 10, 100)
        work(outbox, settled_seq=10, now_ns=3 * DAY_NS)
        assert outbox.read_totals(10).events == 0
    with Outbox(tmp_path / "outbox.db") as outbox:
        assert outbox.last_seq == 10
        assert outbox.room.deleted_seq == 10
        fill(outbox, 1, 100)
        assert [row.seq for row in outbox.read_events(0, 10)] == [11]


def test_age_takes_settled_events_only_and_only_old_ones(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db", Limits(1 << 30, DAY_NS)) as outbox:
        fill(outbox, 100, 100, at_ns=1)
        fill(outbox, 100, 100, at_ns=5 * DAY_NS)
        work(outbox, settled_seq=50, now_ns=5 * DAY_NS)
        assert outbox.read_totals(50).first_seq == 51
        work(outbox, settled_seq=200, now_ns=5 * DAY_NS)
        assert outbox.read_totals(200).first_seq == 101


def test_space_goes_back_to_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with Outbox(path, Limits(1 << 30)) as outbox:
        fill(outbox, 3000, 3000)
        outbox.room.set_limits(Limits(1 << 20))
        work(outbox, settled_seq=3000)
        while outbox.room.give_back():
            pass
    assert path.stat().st_size < 3 << 20


def test_free_space_that_new_events_will_take_anyway_stays(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db", Limits(1 << 30, DAY_NS)) as outbox:
        fill(outbox, VACUUM_PAGES + 50, A_PAGE, at_ns=1)
        fill(outbox, 2500, A_PAGE, at_ns=5 * DAY_NS)
        work(outbox, settled_seq=VACUUM_PAGES + 50, now_ns=5 * DAY_NS)
        assert outbox.read_totals(0).events == 2500
        assert not outbox.room.give_back()


@pytest.mark.timeout(60)
def test_an_outbox_over_its_bound_goes_on_and_says_what_it_dropped(tmp_path: Path) -> None:
    home, database = tmp_path / "home", tmp_path / "server.db"
    with running_server(database) as server:
        key, port = create_key(database), int(server.url.rpartition(":")[2])
        write_config(home, ("team", server.url, key), extra="[outbox]\nmax_bytes = 1048576\n")
    lines = b"".join(b"%06d " % n + b"x" * 1000 + b"\n" for n in range(3000))
    with running_kmd(home):
        subprocess.run(quick_km(home, "cat", "cat"), input=lines, stdout=subprocess.DEVNULL, check=True, timeout=30)

        def within() -> bool:
            outbox = read_status(home)["outbox"]
            return bool(outbox["last_seq"] == 6000 and outbox["bytes"] <= 1 << 20)

        wait_for(within, "the bound to hold", 30)
        outbox = read_status(home)["outbox"]
        dropped = outbox["evicted"][Step.DELETE_UNSETTLED]["events"]
        assert dropped + outbox["events"] == 6000
        with running_server(database, port):
            assert flush(home) == {"done": True}
            destination = read_status(home)["destinations"][0]
            assert destination["settled"] == 6000 - dropped
            assert destination["pending"] == 0

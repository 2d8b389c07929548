"""Sessions of which nothing is left to do are forgotten: which ones, in small steps, and what is never forgotten."""

import time
from pathlib import Path

import pysqlite3
import pytest

from kmd.mcp.names import Stream
from kmd.mcp.row import SessionStart
from kmd.outbox.outbox import Intake, Outbox
from kmd.outbox.sessions import FORGET_AFTER_NS, FORGET_STEP
from tests.daemon.rows import message
from tests.support.processes import read_status, running_kmd, wait_for

NOW_NS = 10 * FORGET_AFTER_NS
OLD_NS = NOW_NS - 2 * FORGET_AFTER_NS
FIRST, LAST = "first", "last"


def end_session(
    outbox: Outbox, session: str, ended_at_ns: int | None = OLD_NS, events: int = 0, gap_bytes: int = 0
) -> int:
    """A session that came, sent so many events, and ended; returns its id."""
    known = outbox.open_session(SessionStart(session, "s", "c", 1, 1))
    messages = [message(offset) for offset in range(events)]
    durable = {Stream.TO_SERVER: 1000}
    outbox.commit([Intake(known.session_id, messages, durable, gap_bytes=gap_bytes, ended_at_ns=ended_at_ns)])
    return known.session_id


def forget(outbox: Outbox, told_end_seq: int | None = None, now_ns: int = NOW_NS) -> int:
    """Step after step; returns how many steps that took."""
    steps = 1
    while outbox.room.forget(outbox.last_end_seq if told_end_seq is None else told_end_seq, now_ns):
        steps += 1
    return steps


def names(outbox: Outbox) -> set[str]:
    with pysqlite3.connect(str(outbox.path)) as reader:
        return {row[0] for row in reader.execute("SELECT session FROM sessions")}


def count_streams(outbox: Outbox) -> int:
    with pysqlite3.connect(str(outbox.path)) as reader:
        number: int = reader.execute("SELECT count(*) FROM streams").fetchone()[0]
        return number


@pytest.mark.parametrize("ended_at_ns", [0, OLD_NS, NOW_NS + 2 * FORGET_AFTER_NS])
def test_what_is_over_told_and_empty_goes_with_its_streams(tmp_path: Path, ended_at_ns: int) -> None:
    """Also when the clock that stamped its end was far off. What it lost stays counted."""
    with Outbox(tmp_path / "outbox.db") as outbox:
        end_session(outbox, FIRST, ended_at_ns, gap_bytes=7)
        end_session(outbox, LAST, gap_bytes=1)
        forget(outbox)
        assert names(outbox) == {LAST}
        assert count_streams(outbox) == 1
        totals = outbox.read_totals(0)
        assert (totals.gap_bytes, totals.evicted) == (8, {})
        end_session(outbox, "third", gap_bytes=2)
        forget(outbox)
        assert (names(outbox), outbox.read_totals(0).gap_bytes) == ({"third"}, 10)


@pytest.mark.parametrize("why", ["young", "running", "not told", "has an event", "refused event", "last end"])
def test_what_is_not_forgotten(tmp_path: Path, why: str) -> None:
    with Outbox(tmp_path / "outbox.db") as outbox:
        outbox.open_destination("team")
        ended_at_ns = {"young": NOW_NS - FORGET_AFTER_NS + 1, "running": None}.get(why, OLD_NS)
        end_session(outbox, FIRST, ended_at_ns, events=int("event" in why))
        if why == "refused event":
            outbox.settle("team", [1], {1: "no"}, NOW_NS)
            with pysqlite3.connect(str(outbox.path)) as writer:
                writer.execute("DELETE FROM events")
        if why != "last end":
            end_session(outbox, LAST)
        forget(outbox, told_end_seq=0 if why == "not told" else None)
        assert FIRST in names(outbox)


def test_a_session_that_is_over_twice_is_running_in_between(tmp_path: Path) -> None:
    """A relay whose connection broke has come again: its old end says nothing."""
    with Outbox(tmp_path / "outbox.db") as outbox:
        end_session(outbox, FIRST)
        end_session(outbox, LAST)
        outbox.open_session(SessionStart(FIRST, "s", "c", 1, 1))
        forget(outbox)
        assert names(outbox) == {FIRST, LAST}


def test_ends_are_numbered_on_and_identities_stay(tmp_path: Path) -> None:
    """A later end is above every destination's cursor; a forgotten session that comes again sends what it sent."""
    with Outbox(tmp_path / "outbox.db") as outbox:
        first_id = end_session(outbox, FIRST)
        end_session(outbox, LAST)
        told = outbox.last_end_seq
        forget(outbox)
        again = end_session(outbox, FIRST, events=2)
        assert again != outbox.open_session(SessionStart(LAST, "s", "c", 1, 1)).session_id
        assert first_id >= 1
        assert outbox.last_end_seq > told
        assert [end.start.session for end in outbox.read_ends(told, 10)] == [FIRST]
        rows = outbox.read_events(0, 10)
        assert [(row.session.session, row.message.offset) for row in rows] == [(FIRST, 0), (FIRST, 1)]


def test_many_go_in_steps(tmp_path: Path) -> None:
    """Those that have to stay do not keep the others: each look goes through all of them."""
    with Outbox(tmp_path / "outbox.db") as outbox:
        for number in range(FORGET_STEP + 20):
            end_session(outbox, f"s{number}", events=int(number < 3))
        assert outbox.room.forget(outbox.last_end_seq, NOW_NS)
        assert len(names(outbox)) == 20 + 3
        assert forget(outbox) == 2
        assert names(outbox) == {"s0", "s1", "s2", f"s{FORGET_STEP + 19}"}
        with pysqlite3.connect(str(outbox.path)) as writer:
            writer.execute("DELETE FROM events")
        assert forget(outbox) == 2
        assert names(outbox) == {f"s{FORGET_STEP + 19}"}


def test_kmd_forgets_by_itself(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with Outbox(home / "outbox.db") as outbox:
        end_session(outbox, FIRST, time.time_ns() - 2 * FORGET_AFTER_NS, gap_bytes=5)
        end_session(outbox, LAST, time.time_ns())
    with running_kmd(home):
        wait_for(lambda: names(outbox) == {LAST}, "the old session to be forgotten")
        assert read_status(home)["outbox"]["gap_bytes"] == 5

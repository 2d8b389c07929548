"""The outbox on real files: what it was told is there, once, after any end; what is no outbox is left alone."""

import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pysqlite3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmd.errors import OutboxError
from kmd.mcp.message import Message
from kmd.mcp.names import Stream
from kmd.mcp.row import SessionStart
from kmd.outbox.database import check_sqlite, connect
from kmd.outbox.outbox import Intake, Outbox
from tests.daemon.outbox_writer import GROUP, PAYLOAD_BYTES, payload
from tests.daemon.rows import START, full_message, message

OTHER = SessionStart("01890a5d-ac96-774b-bcce-b302099a8058", "git", "server", 43, 1_800_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    with Outbox(path) as opened:
        yield opened


def store(outbox: Outbox, *messages: Message, durable: int = 0, start: SessionStart = START) -> None:
    session_id = outbox.open_session(start).session_id
    outbox.commit([Intake(session_id, messages, {Stream.TO_SERVER: durable})])


def seqs(outbox: Outbox) -> list[int]:
    return [row.seq for row in outbox.read_events(0, 10_000)]


def offsets(outbox: Outbox) -> list[int]:
    return [row.message.offset for row in outbox.read_events(0, 10_000)]


def test_every_field_comes_back_as_it_was_stored(outbox: Outbox) -> None:
    stored = [full_message(0), message(5, None), message(9, b"")]
    store(outbox, *stored)
    rows = outbox.read_events(0, 10)
    assert [row.message for row in rows] == stored
    assert {(row.session.session, row.session.name, row.session.command) for row in rows} == {
        (START.session, START.name, START.command)
    }


def test_the_same_events_again_change_nothing(outbox: Outbox) -> None:
    store(outbox, message(0, b"first"), message(10, b"first"))
    before = outbox.read_events(0, 10)
    store(outbox, message(0, b"other"), message(10, b"other"))
    assert outbox.read_events(0, 10) == before
    assert outbox.last_seq == 2


def test_position_alone_tells_events_apart(outbox: Outbox) -> None:
    store(outbox, message(0), message(0, index=1), message(0, stream=Stream.TO_CLIENT), message(1))
    store(outbox, message(0), start=OTHER)
    assert seqs(outbox) == [1, 2, 3, 4, 5]


def test_a_resend_mixed_with_new_events_leaves_no_hole_in_the_numbers(outbox: Outbox) -> None:
    store(outbox, message(0), message(10), message(20))
    store(outbox, message(0), message(10), message(20), message(30), message(20), message(40))
    assert seqs(outbox) == [1, 2, 3, 4, 5]
    store(outbox, message(0), message(10))
    assert (outbox.last_seq, outbox.read_totals(0).events) == (5, 5)


def test_a_resend_alone_does_not_move_the_last_number_even_after_reopening(path: Path) -> None:
    with Outbox(path) as outbox:
        store(outbox, message(0))
        store(outbox, message(0))
    with Outbox(path) as outbox:
        assert (outbox.last_seq, seqs(outbox)) == (1, [1])
        store(outbox, message(0), message(10))
        assert seqs(outbox) == [1, 2]


def test_durable_offsets_never_go_back(outbox: Outbox) -> None:
    store(outbox, durable=50)
    store(outbox, durable=20)
    assert outbox.open_session(START).durable == {Stream.TO_SERVER: 50}


def test_sessions_have_offsets_of_their_own(outbox: Outbox) -> None:
    store(outbox, message(0), durable=50)
    store(outbox, message(0), durable=7, start=OTHER)
    assert outbox.open_session(START).durable[Stream.TO_SERVER] == 50
    assert outbox.open_session(OTHER).durable[Stream.TO_SERVER] == 7


def test_a_commit_that_fails_in_the_middle_leaves_nothing_and_the_next_one_works(outbox: Outbox) -> None:
    session_id = outbox.open_session(START).session_id
    bad = message(2**63)
    with pytest.raises((OutboxError, OverflowError)):
        outbox.commit([Intake(session_id, [message(0), bad, message(9)], {Stream.TO_SERVER: 99})])
    assert (offsets(outbox), outbox.last_seq) == ([], 0)
    assert outbox.open_session(START).durable == {}
    store(outbox, message(0))
    assert (offsets(outbox), outbox.last_seq) == ([0], 1)


def test_a_session_that_comes_back_knows_its_open_requests_without_payloads(outbox: Outbox) -> None:
    session_id = outbox.open_session(START).session_id
    messages = [message(0, b"secret"), message(10), message(10, index=3), message(10, stream=Stream.TO_CLIENT)]
    durable = dict.fromkeys(Stream, 20)
    open_requests = {Stream.TO_SERVER: [(10, 3), (0, 0), (999, 0)], Stream.TO_CLIENT: [(10, 0)]}
    outbox.commit([Intake(session_id, messages, durable, open_requests=open_requests)])
    store(outbox, message(0), message(10), start=OTHER, durable=1)
    known = outbox.open_session(START).open_requests
    assert [(m.stream, m.offset, m.index, m.payload) for m in known] == [
        (Stream.TO_SERVER, 0, 0, None),
        (Stream.TO_SERVER, 10, 3, None),
        (Stream.TO_CLIENT, 10, 0, None),
    ]
    outbox.commit([Intake(session_id, [], durable, open_requests={Stream.TO_SERVER: [(10, 3)]})])
    assert [known.index for known in outbox.open_session(START).open_requests] == [3]


def test_ends_are_numbered_in_their_order_and_a_session_that_ends_again_comes_again(outbox: Outbox) -> None:
    def end(start: SessionStart, at_ns: int) -> None:
        session_id = outbox.open_session(start).session_id
        outbox.commit([Intake(session_id, [], {}, ended_at_ns=at_ns, closed_first="client")])

    assert outbox.read_ends(0, 10) == []
    end(OTHER, 50)
    end(START, 60)
    ends = outbox.read_ends(0, 10)
    assert [(end.start, end.ended_at_ns, end.closed_first) for end in ends] == [
        (OTHER, 50, "client"),
        (START, 60, "client"),
    ]
    assert outbox.read_ends(ends[0].end_seq, 10) == ends[1:]
    outbox.open_session(OTHER)
    assert outbox.read_ends(0, 10) == ends[1:]
    end(OTHER, 70)
    assert [end.start for end in outbox.read_ends(ends[1].end_seq, 10)] == [OTHER]


def test_the_end_and_the_gaps_of_a_session_are_kept_and_a_new_start_reopens_it(outbox: Outbox) -> None:
    session_id = outbox.open_session(START).session_id
    outbox.commit([Intake(session_id, [message(0)], {}, gap_bytes=9, ended_at_ns=77, closed_first="client")])
    assert outbox.read_events(0, 1)[0].ended_at_ns == 77
    assert outbox.read_totals(0).gap_bytes == 9
    assert outbox.open_session(START).gap_bytes == 9
    assert outbox.read_events(0, 1)[0].ended_at_ns is None


def test_payloads_that_shall_not_be_kept_are_not_in_the_file(path: Path) -> None:
    with Outbox(path) as outbox:
        session_id = outbox.open_session(START).session_id
        outbox.commit([Intake(session_id, [message(0, b"very secret words")], {}, keep_payloads=False)])
        row = outbox.read_events(0, 1)[0]
        assert (row.message.payload, row.message.size_bytes) == (None, 17)
        for file in path.parent.iterdir():
            assert b"very secret" not in file.read_bytes()


def test_reading_is_bounded_by_number_and_by_payload_but_always_goes_on(outbox: Outbox) -> None:
    store(outbox, *[message(offset, b"x" * 100) for offset in range(10)])
    assert len(outbox.read_events(0, 4)) == 4
    assert [row.seq for row in outbox.read_events(4, 100, 250)] == [5, 6]
    assert [row.seq for row in outbox.read_events(4, 100, 300)] == [5, 6, 7]
    assert [row.seq for row in outbox.read_events(4, 100, 1)] == [5]
    assert [row.seq for row in outbox.read_events(9, 100)] == [10]
    assert outbox.read_events(10, 100) == []


def test_settling_moves_the_cursor_and_keeps_refused_events_aside(path: Path) -> None:
    with Outbox(path) as outbox:
        store(outbox, *map(message, range(5)))
        assert outbox.open_destination("team").cursor == 0
        outbox.settle("team", [1, 2, 3], {2: "bad offset"}, 99)
    with Outbox(path) as outbox:
        known = outbox.open_destination("team")
        assert (known.cursor, known.settled, known.quarantined, known.last_success_at_ns) == (3, 2, 1, 99)
        other = outbox.open_destination("other")
        assert (other.cursor, other.settled, other.quarantined) == (0, 0, 0)
        outbox.settle("team", [1], {}, 100)
        assert outbox.open_destination("team").cursor == 3
        assert len(seqs(outbox)) == 5


def test_the_oldest_pending_event_is_the_first_above_the_lowest_cursor(outbox: Outbox) -> None:
    assert outbox.read_totals(0).oldest_pending_at_ns is None
    store(outbox, message(0), message(10))
    assert outbox.read_totals(0).oldest_pending_at_ns == message(0).at_ns
    assert outbox.read_totals(1).oldest_pending_at_ns == message(10).at_ns
    assert outbox.read_totals(2).oldest_pending_at_ns is None


def test_what_a_killed_writer_had_acknowledged_is_there_and_is_whole(path: Path) -> None:
    """kill -9 again and again, at any moment: commit and durable offset are one, and the next goes on from it."""
    random, acknowledged = Random(4), 0  # noqa: S311 - to be the same each time
    for _ in range(10):
        command = [sys.executable, "-m", "tests.daemon.outbox_writer", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(random.randrange(1, 40)):
                acknowledged = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            acknowledged = max([acknowledged, *map(int, writer.stdout.read().split(b"\n")[:-1])])
        with Outbox(path) as outbox:
            durable = outbox.open_session(START).durable[Stream.TO_SERVER]
            assert durable >= acknowledged
            assert offsets_of_all(outbox) == list(range(0, durable, PAYLOAD_BYTES + 1))
    with Outbox(path) as outbox:
        for row in outbox.read_events(0, 100_000):
            step = GROUP * (PAYLOAD_BYTES + 1)
            assert row.message.payload == payload(row.message.offset // step * step)
    check = connect(path)
    assert check.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    check.close()


def offsets_of_all(outbox: Outbox) -> list[int]:
    return [row.message.offset for row in outbox.read_events(0, 1_000_000)]


def test_a_commit_survives_losing_power_so_far_as_sqlite_promises(path: Path) -> None:
    with Outbox(path):
        pass
    connection = connect(path)
    pragmas = {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")}
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}
    assert connection.execute("PRAGMA auto_vacuum").fetchone()[0] == 2
    connection.close()


def test_every_file_is_for_this_user_only_whatever_the_umask(path: Path) -> None:
    old = os.umask(0)
    try:
        with Outbox(path.parent / "new" / "outbox.db") as outbox:
            store(outbox, message(0))
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in outbox.path.parent.iterdir()}
            assert {"outbox.db", "outbox.db-wal"} <= modes.keys()
            assert set(modes.values()) == {0o600}
            assert stat.S_IMODE(outbox.path.parent.stat().st_mode) == 0o700
    finally:
        os.umask(old)


@pytest.mark.parametrize("version", [(3, 7, 0), (3, 40, 1), (3, 44, 5), (3, 45, 0), (3, 50, 6), (3, 51, 0), (3, 51, 2)])
def test_a_sqlite_that_may_lose_commits_is_refused(version: tuple[int, ...]) -> None:
    with pytest.raises(OutboxError, match="WAL-reset"):
        check_sqlite(version)


@pytest.mark.parametrize("version", [(3, 44, 6), (3, 44, 9), (3, 50, 7), (3, 51, 3), (3, 53, 4), (4, 0, 0)])
def test_a_sqlite_with_the_fix_is_taken(version: tuple[int, ...]) -> None:
    check_sqlite(version)


def test_the_sqlite_that_is_linked_here_has_the_fix() -> None:
    check_sqlite(pysqlite3.sqlite_version_info)


def test_the_outbox_of_a_newer_kmd_is_refused_and_keeps_its_events(path: Path) -> None:
    with Outbox(path) as outbox:
        store(outbox, message(0))
    connection = connect(path)
    connection.execute(
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('outbox', 'm9999_x', '2030')"
    )
    connection.close()
    with pytest.raises(OutboxError, match="newer kmd"):
        Outbox(path)
    connection = connect(path)
    assert connection.execute("SELECT count(*) FROM events").fetchone() == (1,)
    connection.close()


def test_another_programs_database_is_refused_and_left_as_it_is(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE bookmarks (url TEXT)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(OutboxError, match="no outbox"):
        Outbox(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_empty_file_becomes_an_outbox(path: Path) -> None:
    path.touch()
    with Outbox(path) as outbox:
        store(outbox, message(0))
        assert seqs(outbox) == [1]


def make_filled(path: Path, events: int) -> None:
    with Outbox(path) as outbox:
        store(outbox, *[message(offset, b"p" * 700) for offset in range(events)], durable=events)


def use(path: Path) -> None:
    """Everything that kmd does with an outbox."""
    with Outbox(path) as outbox:
        known = outbox.open_session(START)
        outbox.open_destination("team")
        outbox.read_events(0, 10_000)
        outbox.read_totals(0)
        outbox.commit([Intake(known.session_id, [message(10**6)], {Stream.TO_SERVER: 10**6})])
        outbox.settle("team", [1], {1: "x"}, 5)
        while outbox.room.make_room(0, 10):
            pass
        outbox.room.give_back()


@settings(max_examples=60)
@given(places=st.lists(st.tuples(st.integers(0, 60_000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6))
def test_any_flipped_bytes_raise_nothing_but_our_own_errors(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[int, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("flip") / "outbox.db"
    make_filled(path, 60)
    damaged = bytearray(path.read_bytes())
    for at, bytes_ in places:
        at %= len(damaged)
        damaged[at : at + len(bytes_)] = bytes_[: len(damaged) - at]
    path.write_bytes(damaged)
    with contextlib.suppress(OutboxError):
        use(path)


def test_a_file_that_another_program_holds_is_an_error_with_a_hint_and_no_loss(path: Path) -> None:
    with Outbox(path) as outbox:
        session_id = outbox.open_session(START).session_id
        holder: Any = connect(path)
        holder.execute("BEGIN IMMEDIATE")
        outbox_busy(outbox)
        with pytest.raises(OutboxError) as caught:
            outbox.commit([Intake(session_id, [message(0)], {Stream.TO_SERVER: 3})])
        assert caught.value.hint
        holder.execute("ROLLBACK")
        holder.close()
        outbox.commit([Intake(session_id, [message(0)], {Stream.TO_SERVER: 3})])
        assert seqs(outbox) == [1]


def outbox_busy(outbox: Outbox) -> None:
    """Do not wait the five seconds that kmd would."""
    outbox.room._db.execute("PRAGMA busy_timeout = 10")


def test_a_folder_that_cannot_be_written_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutboxError) as caught:
        Outbox(tmp_path / "file" / "outbox.db")
    assert caught.value.hint

"""An outbox of an older kmd is upgraded with everything in it, whole or not at all wherever the upgrade is cut off."""

from contextlib import closing
from pathlib import Path

import pysqlite3
import pytest
from sqlite_utils import Database

from kmd.mcp.names import Stream
from kmd.outbox import database
from kmd.outbox.database import ALL_MIGRATIONS, APPLICATION_ID, connect, migrations
from kmd.outbox.outbox import Outbox
from tests.daemon.rows import START

NAMES = sorted(ALL_MIGRATIONS)
SESSION = "INSERT INTO sessions (session, name, command, pid, started_at_ns, ended_at_ns) VALUES (?, 's', 'c', 1, 1, 9)"
EVENT = (
    "INSERT INTO events (session_id, stream, offset, idx, at_ns, kind, size_bytes, payload)"
    " VALUES (1, 'to_server', ?, 0, 5, 'notification', 2, ?)"
)


def make_older(path: Path, last: str) -> None:
    """An outbox as the kmd left it whose newest migration was *last*, with events and a destination half way."""
    connection = connect(path)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    migrations.apply(Database(connection, execute_plugins=False), stop_before=next_after(last))
    connection.execute(SESSION, (START.session,))
    if last >= "m0004":
        connection.execute("UPDATE sessions SET end_seq = id")
    connection.executemany(EVENT, [(offset, b"%02d" % offset) for offset in range(20)])
    connection.execute("INSERT INTO streams (session_id, stream, durable) VALUES (1, 'to_server', 20)")
    connection.execute("INSERT INTO destinations (name, cursor, settled) VALUES ('team', 7, 6)")
    connection.close()


def next_after(last: str) -> str | None:
    place = NAMES.index(last) + 1
    return NAMES[place] if place < len(NAMES) else None


def check(path: Path) -> None:
    """Everything that the older one had is there, and new things work."""
    with Outbox(path) as outbox:
        rows = outbox.read_events(0, 100)
        assert [row.message.payload for row in rows] == [b"%02d" % offset for offset in range(20)]
        known = outbox.read_destination("team")
        assert (known.cursor, known.settled, known.ends_cursor) == (7, 6, 0)
        assert [end.ended_at_ns for end in outbox.read_ends(0, 10)] == [9]
        assert outbox.open_session(START).durable == {Stream.TO_SERVER: 20}
        outbox.settle("team", [8, 9], {9: "no"}, 1)
        assert outbox.read_destination("team").quarantined == 1


@pytest.mark.parametrize("last", NAMES[:-1])
def test_an_older_outbox_is_upgraded_with_everything_in_it(tmp_path: Path, last: str) -> None:
    make_older(tmp_path / "outbox.db", last)
    check(tmp_path / "outbox.db")


@pytest.mark.parametrize("statements", range(1, 30, 2))
def test_an_upgrade_that_is_cut_off_is_whole_or_not_there_and_the_next_one_finishes_it(
    tmp_path: Path, statements: int
) -> None:
    """The connection is closed in the middle, as by kill -9: what was not committed is gone."""
    path = tmp_path / "outbox.db"
    make_older(path, NAMES[0])
    connection = connect(path)
    left = statements

    def count(sql: str) -> None:
        nonlocal left
        left -= not sql.lstrip().startswith(("PRAGMA", "SELECT", "select"))
        if left == 0:
            connection.interrupt()

    connection.set_trace_callback(count)
    try:
        database.migrate(connection, path)
    except pysqlite3.Error:
        pass
    finally:
        connection.set_trace_callback(None)
        connection.close()
    check(path)
    with closing(connect(path)) as upgraded:
        assert upgraded.execute("PRAGMA integrity_check").fetchone() == ("ok",)

"""
A damaged outbox: set aside with its log, and what can still be read carried over into a new one.

Events are numbered anew without holes and every cursor is moved to match; where that sends an event again,
its identity makes it harmless. What could not be read is counted like everything else that goes.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pysqlite3
import structlog

from kmd.errors import OutboxCorrupt
from kmd.outbox.database import LAST_SEQ, connect, make_private, migrate, transaction, translate

COPIES_KEPT = 2
"""Damaged files that stay for a person to look at."""
SPAN = 200
"""Rows read at once; a span that fails is read one by one, so that one bad page costs only its own."""
LOST = "lost in a damaged file"
SMALL_TABLES = ("sessions", "streams", "evictions")

log = structlog.get_logger(__name__)


def check(connection: Any) -> None:
    """Read through the whole file. Raises OutboxCorrupt at the first fault."""
    try:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except pysqlite3.Error as exc:
        raise translate(exc) from exc
    if found != "ok":
        raise OutboxCorrupt("the outbox is damaged")


def repair(path: Path) -> None:
    """Set the outbox at *path* aside and make a new one from what can be read. Raises OutboxError."""
    damaged = set_aside(path)
    make_private(path)
    fresh = connect(path)
    try:
        migrate(fresh, path)
        kept, lost = carry_over(damaged, fresh)
    finally:
        fresh.close()
    log.error("the outbox was damaged; what could be read was carried over", aside=damaged.name, kept=kept, lost=lost)


def set_aside(path: Path) -> Path:
    """Rename the database and its log; only the latest COPIES_KEPT of such files stay."""
    damaged = path.with_name(f"{path.name}.damaged-{time.time_ns():020d}")
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(damaged.with_name(damaged.name + suffix))
    copies = sorted(path.parent.glob(f"{path.name}.damaged-{'[0-9]' * 20}"))
    for copy in copies[:-COPIES_KEPT]:
        for suffix in ("", "-wal", "-shm"):
            copy.with_name(copy.name + suffix).unlink(missing_ok=True)
    return damaged


def carry_over(damaged: Path, fresh: Any) -> tuple[int, int]:
    """Copy what can be read: (events kept, events lost)."""
    old = pysqlite3.connect(str(damaged), isolation_level=None)
    old.text_factory = fresh.text_factory
    try:
        # With this SQLite reads a file that is shorter than its header says.
        old.execute("PRAGMA writable_schema = ON")
        with transaction(fresh):
            for table in SMALL_TABLES:
                columns = shared_columns(old, fresh, table)
                copy_rows(fresh, table, columns, read_rows(old, f"SELECT {columns} FROM {table}"))
            return copy_events(old, fresh)
    except pysqlite3.Error:
        return 0, 0
    finally:
        old.close()


def copy_events(old: Any, fresh: Any) -> tuple[int, int]:
    """Events in their order, cursors and quarantine moved to the new numbers."""
    first = next(read_rows(old, "SELECT min(seq) FROM events"), (None,))[0] or 1
    last = next(read_rows(old, LAST_SEQ), (0,))[0]
    cursors = dict(read_rows(old, "SELECT name, cursor FROM destinations"))
    moved = dict.fromkeys(cursors, 0)
    refused = dict.fromkeys((seq for (seq,) in read_rows(old, "SELECT seq FROM quarantine")), 0)
    new_seq = 0
    columns = shared_columns(old, fresh, "events")
    query = f"SELECT {columns} FROM events WHERE seq BETWEEN ? AND ? ORDER BY seq"
    for row in read_spans(old, query, first, last):
        if not copy_rows(fresh, "events", columns, iter([(new_seq + 1, *row[1:])])):
            continue
        new_seq += 1
        for name, cursor in cursors.items():
            if row[0] <= cursor:
                moved[name] = new_seq
        if row[0] in refused:
            refused[row[0]] = new_seq
    for row in read_rows(old, "SELECT name, cursor, settled, last_success_at_ns FROM destinations"):
        copied = iter([(row[0], moved[row[0]], *row[2:])])
        copy_rows(fresh, "destinations", "name, cursor, settled, last_success_at_ns", copied)
    copy_quarantine(old, fresh, refused)
    lost = max(0, last - first + 1 - new_seq)
    if lost:
        counts = "ON CONFLICT DO UPDATE SET events = events + excluded.events"
        fresh.execute(f"INSERT INTO evictions VALUES (?, ?, 0, 0) {counts}", (LOST, lost))
    return new_seq, lost


def copy_quarantine(old: Any, fresh: Any, moved: dict[int, int]) -> None:
    """Entries under the new numbers of their events; those whose event is not there any more count down from -1."""
    last = next(read_rows(old, "SELECT max(rowid) FROM quarantine"), (None,))[0] or 0
    gone_seq = 0
    columns = shared_columns(old, fresh, "quarantine")
    query = f"SELECT {columns} FROM quarantine WHERE rowid BETWEEN ? AND ?"
    for name, seq, *rest in read_spans(old, query, 1, last):
        if not (new_seq := moved.get(seq, 0)):
            new_seq = gone_seq = gone_seq - 1
        copy_rows(fresh, "quarantine", columns, iter([(name, new_seq, *rest)]))


def read_spans(old: Any, query: str, first: int, last: int) -> Iterator[tuple[Any, ...]]:
    """Every row from *first* to *last* that can be read, in its order; *query* takes both ends of a span."""
    for start in range(first, last + 1, SPAN):
        stop = min(start + SPAN - 1, last)
        try:
            yield from old.execute(query, (start, stop)).fetchall()
        except pysqlite3.Error:
            for number in range(start, stop + 1):
                yield from read_rows(old, query, (number, number))


def read_rows(old: Any, query: str, values: tuple[object, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Rows until the first fault."""
    try:
        yield from old.execute(query, values)
    except pysqlite3.Error:
        return


def shared_columns(old: Any, fresh: Any, table: str) -> str:
    """The columns of *table* that both have, in the new one's order: the damaged file may be of an older kmd."""
    query = f"SELECT name FROM pragma_table_info('{table}')"
    known = {name for (name,) in read_rows(old, query)}
    names = [name for (name,) in fresh.execute(query)]
    return ", ".join([name for name in names if name in known] or names)


def copy_rows(fresh: Any, table: str, columns: str, rows: Iterator[tuple[Any, ...]]) -> int:
    """Insert rows as they are; one that the damage has made impossible is left out. Returns how many went in."""
    copied = 0
    for row in rows:
        try:
            marks = ", ".join("?" * len(row))
            copied += fresh.execute(f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})", row).rowcount
        except pysqlite3.Error:
            continue
    return copied

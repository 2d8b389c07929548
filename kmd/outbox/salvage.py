"""
Salvage: what can still be read of a damaged outbox, copied into a new one.

Events are numbered anew without holes and every cursor is moved to match; where that sends an event again, its
identity makes it harmless. What could not be read is counted like everything else that goes. Rows are read one after
the other and committed a little at a time: neither the size of the file nor that of a payload is held in memory.
"""

import shutil
import struct
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pysqlite3

from kmd.outbox.bounds import Step
from kmd.outbox.database import LAST_SEQ, PAGE_BYTES, connect, make_private, migrate, transaction

MENDED = ".mended"
"""What the copy with a new header is called while it is read."""
LOST = "lost in a damaged file"
SMALL_TABLES = ("sessions", "streams", "evictions")
COMMIT_BYTES = 4 << 20
"""Payloads of one transaction, give or take the last."""
ROW_MIN_BYTES = 40
"""No event takes less: a number that would need a larger file is damaged itself."""
DELETES = (Step.DELETE_SETTLED, Step.DELETE_UNSETTLED, Step.DELETE_AGED)
IMPOSSIBLE = (pysqlite3.IntegrityError, pysqlite3.DataError)
"""What SQLite says to values that the damage has altered; anything else it says is about the new file."""
LEAST_PAGES = 2
"""Behind the first one there has to be something to read."""
_PAGES = struct.Struct(">I")
PAGES_AT, FREELIST_AT = 28, 32
"""Of SQLite's header (file format, section 1.3): how many pages there are; two numbers about those that are free."""


def carry_over(damaged: Path, fresh: Any) -> tuple[int, int]:
    """
    Copy what can be read: (events kept, events lost). Raises pysqlite3.Error, OutboxError: the new file cannot be
    written.
    """
    with readable(damaged) as old:
        old.text_factory = fresh.text_factory
        with transaction(fresh):
            for table in SMALL_TABLES:
                columns = shared_columns(old, fresh, table)
                for row in read_rows(old, f"SELECT {columns} FROM {table}"):
                    copy_row(fresh, table, columns, row)
        kept, last, moved, refused = copy_events(old, fresh, size_of(damaged) // ROW_MIN_BYTES)
        with transaction(fresh):
            for row in read_rows(old, "SELECT name, cursor, settled, last_success_at_ns FROM destinations"):
                copied = (row[0], moved.get(row[0], 0), *row[2:])
                copy_row(fresh, "destinations", "name, cursor, settled, last_success_at_ns", copied)
        copy_quarantine(old, fresh, refused)
        lost = max(0, last - kept)
        if lost:
            note_loss(fresh, lost, 0)
        elif not kept and list(read_rows(old, "SELECT count(*) FROM events")) != [(0,)]:
            note_loss(fresh, 0, size_of(damaged))
        return kept, lost


@contextmanager
def readable(damaged: Path) -> Iterator[Any]:
    """A connection to what can be read; where the header is damaged, to a copy with the header of a new outbox."""
    with closing(pysqlite3.connect(str(damaged), isolation_level=None)) as old:
        is_readable = read_names(old)
        if is_readable:
            yield old
    if is_readable:
        return
    copy = damaged.with_name(damaged.name + MENDED)
    try:
        mend_header(damaged, copy)
        with closing(pysqlite3.connect(str(copy), isolation_level=None)) as old:
            read_names(old)
            yield old
    finally:
        remove_database(copy)


def read_names(old: Any) -> bool:
    """Whether the names of the tables can be read, after which their rows can be tried."""
    # With this SQLite reads a file that is shorter than its header says.
    list(read_rows(old, "PRAGMA writable_schema = ON"))
    return "events" in {name for (name,) in read_rows(old, "SELECT name FROM sqlite_schema")}


def mend_header(damaged: Path, copy: Path) -> None:
    """
    Copy a database, its first page replaced by that of a new outbox: the tables of both begin at the same pages.

    No copy is left where it does not fit on the disk, or where the file is not much longer than a header.
    """
    pages = damaged.stat().st_size // PAGE_BYTES
    try:
        header = new_header(copy, pages)
        copy_private(damaged, copy)
        with copy.open("r+b") as file:
            file.write(header)
        log = damaged.with_name(f"{damaged.name}-wal")
        if log.exists():
            copy_private(log, copy.with_name(f"{copy.name}-wal"))
    except OSError:
        pages = 0
    if pages < LEAST_PAGES:
        remove_database(copy)


def new_header(path: Path, pages: int) -> bytes:
    """The first page of a new outbox, for a file of so many *pages*; made at *path*, and nothing stays there."""
    remove_database(path)
    make_private(path)
    with closing(connect(path)) as donor:
        migrate(donor, path)
        donor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    with path.open("rb") as file:
        header = bytearray(file.read(PAGE_BYTES))
    remove_database(path)
    header[PAGES_AT : PAGES_AT + _PAGES.size] = _PAGES.pack(pages)
    header[FREELIST_AT : FREELIST_AT + 2 * _PAGES.size] = bytes(2 * _PAGES.size)
    return bytes(header)


def copy_private(source: Path, target: Path) -> None:
    """Copy a file to where none is, readable by this user alone. Raises OSError."""
    make_private(target)
    shutil.copyfile(source, target)


def copy_events(old: Any, fresh: Any, most: int) -> tuple[int, int, dict[str, int], dict[int, int]]:
    """
    Events in their order. most: how many the file can hold.

    Returns: how many there are now, how many there were, the destinations' cursors and the refused events' numbers as
    they are now.
    """
    query = "SELECT reason, until_seq FROM evictions"
    first = 1 + max([until for reason, until in read_rows(old, query) if reason in DELETES], default=0)
    last = next(read_rows(old, LAST_SEQ), (0,))[0]
    highest = next(read_rows(old, "SELECT max(seq) FROM events"), (None,))[0]
    last = highest if highest is not None and not highest <= last < highest + most else last
    cursors = dict(read_rows(old, "SELECT name, cursor FROM destinations"))
    moved = dict.fromkeys(cursors, 0)
    refused = dict.fromkeys((seq for (seq,) in read_rows(old, "SELECT seq FROM quarantine")), 0)
    new_seq = 0
    columns = shared_columns(old, fresh, "events")
    query = f"SELECT seq, {columns} FROM events WHERE seq BETWEEN ? AND ? ORDER BY seq"
    for group in group_rows(read_over_damage(old, query, first, last)):
        with transaction(fresh):
            for seq, _, *values in group:
                if not copy_row(fresh, "events", columns, (new_seq + 1, *values)):
                    continue
                new_seq += 1
                moved |= {name: new_seq for name, cursor in cursors.items() if seq <= cursor}
                if seq in refused:
                    refused[seq] = new_seq
    return new_seq, min(max(0, last - first + 1), max(most, new_seq)), moved, refused


def copy_quarantine(old: Any, fresh: Any, moved: dict[int, int]) -> None:
    """Entries under the new numbers of their events; those whose event is not there any more count down from -1."""
    last = next(read_rows(old, "SELECT max(rowid) FROM quarantine"), (None,))[0] or 0
    gone_seq = 0
    columns = shared_columns(old, fresh, "quarantine")
    query = f"SELECT rowid, {columns} FROM quarantine WHERE rowid BETWEEN ? AND ? ORDER BY rowid"
    for group in group_rows(read_over_damage(old, query, 1, last)):
        with transaction(fresh):
            for _, name, seq, *rest in group:
                if not (new_seq := moved.get(seq, 0)):
                    new_seq = gone_seq = gone_seq - 1
                copy_row(fresh, "quarantine", columns, (name, new_seq, *rest))


def read_over_damage(old: Any, query: str, first: int, last: int) -> Iterator[tuple[Any, ...]]:
    """Every row from *first* to *last* that can be read, in order; *query* takes both, and gives the number first."""
    at = first
    while at <= last:
        try:
            for row in old.execute(query, (at, last)):
                yield row
                at = max(at, row[0] + 1)
        except pysqlite3.Error:
            at = pass_damage(old, query, at, last)
        else:
            return


def pass_damage(old: Any, query: str, at: int, last: int) -> int:
    """
    The first number behind *at* where reading may go on. A page holds rows in a row: its end is found by strides that
    double, and then halve.
    """

    def fails(number: int) -> bool:
        try:
            old.execute(query, (number, number)).fetchall()
        except pysqlite3.Error:
            return True
        return False

    if not fails(at):
        return at + 1
    bad, stride = at, 1
    while bad + stride <= last and fails(bad + stride):
        bad, stride = bad + stride, stride * 2
    good = min(bad + stride, last + 1)
    while good - bad > 1:
        middle = (bad + good) // 2
        bad, good = (middle, good) if fails(middle) else (bad, middle)
    return good


def group_rows(rows: Iterable[tuple[Any, ...]]) -> Iterator[Iterator[tuple[Any, ...]]]:
    """*rows* in groups that one transaction takes; each group has to be used up before the next."""
    waiting = iter(rows)
    while (first := next(waiting, None)) is not None:
        yield take_group(first, waiting)


def take_group(first: tuple[Any, ...], waiting: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """*first* and what follows it, until their texts and payloads reach COMMIT_BYTES."""
    size, row = 0, first
    while True:
        yield row
        size += ROW_MIN_BYTES + sum(len(value) for value in row if isinstance(value, bytes | str))
        if size >= COMMIT_BYTES or (following := next(waiting, None)) is None:
            return
        row = following


def read_rows(old: Any, query: str) -> Iterator[tuple[Any, ...]]:
    """Rows until the first fault."""
    try:
        yield from old.execute(query)
    except pysqlite3.Error:
        return


def shared_columns(old: Any, fresh: Any, table: str) -> str:
    """The columns of *table* that both have, in the new one's order: the damaged file may be of an older kmd."""
    query = f"SELECT name FROM pragma_table_info('{table}')"
    known = {name for (name,) in read_rows(old, query)}
    names = [name for (name,) in fresh.execute(query)]
    return ", ".join([name for name in names if name in known] or names)


def copy_row(fresh: Any, table: str, columns: str, row: tuple[Any, ...]) -> int:
    """Insert a row as it is; one that the damage has made impossible is left out. Returns how many went in."""
    marks = ", ".join("?" * len(row))
    try:
        copied: int = fresh.execute(f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})", row).rowcount
    except IMPOSSIBLE:
        return 0
    return copied


def note_loss(fresh: Any, events: int, size_bytes: int) -> None:
    """Count what could not be read; bytes of the file where nobody can tell how many events were in it."""
    counts = "ON CONFLICT DO UPDATE SET events = events + excluded.events, bytes = bytes + excluded.bytes"
    with transaction(fresh) as db:
        db.execute(f"INSERT INTO evictions VALUES (?, ?, ?, 0) {counts}", (LOST, events, size_bytes))


def size_of(path: Path) -> int:
    """Bytes of the file and of SQLite's log beside it."""
    parts = (path, path.with_name(f"{path.name}-wal"))
    return sum(part.stat().st_size for part in parts if part.exists())


def remove_database(path: Path) -> None:
    """The file and SQLite's own beside it: a journal that stayed would be rolled back into the next of its name."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)

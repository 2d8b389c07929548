"""
Opening the outbox file: the SQLite that may open it, its pragmas, its schema.

sqlite-utils makes and migrates the schema; each migration and its record share one transaction.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pysqlite3
from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from kmd.errors import OutboxCorrupt, OutboxError, OutboxFull
from kmd.open_flags import BINARY, NO_LINKS
from kmd.sqlite_release import is_safe

APPLICATION_ID = 0x4B4D4F42
"""'KMOB': `file` and SQLite's own tools then say what this database is."""
SQLITE_VERSION: str = pysqlite3.sqlite_version
BUSY_TIMEOUT_MS = 5000
PAGE_BYTES = 8192
"""Of a new file. Measured against 4096: half the system time per small event, a fifth less for one of 16 MiB."""
JOURNAL_MAX_BYTES = 8 << 20
REWRITE_BYTES = 1 << 20

LAST_SEQ = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0)"
"""Also right when every event has been evicted: seq never repeats."""

migrations = Migrations("outbox")


@migrations()
def m0001_events(db: Database) -> None:
    """Sessions, how far their streams are durable, events in the order they were committed, destinations."""
    for statement in SCHEMA_0001.split(";"):
        db.execute(statement)


@migrations()
def m0002_evictions(db: Database) -> None:
    """What a bound has removed, by reason; until_seq: up to where."""
    db.execute(
        "CREATE TABLE evictions (reason TEXT PRIMARY KEY, events INTEGER NOT NULL, bytes INTEGER NOT NULL,"
        " until_seq INTEGER NOT NULL) STRICT, WITHOUT ROWID"
    )


@migrations()
def m0003_quarantine(db: Database) -> None:
    """Refused events are kept whole, whatever becomes of them among the events."""
    for statement in SCHEMA_0003.split(";"):
        db.execute(statement)


@migrations()
def m0004_between_runs(db: Database) -> None:
    """What a restart must not forget: open requests, ends that were not told yet, how a destination was doing."""
    for statement in SCHEMA_0004.split(";"):
        db.execute(statement)


@migrations()
def m0005_relays(db: Database) -> None:
    """Which process each session's relay is (kmd.intake.relay_life), and the sessions that are not over."""
    db.execute("ALTER TABLE sessions ADD COLUMN relay TEXT")
    db.execute("CREATE INDEX sessions_open ON sessions (id) WHERE ended_at_ns IS NULL")


SCHEMA_0001 = """
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY, session TEXT NOT NULL UNIQUE, name TEXT NOT NULL, command TEXT NOT NULL,
    pid INTEGER NOT NULL, started_at_ns INTEGER NOT NULL, ended_at_ns INTEGER, closed_first TEXT,
    gap_bytes INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE streams (
    session_id INTEGER NOT NULL REFERENCES sessions, stream TEXT NOT NULL, durable INTEGER NOT NULL,
    PRIMARY KEY (session_id, stream)) STRICT, WITHOUT ROWID;
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, session_id INTEGER NOT NULL REFERENCES sessions,
    stream TEXT NOT NULL, offset INTEGER NOT NULL, idx INTEGER NOT NULL, at_ns INTEGER NOT NULL,
    kind TEXT NOT NULL, method TEXT, target TEXT, rpc_id TEXT, size_bytes INTEGER NOT NULL,
    took_ns INTEGER, outcome TEXT, error_code INTEGER, sha256 TEXT, payload BLOB,
    UNIQUE (session_id, stream, offset, idx)) STRICT;
CREATE TABLE destinations (
    name TEXT PRIMARY KEY, cursor INTEGER NOT NULL, settled INTEGER NOT NULL,
    last_success_at_ns INTEGER) STRICT, WITHOUT ROWID;
CREATE TABLE quarantine (
    destination TEXT NOT NULL, seq INTEGER NOT NULL, reason TEXT NOT NULL, at_ns INTEGER NOT NULL,
    PRIMARY KEY (destination, seq)) STRICT, WITHOUT ROWID
"""

SCHEMA_0003 = """
ALTER TABLE quarantine RENAME TO old_quarantine;
CREATE TABLE quarantine (
    destination TEXT NOT NULL, seq INTEGER NOT NULL, reason TEXT NOT NULL, refused_at_ns INTEGER NOT NULL,
    session_id INTEGER REFERENCES sessions, stream TEXT, offset INTEGER, idx INTEGER, at_ns INTEGER,
    kind TEXT, method TEXT, target TEXT, rpc_id TEXT, size_bytes INTEGER, took_ns INTEGER, outcome TEXT,
    error_code INTEGER, sha256 TEXT, payload BLOB, UNIQUE (destination, seq)) STRICT;
INSERT INTO quarantine
    SELECT q.destination, q.seq, q.reason, q.at_ns, e.session_id, e.stream, e.offset, e.idx, e.at_ns,
        e.kind, e.method, e.target, e.rpc_id, e.size_bytes, e.took_ns, e.outcome, e.error_code, e.sha256, e.payload
    FROM old_quarantine q LEFT JOIN events e ON e.seq = q.seq;
DROP TABLE old_quarantine
"""

SCHEMA_0004 = """
ALTER TABLE streams ADD COLUMN open BLOB;
ALTER TABLE sessions ADD COLUMN end_seq INTEGER;
CREATE UNIQUE INDEX sessions_by_end ON sessions (end_seq) WHERE end_seq IS NOT NULL;
UPDATE sessions SET end_seq = id WHERE ended_at_ns IS NOT NULL;
ALTER TABLE destinations ADD COLUMN ends_cursor INTEGER NOT NULL DEFAULT 0;
ALTER TABLE destinations ADD COLUMN course TEXT NOT NULL DEFAULT ''
"""
"""
streams.open: positions of unanswered requests (kmd.outbox.sessions). end_seq: the order in which sessions ended.
destinations.ends_cursor: up to which end a destination has been told; course: kmd.sync.course.
"""


def open_database(path: Path) -> tuple[Any, Any]:
    """
    Open the outbox at *path*, made and migrated as needed: (writing connection, reading connection).

    Raises OutboxError (unsafe SQLite, a newer schema, no permission) or OutboxCorrupt.
    """
    check_sqlite(pysqlite3.sqlite_version_info)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        make_private(path)
        rewrite_log(path)
        with owned(path):
            writer = connect(path)
        try:
            migrate(writer, path)
            reader = connect(path)
            reader.execute("PRAGMA query_only = ON")
        except BaseException:
            writer.close()
            raise
    except pysqlite3.Error as exc:
        raise translate(exc) from exc
    except OSError as exc:
        raise OutboxError(f"{path}: cannot be opened ({exc.strerror})", hint="check its folder's owner") from exc
    return writer, reader


def make_private(path: Path) -> None:
    """Make the file if it is missing; readable by this user alone either way. SQLite gives its log the same mode."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINKS | BINARY, 0o600)
    try:
        if sys.platform != "win32":
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def rewrite_log(path: Path) -> None:
    """
    Write what a process before this one has left in SQLite's log once more, and sync it.

    Where a sync failed, the kernel shows pages that are not on the disk and that no later sync writes. SQLite
    would take them for safe and fold them into the file: a power loss during that damages it.
    """
    try:
        descriptor = os.open(path.with_name(f"{path.name}-wal"), os.O_RDWR | NO_LINKS | BINARY)
    except FileNotFoundError:
        return
    try:
        position = 0
        while chunk := os.read(descriptor, REWRITE_BYTES):
            os.lseek(descriptor, position, os.SEEK_SET)
            position += os.write(descriptor, chunk)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def connect(path: Path) -> Any:
    """A connection with the outbox's pragmas; transactions are begun by hand."""
    connection = pysqlite3.connect(str(path), isolation_level=None, check_same_thread=False)
    # Texts of ours are UTF-8; after a flipped bit a row must still be readable.
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
        f"page_size = {PAGE_BYTES}",
        "auto_vacuum = INCREMENTAL",
        "journal_mode = WAL",
        "synchronous = FULL",
        "fullfsync = ON",
        "checkpoint_fullfsync = ON",
        f"journal_size_limit = {JOURNAL_MAX_BYTES}",
        "mmap_size = 0",
        "cache_spill = OFF",  # or the pages of a large payload go into the log twice
        "cell_size_check = ON",
        "trusted_schema = OFF",
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def transaction(connection: Any) -> "_Transaction":
    """BEGIN IMMEDIATE … COMMIT around a block, or ROLLBACK and the error in our own words."""
    return _Transaction(connection)


class _Transaction:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __enter__(self) -> Any:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except pysqlite3.Error as exc:
            raise translate(exc) from exc
        return self._connection

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed: BaseException | None = exc
        if failed is None:
            try:
                self._connection.execute("COMMIT")
            except pysqlite3.Error as error:
                failed = error
        if failed is not None and self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        if isinstance(failed, pysqlite3.Error):
            raise translate(failed) from failed


@contextmanager
def owned(path: Path) -> Iterator[None]:
    """
    Raises OutboxError when the file is another program's; nothing in it is changed. OutboxCorrupt as for any.

    The block opens the file for good: were it closed in between, SQLite would fold the log into it, and on a disk
    that is full the little space that is left would go into a part of that.
    """
    connection = pysqlite3.connect(str(path), isolation_level=None)
    connection.text_factory = bytes
    try:
        application_id = connection.execute("PRAGMA application_id").fetchone()[0]
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
        if application_id != APPLICATION_ID and {b"events", b"streams", b"_sqlite_migrations"} <= tables:
            raise OutboxCorrupt(f"{path}: its header is damaged")
        if application_id != APPLICATION_ID and tables:
            raise OutboxError(f"{path}: is no outbox", hint="move it away; kmd makes a new one")
        yield
    except UnicodeDecodeError as exc:  # SQLite's message quotes a damaged schema
        raise OutboxCorrupt(f"{path}: its schema is damaged") from exc
    finally:
        connection.close()


def migrate(connection: Any, path: Path) -> None:
    """Bring the schema up to date. Raises OutboxError when a newer kmd has been at the file."""
    database = Database(connection, execute_plugins=False)
    pending = migrations.pending(database)
    if {applied.name for applied in migrations.applied(database)} - ALL_MIGRATIONS:
        raise OutboxError(f"{path}: was written by a newer kmd", hint="upgrade Kilometers, or use another --home")
    if pending:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        migrations.apply(database)


ALL_MIGRATIONS = {"m0001_events", "m0002_evictions", "m0003_quarantine", "m0004_between_runs", "m0005_relays"}


def check_sqlite(version: tuple[int, ...]) -> None:
    """Refuse a SQLite that can lose committed transactions (the WAL-reset bug, 3.7.0 to 3.51.2)."""
    if is_safe(version):
        return
    shown = ".".join(map(str, version))
    raise OutboxError(
        f"SQLite {shown} has the WAL-reset bug and may lose data", hint="install pysqlite3 0.6.1 or newer"
    )


def translate(exc: Exception) -> OutboxError:
    """What an SQLite error means for the caller. The text of SQLite's message holds no data."""
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    if code in (pysqlite3.SQLITE_FULL, pysqlite3.SQLITE_IOERR):
        hint = "free some disk space; if there is enough, look for disk errors in the system's log"
        return OutboxFull(f"the outbox cannot be written: {exc}", hint=hint)
    if code in (pysqlite3.SQLITE_CORRUPT, pysqlite3.SQLITE_NOTADB):
        hint = "move outbox.db and its -wal away; kmd makes a new one"
        return OutboxCorrupt(f"the outbox is damaged: {exc}", hint=hint)
    return OutboxError(f"the outbox cannot be used: {exc}", hint="is another program at the file?")

"""
SQLite connections as the store wants them: checked, private, in WAL mode, at the newest schema.

One connection writes; the readers open the file read-only, so no question can change anything.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from km_server.errors import StoreError
from km_server.store.counting import CREATE_FRESH
from km_server.store.histogram import bucket_of
from km_server.store.sqlite.driver import is_locked, require_sound, sqlite3, translate

APPLICATION_ID = 0x4B4D5356
"""`KMSV` in the file's header: this file is a km-server's store."""

BUSY_TIMEOUT_MS = 5_000
"""How long a connection waits for another process's transaction: `km-server keys` beside a server."""

PAGE_CACHE_KIB = 64 * 1024
"""Of the writer: the upper levels of the indexes of some ten million events."""

AUTOCHECKPOINT_PAGES = 4_000
"""16 MiB of WAL per checkpoint: each one syncs the database file, so fewer are cheaper."""

WAL_KEPT_BYTES = 64 * 2**20
"""A WAL that grew beyond this under a long read is cut back."""

STATEMENTS_CACHED = 256
"""Inserts of 1..ROWS_PER_INSERT rows are as many statements."""


def parse_database_url(url: str) -> Path:
    """
    The file that a `sqlite:///` URL names: three slashes and a relative path, or four for an absolute one.

    The path is taken as it is written: no query, no percent-decoding. Raises StoreError.
    """
    example = "for example sqlite:////var/lib/kilometers/server.db, or postgresql://km@localhost/kilometers"
    prefix = "sqlite:///"
    if not url.startswith(prefix):
        raise StoreError("the database URL must begin with sqlite:/// or postgresql://", hint=example)
    name = url.removeprefix(prefix)
    if not name or name == ":memory:" or "\0" in name:
        raise StoreError("the database URL must name a file", hint=example)
    return Path(name)


def create_private(path: Path) -> None:
    """Make the file (0600) and its folder (0700) unless they are there. Raises StoreError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as exc:
        reason = exc.strerror or type(exc).__name__
        raise StoreError(
            f"cannot open the database {path}: {reason}", hint="check the path and its permissions"
        ) from exc


def open_writer(path: Path) -> sqlite3.Connection:
    """The writing connection, its schema up to date. Raises StoreError."""
    require_sound()
    create_private(path)
    connection: sqlite3.Connection | None = None
    try:
        connection = connect(path.resolve().as_uri())
        refuse_foreign(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # an acknowledged event survives a power cut
        connection.execute("PRAGMA fullfsync = ON")  # macOS: a plain fsync stops at the disk's cache
        connection.execute("PRAGMA checkpoint_fullfsync = ON")
        connection.execute(f"PRAGMA cache_size = -{PAGE_CACHE_KIB}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.create_function("km_bucket", 1, bucket_or_none, deterministic=True)  # for a migration
        migrate(connection, read_migrations())
        connection.execute(CREATE_FRESH)
    except sqlite3.Error as exc:
        if connection is not None:
            connection.close()
        if is_locked(exc):
            raise translate(exc) from exc
        raise StoreError(
            f"cannot use the database {path}: {describe(exc)}", hint="check that it is a km-server's file"
        ) from exc
    except StoreError:
        if connection is not None:
            connection.close()
        raise
    return connection


def bucket_or_none(took_ns: int | None) -> int | None:
    """The latency bucket of a duration, as SQL function."""
    return None if took_ns is None else bucket_of(took_ns)


def read_version(path: Path) -> int:
    """The version of a file's schema, 0 when there is no file. Raises StoreError: it is no store."""
    if not path.exists():
        return 0
    try:
        connection = connect(path.resolve().as_uri() + "?mode=ro")
        try:
            refuse_foreign(connection, path)
            return read_pragma(connection, "user_version")
        finally:
            connection.close()
    except sqlite3.Error as exc:
        raise StoreError(
            f"cannot use the database {path}: {describe(exc)}", hint="check that it is a km-server's file"
        ) from exc


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that can only read. Raises StoreError."""
    try:
        connection = connect(path.resolve().as_uri() + "?mode=ro")
        connection.execute("PRAGMA query_only = ON")
    except sqlite3.Error as exc:
        raise translate(exc) from exc
    return connection


def connect(uri: str) -> sqlite3.Connection:
    """Open in autocommit mode: transactions are written out. Used by one thread at a time."""
    connection = sqlite3.connect(
        uri,
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=STATEMENTS_CACHED,
        timeout=BUSY_TIMEOUT_MS / 1000,
    )
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    return connection


def describe(error: sqlite3.Error) -> str:
    """SQLite's own sentence for what is wrong with a file."""
    return str(error) or type(error).__name__


def refuse_foreign(connection: sqlite3.Connection, path: Path) -> None:
    """Raises StoreError when the file is a database of something else."""
    application_id = read_pragma(connection, "application_id")
    empty = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
    if application_id != APPLICATION_ID and not (application_id == 0 and empty):
        raise StoreError(f"{path} is a database of another program", hint="choose another --database-url")


def read_pragma(connection: sqlite3.Connection, name: str) -> int:
    """A whole number out of the file's header."""
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def read_migrations() -> list[str]:
    """The numbered scripts, in order: the n-th brings the schema from n-1 to n."""
    folder = resources.files("km_server.store") / "migrations" / "sqlite"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [file.read_text(encoding="utf-8") for file in files]


def migrate(connection: sqlite3.Connection, scripts: list[str]) -> None:
    """
    Bring the schema to the newest version; each step commits as a whole or not at all.

    Two processes may start at once: the version is read under the write lock.
    Raises StoreError: the file was made by a newer km-server. Raises sqlite3.Error: a step failed.
    """
    while True:
        with transaction(connection):
            version = read_pragma(connection, "user_version")
            if version > len(scripts):
                raise StoreError(
                    f"the database has schema {version}, newer than this km-server's {len(scripts)}",
                    hint="upgrade km-server",
                )
            if version == len(scripts):
                return
            for statement in split_statements(scripts[version]):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def split_statements(script: str) -> Iterator[str]:
    """The statements of a script, as SQLite itself tells where one ends. (executescript would commit first.)"""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A write transaction: committed at the end, rolled back on any exception."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise

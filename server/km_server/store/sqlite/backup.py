"""
Copies of the file that can be trusted: made while the server runs, and compared row by row with what was copied.

The copy, its numbers and the comparison are all of one snapshot: a read transaction of the connection that SQLite's
backup reads from. Writers go on beside it. Restoring checks the copy first, and what it has become after.
"""

import os
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import msgspec

from km_server.errors import StoreError
from km_server.store.manifest import Manifest, TableSum, make_manifest
from km_server.store.sqlite.connection import (
    connect,
    create_private,
    open_writer,
    read_migrations,
    read_pragma,
    refuse_foreign,
)
from km_server.store.sqlite.driver import require_sound, sqlite3, translate

PAGES_PER_STEP = 2_000
"""8 MB between two looks at the progress."""

ROWS_PER_STEP = 10_000
MANIFEST_SUFFIX = ".manifest.json"

Report = Callable[[str, int, int], None]
"""Told what is being done, how far it is, and how far it goes."""


def back_up(source: Path, target: Path, report: Report) -> Manifest:
    """
    Copy the store at *source* to a new file *target*, with its manifest beside it. Returns what was copied.

    Raises StoreError: *target* exists, *source* is no store, or the copy is not the same.
    """
    require_sound()
    if target.exists():
        raise StoreError(f"{target} exists", hint="choose another name, or remove it")
    partial = target.with_name(target.name + ".partial")
    try:
        create_private(partial)
        with closing(open_readable(source)) as reading:
            reading.execute("BEGIN")
            expected = read_manifest(reading, report)
            with closing(connect(partial.resolve().as_uri())) as copy:
                reading.backup(copy, pages=PAGES_PER_STEP, progress=follow(report))
                copy.execute("PRAGMA journal_mode = DELETE")  # one file, complete by itself
        check_copy(partial, expected, report)
        sync(partial)
        write_manifest(target, expected)
        partial.rename(target)
        sync(target.parent)
    except sqlite3.Error as exc:
        raise translate(exc) from exc
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
    return expected


def restore(source: Path, target: Path, report: Report, *, replace: bool = False) -> Manifest:
    """
    Make the store at *target* from the backup at *source*, and bring it to this version's schema.

    replace: overwrite a store that is there; nobody may have it open. Raises StoreError.
    """
    require_sound()
    if not source.is_file():
        raise StoreError(f"{source}: there is no such file", hint="name one that 'km-server backup FILE' has made")
    if target.exists() and not replace:
        raise StoreError(f"{target} exists", hint="move it away, or restore with --replace")
    try:
        with closing(open_readable(source)) as reading:
            reading.execute("BEGIN")
            refuse_damaged(reading, source)
            expected = read_manifest(reading, report)
            compare_with_manifest(source, expected)
            create_private(target)
            with closing(open_alone(target)) as writing:
                reading.backup(writing, pages=PAGES_PER_STEP, progress=follow(report))
        check_copy(target, expected, report)
    except sqlite3.Error as exc:
        raise translate(exc) from exc
    open_writer(target).close()
    return expected


def open_readable(path: Path) -> sqlite3.Connection:
    """A store's file, to read from. Raises StoreError."""
    if not path.is_file():
        raise StoreError(f"there is no file {path}", hint="check the path")
    connection = connect(path.resolve().as_uri() + "?mode=ro")
    try:
        refuse_foreign(connection, path)
        newest = len(read_migrations())
        if (version := read_pragma(connection, "user_version")) > newest:
            raise StoreError(
                f"{path} has schema {version}, newer than this km-server's {newest}", hint="upgrade km-server"
            )
    except sqlite3.DatabaseError as exc:
        connection.close()
        raise StoreError(f"{path} is no store of a km-server", hint="check the path") from exc
    except StoreError:
        connection.close()
        raise
    return connection


def open_alone(path: Path) -> sqlite3.Connection:
    """The file to be overwritten. Raises StoreError when somebody has it open."""
    connection = connect(path.resolve().as_uri())
    try:
        refuse_foreign(connection, path)
        connection.execute("PRAGMA busy_timeout = 0")
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.OperationalError as exc:
        connection.close()
        raise StoreError(f"{path} is in use", hint="stop km-server first") from exc
    except StoreError:
        connection.close()
        raise
    return connection


def follow(report: Report) -> Callable[[int, int, int], None]:
    """What SQLite's backup calls after each step."""
    return lambda _, remaining, total: report("copying", total - remaining, total)


def refuse_damaged(connection: sqlite3.Connection, path: Path) -> None:
    """Raises StoreError when SQLite finds the file damaged."""
    found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise StoreError(f"{path} is damaged", hint="use another backup")


def check_copy(path: Path, expected: Manifest, report: Report) -> None:
    """Raises StoreError when a copy does not hold what was copied."""
    with closing(connect(path.resolve().as_uri() + "?mode=ro")) as copy:
        refuse_damaged(copy, path)
        if differing := expected.differences(read_manifest(copy, report)):
            raise StoreError(f"the copy differs in {', '.join(differing)}", hint="check the disk")


def read_manifest(connection: sqlite3.Connection, report: Report) -> Manifest:
    """Count and sum every row of every table."""
    tables = connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    )
    names = [row[0] for row in tables]
    total = sum(connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names)
    sums = {name: TableSum() for name in names}
    done = 0
    for name in names:
        rows = connection.execute(f'SELECT * FROM "{name}"')
        while part := rows.fetchmany(ROWS_PER_STEP):
            sums[name].add(part)
            done += len(part)
            report("checking", done, total)
    return make_manifest(sums)


def manifest_path(backup: Path) -> Path:
    """Where a backup's numbers are kept."""
    return backup.with_name(backup.name + MANIFEST_SUFFIX)


def write_manifest(backup: Path, manifest: Manifest) -> None:
    """Keep a backup's numbers beside it."""
    path = manifest_path(backup)
    create_private(path)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    sync(path)


def compare_with_manifest(backup: Path, found: Manifest) -> None:
    """Raises StoreError when a backup is not what it was; one without its manifest is taken as it is."""
    try:
        kept = msgspec.json.decode(manifest_path(backup).read_bytes(), type=Manifest)
    except FileNotFoundError:
        return
    except (OSError, msgspec.MsgspecError) as exc:
        raise StoreError(f"{manifest_path(backup)} cannot be read", hint="remove it to restore without it") from exc
    if differing := kept.differences(found):
        raise StoreError(f"{backup} is not what it was: {', '.join(differing)}", hint="use another backup")


def sync(path: Path) -> None:
    """Have a file or a folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

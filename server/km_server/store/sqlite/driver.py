"""
The one place that chooses the SQLite library: pysqlite3, which has the standard module's interface.

Interpreters link libraries of their own, many of them with the WAL-reset bug (3.7.0 to 3.51.2: two connections
that write and checkpoint one file can lose committed transactions). Source: sqlite.org/wal.html.
"""

from typing import TYPE_CHECKING

from km_server.errors import StoreBusy, StoreError

if TYPE_CHECKING:
    import sqlite3
else:
    from pysqlite3 import dbapi2 as sqlite3

__all__ = ["is_affected", "is_locked", "require_sound", "sqlite3", "translate"]

Version = tuple[int, int, int]

FULL_RETRY_S = 30
"""A full disk is emptied by a person."""

BUSY_RETRY_S = 2


def is_affected(version: Version) -> bool:
    """Whether this SQLite has the WAL-reset bug. Fixed in 3.51.3, 3.50.7 and 3.44.6; 3.52.0 was withdrawn."""
    if version[:2] == (3, 44):
        return version < (3, 44, 6)
    if version[:2] == (3, 50):
        return version < (3, 50, 7)
    return (3, 7, 0) <= version < (3, 51, 3) or version == (3, 52, 0)


def require_sound(version: Version = sqlite3.sqlite_version_info) -> None:
    """Raises StoreError when the linked SQLite could lose commits."""
    if is_affected(version):
        name = ".".join(map(str, version))
        raise StoreError(
            f"SQLite {name} can lose committed data in WAL mode",
            hint="install a pysqlite3 that links SQLite 3.51.3 or newer",
        )


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's own number for what went wrong, 0 when there is none."""
    code: int = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code


def is_locked(error: sqlite3.Error) -> bool:
    """Whether somebody else held the file: nothing is wrong with it, nor with the connection."""
    return primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def translate(error: sqlite3.Error) -> StoreError:
    """What a SQLite error means for the request that met it; the text names no row."""
    code = primary_code(error)
    if is_locked(error):
        return StoreBusy("the store is locked by another process", retry_after_s=BUSY_RETRY_S)
    if code == sqlite3.SQLITE_INTERRUPT:
        return StoreBusy("the question took too long", retry_after_s=BUSY_RETRY_S, hint="ask for less at once")
    if code == sqlite3.SQLITE_FULL:
        return StoreBusy("the store's disk is full", retry_after_s=FULL_RETRY_S, hint="free some disk space")
    name: str = getattr(error, "sqlite_errorname", type(error).__name__)
    return StoreBusy(f"the store failed ({name})", retry_after_s=FULL_RETRY_S)

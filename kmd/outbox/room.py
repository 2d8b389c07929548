"""Keeping the outbox within its bounds: does what kmd.outbox.bounds plans, on the writing connection."""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pysqlite3

from kmd.errors import OutboxFull
from kmd.open_flags import BINARY
from kmd.outbox.bounds import (
    HARD_ROOM_BYTES,
    VACUUM_FREE_SHARE,
    VACUUM_PAGES,
    Eviction,
    Limits,
    Step,
    Usage,
    estimate_waiting,
    fill_level,
    plan_eviction,
    plan_for_full_disk,
)
from kmd.outbox.database import LAST_SEQ, transaction, translate
from kmd.outbox.sessions import forget_sessions

BALLAST_BYTES = 8 << 20
"""Given up when the disk is full: in WAL mode even a deletion needs space."""
BALLAST_LEAST_BYTES = 256 << 10
"""Less would not help; SQLite's shared memory alone takes 32 KiB."""
BALLAST_SHARE = 1 / 16
"""Of the whole disk: the ballast is smaller on a small one."""
COMMIT_BYTES = 1 << 20
"""What one commit usually adds to the log at most."""
BALLAST_SPARE = 4
"""It is made, and made again, only where so many times its size is free."""
FULL_BELOW_BYTES = 1 << 20
"""A disk with less free space than this counts as full."""
COLUMNS_BUT_PAYLOAD = (
    "seq, session_id, stream, offset, idx, at_ns, kind, method, target, rpc_id, size_bytes, took_ns, outcome,"
    " error_code, sha256"
)
PAGES_MAX = 2**32 - 2
"""SQLite's own end."""


def ballast_of(outbox: Path) -> Path:
    """Where the ballast of the outbox at *outbox* is."""
    return outbox.with_suffix(".ballast")


def ballast_size(folder: Path) -> int:
    """How much to set aside on the disk of *folder*."""
    try:
        disk = shutil.disk_usage(folder)
    except OSError:
        return BALLAST_BYTES
    return min(BALLAST_BYTES, max(BALLAST_LEAST_BYTES, int(disk.total * BALLAST_SHARE)))


def free_bytes(folder: Path) -> int:
    """What this user may still write below *folder*; plenty when nobody can tell."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 1 << 62


def take_space(descriptor: int, size: int) -> None:
    """Have an empty file take *size* bytes of the disk. Raises OSError, AttributeError: it cannot be had so here."""
    if sys.platform == "win32":
        os.ftruncate(descriptor, size)  # there it writes zeros
    else:
        os.posix_fallocate(descriptor, 0, size)


def start_with_space(outbox: Path) -> None:
    """Before the outbox is opened: even that needs space, so on a full disk the ballast goes. Raises OSError."""
    if free_bytes(outbox.parent) < FULL_BELOW_BYTES:
        ballast_of(outbox).unlink(missing_ok=True)


class Room:
    """
    Bounds of one outbox. All methods run where commits run, one at a time.

    deleted_seq: up to there events are gone; what is kept has no holes.
    """

    def __init__(self, connection: Any, path: Path, limits: Limits) -> None:
        self._db = connection
        self._ballast = ballast_of(path)
        self._page_bytes = self._scalar("PRAGMA page_size")
        self._ballast_bytes = ballast_size(path.parent)
        # After so much log SQLite folds it into the file: with the commit that reaches it, it must still fit when
        # nothing but the ballast is left.
        log_bytes = max(self._ballast_bytes - COMMIT_BYTES, self._ballast_bytes // 4)
        self._db.execute(f"PRAGMA wal_autocheckpoint = {max(1, log_bytes // self._page_bytes)}")
        self._is_over = False
        self._is_pressed = False
        self._looked_end_seq = 0
        self.deleted_seq = (self._scalar("SELECT coalesce(min(seq), 0) FROM events") or self._scalar(LAST_SEQ) + 1) - 1
        self.limits = limits

    def set_limits(self, limits: Limits) -> None:
        """Take over new bounds; SQLite itself refuses to grow far beyond them."""
        self.limits = limits
        pages = max((limits.max_bytes + HARD_ROOM_BYTES) // self._page_bytes, self._scalar("PRAGMA page_count"))
        self._db.execute(f"PRAGMA max_page_count = {min(pages, PAGES_MAX)}")

    def make_room(self, settled_seq: int, now_ns: int) -> bool:
        """Do one step if one is due. Returns whether it was. Raises OutboxError."""
        with transaction(self._db):
            usage = self._usage(settled_seq)
            eviction = plan_eviction(usage, self.limits, now_ns, is_over=self._is_over)
            is_over = eviction is not None and eviction.step is not Step.DELETE_AGED
            if eviction is None and self._is_pressed:
                self._is_pressed = False
                eviction = plan_for_full_disk(usage)
            deleted_seq = self._evict(eviction, now_ns) if eviction else self.deleted_seq
        self.deleted_seq = max(self.deleted_seq, deleted_seq)
        self._is_over = is_over
        return eviction is not None

    def forget(self, told_end_seq: int, now_ns: int) -> bool:
        """
        Look at some sessions that have ended, and forget those of which nothing is left (kmd.outbox.sessions).

        Returns whether there are more to look at; after False the next call begins anew. Raises OutboxError.
        """
        with transaction(self._db) as db:
            looked = forget_sessions(db, self._looked_end_seq, told_end_seq, now_ns)
        self._looked_end_seq = looked
        return looked > 0

    def read_level(self, settled_seq: int) -> int:
        """How full of undelivered events the outbox is: one of WARN_PERCENT, or 0. Raises OutboxError."""
        try:
            return fill_level(estimate_waiting(self._usage(settled_seq)), self.limits)
        except pysqlite3.Error as exc:
            raise translate(exc) from exc

    def give_back(self) -> bool:
        """Return a little free space to the disk. Returns whether there was much of it. Raises OutboxError."""
        free, pages = self._scalar("PRAGMA freelist_count"), self._scalar("PRAGMA page_count")
        if free < VACUUM_PAGES or free < pages * VACUUM_FREE_SHARE:
            return False
        try:
            self._db.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
        except pysqlite3.Error as exc:
            raise translate(exc) from exc
        return True

    def fold_log(self) -> None:
        """
        Move what was committed from SQLite's log into the file. Raises OutboxError.

        The log is folded when it is long, too; but should the disk fill up while it is, there is no space to fold it.
        """
        try:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except pysqlite3.Error as exc:
            failure = translate(exc)
            if isinstance(failure, OutboxFull):
                self.find_space()
            raise failure from exc

    def find_space(self) -> None:
        """A commit did not fit. Gives up the ballast; on a full disk also the log, and what is settled comes next."""
        is_full = free_bytes(self._ballast.parent) < FULL_BELOW_BYTES
        self._ballast.unlink(missing_ok=True)
        if is_full:
            self._is_pressed = True
            with suppress(pysqlite3.Error):
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def make_ballast(self) -> None:
        """Set space aside again if there is plenty."""
        size = self._ballast_bytes
        if self._ballast.exists() or free_bytes(self._ballast.parent) < size * BALLAST_SPARE:
            return
        try:
            descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, 0o600)
        except OSError:
            return
        try:
            take_space(descriptor, size)
            is_taken = True
        except (OSError, AttributeError):
            is_taken = False
        finally:
            os.close(descriptor)
        if not is_taken:
            self._ballast.unlink(missing_ok=True)

    def _usage(self, settled_seq: int) -> Usage:
        first = self._db.execute("SELECT seq, at_ns FROM events ORDER BY seq LIMIT 1").fetchone() or (0, 0)
        pages = self._scalar("PRAGMA page_count") - self._scalar("PRAGMA freelist_count")
        return Usage(
            used_bytes=pages * self._page_bytes,
            first_seq=first[0],
            last_seq=self._scalar("SELECT coalesce(max(seq), 0) FROM events"),
            stripped_seq=self._scalar("SELECT coalesce(max(until_seq), 0) FROM evictions"),
            settled_seq=settled_seq,
            oldest_at_ns=first[1],
        )

    def _evict(self, eviction: Eviction, now_ns: int) -> int:
        """Do the step and count it. Returns up to where events are gone because of it."""
        span = (eviction.from_seq, eviction.until_seq)
        if eviction.step is Step.DELETE_AGED:
            oldest_kept = "SELECT coalesce(min(seq), ? + 1) FROM events WHERE seq BETWEEN ? AND ? AND at_ns >= ?"
            cutoff = now_ns - self.limits.max_age_ns
            span = (span[0], self._db.execute(oldest_kept, (span[1], *span, cutoff)).fetchone()[0] - 1)
        count = "SELECT count(*), coalesce(sum(length(payload)), 0) FROM events WHERE seq BETWEEN ? AND ?"
        if eviction.step is Step.STRIP_SETTLED:
            events, size = self._db.execute(count + " AND payload IS NOT NULL", span).fetchone()
            self._strip(span)
        else:
            events, size = self._db.execute(count, span).fetchone()
            self._db.execute("DELETE FROM events WHERE seq BETWEEN ? AND ?", span)
        self._db.execute(
            "INSERT INTO evictions VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET events = events + excluded.events,"
            " bytes = bytes + excluded.bytes, until_seq = max(until_seq, excluded.until_seq)",
            (eviction.step._value_, events, size, span[1]),
        )
        return 0 if eviction.step is Step.STRIP_SETTLED else span[1]

    def _strip(self, span: tuple[int, int]) -> None:
        """Take the payloads away. By deleting and inserting: an UPDATE would leave the pages half empty."""
        query = f"SELECT {COLUMNS_BUT_PAYLOAD} FROM events WHERE seq BETWEEN ? AND ?"
        rows = self._db.execute(query, span).fetchall()
        self._db.execute("DELETE FROM events WHERE seq BETWEEN ? AND ?", span)
        marks = ", ".join("?" * len(COLUMNS_BUT_PAYLOAD.split(",")))
        self._db.executemany(f"INSERT INTO events ({COLUMNS_BUT_PAYLOAD}) VALUES ({marks})", rows)

    def _scalar(self, query: str) -> int:
        number: int = self._db.execute(query).fetchone()[0]
        return number

"""Keeping the outbox within its bounds: does what kmd.outbox.bounds plans, on the writing connection."""

import os
from pathlib import Path
from typing import Any

import pysqlite3

from kmd.outbox.bounds import (
    HARD_ROOM_BYTES,
    VACUUM_FREE_SHARE,
    VACUUM_PAGES,
    Eviction,
    Limits,
    Step,
    Usage,
    plan_eviction,
)
from kmd.outbox.database import LAST_SEQ, transaction, translate

BALLAST_BYTES = 8 << 20
"""Given up when the disk is full: in WAL mode even a deletion needs space."""
BALLAST_SPARE_BYTES = 64 << 20
"""The ballast is made again only when so much is free."""
COLUMNS_BUT_PAYLOAD = (
    "seq, session_id, stream, offset, idx, at_ns, kind, method, target, rpc_id, size_bytes, took_ns, outcome,"
    " error_code, sha256"
)
PAGES_MAX = 2**32 - 2
"""SQLite's own end."""


class Room:
    """
    Bounds of one outbox. All methods run where commits run, one at a time.

    deleted_seq: up to there events are gone; what is kept has no holes.
    """

    def __init__(self, connection: Any, path: Path, limits: Limits) -> None:
        self._db = connection
        self._ballast = path.with_suffix(".ballast")
        self._page_bytes = self._scalar("PRAGMA page_size")
        self._is_over = False
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
            eviction = plan_eviction(self._usage(settled_seq), self.limits, now_ns, is_over=self._is_over)
            deleted_seq = self._evict(eviction, now_ns) if eviction else self.deleted_seq
        self.deleted_seq = max(self.deleted_seq, deleted_seq)
        self._is_over = eviction is not None and eviction.step is not Step.DELETE_AGED
        return eviction is not None

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

    def drop_ballast(self) -> bool:
        """Free the ballast's space. Returns whether there was any."""
        try:
            self._ballast.unlink()
        except OSError:
            return False
        return True

    def make_ballast(self) -> None:
        """Set space aside again if there is plenty."""
        try:
            disk = os.statvfs(self._ballast.parent)
            if self._ballast.exists() or disk.f_bavail * disk.f_frsize < BALLAST_SPARE_BYTES + BALLAST_BYTES:
                return
            descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        try:
            os.posix_fallocate(descriptor, 0, BALLAST_BYTES)
        except (OSError, AttributeError):
            self._ballast.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

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

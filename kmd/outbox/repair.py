"""
A damaged outbox: what can still be read goes into a new file, which then takes its place; the damaged one is kept.

The new file is whole, and named so, before the damaged one is moved. Whoever is killed at any point of this is followed
by one that begins anew or finishes it.
"""

import os
import re
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pysqlite3
import structlog

from kmd.errors import OutboxCorrupt, OutboxError
from kmd.outbox.database import connect, make_private, migrate, translate
from kmd.outbox.salvage import MENDED, carry_over, remove_database

COPIES_KEPT = 2
"""Damaged files that stay for a person to look at."""
DAMAGED = re.compile(r"\.damaged-([0-9]{20})(-wal|-shm)?\Z")

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
    """
    Put a new outbox, made from what can be read, in the place of the one at *path*, and keep that.

    Raises OutboxError: there is no room, or no right, to do so; then the damaged one is still in its place.
    """
    log.error("the outbox is damaged; what can be read is carried over", path=str(path))
    draft = path.with_name(f"{path.name}.salvaging")
    leftovers = (draft, path.with_name(path.name + MENDED))
    try:
        for leftover in leftovers:
            remove_database(leftover)
        kept, lost = salvage(path, draft)
        draft.replace(salvaged_of(path))
        sync_folder(path.parent)
        damaged = finish_repair(path)
    except pysqlite3.Error as exc:
        raise translate(exc) from exc
    except OSError as exc:
        raise OutboxError(f"{path}: cannot be repaired ({exc.strerror})", hint="free some disk space") from exc
    finally:
        for leftover in leftovers:
            with suppress(OSError):
                remove_database(leftover)
    log.error("the outbox was damaged; what could be read was carried over", aside=damaged, kept=kept, lost=lost)


def salvage(path: Path, draft: Path) -> tuple[int, int]:
    """Make *draft* from what can be read at *path*: (events kept, events lost). It is on the disk, without a log."""
    make_private(draft)
    with closing(connect(draft)) as fresh:
        migrate(fresh, draft)
        kept, lost = carry_over(path, fresh)
        fresh.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # `close` would not say that it failed
    return kept, lost


def finish_repair(path: Path) -> str:
    """Where a repair has got as far as a whole new file: put it in its place. Returns the name of the damaged one."""
    salvaged = salvaged_of(path)
    if not salvaged.exists():
        return ""
    damaged = set_aside(path)
    salvaged.replace(path)
    sync_folder(path.parent)
    return damaged.name


def salvaged_of(path: Path) -> Path:
    """What the new outbox is called while the damaged one is still in its place."""
    return path.with_name(f"{path.name}.salvaged")


def set_aside(path: Path) -> Path:
    """Rename the database and its log; only the latest COPIES_KEPT of such files stay."""
    damaged = path.with_name(f"{path.name}.damaged-{time.time_ns():020d}")
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(damaged.with_name(damaged.name + suffix))
    found = [(match[1], part) for part in path.parent.glob(f"{path.name}.*") if (match := DAMAGED.search(part.name))]
    kept = sorted({stamp for stamp, _ in found})[-COPIES_KEPT:]
    for stamp, part in found:
        if stamp not in kept:
            part.unlink(missing_ok=True)
    return damaged


def sync_folder(folder: Path) -> None:
    """Have renames in *folder* survive a power loss. Raises OSError."""
    if sys.platform == "win32":  # a folder cannot be opened there; NTFS logs its names
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

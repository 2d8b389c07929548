"""
Reading and replacing files that belong to other programs. Edge.

A replacement is a new file, written and synced beside the old one and renamed over it: whoever looks, and whatever
dies, sees the old text or the new one. Mode, owner and extended attributes go along.
"""

import errno
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from kmd.errors import KilometersError
from kmd.open_flags import BINARY, NO_LINKS, NO_WAIT

FILE_MAX_BYTES = 64 << 20
"""Claude Code keeps its history in its configuration; tens of MB have been seen, more is no configuration."""
MARK = "kilometers"
DRAFT_SUFFIX = ".tmp"
BACKUP_SUFFIX = ".bak"


class FileRefused(KilometersError):
    """A file was left as it is; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A file as it was read. real: what its path led to."""

    real: Path
    raw: bytes
    status: os.stat_result


def read_file(path: Path) -> Snapshot:
    """Read a regular file, through symbolic links. Raises FileRefused."""
    try:
        real = Path(os.path.realpath(path, strict=True))
        if real.is_dir():  # fdopen refuses it as if it were a matter of rights
            raise FileRefused(f"{path}: is no regular file")
        descriptor = os.open(real, os.O_RDONLY | NO_LINKS | NO_WAIT | BINARY)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise FileRefused(f"{path}: is no regular file")
            raw = file.read(FILE_MAX_BYTES + 1)
    except OSError as exc:
        raise FileRefused(f"{path}: cannot be read ({exc.strerror})", hint="check its permissions") from exc
    if len(raw) > FILE_MAX_BYTES:
        raise FileRefused(f"{path}: is larger than {FILE_MAX_BYTES >> 20} MiB")
    return Snapshot(real, raw, status)


def replace_file(path: Path, before: Snapshot, raw: bytes, stamp: str) -> Path:
    """
    Make *raw* the content of the file that *before* is a snapshot of; what it was stays beside it, 0600.

    Returns: the backup. Raises: FileRefused when it changed since, or cannot be written; then it is as it was.
    """
    real = before.real
    backup = real.with_name(f"{real.name}.{MARK}-{stamp}{BACKUP_SUFFIX}")
    draft = real.with_name(f".{real.name}.{MARK}-{stamp}{DRAFT_SUFFIX}")
    try:
        write_synced(backup, before.raw, None)
        try:
            write_synced(draft, raw, before)
            check_unchanged(path, before)
            draft.replace(real)
        except BaseException:
            draft.unlink(missing_ok=True)
            backup.unlink(missing_ok=True)
            raise
        sync_folder(real.parent)
    except OSError as exc:
        hint = "check the permissions of its folder, and the room on its disk"
        raise FileRefused(f"{path}: cannot be written ({exc.strerror})", hint=hint) from exc
    return backup


def check_unchanged(path: Path, before: Snapshot) -> None:
    """Raises FileRefused when the path leads to another file now, or the file says something else."""
    now = read_file(path)
    same_file = (now.real, now.status.st_ino, now.status.st_dev) == (
        before.real,
        before.status.st_ino,
        before.status.st_dev,
    )
    if not same_file or now.raw != before.raw:
        raise FileRefused(f"{path}: has changed since it was read", hint="run the command again")


def write_synced(path: Path, raw: bytes, like: Snapshot | None) -> None:
    """Write a new file of our own, 0600 or as *like* is, and wait until it is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINKS | BINARY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(raw)
        file.flush()
        if like is not None:
            take_after(descriptor, like)
        os.fsync(descriptor)


def take_after(descriptor: int, like: Snapshot) -> None:
    """Give an open file the owner, attributes and mode of *like*. Raises OSError when the owner cannot be kept."""
    if sys.platform == "win32":
        return  # the folder's access list is inherited
    own = os.fstat(descriptor)
    if (own.st_uid, own.st_gid) != (like.status.st_uid, like.status.st_gid):
        os.fchown(descriptor, like.status.st_uid, like.status.st_gid)
    copy_attributes(descriptor, like.real)
    os.fchmod(descriptor, stat.S_IMODE(like.status.st_mode))


def copy_attributes(descriptor: int, source: Path) -> None:
    """Copy extended attributes, access lists among them, where system and file system have them."""
    if sys.platform == "win32" or not hasattr(os, "listxattr"):
        return
    try:
        for name in os.listxattr(source):
            try:
                os.setxattr(descriptor, name, os.getxattr(source, name))
            except OSError as exc:
                if exc.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EINVAL):
                    raise
    except OSError as exc:
        if exc.errno not in (errno.ENOTSUP, errno.ENOENT):  # that it is gone is said later
            raise


def sync_folder(folder: Path) -> None:
    """Wait until the names in *folder* are on the disk. Raises OSError."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_drafts(path: Path) -> list[Path]:
    """
    What a run that was killed has left beside a file.

    Whoever removes them holds the lock: then no other run is at it.
    """
    real = Path(os.path.realpath(path))
    return sorted(real.parent.glob(f".{escape(real.name)}.{MARK}-*{DRAFT_SUFFIX}"))


def find_backups(path: Path) -> list[Path]:
    """The backups beside a file, oldest first."""
    real = Path(os.path.realpath(path))
    return sorted(real.parent.glob(f"{escape(real.name)}.{MARK}-*{BACKUP_SUFFIX}"))


def escape(name: str) -> str:
    """*name* for a glob pattern."""
    import glob

    return glob.escape(name)

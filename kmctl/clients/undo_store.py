"""
Where undo records are kept: one file each, 0600, in a folder of the state directory. Edge.

A record is on the disk before the configuration that it belongs to is touched; a run that dies in between leaves
a record too many, never one too few. The same folder holds the lock that keeps two runs apart.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kmctl.clients.files import DRAFT_SUFFIX, FileRefused, sync_folder, write_synced
from kmctl.clients.undo import Undo, parse_undo, render_undo
from kmd.lock_file import take_lock
from kmd.private_dir import make_dir

FOLDER = "undo"
SUFFIX = ".json"
RETIRED_SUFFIX = ".done"
"""Of a record whose server was put back while others stay wrapped: someone may have copied the wrapped server."""
LOCK = "lock"


@contextmanager
def hold_lock(state_dir: Path) -> Iterator[Path]:
    """The folder of records below *state_dir*, for this run alone. Raises FileRefused."""
    folder = state_dir / FOLDER
    try:
        for private in (state_dir, folder):
            make_dir(private)
        descriptor = take_lock(folder / LOCK)
    except OSError as exc:
        raise FileRefused(f"{folder}: cannot be made ({exc.strerror})", hint="check the owner of its folder") from exc
    if descriptor is None:
        raise FileRefused("another kmctl is at work on the clients", hint="wait for it to end")
    try:
        for draft in folder.glob(f"*{DRAFT_SUFFIX}"):
            draft.unlink(missing_ok=True)
        yield folder
    finally:
        os.close(descriptor)


def save_undo(folder: Path, undo: Undo) -> None:
    """Put a record on the disk. Raises OSError."""
    path = folder / f"{undo.key()}{SUFFIX}"
    draft = path.with_suffix(DRAFT_SUFFIX)
    draft.unlink(missing_ok=True)
    write_synced(draft, render_undo(undo).encode(), None)
    draft.replace(path)
    sync_folder(folder)


def load_undos(state_dirs: Sequence[Path], *, retired: bool = True) -> list[Undo]:
    """All records that can be read, oldest first. retired: those of servers that were put back, too."""
    suffixes = (SUFFIX, RETIRED_SUFFIX) if retired else (SUFFIX,)
    found: dict[str, Undo] = {}
    for path in (path for one in state_dirs for suffix in suffixes for path in (one / FOLDER).glob(f"*{suffix}")):
        try:
            undo = parse_undo(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue
        if undo:
            found.setdefault(undo.key(), undo)
    return sorted(found.values(), key=lambda undo: undo.made_at)


def retire_undo(folder: Path, undo: Undo) -> None:
    """Keep a record, if it is in *folder*, only for copies of its server."""
    with suppress(FileNotFoundError):
        (folder / f"{undo.key()}{SUFFIX}").replace(folder / f"{undo.key()}{RETIRED_SUFFIX}")


def drop_undo(folder: Path, undo: Undo) -> None:
    """Forget a record, if it is kept in *folder*."""
    for suffix in (SUFFIX, RETIRED_SUFFIX):
        (folder / f"{undo.key()}{suffix}").unlink(missing_ok=True)

"""What `kmctl uninstall --purge` deletes: files that are ours by name, never a folder as a whole. Edge."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from kmctl.clients.files import find_backups
from kmctl.clients.undo_store import FOLDER
from kmd.errors import KilometersError
from kmd.paths import Places

STATE_PATTERNS = ("outbox.*", "kmd.log*", f"{FOLDER}/*")
MEETING_PATTERNS = ("kmd.sock", "control.sock", "*.lock", "kmd.autostart*", "spool/*")
CONFIG_PATTERNS = ("config.toml", "config.toml.*.bak", ".config.toml.*", "keys.*")


def find_ours(places: Places, files: Iterable[Path]) -> list[Path]:
    """
    Everything that Kilometers has written for this user: outbox, spools, sockets, configuration, undo records,
    and the backups beside the clients' *files*.
    """
    found = [
        *match_all(places.state_dir, STATE_PATTERNS),
        *match_all(places.meeting_dir, MEETING_PATTERNS),
        *match_all(places.config_file.parent, CONFIG_PATTERNS),
        *(backup for file in files for backup in find_backups(file)),
    ]
    return list(dict.fromkeys(found))


def match_all(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files below *folder* that fit one of *patterns*; no folders."""
    return [path for pattern in patterns for path in sorted(folder.glob(pattern)) if not path.is_dir()]


def delete_all(places: Places, files: Sequence[Path]) -> None:
    """Delete *files*, then our folders where nothing else is in them. Raises KilometersError."""
    try:
        for path in files:
            path.unlink(missing_ok=True)
    except OSError as exc:
        raise KilometersError(f"{exc.filename}: cannot be deleted ({exc.strerror})", hint="delete it by hand") from exc
    folders = (
        places.state_dir / FOLDER,
        places.spool_dir,
        places.state_dir,
        places.meeting_dir,
        places.config_file.parent,
    )
    for folder in folders:
        try:
            os.rmdir(folder)  # noqa: PTH106 - fails, as it should, when something else is in it
        except OSError:
            continue

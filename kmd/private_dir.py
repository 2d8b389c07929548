"""
Folders that are this user's alone. The one place that knows how that is said on POSIX (owner and mode) and on Windows.

On Windows there are no modes: what counts is who is in a folder's access list (kmd.access_list).
"""

import os
import stat
import sys
from pathlib import Path

from kmd.errors import KilometersError

OWN_NAMES = ("config.toml", "outbox.", "kmd.", "control.", "spool", "lost+found")

if sys.platform == "win32":
    from kmd.access_list import find_others
    from kmd.shim.windows import calls
    from kmd.shim.windows.access import folder_access
    from kmd.shim.windows.names import folder_sddl

    def is_own(_status: os.stat_result) -> bool:
        """Whether a file is this user's: in a folder that only this user may write to, it is."""
        return True

    def others_in(path: Path) -> list[str]:
        """Who besides this user may get at the folder *path*. Raises OSError."""
        return find_others(folder_access(str(path)), calls.current_user_sid())

    def make_dir(path: Path) -> None:
        """Make *path* if it is missing, for this user alone then. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_dir():
            calls.make_folder(str(path), folder_sddl(calls.current_user_sid()))

    def _close(path: Path) -> None:
        """Refuse what is open: closing it would change what others rely on, file by file. Raises as its caller does."""
        if path == Path.home():
            raise KilometersError(f"{path}: is not for Kilometers alone", hint="choose a folder of its own with --home")
        if others := others_in(path):
            hint = (
                f'choose another folder with --home, or: icacls "{path}" /inheritance:r /grant:r "%USERNAME%:(OI)(CI)F"'
            )
            raise KilometersError(f"{path}: is open to other users ({', '.join(others)})", hint=hint)

else:

    def is_own(status: os.stat_result) -> bool:
        """Whether a file is this user's."""
        return status.st_uid == os.geteuid()

    def make_dir(path: Path) -> None:
        """Make *path* if it is missing, for this user alone then. Raises OSError."""
        path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _close(path: Path) -> None:
        """Take from others what they may do. Raises as its caller does."""
        status = path.stat()
        if not is_own(status) or path == Path.home() or is_shared(path, status.st_mode):
            raise KilometersError(f"{path}: is not for Kilometers alone", hint="choose a folder of its own with --home")
        if stat.S_IMODE(status.st_mode) & 0o077:
            path.chmod(0o700)


def make_private_dir(path: Path) -> None:
    """
    Make *path* if it is missing, and this user's alone.

    Raises KilometersError when it is another's, or one that is shared on purpose and must not be closed.
    """
    try:
        make_dir(path)
        _close(path)
    except OSError as exc:
        hint = "choose another folder with --home"
        raise KilometersError(f"{path}: cannot be used ({exc.strerror})", hint=hint) from exc


def is_shared(path: Path, mode: int) -> bool:
    """Whether this is a folder like /tmp, with things in it that are not ours: closing it would break them."""
    return bool(mode & stat.S_ISVTX) and any(not entry.name.startswith(OWN_NAMES) for entry in path.iterdir())

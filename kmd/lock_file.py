"""
Lock files: one process has the file, all others see that. The kernel gives it back when the process ends, however.

On POSIX that is `flock`. Windows' own locks would keep others from reading what is locked, so there a file is taken by
opening it in a way that lets nobody else write to it. The one place that knows the difference.
"""

import os
import sys
from pathlib import Path

from kmd.open_flags import BINARY, NO_LINKS, NO_WAIT

PRIVATE = 0o600
TEXT_MAX_BYTES = 20
"""Of what a holder has written at the start of the file: a pid."""

if sys.platform == "win32":
    import msvcrt

    from kmd.shim.windows import calls

    def take_lock(path: Path) -> int | None:
        """The file at *path*, made if missing, to read and write; None when somebody has it. Raises OSError."""
        return _open(path, calls.GENERIC_READ | calls.GENERIC_WRITE, calls.FILE_SHARE_READ, calls.OPEN_ALWAYS)

    def take_to_read(path: Path) -> int | None:
        """The file at *path*, open for reading and to be removed; None when somebody has it. Raises OSError."""
        return _open(path, calls.GENERIC_READ, calls.FILE_SHARE_DELETE, calls.OPEN_EXISTING)

    def is_taken(path: Path) -> bool:
        """Whether somebody has the file at *path* now. Raises OSError, FileNotFoundError among them."""
        access = calls.GENERIC_READ | calls.GENERIC_WRITE
        descriptor = _open(path, access, calls.FILE_SHARE_READ, calls.OPEN_EXISTING)
        if descriptor is None:
            return True
        os.close(descriptor)
        return False

    def _open(path: Path, access: int, share: int, disposition: int) -> int | None:
        try:
            handle = calls.create_file(str(path), access, share, disposition)
        except OSError as exc:
            if exc.winerror == calls.ERROR_SHARING_VIOLATION:
                return None
            raise
        return msvcrt.open_osfhandle(handle, os.O_BINARY)

else:
    import fcntl

    def take_lock(path: Path) -> int | None:
        """The file at *path*, made if missing, to read and write; None when somebody has it. Raises OSError."""
        return _lock(os.open(path, os.O_RDWR | os.O_CREAT | NO_LINKS, PRIVATE), fcntl.LOCK_EX)

    def take_to_read(path: Path) -> int | None:
        """The file at *path*, open for reading; None when somebody has it. Raises OSError."""
        return _lock(os.open(path, os.O_RDONLY | NO_LINKS | NO_WAIT), fcntl.LOCK_EX)

    def is_taken(path: Path) -> bool:
        """Whether somebody has the file at *path* now. Raises OSError, FileNotFoundError among them."""
        descriptor = _lock(os.open(path, os.O_RDONLY | NO_LINKS), fcntl.LOCK_SH)
        if descriptor is None:
            return True
        os.close(descriptor)
        return False

    def _lock(descriptor: int, how: int) -> int | None:
        """*descriptor* with its lock; closed, and None, when somebody else has it. Raises OSError."""
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def read_text(path: Path) -> bytes:
    """What the holder has written at the start, perhaps nothing. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | NO_LINKS | BINARY)
    try:
        return os.read(descriptor, TEXT_MAX_BYTES).strip()
    finally:
        os.close(descriptor)


def write_text(descriptor: int, text: bytes) -> None:
    """Have a file that was taken say *text* and nothing else, also after a power loss. Raises OSError."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, text)
    os.ftruncate(descriptor, len(text))
    os.fsync(descriptor)

"""
The spool: a relay's own file, for when kmd is away.

A spool file is a recorded connection: HELLO, then the records that could not be sent, in order. The relay
holds a lock on it while it lives and replays it to kmd itself; kmd takes in the files that nobody holds.
It is raw, so it is private (0600), and it goes as soon as kmd has everything in it. Its size is bounded.
"""

import os
from collections.abc import Sequence

from kmd.record import HELLO, NO_STREAM, STREAMS, render_head
from kmd.shim.tap import Entry

FOLDER = "spool"
SUFFIX = ".spool"
FILE_MAX_BYTES = 256 << 20
"""Most that one session may leave behind."""
FOLDER_MAX_BYTES = 1 << 30
"""Most that all of them may, should kmd never come back."""
PARTS_AT_ONCE = 512
"""Buffers of one writev; the kernel takes at most 1024."""


class Spool:
    """
    The file of one session, made when it is first needed.

    `ends` is, per stream, the offset after the last byte in the file: once kmd has that much, the file may go.
    """

    def __init__(self, meeting: str, session: str, hello: bytes) -> None:
        self._folder = os.path.join(meeting, FOLDER)
        self._session = session
        self._hello = render_head(HELLO, NO_STREAM, 0, 0, hello) + hello
        self._fd = -1
        self._path = ""
        self._generation = 0
        self.size_bytes = 0
        self.ends = [0] * STREAMS

    @property
    def start(self) -> int:
        """Where the records after HELLO begin."""
        return len(self._hello)

    def append(self, entries: Sequence[Entry]) -> bool:
        """Write *entries*, all or none. Returns False when the disk or a bound does not allow it."""
        if not entries:
            return True
        parts = []
        for entry in entries:
            parts += [render_head(entry.type, entry.stream, entry.offset, entry.at_ns, entry.body), entry.body]
        try:
            if self._fd < 0:
                self._open()
            self._write(parts)
        except OSError:
            return False
        for entry in entries:
            if entry.stream < STREAMS:
                self.ends[entry.stream] = entry.offset + len(entry.body)
        return True

    def read(self, position: int, length: int) -> bytes:
        """Bytes of the file for the replay; empty at its end. Raises OSError."""
        return os.pread(self._fd, length, position)

    def is_covered(self, durable: tuple[int, ...]) -> bool:
        """Whether kmd has everything in the file."""
        return all(end <= have for end, have in zip(self.ends, durable, strict=True))

    def discard(self) -> None:
        """kmd has it all: remove the file."""
        if self._fd < 0:
            return
        try:
            os.unlink(self._path)
        except OSError:
            pass
        os.close(self._fd)
        self._fd = -1
        self.size_bytes = 0

    def _open(self) -> None:
        """Make the file, locked before anything is in it, so that kmd never adopts a living relay's spool."""
        import fcntl  # noqa: PLC0415 - only a relay without kmd needs it

        for folder in (os.path.dirname(self._folder), self._folder):
            try:
                os.mkdir(folder, 0o700)
            except FileExistsError:
                pass
        if folder_bytes(self._folder) > FOLDER_MAX_BYTES:
            raise OSError("the spool folder is full")
        self._generation += 1
        path = os.path.join(self._folder, f"{self._session}.{self._generation}{SUFFIX}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o600)
        self._path = path
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write([self._hello])
        except OSError:
            self.discard()
            raise

    def _write(self, parts: Sequence[bytes]) -> None:
        """Append *parts*; after a failure the file ends where it ended before. Raises OSError."""
        size = self.size_bytes + sum(map(len, parts))
        if size > FILE_MAX_BYTES:
            raise OSError("the spool is full")
        try:
            for start in range(0, len(parts), PARTS_AT_ONCE):
                some = parts[start : start + PARTS_AT_ONCE]
                if os.writev(self._fd, some) < sum(map(len, some)):
                    raise OSError("the disk is full")
        except OSError:
            os.ftruncate(self._fd, self.size_bytes)
            raise
        self.size_bytes = size


def folder_bytes(folder: str) -> int:
    """How much lies in *folder*."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                total += entry.stat(follow_symlinks=False).st_size
            except OSError:
                pass  # taken in by kmd just now
    return total

"""
The spool: a relay's own file, for when kmd is away or does not keep up.

A spool file is a recorded connection: HELLO, then the records that could not be sent, in order. The relay
holds a lock on it while it lives and replays it to kmd itself; kmd takes in the files that nobody holds.
It is raw, so it is private (0600), and it goes as soon as kmd has everything in it. Its size is bounded.

A large chunk is appended with a CRC over its header alone, as on the socket: its own would cost the traffic as much
as the copy does. A spool that stays behind is *sealed*: every CRC covers its body then. Should the relay be killed
before that, kmd believes the body as long as the machine has not been down since (HELLO names the boot).
"""

import os
from _collections_abc import Sequence

from kmd.record import (
    CRC_OF_HEAD,
    HEADER_BYTES,
    HELLO,
    NO_STREAM,
    STREAMS,
    parse_head,
    render_head,
    render_light_head,
)
from kmd.shim.held import Entry

FOLDER = "spool"
SUFFIX = ".spool"
FILE_MAX_BYTES = 2 << 30
"""Most that one session may leave behind: some seconds of the fastest traffic, hours of what agents do."""
FOLDER_MAX_BYTES = 4 << 30
"""Most that all of them may, should kmd never come back."""
FREE_MIN_BYTES = 64 << 20
"""What a spool leaves free on the disk once it is larger than a little: other programs need some."""
LITTLE_BYTES = 16 << 20
ROOM_FOR_KMD_BYTES, ROOM_FOR_KMD_PART = 16 << 20, 8
"""What even a little spool leaves free while its relay lives, on a small disk an eighth of it: with it kmd can deliver,
and so make room."""
PARTS_AT_ONCE = 512
"""Buffers of one write; the kernel takes at most 1024."""


class Spool:
    """
    The file of one session, made when it is first needed.

    `ends` is, per stream, the offset after the last byte in the file: once kmd has that much, the file may go.
    `position` is up to where the current connection has been sent it.
    """

    def __init__(self, meeting: str, session: str, hello: bytes) -> None:
        self._folder = os.path.join(meeting, FOLDER)
        self._session = session
        self._hello = render_head(HELLO, NO_STREAM, 0, 0, hello) + hello
        self._fd = -1
        self._path = ""
        self._generation = 0
        self._looked_at_bytes = 0
        self._is_sealed = True
        self.size_bytes = 0
        self.position = len(self._hello)
        self.ends = [0] * STREAMS

    @property
    def backlog_bytes(self) -> int:
        """What the current connection has yet to be sent."""
        return max(0, self.size_bytes - self.position)

    def rewind(self) -> None:
        """A new connection: it has been sent nothing of the file."""
        self.position = len(self._hello)

    def has_room(self, size: int) -> bool:
        """Whether so much is free on the disk, and kmd's room besides: cheaper to ask than to fail."""
        folder = os.path.dirname(self._folder)
        try:
            disk = os.statvfs(folder if os.path.isdir(folder) else os.path.dirname(folder))
        except OSError:
            return False
        room = min(ROOM_FOR_KMD_BYTES, disk.f_blocks * disk.f_frsize // ROOM_FOR_KMD_PART)
        return disk.f_bavail * disk.f_frsize >= size + room

    def append(self, entries: Sequence[Entry]) -> bool:
        """Write *entries*, all or none. Returns False when the disk or a bound does not allow it."""
        if not entries:
            return True
        parts = [part for entry in entries for part in entry.for_file()]
        return self._append(parts, entries[-1].ends)

    def append_pipe(
        self,
        type: int,  # noqa: A002
        at_ns: int,
        table: bytes,
        source: int,
        size: int,
        ends: Sequence[int],
    ) -> bytes | None:
        """
        Write a record that is not sealed yet: *table*, and behind it *size* bytes out of the pipe *source*.

        Returns None when that is done, else the bytes, which are no longer in the pipe.
        """
        head = render_light_head(type, NO_STREAM, 0, at_ns, len(table) + size)
        before = self.size_bytes
        if not self._append((head, table), self.ends):
            return read_exactly(source, size)
        start = at = self.size_bytes
        try:
            self._leave_room(start + size)
            while left := start + size - at:
                at += os.splice(source, self._fd, left, offset_dst=at)
        except OSError:
            body = os.pread(self._fd, at - start, start) + read_exactly(source, start + size - at)
            os.ftruncate(self._fd, before)
            self.size_bytes = before
            return body
        self.size_bytes = at
        self.ends[:] = ends
        self._is_sealed = False
        return None

    def read(self, length: int) -> bytes:
        """The next bytes for the replay, from `position` on; empty at the end. Raises OSError."""
        return os.pread(self._fd, min(length, self.backlog_bytes), self.position) if self._fd >= 0 else b""

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
        self._is_sealed = True
        self._looked_at_bytes = self.size_bytes = 0
        self.rewind()

    def seal(self) -> None:
        """The relay leaves, the file stays: give each record a CRC over all of it. Raises OSError."""
        if self._is_sealed:
            return
        at = 0
        while at < self.size_bytes:
            head = parse_head(os.pread(self._fd, HEADER_BYTES, at))
            if head.covers == CRC_OF_HEAD:
                body = os.pread(self._fd, head.length, at + HEADER_BYTES)
                os.pwrite(self._fd, render_head(head.type, head.stream, head.offset, head.at_ns, body), at)
            at += HEADER_BYTES + head.length
        self._is_sealed = True

    def _append(self, parts: Sequence[bytes | memoryview], ends: Sequence[int]) -> bool:
        try:
            if self._fd < 0:
                self._open()
            self._write(parts)
        except OSError:
            return False
        self.ends[:] = ends
        return True

    def _open(self) -> None:
        """Make the file, locked before anything is in it, so that kmd never adopts a living relay's spool."""
        for folder in (os.path.dirname(self._folder), self._folder):
            try:
                self._make_folder(folder)
            except FileExistsError:
                pass
        if folder_bytes(self._folder) > FOLDER_MAX_BYTES:
            raise OSError("the spool folder is full")
        self._generation += 1
        path = os.path.join(self._folder, f"{self._session}.{self._generation}{SUFFIX}")
        self._fd = self._make_file(path)
        self._path = path
        try:
            self._write([self._hello])
        except OSError:
            self.discard()
            raise

    def _make_folder(self, path: str) -> None:
        """A private one. Raises OSError."""
        os.mkdir(path, 0o700)

    def _make_file(self, path: str) -> int:
        """A new private one, locked. Raises OSError."""
        import fcntl  # noqa: PLC0415 - only a relay that spools needs it

        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.unlink(path)
            os.close(fd)
            raise
        return fd

    def _write(self, parts: Sequence[bytes | memoryview]) -> None:
        """Append *parts*; after a failure the file ends where it ended before. Raises OSError."""
        size = self.size_bytes + sum(map(len, parts))
        if size > FILE_MAX_BYTES:
            raise OSError("the spool is full")
        self._leave_room(size)
        try:
            self._write_at(self.size_bytes, parts)
        except OSError:
            os.ftruncate(self._fd, self.size_bytes)
            raise
        self.size_bytes = size

    def _write_at(self, at: int, parts: Sequence[bytes | memoryview]) -> None:
        """All of *parts*. Raises OSError."""
        for start in range(0, len(parts), PARTS_AT_ONCE):
            some = parts[start : start + PARTS_AT_ONCE]
            if os.pwritev(self._fd, some, at) < sum(map(len, some)):
                raise OSError("the disk is full")
            at += sum(map(len, some))

    def _leave_room(self, size: int) -> None:
        """Look at the disk now and then while the file grows. Raises OSError when it is nearly full."""
        if size - self._looked_at_bytes < LITTLE_BYTES:
            return
        if not self.has_room(FREE_MIN_BYTES):
            raise OSError("the disk is nearly full")
        self._looked_at_bytes = size


def read_exactly(source: int, size: int) -> bytes:
    """*size* bytes out of a pipe that holds them."""
    parts = []
    while size:
        parts.append(os.read(source, size))
        size -= len(parts[-1])
    return b"".join(parts)


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

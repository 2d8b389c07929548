"""
`km --strict`: nothing crosses that is not on disk.

Each chunk is appended to the spool and synced before it is forwarded; kmd is sent the spool and nothing else. So
whatever is killed, and should the power fail: every byte that the other side has got is in the spool or with kmd.
What cannot be recorded is not forwarded: the relay says why on stderr and ends, and with it the session.
"""

import os
import select
from _collections_abc import Sequence
from typing import NoReturn

from kmd.record import BYE, DATA, NO_STREAM, Record, render_fields
from kmd.shim.held import NEVER, Entry
from kmd.shim.link import Ending
from kmd.shim.pump import GOES_ON, Pump, Way
from kmd.shim.slabs import Chunk, claims_of, drop, parts_of
from kmd.shim.spool import FILE_MAX_BYTES, Spool
from kmd.shim.start import READY
from kmd.shim.tap import Tap

KEEP_BYTES = 16 << 20
"""A file that kmd has is kept until it is that large: making one costs two syncs of folders."""
SAY_MS = 1000
"""How long a client that does not read its stderr may keep the session from ending."""


class SyncedSpool(Spool):
    """A spool that is on disk whenever `append` has returned True. `why` says what was wrong when it has not."""

    def __init__(self, meeting: str, session: str, hello: bytes) -> None:
        super().__init__(meeting, session, hello)
        self.why = ""
        self.may_go = False

    @property
    def folder(self) -> str:
        return self._folder

    def open(self) -> None:
        """Make the file now. Raises OSError."""
        self._open()

    def discard(self) -> None:
        if self.may_go or self.size_bytes > KEEP_BYTES:
            super().discard()

    def _open(self) -> None:
        """Its name must outlive a power loss, too."""
        try:
            super()._open()
            for folder in (self._folder, os.path.dirname(self._folder), os.path.dirname(os.path.dirname(self._folder))):
                sync_folder(folder)
        except OSError as exc:
            self.why = exc.strerror or str(exc)
            if self._fd >= 0:
                super().discard()
            raise

    def _write(self, parts: Sequence[bytes | memoryview]) -> None:
        data, before = b"".join(parts), self.size_bytes
        try:
            if before + len(data) > FILE_MAX_BYTES:
                raise OSError("the spool is full")
            self._leave_room(before + len(data))
            if os.pwrite(self._fd, data, before) < len(data):
                raise OSError("the disk is full")
            os.fdatasync(self._fd)
        except OSError as exc:
            self.why = exc.strerror or str(exc)
            try:
                os.ftruncate(self._fd, before)
            except OSError:
                pass  # a record too many: its chunk has not crossed
            raise
        self.size_bytes = before + len(data)


def sync_folder(path: str) -> None:
    """Make the names in a folder safe. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class StrictTap(Tap):
    """Stands aside for ever: what kmd gets comes out of the spool."""

    def __init__(self, wake_fd: int, spool: SyncedSpool) -> None:
        super().__init__(wake_fd, spool)
        self._synced = spool

    def record(self, chunk: Chunk) -> bool:
        """Put a chunk on disk. Returns False when that is impossible: then it may not cross."""
        stream, _, _, size, at_ns = chunk
        with self._lock:
            offset = self._next[stream]
            ends = tuple(end + size if stream == of else end for of, end in enumerate(self._next))
            if not self._synced.append([Entry(DATA, stream, offset, at_ns, tuple(parts_of([chunk])), ends, size)]):
                return False
            self._next[stream] += size
        self.inbox.put_bytes[stream] += size
        self.is_stirred = True
        return True

    def take(self, chunk: Chunk) -> None:
        """It has been recorded already."""
        with self._lock:
            drop(claims_of([chunk]))

    def close(self, fields: dict[str, bytes], at_ns: int) -> None:
        """The BYE takes the same way; without it kmd sees that the session has ended, but not how."""
        with self._lock:
            lengths = {f"length.{stream}": b"%d" % length for stream, length in enumerate(self._next)}
            self._synced.append([Entry(BYE, NO_STREAM, 0, at_ns, (render_fields({**fields, **lengths}),), NEVER, 0)])

    def go_on(self) -> bool:
        """Whether the connection has been sent all there is; what comes next waits in the spool again."""
        with self._lock:
            return self._socket is not None and not self._rest and not self._synced.backlog_bytes

    def open(self) -> None:
        """Make the file. Raises OSError with a sentence."""
        try:
            self._synced.open()
        except OSError as exc:
            raise OSError(self.failure) from exc

    @property
    def failure(self) -> str:
        """What was wrong when `record` has returned False, as a sentence."""
        return f"cannot record in {self._synced.folder} ({self._synced.why})"

    def _settle(self, record: Record) -> None:
        self._synced.may_go = record.type == BYE
        super()._settle(record)


class StrictPump(Pump):
    """A pump that records first. errors_fd: where to say why the session had to end, or -1."""

    def __init__(self, tap: StrictTap, ending: Ending, flows: list[tuple[int, int, int]], errors_fd: int) -> None:
        super().__init__(tap, ending, flows)
        self._recorder = tap
        self._say_fd = os.dup(errors_fd) if errors_fd >= 0 else -1

    def get_ready(self, ready_fd: int) -> None:
        """Have a file before anything crosses, and tell km. Raises OSError with a sentence."""
        self._recorder.open()
        os.write(ready_fd, READY)
        os.close(ready_fd)

    def run(self) -> None:
        super().run()
        if self._say_fd >= 0:
            os.close(self._say_fd)  # the end of stderr is for the client to see
            self._say_fd = -1

    def _pass(self, way: Way) -> bytes:
        chunk = self._read(way)
        if chunk is None:
            return GOES_ON
        if not chunk[3]:
            return way.near_side
        if not self._recorder.record(chunk):
            self._give_up()
        return self._leave(way, chunk)

    def _give_up(self) -> NoReturn:
        """Say why, and close everything at once: nothing may cross in the other direction either."""
        message = f"km: --strict: {self._recorder.failure}; the session ends here\n"
        if self._say_fd >= 0:
            poll = select.poll()
            poll.register(self._say_fd, select.POLLOUT)
            try:
                if poll.poll(SAY_MS):
                    os.write(self._say_fd, message.encode("utf-8", "replace"))
            except OSError:
                pass
        os._exit(1)

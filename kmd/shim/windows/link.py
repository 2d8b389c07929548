"""
The link over a named pipe: what is different from the socket of kmd.shim.link.

A pipe does not wait in poll(2), so reads and writes are *overlapped*: begun here, done by Windows, their end shown by
an *event*. A write that is begun counts as sent, like what lies in a socket's buffer; what kmd did not get is not
acknowledged, and is sent again.
"""

import sys

assert sys.platform == "win32"

import ctypes
from _thread import allocate_lock

from kmd.shim.link import GONE, READABLE, WRITABLE, Ending, Link
from kmd.shim.spool import Spool
from kmd.shim.tap import Tap
from kmd.shim.windows.calls import (
    Overlapped,
    cancel_io,
    close_handle,
    create_event,
    current_user_sid,
    has_failed,
    is_done,
    open_pipe,
    overlapped_result,
    owner_sid,
    reset_event,
    set_event,
    start_read,
    start_write,
    wait_for_any,
)
from kmd.shim.windows.names import RELAY, pipe_name

READ_BYTES = 4096
"""At once of what kmd says: acknowledgements of 52 bytes."""


class PipeTap(Tap):
    """
    Wakes its link by an event instead of a byte.

    Its process is the very one that a client ends, and nothing can be done about being ended (TerminateProcess). So
    while kmd is away what is held does not stay in memory until it is much, as it may in a relay of its own.
    """

    def wake(self) -> None:
        set_event(self._wake_fd)

    def prepare(self) -> None:
        """What is kept here comes in memory of its own."""

    def put_aside(self) -> None:
        """Everything that is held goes to the spool, from which the next connection is served first."""
        with self._lock:
            self._spill()


class PipeConnection:
    """
    A connection to kmd as tap and link know sockets; nothing here ever waits for kmd.

    events: of reading and of writing; they outlive the connection, as somebody may be waiting for them.
    """

    def __init__(self, handle: int, events: tuple[int, int]) -> None:
        self._handle = handle
        self._lock = allocate_lock()
        self._reading, self._writing = (Overlapped(event=event) for event in events)
        self._buffer = ctypes.create_string_buffer(READ_BYTES)
        self._sending = b""  # must live as long as Windows writes it
        self._is_broken = False
        self._begin_read()

    def fileno(self) -> int:
        return self._handle

    def recv(self, _size: int, _flags: int = 0) -> bytes:
        """What kmd has said; empty at the end. Raises BlockingIOError when it has said nothing, and OSError."""
        with self._lock:
            if self._is_broken or self._handle < 0:
                return b""
            count = overlapped_result(self._handle, self._reading, wait=False)
            said = ctypes.string_at(self._buffer, count)
            self._begin_read()
            return said

    def send(self, data: bytes | memoryview, _flags: int = 0) -> int:
        """Begin to send all of *data*. Raises BlockingIOError while there is more under way, and OSError."""
        with self._lock:
            if self._handle < 0:
                raise BrokenPipeError
            if self._sending:
                overlapped_result(self._handle, self._writing, wait=False)
            self._sending = bytes(data)
            start_write(self._handle, self._sending, self._writing)
            return len(self._sending)

    def sendmsg(self, parts: list[bytes], _ancillary: tuple[()] = (), _flags: int = 0) -> int:
        """Likewise, of several parts."""
        return self.send(b"".join(parts))

    def state(self) -> int:
        """What is possible now."""
        readable = READABLE if is_done(self._reading) else 0
        is_gone = self._is_broken or has_failed(self._reading)
        return readable | (WRITABLE if is_done(self._writing) else 0) | (GONE if is_gone else 0)

    def close(self) -> None:
        """Let go of it, once Windows has let go of the buffers."""
        with self._lock:
            if self._handle < 0:
                return
            for operation in (self._reading, self._writing):
                if not is_done(operation):
                    cancel_io(self._handle, operation)
                    try:
                        overlapped_result(self._handle, operation, wait=True)
                    except OSError:
                        pass  # cancelled
            close_handle(self._handle)
            self._handle = -1

    def _begin_read(self) -> None:
        try:
            start_read(self._handle, self._buffer, self._reading)
        except OSError:
            self._is_broken = True


class PipeLink(Link):
    """Meets kmd at its pipe, if the pipe is this user's. wake: the event that PipeTap sets."""

    def __init__(self, tap: PipeTap, spool: Spool, ending: Ending, hello: bytes, meeting: str, wake: int) -> None:
        """Raises OSError, or ValueError when there is no pipe for such a meeting place."""
        super().__init__(tap, spool, ending, hello, meeting, wake)
        self._pipe_tap = tap
        self._pipe = pipe_name(meeting, RELAY)
        self._user = current_user_sid()
        self._events = create_event(), create_event()
        self._connection: PipeConnection | None = None

    def _start_kmd(self) -> None:
        """kmd is started by the task scheduler here, not by km."""

    def _wait_away(self, duration_s: float) -> None:
        super()._wait_away(duration_s)
        self._pipe_tap.put_aside()

    def _open(self) -> PipeConnection | None:  # type: ignore[override]
        """Anybody may have made a pipe of this name: nothing is said to one that is another user's."""
        try:
            handle = open_pipe(self._pipe)
        except OSError:
            return None
        try:
            is_ours = owner_sid(handle) == self._user
        except OSError:
            is_ours = False
        if not is_ours:
            close_handle(handle)
            return None
        self._connection = PipeConnection(handle, self._events)
        return self._connection

    def _wait(self, timeout_s: float | None, fd: int = -1, wanted: int = 0) -> dict[int, int]:
        wanted |= GONE | READABLE  # what was said is always taken: only a read that is under way shows kmd's end
        connection = self._connection if fd >= 0 else None
        state = connection.state() & wanted if connection else 0
        if not state:
            reading, writing = self._events
            handles = [self._wake_in]
            if connection:
                handles.append(reading)
            if connection and wanted & WRITABLE:
                handles.append(writing)
            wait_for_any(handles, timeout_s)
            state = connection.state() & wanted if connection else 0
        ready = {fd: state} if state else {}
        if wait_for_any([self._wake_in], 0):
            ready[self._wake_in] = READABLE
        return ready

    def _clear_wake(self) -> None:
        reset_event(self._wake_in)

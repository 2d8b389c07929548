"""The relay inside km on Windows: ends that are handles, a spool that is this user's alone, a link over the pipe."""

import sys

assert sys.platform == "win32"

import ctypes
import gc
import msvcrt
import os
import time
from _thread import allocate_lock, start_new_thread

from kmd.record import STDERR, TO_CLIENT, TO_SERVER
from kmd.shim.hello import describe, meeting_dir, new_session_id
from kmd.shim.link import Ending
from kmd.shim.slabs import CHUNK_BYTES
from kmd.shim.spool import ROOM_FOR_KMD_BYTES, ROOM_FOR_KMD_PART
from kmd.shim.start import Plan
from kmd.shim.windows.calls import (
    CREATE_NEW,
    FILE_SHARE_DELETE,
    FILE_SHARE_READ,
    GENERIC_READ,
    GENERIC_WRITE,
    Security,
    close_handle,
    create_event,
    create_file,
    current_user_sid,
    disk_room,
    is_open_pipe,
    make_folder,
    read_file,
    write_file,
)
from kmd.shim.windows.link import PipeLink, PipeTap
from kmd.shim.windows.names import file_sddl, folder_sddl
from kmd.shim.windows.spool import SeekingSpool
from kmd.shim.windows.traffic import Flow, Session

SWITCH_S = 0.0002
"""How long a thread may keep the interpreter while a pump waits for it (as in kmd.shim.relay)."""
LEAVE_S = 1.0
"""How long km may stay after the server, for kmd to take in the last of it; the rest goes to the spool."""
FULL_PIPE_S = 0.001
"""Until the next try at a pipe that the client has told never to wait, and that is full."""


class HandleEnd:
    """One side of a pipe, by its handle; *fd* is the C library's number for it, if it has one."""

    def __init__(self, handle: int, fd: int = -1) -> None:
        self._handle = handle
        self._fd = fd
        self._buffer = ctypes.create_string_buffer(CHUNK_BYTES)

    def read(self) -> bytes | None:
        while True:
            try:
                count = read_file(self._handle, self._buffer)
            except InterruptedError:
                continue
            except OSError:
                return None
            return ctypes.string_at(self._buffer, count) if count or is_open_pipe(self._handle) else None

    def write(self, chunk: bytes) -> int:
        done = 0
        while True:
            try:
                crossed = write_file(self._handle, chunk[done:] if done else chunk)
            except OSError:
                return done
            done += crossed
            if done >= len(chunk):
                return done
            if not crossed:
                time.sleep(FULL_PIPE_S)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        else:
            close_handle(self._handle)


class PrivateSpool(SeekingSpool):
    """Folder and file are this user's. As long as it is open for writing here, kmd cannot open it: the relay lives."""

    def __init__(self, meeting: str, session: str, hello: bytes, user: str) -> None:
        super().__init__(meeting, session, hello)
        self._user = user

    def has_room(self, size: int) -> bool:
        folder = os.path.dirname(self._folder)
        try:
            free, total = disk_room(folder if os.path.isdir(folder) else os.path.dirname(folder))
        except OSError:
            return False
        return free >= size + min(ROOM_FOR_KMD_BYTES, total // ROOM_FOR_KMD_PART)

    def _make_folder(self, path: str) -> None:
        make_folder(path, folder_sddl(self._user))

    def _make_file(self, path: str) -> int:
        security = Security(file_sddl(self._user))
        access, share = GENERIC_READ | GENERIC_WRITE, FILE_SHARE_READ | FILE_SHARE_DELETE
        handle = create_file(path, access, share, CREATE_NEW, security=security)
        return msvcrt.open_osfhandle(handle, os.O_RDWR | os.O_BINARY)


class Capture:
    """Tap, spool and link of a session. `tap` takes what crosses; `run` the link in a thread; `leave` at the end."""

    def __init__(self, plan: Plan, server_pid: int) -> None:
        """Raises OSError or ValueError when nothing can be captured."""
        now_ns = time.time_ns()
        session_id = new_session_id(now_ns, os.urandom(10))
        hello = describe(plan.command, plan.name, server_pid, session_id, now_ns)
        meeting, wake = meeting_dir(plan.home), create_event()
        spool = PrivateSpool(meeting, session_id, hello, current_user_sid())
        self.ending = Ending()
        self.tap = PipeTap(wake, spool)
        self._link = PipeLink(self.tap, spool, self.ending, hello, meeting, wake)
        self._has_left = allocate_lock()
        self._has_left.acquire()

    def run(self) -> None:
        try:
            self._link.run()
        except Exception:  # noqa: BLE001, S110 - no fault of the capture may end the traffic
            pass
        finally:
            self._has_left.release()

    def leave(self) -> None:
        """The session is finished: until kmd has everything, or the spool."""
        if not self._has_left.acquire(timeout=LEAVE_S):
            self.tap.leave_to_spool()


def open_capture(plan: Plan, server_pid: int) -> Capture | None:
    """None when nothing can be captured: the traffic runs all the same."""
    try:
        capture = Capture(plan, server_pid)
        start_new_thread(capture.run, ())
    except (OSError, ValueError, RuntimeError):
        return None
    return capture


def begin(plan: Plan, server_pid: int, server_ends: dict[int, int]) -> tuple[Session, Capture | None]:
    """
    Start to relay between the client's descriptors and *server_ends*, handles of the other sides of the server's.

    Raises RuntimeError when there is no thread to be had.
    """
    sys.setswitchinterval(SWITCH_S)
    gc.disable()  # nothing here makes cycles, and a collection would delay a message
    client = {fd: HandleEnd(msvcrt.get_osfhandle(fd), fd) for fd in server_ends}
    server = {fd: HandleEnd(handle) for fd, handle in server_ends.items()}
    flows: list[Flow] = [(client[0], server[0], TO_SERVER), (server[1], client[1], TO_CLIENT)]
    if 2 in server_ends:
        flows.append((server[2], client[2], STDERR))
    capture = open_capture(plan, server_pid)
    session = Session(capture.tap if capture else None, capture.ending if capture else Ending(), flows)
    session.start()
    return session, capture

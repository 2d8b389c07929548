"""
Doors on Windows: named pipes, for this user on this machine alone, and refused when somebody else has the name.

A pipe has *instances*, one for each connection. One more than are connected always waits, so that the name is never
free while kmd runs.
"""

import sys

assert sys.platform == "win32"

import contextlib
import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import structlog
import trio

from kmd.errors import DaemonRunning, KilometersError
from kmd.intake.capacity import HANDLES
from kmd.intake.peer import Peer, Role
from kmd.intake.pipe_peer import BUFFER_BYTES, PipePeer
from kmd.paths import Places
from kmd.shim.windows import calls
from kmd.shim.windows.access import process_user_sid
from kmd.shim.windows.names import pipe_sddl

MOST = {Role.INTAKE: HANDLES, Role.CONTROL: 64}
"""How many may be connected at once; those beyond wait."""
RETRY_S = 1.0
"""When the system has no room for another instance."""

log = structlog.get_logger(__name__)


def take_passed(_environ: Mapping[str, str]) -> Mapping[Role, int]:
    """Nobody passes doors here."""
    return {}


@contextmanager
def open_doors(places: Places, _passed: Mapping[Role, int]) -> Iterator[dict[Role, trio.abc.Listener[Peer]]]:
    """A listener for each role; whoever serves them closes them. Raises DaemonRunning, KilometersError."""
    sid = calls.current_user_sid()
    paths = {Role.INTAKE: places.socket, Role.CONTROL: places.control_socket}
    listeners: dict[Role, trio.abc.Listener[Peer]] = {}
    with contextlib.ExitStack() as stack:
        for role, path in paths.items():
            listener = PipeListener(str(path), sid, MOST[role])
            stack.callback(listener.close)
            listeners[role] = listener
        yield listeners
        stack.pop_all()  # they are being served: a handle that is waited for must not be closed


class PipeListener(trio.abc.Listener[Peer]):
    """The pipe *name* of the user *sid*."""

    def __init__(self, name: str, sid: str, most: int) -> None:
        """Raises DaemonRunning: somebody has the name already; KilometersError."""
        self._name = name
        self._sid = sid
        self._security = calls.Security(pipe_sddl(sid))
        self._room = trio.Semaphore(most)
        self._waiting: int | None = None
        try:
            self._waiting = self._make(first=True)
        except PermissionError as exc:
            hint = "stop it, or use another --home; it may be another user's (docs/threat-model.md)"
            raise DaemonRunning(f"{name}: another program has this pipe", hint=hint) from exc
        except OSError as exc:
            raise KilometersError(f"{name}: no pipe can be made ({exc.strerror})") from exc

    async def accept(self) -> PipePeer:
        await self._room.acquire()
        try:
            handle = await self._take()
        except BaseException:
            self._room.release()
            raise
        return PipePeer(OverlappedPipe(handle), own=is_own(handle, self._sid), when_closed=self._room.release)

    async def _take(self) -> int:
        """The instance that somebody has connected to; another one waits in its place. It may be cancelled."""
        while True:
            handle = self._waiting
            if handle is None:
                raise trio.ClosedResourceError("this door is closed")
            try:
                await wait_for_client(handle)
                self._waiting = self._make(first=False)
            except OSError as exc:
                with contextlib.suppress(OSError):
                    calls.disconnect_named_pipe(handle)
                if exc.winerror != calls.ERROR_NO_DATA:  # which is somebody who came and went
                    log.warning("a connection was not taken", error=exc.strerror)
                    await trio.sleep(RETRY_S)
            else:
                return handle

    def _make(self, *, first: bool) -> int:
        handle = calls.create_named_pipe(self._name, self._security, BUFFER_BYTES, first=first)
        trio.lowlevel.register_with_iocp(handle)
        return handle

    def close(self) -> None:
        """Let go of the name, as far as nobody is connected."""
        if self._waiting is not None:
            calls.close_handle(self._waiting)
            self._waiting = None

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


async def wait_for_client(handle: int) -> None:
    """Until somebody has connected to this instance, perhaps before the call. Raises OSError."""
    overlapped = calls.Overlapped()  # lives until trio has heard of the end, also when this is cancelled
    address = ctypes.addressof(overlapped)
    if calls.connect_named_pipe(handle, address) == calls.ERROR_PIPE_CONNECTED:
        await trio.lowlevel.checkpoint()
    else:
        await trio.lowlevel.wait_overlapped(handle, address)


def is_own(handle: int, sid: str) -> bool:
    """
    Whether the user *sid* is at the other end.

    The pipe's access list has let nobody else in; this looks again. A process that is not shown to us counts as ours:
    one that was started "as administrator" is not shown to one that was not.
    """
    try:
        return process_user_sid(calls.client_pid(handle)) == sid
    except OSError:
        return True


class OverlappedPipe:
    """A handle whose operations trio waits for."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    async def read_into(self, buffer: bytearray) -> int:
        return await trio.lowlevel.readinto_overlapped(self._handle, buffer)

    async def write(self, data: bytes | bytearray | memoryview) -> int:
        return await trio.lowlevel.write_overlapped(self._handle, data)

    def close(self) -> None:
        calls.close_handle(self._handle)

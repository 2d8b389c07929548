"""Doors on POSIX: Unix sockets, made private, taken over only when nobody listens, open to this user alone."""

import sys

assert sys.platform != "win32"

import contextlib
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import trio

from kmd.errors import DaemonRunning, KilometersError
from kmd.intake.activation import open_activated, take_activated
from kmd.intake.peer import Peer, Role
from kmd.paths import Places

BACKLOG = 512
"""Relays that may wait at once, for instance after kmd was restarted."""


def take_passed(environ: Mapping[str, str]) -> Mapping[Role, int]:
    """The descriptors of sockets that a service manager has opened for us. Raises KilometersError: not as agreed."""
    return take_activated(environ, os.getpid())


@contextmanager
def open_doors(places: Places, passed: Mapping[Role, int]) -> Iterator[dict[Role, trio.abc.Listener[Peer]]]:
    """
    A listener for each role, those that were *passed* among them.

    The sockets that we made are taken away when the block ends well; after an error they stay, and are stale.
    Raises DaemonRunning, KilometersError.
    """
    paths = {Role.INTAKE: places.socket, Role.CONTROL: places.control_socket}
    own = {role: path for role, path in paths.items() if role not in passed}
    listeners = {role: open_activated(descriptor) for role, descriptor in passed.items()}
    listeners |= {role: listen(path) for role, path in own.items()}
    try:
        yield {role: UnixListener(listener) for role, listener in listeners.items()}
    except BaseException:  # a kmd that starts over within this process must not meet them
        for listener in listeners.values():
            listener.socket.close()
        raise
    for path in own.values():
        path.unlink(missing_ok=True)


class UnixListener(trio.abc.Listener[Peer]):
    """A listening socket as a door."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener

    async def accept(self) -> "UnixPeer":
        return UnixPeer(await self._listener.accept())

    async def aclose(self) -> None:
        await self._listener.aclose()


class UnixPeer(Peer):
    """A connected socket."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def send_now(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # so few bytes fit whole or not at all
            os.write(self._stream.socket.fileno(), data)

    def is_own(self) -> bool:
        if not hasattr(socket, "SO_PEERCRED"):
            return True  # macOS: the folder's mode has to do
        credentials = self._stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", credentials)
        return bool(uid == os.geteuid())


def listen(path: Path) -> trio.SocketListener:
    """
    A listening socket at *path*, mode 0600. The caller holds kmd's lock, so a socket that is there is stale,
    unless someone answers on it. A long path is no obstacle: the socket is bound from within its folder.

    Raises DaemonRunning when the socket is alive, KilometersError when it cannot be made.
    """
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old_mask = os.umask(0o177)
    try:
        os.chdir(path.parent)
        if is_alive(path.name):
            raise DaemonRunning(f"{path}: another program listens here", hint="stop it, or use another --home")
        Path(path.name).unlink(missing_ok=True)
        sock.bind(path.name)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise KilometersError(f"{path}: no socket can be made ({exc.strerror})") from exc
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(old_mask)
        os.fchdir(here)
        os.close(here)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def is_alive(name: str) -> bool:
    """Whether someone accepts connections on the socket *name* in the working directory."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(name)
        except TimeoutError:
            return True  # its backlog is full: someone has it, however ill
        except OSError:
            return False
        return True

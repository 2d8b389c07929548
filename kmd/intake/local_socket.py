"""Local sockets: made private, taken over only when nobody listens, open to this user alone."""

import os
import socket
import stat
import struct
from pathlib import Path

import trio

from kmd.errors import DaemonRunning, KilometersError

OWN_NAMES = ("config.toml", "outbox.", "kmd.", "control.", "spool", "lost+found")
BACKLOG = 512
"""Relays that may wait at once, for instance after kmd was restarted."""


def make_private_dir(path: Path) -> None:
    """
    Make *path* if it is missing, and this user's alone (0700).

    Raises KilometersError when it is another's, or one that is shared on purpose and must not be closed.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = path.stat()
        if status.st_uid != os.geteuid() or path == Path.home() or is_shared(path, status.st_mode):
            hint = "choose a folder of its own with --home"
            raise KilometersError(f"{path}: is not for Kilometers alone", hint=hint)
        if stat.S_IMODE(status.st_mode) & 0o077:
            path.chmod(0o700)
    except OSError as exc:
        hint = "choose another folder with --home"
        raise KilometersError(f"{path}: cannot be used ({exc.strerror})", hint=hint) from exc


def is_shared(path: Path, mode: int) -> bool:
    """Whether this is a folder like /tmp, with things in it that are not ours: closing it would break them."""
    return bool(mode & stat.S_ISVTX) and any(not entry.name.startswith(OWN_NAMES) for entry in path.iterdir())


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


def is_own_peer(sock: trio.socket.SocketType) -> bool:
    """Whether the other end runs as this user. Where the kernel cannot say, the folder's mode has to do."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return bool(uid == os.geteuid())

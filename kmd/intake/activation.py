"""
Sockets that a service manager has opened for us (systemd's protocol; see sd_listen_fds(3)).

Descriptors begin at 3; LISTEN_PID says whose they are, LISTEN_FDS how many, LISTEN_FDNAMES which is which. They
belong to the manager: it made their files, and only it may remove them.
"""

import sys

assert sys.platform != "win32"

import fcntl
import os
import socket
import stat
from collections.abc import Mapping

import trio

from kmd.errors import KilometersError
from kmd.intake.peer import Role

FIRST_DESCRIPTOR = 3
HINT = "check ListenStream= and FileDescriptorName= in the socket units"


def take_activated(environ: Mapping[str, str], pid: int) -> dict[Role, int]:
    """
    The descriptors that were passed to process *pid*, checked and closed to programs that we might start.

    Returns: nothing when none were passed, or to another process. Raises KilometersError: not as agreed.
    """
    activated = plan_activation(environ, pid)
    for role, descriptor in activated.items():
        if not is_listening(descriptor):
            raise KilometersError(
                f"descriptor {descriptor}, passed as the socket '{role}', is no listening Unix stream socket", hint=HINT
            )
        os.set_inheritable(descriptor, False)
    return activated


def plan_activation(environ: Mapping[str, str], pid: int) -> dict[Role, int]:
    """
    Which descriptor is for what. Pure.

    Roles go by name when any name is one of ours, else by order: a unit without FileDescriptorName= passes its
    own name. Raises KilometersError for a number or names that cannot be meant.
    """
    if environ.get("LISTEN_PID") != str(pid):
        return {}
    number = environ.get("LISTEN_FDS", "")
    if not (number.isascii() and number.isdecimal()) or int(number) > len(Role):
        raise KilometersError(f"LISTEN_FDS is '{number}'; kmd takes at most {len(Role)} sockets", hint=HINT)
    descriptors = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(number))
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    if not any(role in names for role in Role):
        return dict(zip(Role, descriptors, strict=False))
    if len(names) != len(descriptors) or len(set(names)) != len(names) or not all(name in list(Role) for name in names):
        raise KilometersError(f"LISTEN_FDNAMES is '{':'.join(names)}'; kmd knows 'kmd' and 'control'", hint=HINT)
    return {Role(name): descriptor for name, descriptor in zip(names, descriptors, strict=True)}


def is_listening(descriptor: int) -> bool:
    """Whether this is a Unix stream socket that listens."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return False
        sock = socket.socket(fileno=os.dup(descriptor))
    except OSError:
        return False
    with sock:
        is_stream = sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM
        return is_stream and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def open_activated(descriptor: int) -> trio.SocketListener:
    """
    Listen on a descriptor of `take_activated`.

    On a copy of it: the original stays open while the process lives, for a kmd that starts over within it.
    """
    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST_DESCRIPTOR)
    return trio.SocketListener(trio.socket.from_stdlib_socket(socket.socket(fileno=copy)))

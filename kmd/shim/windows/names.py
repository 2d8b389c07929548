r"""
Names that km, kmd and kmctl must agree on where there are no Unix sockets: the named pipes, and whom they are for.

Pipes have one flat space of names for all users of a machine, so a *pipe name* is made of the meeting place, the folder
in which a Unix kmd would have its sockets, and what the pipe is for. Anybody may make a pipe of any name: who connects
looks at the pipe's owner before it says a word (kmd.shim.windows.calls.owner_sid).
Pure: `ntpath` and text, so that it says the same on every system.
"""

import ntpath
from hashlib import sha256

RELAY, CONTROL = "relay", "control"
"""The two purposes: where relays bring their records, where kmctl asks."""
PREFIX = r"\\.\pipe\kilometers-"
DIGITS = 16
"""Hexadecimal digits of the folder's hash: 64 bits, so that no two folders of a machine share them by chance."""
LONG_PREFIX, LONG_UNC_PREFIX = "\\\\?\\", "\\\\?\\UNC\\"


def pipe_name(home: str, purpose: str) -> str:
    r"""
    The name of the pipe of the meeting place *home*, an absolute path, for *purpose* (RELAY or CONTROL).

    Returns `\\.\pipe\kilometers-0123456789abcdef-relay`. Two spellings of a folder give one name: case, `/`, `..`,
    a closing backslash and the prefix of long paths do not count. Short (8.3) names, links and `subst` do: they are
    not looked up. Raises ValueError for a path that is not absolute, and for another purpose.
    """
    if purpose not in (RELAY, CONTROL):
        raise ValueError("a pipe is for relay or control")
    return (
        f"{PREFIX}{sha256(plain_path(home).casefold().encode('utf-8', 'surrogatepass')).hexdigest()[:DIGITS]}-{purpose}"
    )


def plain_path(home: str) -> str:
    """*home* in its one spelling, but for case. Raises ValueError when it is not absolute."""
    path = home.replace("/", "\\")
    if path.upper().startswith(LONG_UNC_PREFIX):
        path = "\\\\" + path[len(LONG_UNC_PREFIX) :]
    elif path.startswith(LONG_PREFIX):
        path = path[len(LONG_PREFIX) :]
    drive, rest = ntpath.splitdrive(path)
    if not drive or (rest and not rest.startswith("\\")) or (drive.endswith(":") and not rest):
        raise ValueError("a meeting place is an absolute path with its drive")
    return ntpath.normpath(path).rstrip("\\")


def pipe_sddl(sid: str) -> str:
    """
    The security descriptor of a pipe of the user *sid* (`S-1-5-21-…`): that user owns it, nobody else may open it.

    It does not deny NETWORK: who is logged on by SSH, as an editor's remote sessions are, bears that, and is at this
    machine all the same. Clients at other machines are rejected by the pipe itself (calls.create_named_pipe).
    """
    return f"O:{sid}D:P(A;;GA;;;{sid})"


def folder_sddl(sid: str) -> str:
    """Of a folder: the user and the system itself (backups, virus scanners), also for what is made in it."""
    return f"O:{sid}D:P(A;OICI;FA;;;{sid})(A;OICI;FA;;;SY)"


def file_sddl(sid: str) -> str:
    """Of a file: as its folder."""
    return f"O:{sid}D:P(A;;FA;;;{sid})(A;;FA;;;SY)"

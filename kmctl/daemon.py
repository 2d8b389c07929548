"""
The client of kmd's control socket, or pipe: one request line out, answer lines in (docs/control-protocol.md).

Blocking, standard library only: a command asks one thing and ends. Every wait has a bound, except that of
`tail -f`, which waits for the user.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from kmctl.answers import Answer
from kmd.errors import DaemonUnavailable, KilometersError, RemoteProtocolError

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
"""kmd answers from memory and short reads; longer than this means that it hangs."""
LINE_MAX_BYTES = 8 << 20
"""Far above a status of a thousand sessions: only what is no kmd sends more in one line."""
CHUNK_BYTES = 64 << 10
RESTART_HINT = "look at what kmd last wrote to stderr, then start it again"


class Connection(Protocol):
    """What a socket and a pipe have in common. Each method but `close` raises OSError."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
    def settimeout(self, value: float | None, /) -> None: ...
    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, most: int, /) -> bytes: ...


@contextmanager
def open_answers(
    path: Path,
    request: Mapping[str, object],
    *,
    wait_s: float | None = ANSWER_TIMEOUT_S,
    start: Callable[[], str] = lambda: "kmd",
) -> Iterator[Iterator[Answer]]:
    """
    Ask kmd at *path* and give its answers one by one, until it closes.

    start: says with which command the user starts kmd (kmctl.start), should none be there.
    Units: wait_s bounds the wait for each answer; None waits for ever.
    Raises: DaemonUnavailable (no kmd, or it went away), RemoteProtocolError (not JSON
    lines), KilometersError (kmd's own error answer).
    """
    with connect(path, start) as peer:
        try:
            peer.sendall(json.dumps(request).encode("ascii") + b"\n")
        except OSError as exc:
            raise DaemonUnavailable("kmd closed the connection", hint=RESTART_HINT) from exc
        peer.settimeout(wait_s)
        yield read_answers(peer)


def ask(path: Path, request: Mapping[str, object], *, start: Callable[[], str] = lambda: "kmd") -> Answer:
    """The only answer to *request*. Raises as open_answers does."""
    with open_answers(path, request, start=start) as answers:
        for answer in answers:
            return answer
    raise DaemonUnavailable("kmd closed the connection without an answer", hint=RESTART_HINT)


def connect(path: Path, start: Callable[[], str]) -> Connection:
    """A connection to kmd's socket, or pipe, at *path*. Raises DaemonUnavailable."""
    try:
        return open_connection(path)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as exc:
        raise DaemonUnavailable("kmd is not running", hint=f"start it with '{start()}'") from exc
    except PermissionError as exc:
        why = exc.strerror or "permission denied"
        raise DaemonUnavailable(f"{path}: {why.lower()}", hint="run kmctl as the user that runs kmd") from exc
    except OSError as exc:
        raise DaemonUnavailable(f"{path}: cannot be reached ({exc})", hint=RESTART_HINT) from exc


if sys.platform == "win32":
    from kmd.pipe_client import connect_pipe

    def open_connection(path: Path) -> Connection:
        """A connection to kmd's control socket or pipe at *path*. Raises OSError: nobody answers there."""
        return connect_pipe(str(path), CONNECT_TIMEOUT_S)

else:
    import socket

    def open_connection(path: Path) -> Connection:
        """A connection to kmd's control socket or pipe at *path*. Raises OSError: nobody answers there."""
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        peer.settimeout(CONNECT_TIMEOUT_S)
        try:
            with inside(path.parent):
                peer.connect(path.name)
        except OSError:
            peer.close()
            raise
        return peer

    @contextmanager
    def inside(folder: Path) -> Iterator[None]:
        """
        Be in *folder* for a moment: a socket's address holds about 100 bytes, the path to it may be longer.

        The process has one thread, so nobody else notices. Raises OSError.
        """
        back = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.chdir(folder)
            try:
                yield
            finally:
                os.fchdir(back)
        finally:
            os.close(back)


def read_answers(peer: Connection) -> Iterator[Answer]:
    """Each line as an answer. Raises as open_answers does."""
    data = bytearray()
    while True:
        end = data.find(b"\n") + 1
        if not end and len(data) <= LINE_MAX_BYTES:
            try:
                chunk = peer.recv(CHUNK_BYTES)
            except TimeoutError as exc:
                raise DaemonUnavailable("kmd did not answer in time", hint=RESTART_HINT) from exc
            except OSError as exc:
                raise DaemonUnavailable("kmd went away", hint=RESTART_HINT) from exc
            data += chunk
            if chunk:
                continue
        if not data:
            return
        line = bytes(data[: end or len(data)])
        del data[: len(line)]
        yield parse_answer(line)


def parse_answer(line: bytes) -> Answer:
    """One line as an answer. Raises KilometersError when it says `error`, RemoteProtocolError when it is none."""
    hint = "restart kmd: it may be of another version"
    if len(line) > LINE_MAX_BYTES:
        raise RemoteProtocolError("kmd sent an endless line", hint=hint)
    if not line.endswith(b"\n"):
        raise DaemonUnavailable("kmd went away in the middle of an answer", hint=RESTART_HINT)
    try:
        answer = json.loads(line)
    except ValueError as exc:
        raise RemoteProtocolError("kmd sent something that is not JSON", hint=hint) from exc
    if not isinstance(answer, dict):
        raise RemoteProtocolError("kmd sent JSON that is no object", hint=hint)
    error = answer.get("error")
    if isinstance(error, dict):
        raise KilometersError(str(error.get("message", "kmd failed")), hint=str(error.get("hint") or ""))
    return answer

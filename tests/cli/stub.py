"""A control socket that answers what a test wrote down: a real Unix socket, a script in place of kmd."""

import json
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WAIT_S = 20.0
STARTS = "kmctl service install" if sys.platform == "darwin" else "kmd"
"""With what kmctl tells a user to start kmd where no service is installed: macOS always has a manager."""

Script = Sequence[dict[str, Any] | bytes | float]
"""Answer lines; bytes go out as they are, a number is that many seconds of silence."""


@dataclass(slots=True)
class Stub:
    """The scripts by operation, and the requests that came. `hold`: do not close after the last line."""

    path: Path
    scripts: dict[str, Script]
    hold: bool = False
    requests: list[dict[str, Any]] = field(default_factory=list)
    silence: threading.Event = field(default_factory=threading.Event)

    def serve(self, listener: socket.socket) -> None:
        """Answer connections until the listener is shut down."""
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.settimeout(WAIT_S)
                self.answer(peer)

    def answer(self, peer: socket.socket) -> None:
        """Read one request line and play its script."""
        with peer.makefile("rb") as lines:
            request = json.loads(lines.readline())
            self.requests.append(request)
            try:
                for line in self.scripts.get(request["op"], ()):
                    if isinstance(line, float):
                        self.silence.wait(line)
                        continue
                    peer.sendall(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
                if self.hold:
                    peer.recv(1)
            except (BrokenPipeError, ConnectionResetError):
                return


@contextmanager
def stub_daemon(home: Path, scripts: dict[str, Script], *, hold: bool = False) -> Iterator[Stub]:
    """A stub on the control socket of *home* for as long as the block runs."""
    home.mkdir(parents=True, exist_ok=True)
    stub = Stub(home / "control.sock", scripts, hold=hold)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(stub.path))
        listener.listen()
        thread = threading.Thread(target=stub.serve, args=(listener,))
        thread.start()
        try:
            yield stub
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(WAIT_S)
            assert not thread.is_alive()


def status_of(*destinations: dict[str, Any], **outbox: object) -> dict[str, Any]:
    """A status object as kmd gives it."""
    return {
        "daemon": {"version": "9.9", "protocol": 1, "pid": 42, "uptime_s": 61.5, "home": "/h", "config": "/h/c"},
        "outbox": {"path": "/h/o", "events": 7, "bytes": 4096, "oldest_pending_age_s": None, **outbox},
        "sessions": [],
        "destinations": list(destinations),
    }


def destination_of(**fields: object) -> dict[str, Any]:
    """A destination of a status object: idle and without a fault unless *fields* say otherwise."""
    return {
        "name": "team",
        "url": "https://km.example.com",
        "cursor": 7,
        "settled": 7,
        "pending": 0,
        "quarantined": 0,
        "state": "idle",
        "last_error": None,
        "hint": None,
        "next_attempt_s": None,
        "last_success_at": None,
        **fields,
    }

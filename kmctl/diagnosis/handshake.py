"""
Start a server as its client would, and see whether it answers. Edge, but for the judging.

It is asked `initialize`, and, should it refuse that, `server/discover` (MCP 2026-07-28). Then its stdin is closed,
as the protocol ends a session; what goes on after that is ended, with all that it has started.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ANSWER_TIMEOUT_S = 20.0
"""npx and uvx may have to look for the server first."""
GOODBYE_S = 3.0
NOTICE_S = 0.25
"""How soon a thread that waits for an answer notices that nobody wants it any more."""
LINE_MAX_BYTES = 1 << 20
STDERR_LINES = 5
STDERR_LOOK_BYTES = 64 << 10
FIRST_WORDS = (
    {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "kmctl-doctor", "version": "1"},
        },
    },
    {
        "jsonrpc": "2.0",
        "id": 2,
        "method": "server/discover",
        "params": {
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientInfo": {"name": "kmctl-doctor", "version": "1"},
                "io.modelcontextprotocol/clientCapabilities": {},
            }
        },
    },
)
GOODBYE = {"jsonrpc": "2.0", "method": "notifications/initialized"}


@dataclass(slots=True)
class Outcome:
    """
    How it went. answered: to either question. refusal: the last error answer. strange: lines on stdout that are no
    message. status: how the server ended by itself before it answered, as `subprocess` has it (None: it did not).
    missing: there is no such command, or it cannot be run.
    """

    answered: bool = False
    refusal: str = ""
    strange: list[str] = field(default_factory=list)
    status: int | None = None
    stderr: list[str] = field(default_factory=list)
    missing: str = ""
    left: bool = False
    """Whether it closed its stdout, of itself."""


@dataclass(slots=True)
class Running:
    """The servers that run now: someone who presses Ctrl-C waits for none of them."""

    processes: set[subprocess.Popen[bytes]] = field(default_factory=set)
    ended: bool = False

    def add(self, process: subprocess.Popen[bytes]) -> None:
        """One more. It is told to end when it comes too late."""
        self.processes.add(process)
        if self.ended:
            tell_to_end(process)

    def end_all(self) -> None:
        """Have every server end, and nobody wait for an answer. From any thread."""
        self.ended = True
        for process in list(self.processes):
            tell_to_end(process)


def try_server(words: Sequence[str], environ: Mapping[str, str], cwd: str | None, running: Running) -> Outcome:
    """Start the server that *words* name, ask it, end it."""
    if cwd is not None and not Path(cwd).is_dir():
        return Outcome(missing=f"there is no folder {cwd}, which is its cwd")
    program = find_program(words[0], environ, cwd)
    if program is None:
        return Outcome(missing="there is no such command")
    with tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(  # noqa: S603 - what the client would start
                [program, *words[1:]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=dict(environ),
                cwd=cwd,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as exc:
            return Outcome(missing=exc.strerror or type(exc).__name__)
        except ValueError:  # a NUL in a word, a `=` in a variable's name
            return Outcome(missing="no program can be given its arguments or variables")
        running.add(process)
        outcome = Outcome()
        try:
            converse(process, outcome, running)
        finally:
            end(process, outcome)
            running.processes.discard(process)
        outcome.stderr = last_lines(stderr)
    return outcome


def find_program(command: str, environ: Mapping[str, str], cwd: str | None) -> str | None:
    """The absolute path of *command*, None when there is none. A relative one counts from the server's own folder."""
    place = os.path.join(cwd or "", command) if os.path.dirname(command) else command  # noqa: PTH118, PTH120 - text
    found = shutil.which(place, path=environ.get("PATH"))
    return found and os.path.abspath(found)  # noqa: PTH100 - links stay: they may decide what the program is


def converse(process: subprocess.Popen[bytes], outcome: Outcome, running: Running) -> None:
    """Ask until one question is answered, the server has ended, or time is up."""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    lines = Lines(process, running)
    for question in FIRST_WORDS:
        if not say(process, question):
            break
        while (line := lines.read(deadline)) is not None:
            message = parse_message(line)
            if message is None:
                outcome.strange.append(line.decode("utf-8", "replace").rstrip("\r\n"))
            elif message.get("id") == question["id"] and "result" in message:
                outcome.answered = True
                say(process, GOODBYE)
                return
            elif message.get("id") == question["id"] and "error" in message:  # neither: it asks us, with that id
                outcome.refusal = str(message["error"])[:200]
                break
        else:
            break
    outcome.left = lines.at_end


def say(process: subprocess.Popen[bytes], message: Mapping[str, Any]) -> bool:
    """Write one message; whether the server still reads."""
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    try:
        process.stdin.write(json.dumps(message).encode() + b"\n")
    except OSError:
        return False
    return True


def parse_message(line: bytes) -> dict[str, Any] | None:
    """The message in a line, None when it is none. Pure. A batch counts as a message without an id."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, list):
        return {}
    return value if isinstance(value, dict) and value.get("jsonrpc") == "2.0" else None


class Lines:
    """The server's lines, each with a time limit."""

    def __init__(self, process: subprocess.Popen[bytes], running: Running) -> None:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        self._fd = process.stdout.fileno()
        self._rest = b""
        self._running = running
        self.at_end = False

    def read(self, deadline: float) -> bytes | None:
        """The next line that is not empty; None at the end, or when the time is up."""
        while True:
            line, end, rest = self._rest.partition(b"\n")
            if end:
                self._rest = rest
                if line.strip():
                    return line
                continue
            if len(line) > LINE_MAX_BYTES:
                return None
            ready = self.wait(deadline)
            chunk = os.read(self._fd, 65536) if ready else b""
            if not chunk:
                self.at_end = ready
                self._rest = b""
                return line or None
            self._rest += chunk

    def wait(self, deadline: float) -> bool:
        """Whether there is something to read before *deadline*, and before all have to end."""
        while not self._running.ended and (now := time.monotonic()) < deadline:
            if wait_readable(self._fd, min(deadline, now + NOTICE_S)):
                return True
        return False


def end(process: subprocess.Popen[bytes], outcome: Outcome) -> None:
    """Close its stdin and wait; then end all that is left of it. Its status counts only if it ended by itself."""
    if outcome.left:
        outcome.status = wait(process)
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None  # noqa: S101 - both are pipes
        pipe.close()
    wait(process)
    end_tree(process)
    process.wait()


if sys.platform == "win32":
    import _winapi
    import msvcrt

    LOOK_S = 0.02

    def wait_readable(fd: int, deadline: float) -> bool:
        """Whether the pipe *fd* has something to read, its end included, before the monotonic clock says *deadline*."""
        while True:
            try:
                available = _winapi.PeekNamedPipe(msvcrt.get_osfhandle(fd), 0)[-2]
            except OSError:
                return True
            if available or time.monotonic() > deadline:
                return available > 0
            time.sleep(LOOK_S)

    def tell_to_end(process: subprocess.Popen[bytes]) -> None:
        """At once: there is nothing gentler."""
        end_tree(process)

    def end_tree(process: subprocess.Popen[bytes]) -> None:
        """End the server and all that it has started."""
        with contextlib.suppress(OSError):
            words = ["taskkill", "/F", "/T", "/PID", str(process.pid)]
            subprocess.run(words, capture_output=True, check=False)  # noqa: S603, S607 - words of ours
        process.kill()

else:

    def wait_readable(fd: int, deadline: float) -> bool:
        """Whether the pipe *fd* has something to read, its end included, before the monotonic clock says *deadline*."""
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        return bool(ready)

    def tell_to_end(process: subprocess.Popen[bytes]) -> None:
        """SIGTERM, to all that it has started, too."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGTERM)

    def end_tree(process: subprocess.Popen[bytes]) -> None:
        """End the server and all that it has started: by SIGTERM, or else by SIGKILL."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            if wait(process) is not None:
                break


def wait(process: subprocess.Popen[bytes]) -> int | None:
    """The process's exit status; None when it still runs after GOODBYE_S."""
    try:
        return process.wait(GOODBYE_S)
    except subprocess.TimeoutExpired:
        return None


def last_lines(file: IO[bytes]) -> list[str]:
    """The last lines that the server wrote to stderr."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - STDERR_LOOK_BYTES))
    lines = file.read().decode("utf-8", "replace").splitlines()
    return [line for line in lines if line.strip()][-STDERR_LINES:]


def render_status(status: int) -> str:
    """`exit status 3`, `killed by SIGSEGV`. Pure."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"

"""kmctl as a person runs it: as a process, in a pipe or on a pseudo-terminal."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

WAIT_S = 20.0
CTRL_C = "\x03"
AGAIN_S = 1.0
"""A Ctrl-C just before readline waits is only seen with the next key; a person presses it again."""
KMCTL = (sys.executable, "-m", "kmctl")
TAKE_TERMINAL = (
    sys.executable,
    "-c",
    "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execv(sys.argv[1], sys.argv[1:])",
)
"""A session's leader that opens a terminal gets it as its own: only then does Ctrl-C on it reach the process."""


def clean_environ(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what would change colours, homes or settings."""
    kept = {key: text for key, text in os.environ.items() if not key.startswith("KM_")}
    for key in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        kept.pop(key, None)
    return {**kept, "TERM": "xterm-256color", "TZ": "UTC", **(extra or {})}


def run_kmctl(*arguments: str, stdin: str = "", environ: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Run kmctl in pipes: its exit code, stdout and stderr."""
    done = subprocess.run(
        [*KMCTL, *arguments], input=stdin, capture_output=True, text=True, timeout=WAIT_S, env=clean_environ(environ)
    )
    return done.returncode, done.stdout, done.stderr


def run_on_terminal(
    arguments: Sequence[str], *, columns: int = 80, typed: str = "", environ: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run kmctl on a terminal of *columns* with *typed* waiting in it: exit code and everything it showed."""
    master, slave = pty.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        process = subprocess.Popen(
            [*TAKE_TERMINAL, *KMCTL, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=clean_environ(environ),
            start_new_session=True,
        )
        os.close(slave)
        with process:
            try:
                shown = converse(master, typed)
                return process.wait(WAIT_S), shown
            except BaseException:
                process.kill()
                raise
    finally:
        os.close(master)


def converse(master: int, typed: str) -> str:
    """Answer each prompt (a text that ends in `: `) with the next line of *typed*; all that was shown."""
    shown = b""
    last = ""
    waiting = typed.splitlines(keepends=True)
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if not select.select([master], [], [], AGAIN_S)[0]:
            if last == CTRL_C:
                os.write(master, CTRL_C.encode())
            continue
        chunk = b""
        with suppress(OSError):  # EIO: the last program on the terminal has ended
            chunk = os.read(master, 65536)
        if not chunk:
            return shown.decode()
        shown += chunk
        if waiting and shown.endswith(b": "):
            last = waiting.pop(0)
            os.write(master, last.encode())
    raise TimeoutError(f"kmctl has not ended after {WAIT_S:.0f} s: {shown!r}")

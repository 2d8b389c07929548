"""The kmd that runs now, whoever started it: who it is, waiting until it answers, ending it."""

import os
import signal
import sys
import time
from pathlib import Path

from kmctl.daemon import ask
from kmd.errors import DaemonUnavailable, KilometersError
from kmd.lock_file import is_taken, read_text
from kmd.paths import Places

START_TIMEOUT_S = 30.0
"""A start takes well under a second; looking through an outbox after a crash may take some more."""
STOP_TIMEOUT_S = 20.0
"""kmd ends within two seconds; a disk that hangs may hold it longer."""
LOOK_S = 0.05
STARTER_LOCK = "kmd.autostart.lock"
"""Held for as long as a kmd lives that km has started."""


def holder_pid(lock_file: Path) -> int | None:
    """
    The pid that the holder of *lock_file* has written there, 0 when it has not yet; None when nobody holds it.

    Raises KilometersError: it cannot be read.
    """
    try:
        text = read_text(lock_file) if is_taken(lock_file) else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise KilometersError(f"{lock_file}: cannot be read ({exc.strerror})", hint="check who owns it") from exc
    if text is None:
        return None
    return int(text) if text.isdigit() else 0


def wait_until_up(places: Places) -> int:
    """The pid of kmd, once it answers. Raises KilometersError when it does not within START_TIMEOUT_S."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return int(ask(places.control_socket, {"op": "status"})["status"]["daemon"]["pid"])
        except DaemonUnavailable as exc:
            if time.monotonic() > deadline:
                hint = "see 'kmctl service logs', or run 'kmd' by hand to see what is wrong"
                raise KilometersError("kmd was started but does not answer", hint=hint) from exc
        time.sleep(LOOK_S)


def stop_daemon(places: Places) -> int | None:
    """
    End the kmd of this home, also one that km is starting just now. Returns its pid, None when none ran.

    Raises KilometersError: it has not ended within STOP_TIMEOUT_S, or is not ours to end.
    """
    deadline = time.monotonic() + STOP_TIMEOUT_S
    told: set[int] = set()
    while (pid := holder_pid(places.lock_file)) is not None or is_starting(places):
        if pid and pid not in told and tell_to_end(places, pid):
            told.add(pid)
        if time.monotonic() > deadline:
            who = f"kmd (pid {pid})" if pid else "kmd"
            hint = f"try: {KILL} {pid}" if pid else "see 'kmctl service logs'"
            raise KilometersError(f"{who} has not ended in {STOP_TIMEOUT_S:.0f} s", hint=hint)
        time.sleep(LOOK_S)
    return next(iter(told), None)


def is_starting(places: Places) -> bool:
    """Whether a relay has started a kmd that lives, though it may not hold its own lock yet (kmd.shim.starter)."""
    return holder_pid(places.meeting_dir / STARTER_LOCK) is not None


if sys.platform == "win32":
    KILL = "taskkill /F /PID"

    def tell_to_end(places: Places, _pid: int) -> bool:
        """Ask it over the control pipe: there is no signal for that. Returns False while it does not listen yet."""
        try:
            ask(places.control_socket, {"op": "stop"})
        except DaemonUnavailable:
            return False
        return True

else:
    KILL = "kill -9"

    def tell_to_end(_places: Places, pid: int) -> bool:
        """SIGTERM, and SIGCONT: a stopped one (Ctrl-Z) takes it only then. Returns True. Raises KilometersError."""
        try:
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass  # it has ended in between, or its pid is of another container, which the wait tells
        except PermissionError as exc:
            raise KilometersError(f"kmd (pid {pid}) is another user's", hint="run kmctl as that user") from exc
        return True

"""The kmd that runs now, whoever started it: who it is, waiting until it answers, ending it."""

import fcntl
import os
import signal
import time
from pathlib import Path

from kmctl.daemon import ask
from kmd.errors import DaemonUnavailable, KilometersError
from kmd.paths import Places

START_TIMEOUT_S = 30.0
"""A start takes well under a second; looking through an outbox after a crash may take some more."""
STOP_TIMEOUT_S = 20.0
"""kmd ends within two seconds; a disk that hangs may hold it longer."""
LOOK_S = 0.05


def holder_pid(lock_file: Path) -> int | None:
    """The pid of the kmd that holds *lock_file*, None when nobody does. Raises KilometersError: it cannot be read."""
    try:
        descriptor = os.open(lock_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise KilometersError(f"{lock_file}: cannot be read ({exc.strerror})", hint="check who owns it") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 20, 0).strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(descriptor)
    return None


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
    End the kmd of this home. Returns the pid that it had, None when none ran.

    Raises KilometersError: it has not ended within STOP_TIMEOUT_S, or is not ours to end.
    """
    pid = holder_pid(places.lock_file)
    if pid is None:
        return None
    deadline = time.monotonic() + STOP_TIMEOUT_S
    try:
        if pid:
            os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has ended in between; or its pid is of another container, which the wait below tells
    except PermissionError as exc:
        raise KilometersError(f"kmd (pid {pid}) is another user's", hint="run kmctl as that user") from exc
    while holder_pid(places.lock_file) is not None:
        if time.monotonic() > deadline:
            raise KilometersError(f"kmd (pid {pid}) has not ended in {STOP_TIMEOUT_S:.0f} s", hint=f"try: kill {pid}")
        time.sleep(LOOK_S)
    return pid

"""
Whether a session's relay still lives: its *mark* says which process it is, over restarts of kmd and of the machine.

A mark is `boot pid born`: which run of the machine, the process's number in it, and when it began (in ticks of that
boot), so that another process that was given the number later is not taken for the relay. `-` is not known. A relay in
a container has another number there than here: its mark is then empty, or another process's, and is only believed as
long as no relay connects.
"""

import os
from pathlib import Path

PROC = Path("/proc")
BOOT_ID = PROC / "sys/kernel/random/boot_id"
UNKNOWN = "-"
BORN_FIELD = 19
"""Of /proc/PID/stat (proc(5), field 22, `starttime`), counted from the state, which stands behind the name."""
DEAD = ("Z", "X")
"""A zombie is dead, though its parent has not looked."""


def read_mark(pid: int) -> str:
    """The mark of the relay with this number; empty when there is no such process here, or nobody knows."""
    born = read_born(pid)
    return "" if born is None else f"{read_boot()} {pid} {born}"


def is_gone(mark: str) -> bool:
    """Whether the relay with this mark lives no more. False when that is not known."""
    boot, _, rest = mark.partition(" ")
    pid, _, born = rest.partition(" ")
    if not pid.isdecimal():
        return False
    boot_now = read_boot()
    if UNKNOWN not in (boot, boot_now) and boot != boot_now:
        return True
    born_now = read_born(int(pid))
    return born_now is None or (UNKNOWN not in (born, born_now) and born != born_now)


def read_boot() -> str:
    """Which run of the machine this is."""
    try:
        return BOOT_ID.read_text().strip() or UNKNOWN
    except (OSError, ValueError):
        return UNKNOWN


def read_born(pid: int) -> str | None:
    """When the process with this number began; None when there is none that lives."""
    if pid <= 0:
        return None
    if BOOT_ID.exists():
        try:
            fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in DEAD else fields[BORN_FIELD]
    if os.name != "posix":  # there `kill` is no question
        return UNKNOWN
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return UNKNOWN

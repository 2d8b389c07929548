"""
A person at a terminal: the relay reads it only while the server would be let.

The relay has no controlling terminal, so the kernel does not stop it when it reads in the background, as it does with
the server (SIGTTIN). After Control-Z, or behind an `&`, it would take from the shell what is typed for the shell.
"""

import os
import select
import time

from kmd.record import TO_SERVER
from kmd.shim.link import Ending
from kmd.shim.relay import Session, write_all
from kmd.shim.tap import Tap
from kmd.shim.watch import Watch

LINE_BYTES = 4096
"""A terminal's longest line."""
LOOK_S = 0.1
PGRP, TTY, TPGID = 2, 4, 5
"""Fields of proc_pid_stat(5), counted from the one behind the name."""


class TerminalSession(Session):
    """Pumps, one of which waits for its turn."""

    def __init__(self, tap: Tap, watch: Watch | None, ending: Ending, flows: int, server_pid: int) -> None:
        super().__init__(tap, watch, ending, flows)
        self._stat_path = f"/proc/{server_pid}/stat"

    def _relay(self, near: int, far: int, stream: int) -> bool:
        if stream != TO_SERVER:
            return super()._relay(near, far, stream)
        while wait_for_turn(near, far, self._stat_path):
            try:
                line = os.read(near, LINE_BYTES)
            except OSError:
                line = b""
            if not line:
                return True
            at_ns = time.monotonic_ns() + self._anchor_ns
            crossed = write_all(far, memoryview(line))
            self._tap.keep(stream, memoryview(line)[:crossed], at_ns)
        return False


def wait_for_turn(near: int, far: int, stat_path: str) -> bool:
    """Until the terminal has something for the server. False when the server's side goes first."""
    poll = select.poll()
    poll.register(near, select.POLLIN)
    poll.register(far, 0)
    while True:
        if any(fd == far for fd, _ in poll.poll()):
            return False
        if is_in_front(stat_path, near):
            return True
        time.sleep(LOOK_S)


def is_in_front(stat_path: str, terminal: int) -> bool:
    """Whether the process may read *terminal*: it is not its controlling one, or its group is in the foreground."""
    try:
        device = os.fstat(terminal).st_rdev
        with open(stat_path, "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except FileNotFoundError:
        return not os.path.exists("/proc/self/stat")  # without /proc there is no telling; else the server has gone
    except OSError:
        return True  # the terminal itself has gone: the read will say so
    return int(fields[TTY]) != device or fields[PGRP] == fields[TPGID]

"""
A person at a terminal: the relay reads it only while the server would be let.

The relay has no controlling terminal, so the kernel does not stop it when it reads in the background, as it does with
the server (SIGTTIN). After Control-Z, or behind an `&`, it would take from the shell what is typed for the shell.
"""

import os
import time

from kmd.record import TO_SERVER
from kmd.shim.link import Ending
from kmd.shim.pump import GOES_ON, Pump, Way
from kmd.shim.tap import Tap

LOOK_S = 0.1
PGRP, TTY, TPGID = 2, 4, 5
"""Fields of proc_pid_stat(5), counted from the one behind the name."""


class TerminalPump(Pump):
    """A pump that lets the terminal's way wait for its turn."""

    def __init__(self, tap: Tap, ending: Ending, flows: list[tuple[int, int, int]], server_pid: int) -> None:
        super().__init__(tap, ending, flows)
        self._stat_path = f"/proc/{server_pid}/stat"
        self._in_background: Way | None = None
        self._look_at_s = 0.0

    def _news(self) -> list[tuple[int, int]]:
        self._tap.tell()
        way = self._in_background
        if way is None:
            return self._poll.poll()
        news = self._poll.poll(LOOK_S * 1000)
        if way.far in self._ways and time.monotonic() >= self._look_at_s:
            self._in_background = None
            self._await_near(way)
        return news

    def _pass(self, way: Way) -> bytes:
        if way.stream == TO_SERVER and not is_in_front(self._stat_path, way.near):
            self._forget(way.near)
            self._in_background = way
            self._look_at_s = time.monotonic() + LOOK_S
            return GOES_ON
        return super()._pass(way)


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

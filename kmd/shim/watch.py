"""
The watch: sees that the far side of a pump has gone while the pump waits for the near one.

A bare writer would get SIGPIPE or EPIPE at its next write; behind a relay that still holds its pipe open it would
not. So the pump's near descriptor is replaced by /dev/null, which lets go of the pipe, and a signal makes the
pump's blocked read look again: it finds an end of file. Without a watch of its own each read would need a poll
before it, a fifth of a small message's round trip.
"""

import _signal
import os
import select
from _thread import allocate_lock, get_ident

GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Pump:
    """Who is to be woken, and from which descriptor."""

    __slots__ = ("is_interrupted", "is_let_go", "near", "thread")

    def __init__(self, near: int, thread: int) -> None:
        self.near = near
        self.thread = thread
        self.is_interrupted = False
        self.is_let_go = allocate_lock()
        self.is_let_go.acquire()


class Watch:
    """
    `run` in a thread of its own. A pump calls `begin` before its first read and `end` before it closes anything;
    after `end` the watch touches neither of its descriptors. Make it in the main thread, where signals are set.
    """

    def __init__(self) -> None:
        """Raises OSError."""
        self._null = os.open("/dev/null", os.O_RDWR)
        try:
            self._wake_in, self._wake_out = os.pipe()
        except OSError:
            os.close(self._null)
            raise
        self._lock = allocate_lock()
        self._pumps: dict[int, Pump] = {}
        self._leaving: list[int] = []
        _signal.signal(_signal.SIGUSR1, lambda *_: None)  # without SA_RESTART, so that a blocked read returns

    def begin(self, near: int, far: int) -> None:
        """This thread reads *near* and writes *far*."""
        with self._lock:
            self._pumps[far] = Pump(near, get_ident())
        os.write(self._wake_out, b"w")

    def end(self, far: int) -> None:
        """This thread is done; returns when nothing here holds *far* or its near side any more."""
        with self._lock:
            pump = self._pumps[far]
            self._leaving.append(far)
        os.write(self._wake_out, b"w")
        pump.is_let_go.acquire()

    def has_interrupted(self, far: int) -> bool:
        """Whether the end of file that the pump has found stands for a far side that is gone."""
        return self._pumps[far].is_interrupted

    def run(self) -> None:
        """Watch for ever."""
        while True:
            for fd, events in self._poll().poll():
                if fd == self._wake_in:
                    os.read(fd, 64)
                elif events & GONE:
                    self._interrupt(self._pumps[fd])

    def _poll(self) -> select.poll:
        """What is to be watched now. A poll that waits holds what it watches, so the leaving are let go here."""
        poll = select.poll()
        poll.register(self._wake_in, select.POLLIN)
        with self._lock:
            while self._leaving:
                self._pumps.pop(self._leaving.pop()).is_let_go.release()
            for far, pump in self._pumps.items():
                if not pump.is_interrupted:
                    poll.register(far, 0)
        return poll

    def _interrupt(self, pump: Pump) -> None:
        pump.is_interrupted = True
        os.dup2(self._null, pump.near)
        _signal.pthread_kill(pump.thread, _signal.SIGUSR1)

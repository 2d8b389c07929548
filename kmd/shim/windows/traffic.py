"""
The traffic of one session where km is the server's parent: pumps between the client's *ends* and the server's.

An *end* is one side of a pipe, or whatever the client gave instead. A pump passes each chunk on before it does anything
else with it, as on POSIX (kmd.shim.relay). What is different: nobody outlives km. So when the server has ended, km
passes on what is left, tells kmd how it ended, and ends as well.
"""

import time
from _thread import allocate_lock, start_new_thread
from collections.abc import Sequence

from kmd.record import STDERR, STREAMS, TO_SERVER
from kmd.shim.link import Ending
from kmd.shim.tap import Tap

QUIET_S = 2.0
"""Once the server has ended: how long nothing may come before km ends too, though a process that the server left behind
holds its stdout and might still write. Without km the client would see the server's end at once."""


TYPE_CHECKING = False  # typing itself takes as long to import as all the rest here
if TYPE_CHECKING:
    from typing import Protocol

    class End(Protocol):
        """One side. None of these raises anything."""

        def read(self) -> bytes | None:
            """Wait for the next chunk; None at the end. Empty when somebody has written nothing, which can be seen."""

        def write(self, chunk: bytes) -> int:
            """Wait until *chunk* is taken; returns how much of it was before the other side went away."""

        def close(self) -> None:
            """Let go of it."""


Flow = tuple["End", "End", int]
"""From, to, stream."""


class Session:
    """
    The pumps. tap: None when nothing can be captured. quiet_s: see QUIET_S.

    `start` them, `wait_for_output` when the server has ended, then `finish`.
    """

    def __init__(self, tap: Tap | None, ending: Ending, flows: Sequence[Flow], quiet_s: float = QUIET_S) -> None:
        self._tap = tap
        self._ending = ending
        self._flows = flows
        self._quiet_s = quiet_s
        self._lock = allocate_lock()
        self._crossing = tuple(allocate_lock() for _ in range(STREAMS))
        self._is_over = False
        self._outputs = sum(stream != TO_SERVER for _, _, stream in flows)
        self._output_done = allocate_lock()
        self._output_done.acquire()
        self._moved = 0
        self._closed_first = b""
        self._anchor_ns = time.time_ns() - time.perf_counter_ns()

    def start(self) -> None:
        """Raises RuntimeError when there is no thread to be had."""
        for flow in self._flows:
            start_new_thread(self._pump, flow)

    def wait_for_output(self) -> None:
        """The server has ended: until all that it wrote has crossed, or too long nothing has come from what is left."""
        while True:
            before = self._moved
            if self._output_done.acquire(timeout=self._quiet_s):
                return
            is_stuck = any(self._crossing[stream].locked() for _, _, stream in self._flows if stream != TO_SERVER)
            if self._moved == before and not is_stuck:  # a client that does not read gets its bytes when it does
                return

    def finish(self) -> None:
        """What has crossed by now is kept, and nothing after it; kmd is told how it ended."""
        for lock in self._crossing:
            if lock.acquire(timeout=self._quiet_s):  # else it is stuck: what is left of the server does not read
                lock.release()
        self._is_over = True
        if self._tap is not None:
            self._tap.close({"closed_first": self._closed_first or b"server"}, self._now_ns())
        self._ending.ended = True
        if self._tap is not None:
            self._tap.wake()

    def _now_ns(self) -> int:
        """By the fine clock: the monotonic one of Windows moves every 16 ms, in which a call and its answer fit."""
        return time.perf_counter_ns() + self._anchor_ns

    def _pump(self, near: "End", far: "End", stream: int) -> None:
        """Pass *near* on to *far* until one of them ends; then close both, as the two would see it without km."""
        near_side, far_side = (b"client", b"server") if stream == TO_SERVER else (b"server", b"client")
        closed_by = far_side
        try:
            if self._relay(near, far, stream):
                closed_by = near_side
        finally:
            far.close()
            near.close()
            self._note_end(stream, closed_by)

    def _relay(self, near: "End", far: "End", stream: int) -> bool:
        """Returns whether the near side ended (True) or the far side went away (False)."""
        while (chunk := near.read()) is not None:
            at_ns = self._now_ns()
            with self._crossing[stream]:
                crossed = far.write(chunk)
                self._moved += 1
                if crossed:
                    self._keep(stream, chunk[:crossed], at_ns)
            if crossed < len(chunk):
                return False
        return True

    def _keep(self, stream: int, chunk: bytes, at_ns: int) -> None:
        tap = self._tap
        if tap is None or self._is_over:
            return
        try:
            tap.keep(stream, memoryview(chunk), at_ns)
        except Exception:  # noqa: BLE001 - no fault of the capture may end the traffic
            tap.detach()

    def _note_end(self, stream: int, closed_by: bytes) -> None:
        with self._lock:
            if stream != STDERR:
                self._closed_first = self._closed_first or closed_by
            if stream == TO_SERVER:
                return
            self._outputs -= 1
            if not self._outputs:
                self._output_done.release()

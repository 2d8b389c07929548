"""What the spool's disk has shown of itself, and when it may be written to again. No clock: time is an argument."""

SLOW_DISK_S, SLOW_DISK_PAUSES = 0.1, 2
"""A spool write that took longer may have delayed the traffic: the disk is left alone for so many times as long."""
REFUSED_PAUSE_S = 0.5
"""After a spool write that failed: how long until the next try, which costs time too."""


class Disk:
    """Ask `may_be_tried` before a write, and tell `judge` how it went. Times are monotonic, in seconds."""

    __slots__ = ("_from_s",)

    def __init__(self) -> None:
        self._from_s = 0.0

    def may_be_tried(self, now_s: float) -> bool:
        return now_s >= self._from_s

    def judge(self, began_s: float, ended_s: float, *, done: bool) -> None:
        """done: whether the write has succeeded."""
        took_s = ended_s - began_s
        if took_s > SLOW_DISK_S:
            self._from_s = ended_s + SLOW_DISK_PAUSES * took_s
        elif not done:
            self._from_s = ended_s + REFUSED_PAUSE_S

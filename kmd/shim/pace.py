"""
The pace: when the link does its work. Whatever it does competes with the traffic for two things, the processors and
the interpreter, so it waits for a pause, though not for ever. No clock in here: time is an argument.
"""

MANY_CHUNKS, GATHER_PAUSE_S, GATHER_MAX_S = 16, 0.004, 0.04
"""With so many chunks the link waits for a longer pause than the pump has seen, of that length, though not longer than
that in all: so a message in lock-step meets no work of ours on its way."""
QUIET_S = 0.05
"""So long without a byte, and the spool may be drained to kmd."""
DRAIN_ANYWAY_AFTER_S, DRAIN_ANYWAY_ABOVE_BYTES = 2.0, 256 << 20
"""When draining waits no longer: what is captured should be seen soon, and the spool is bounded."""
PAUSE_S, BULK_MAX_S = 0.005, 0.03
"""So long without a byte, and what has gathered in the bulks is moved on; so long it may gather."""


class Pace:
    """Call `observe` first, then ask."""

    __slots__ = ("_aside_since_s", "_bulk_since_s", "_kept_bytes", "_moved_at_s", "_now_s")

    def __init__(self) -> None:
        self._kept_bytes = -1
        self._now_s = self._moved_at_s = 0.0
        self._aside_since_s: float | None = None
        self._bulk_since_s: float | None = None

    def observe(self, kept_bytes: int, now_s: float, *, has_bulk: bool, is_aside: bool) -> None:
        """How the tap is: all that has crossed so far, whether chunks wait in bulks, whether it stands aside."""
        self._now_s = now_s
        if kept_bytes != self._kept_bytes:
            self._kept_bytes = kept_bytes
            self._moved_at_s = now_s
        self._bulk_since_s = (self._bulk_since_s or now_s) if has_bulk else None
        self._aside_since_s = (self._aside_since_s or now_s) if is_aside else None

    @property
    def quiet_s(self) -> float:
        """For how long nothing has crossed, as far as `observe` was told."""
        return self._now_s - self._moved_at_s

    def may_absorb(self) -> bool:
        """Whether what the pumps have left may be taken in: always, unless a bulk gathers."""
        if self._bulk_since_s is None:
            return True
        return self.quiet_s >= PAUSE_S or self._now_s - self._bulk_since_s >= BULK_MAX_S

    def may_drain(self, backlog_bytes: int) -> bool:
        """Whether the spool may be drained: nothing moves, or it has waited for too long, or is too large."""
        if self._aside_since_s is None:
            return False
        is_late = self._now_s - self._aside_since_s >= DRAIN_ANYWAY_AFTER_S
        return self.quiet_s >= QUIET_S or is_late or backlog_bytes > DRAIN_ANYWAY_ABOVE_BYTES

    def gathers_on(self, chunks: int, waited_s: float, *, is_called: bool) -> bool:
        """Whether the link waits for the next pause before it takes in the inbox, with *chunks* in it now."""
        return chunks >= MANY_CHUNKS and waited_s < GATHER_MAX_S and not is_called

    def timeout_s(self) -> float | None:
        """How long to wait for news before asking again."""
        if self._bulk_since_s is not None:
            return PAUSE_S
        return QUIET_S if self._aside_since_s is not None else None

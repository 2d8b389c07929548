"""
What the outbox may keep, and what goes first. Pure: sizes in, the next step out.

Payloads of settled events go first, then settled events, and only when nothing else is left events that a
destination still waits for. Every step is counted by its reason; the counts are kept in the outbox.
"""

from dataclasses import dataclass
from enum import StrEnum

STEP_EVENTS = 2000
"""How many events one step touches, so that commits can go between two steps."""
ROOM = 0.95
"""Once over the bound, steps go on until this share of it is used."""
HARD_ROOM_BYTES = 64 << 20
"""SQLite's own page bound is so much above ours: one commit must always fit, however small our bound."""
WARN_PERCENT = (80, 95)
"""Of the bound, taken by undelivered events: at 100 the oldest of them go. History alone fills it and is no matter."""
STRIPPED_BYTES = 250
"""About what an event takes without its payload, its place in the index included."""
VACUUM_FREE_SHARE = 0.2
VACUUM_PAGES = 256
"""When more than that share of the file is free, space goes back to the disk, a little at a time."""


class Step(StrEnum):
    """Also the reasons under which `kmctl status` counts what went."""

    STRIP_SETTLED = "payloads of settled events"
    DELETE_SETTLED = "settled events"
    DELETE_UNSETTLED = "events not yet delivered"
    DELETE_AGED = "settled events past their age"


@dataclass(frozen=True, slots=True)
class Limits:
    """max_bytes: of used pages. max_age_ns: of settled events; 0 keeps them until the size bound."""

    max_bytes: int
    max_age_ns: int = 0

    @classmethod
    def of(cls, max_bytes: int, max_age_days: int) -> "Limits":
        return cls(max_bytes, max_age_days * 86_400 * 10**9)


@dataclass(frozen=True, slots=True)
class Usage:
    """
    first_seq, last_seq: of what is kept, 0 when nothing is. stripped_seq: up to there payloads are gone.
    settled_seq: every destination has settled up to there. oldest_at_ns: of first_seq.
    """

    used_bytes: int
    first_seq: int
    last_seq: int
    stripped_seq: int
    settled_seq: int
    oldest_at_ns: int


@dataclass(frozen=True, slots=True)
class Eviction:
    """Do *step* for the events from_seq … until_seq, both included."""

    step: Step
    from_seq: int
    until_seq: int


def estimate_waiting(usage: Usage) -> int:
    """
    About how many bytes of the file the events take that a destination still waits for.

    Exact when everything settled is stripped, as it is when room is short; else the payloads are taken to be alike.
    """
    if not usage.first_seq:
        return 0
    waiting = max(0, usage.last_seq - max(usage.settled_seq, usage.first_seq - 1))
    settled = usage.last_seq - usage.first_seq + 1 - waiting
    stripped = min(max(0, usage.stripped_seq - usage.first_seq + 1), settled)
    whole = waiting + settled - stripped
    return max(0, usage.used_bytes - stripped * STRIPPED_BYTES) * waiting // whole if waiting else 0


def fill_level(waiting_bytes: int, limits: Limits) -> int:
    """Which of WARN_PERCENT the undelivered events have reached, 0 for none."""
    return max((level for level in WARN_PERCENT if waiting_bytes * 100 >= limits.max_bytes * level), default=0)


def plan_eviction(usage: Usage, limits: Limits, now_ns: int, *, is_over: bool) -> Eviction | None:
    """The next step, or None when all is within bounds. is_over: a step has begun and ROOM is not reached yet."""
    if not usage.first_seq:
        return None
    if usage.used_bytes > limits.max_bytes * (ROOM if is_over else 1.0):
        return plan_for_size(usage)
    aged = limits.max_age_ns and usage.oldest_at_ns < now_ns - limits.max_age_ns
    if aged and usage.first_seq <= usage.settled_seq:
        until_seq = min(usage.settled_seq, usage.first_seq + STEP_EVENTS - 1)
        return Eviction(Step.DELETE_AGED, usage.first_seq, until_seq)
    return None


def plan_for_full_disk(usage: Usage) -> Eviction | None:
    """What may go so that new events fit into the file when the disk has no more: only what is settled."""
    if not usage.first_seq or usage.first_seq > usage.settled_seq:
        return None
    return plan_for_size(usage)


def plan_for_size(usage: Usage) -> Eviction:
    """What goes next when there is too much."""
    unstripped = max(usage.first_seq, usage.stripped_seq + 1)
    if unstripped <= usage.settled_seq:
        until_seq = min(usage.settled_seq, unstripped + STEP_EVENTS - 1)
        return Eviction(Step.STRIP_SETTLED, unstripped, until_seq)
    if usage.first_seq <= usage.settled_seq:
        until_seq = min(usage.settled_seq, usage.first_seq + STEP_EVENTS - 1)
        return Eviction(Step.DELETE_SETTLED, usage.first_seq, until_seq)
    until_seq = min(usage.last_seq, usage.first_seq + STEP_EVENTS - 1)
    return Eviction(Step.DELETE_UNSETTLED, usage.first_seq, until_seq)

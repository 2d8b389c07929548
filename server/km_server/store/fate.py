"""
When a session began, as far as its name tells, and what becomes of events whose time cannot be right. Pure.

A session named by a UUIDv7 carries its start. Sessions are *filed* by the day they began (PostgreSQL keeps a partition
per week of it): an event's place is then the same however often, and however late, it is sent. One that claims to have
begun over LATE_DAYS ago is filed as ANCIENT, with all the others that do; one from the future is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from km_server.store.rollup import DAY_NS
from kmd.wire import Status, Verdict

AHEAD_MAX_NS = DAY_NS
"""As for an event's own time: a clock may be this far ahead of ours."""

LATE_DAYS = 400
"""Further back nobody's outbox reaches; it bounds the number of partitions that a sender can make us have."""

ANCIENT = 0
"""The day under which older sessions are filed."""

UUID_CHARS = 36
UUID7_VERSION_AT = 14

UNKNOWN_SESSION = Verdict(Status.REJECTED, "its session is not described in the batch and not known here")
AHEAD = Verdict(Status.REJECTED, "its session begins over 24 h ahead of this server's clock")
EXPIRED = Verdict(Status.REJECTED, "it is older than what this tenant keeps")
REFUSALS: Mapping[str, Verdict] = {"ahead": AHEAD, "expired": EXPIRED}
"""The counted verdicts by their code."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The moment of a batch: what is too new and what is too old in it. Times in Unix nanoseconds."""

    now_ns: int
    oldest_ns: int = 0

    @property
    def newest_ns(self) -> int:
        return self.now_ns + AHEAD_MAX_NS


def clock_at(retention_days: int | None, now_ns: int) -> Clock:
    """The clock of a batch that comes in at *now_ns*, for a tenant that keeps so many days (None: all)."""
    return Clock(now_ns, cutoff_ns(retention_days, now_ns))


def cutoff_ns(retention_days: int | None, now_ns: int) -> int:
    """Events before this are not kept: the start of a day, so that whole days of figures go with them."""
    if retention_days is None:
        return 0
    return max(0, (now_ns // DAY_NS - retention_days) * DAY_NS)


def uuid7_ns(name: str) -> int | None:
    """The time in a UUIDv7 (RFC 9562 section 5.7), None when *name* is none."""
    if len(name) != UUID_CHARS or name[UUID7_VERSION_AT] != "7":
        return None
    try:
        return int(name[:8] + name[9:13], 16) * 10**6
    except ValueError:
        return None


def filing_day(name: str, started_at_ns: int, clock: Clock) -> int | None:
    """
    The day (since 1970) under which a new session is filed; None: it is from the future.

    Without a UUIDv7 it is the day that the sender says, if that can be, else today.
    """
    today = clock.now_ns // DAY_NS
    at_ns = uuid7_ns(name)
    if at_ns is None:
        said = started_at_ns // DAY_NS
        return said if today - LATE_DAYS < said <= today else today
    if at_ns > clock.newest_ns:
        return None
    day = at_ns // DAY_NS
    return day if day > today - LATE_DAYS else ANCIENT

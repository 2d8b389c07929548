"""
How much one key may send, and how much all requests together may hold in memory. No clock: time is an argument.

The rate is a GCRA: one number per key, the time at which it would have been served if requests came evenly.
A key may run ahead of that time by its burst. The numbers lie in memory that several workers can share.
Source: ATM Forum TM 4.0 section 4.4.2 ("virtual scheduling").
"""

import math
import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from km_server.config import ServerConfig
from km_server.errors import ApiError

SLOTS = 65_536
"""Keys that are told apart; beyond it two keys would share a rate. 512 KiB for each kind of rate."""

IN_FLIGHT_RETRY_S = 1
"""Bodies are worked off in well under a second each."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How many per second, lasting, and how many at once after a rest. `per_s` 0 is no limit."""

    per_s: float
    burst: int

    @property
    def headers(self) -> dict[str, str]:
        """What is the same for every key; none where there is no limit."""
        if self.per_s <= 0:
            return {}
        return {"RateLimit-Limit": str(self.burst), "RateLimit-Policy": f"{self.burst};w={self.window_s}"}

    @property
    def window_s(self) -> int:
        """In how many seconds a spent burst has grown again."""
        return max(1, math.ceil(self.burst / self.per_s))


@dataclass(frozen=True, slots=True)
class Grant:
    """What came of asking: `wait_s` is 0 when it may go on, else when to come again."""

    rate: Rate
    remaining: int
    reset_s: int
    wait_s: int

    @property
    def headers(self) -> dict[str, str]:
        """For every answer. Source: draft-ietf-httpapi-ratelimit-headers, in the three-field form that is in use."""
        return {
            **self.rate.headers,
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(self.reset_s),
        }


class RateLimiter:
    """The rate of every key, in an anonymous map that forked workers have in common."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._served_until = memoryview(mmap.mmap(-1, SLOTS * 8)).cast("d")

    def ask(self, key_id: int, now_s: float, cost: int = 1) -> Grant | None:
        """
        Charge *cost* to a key. None when there is no limit.

        now_s: a monotonic clock that all workers share. Two workers that ask in the same microsecond may both get
        the last place: the limit protects, it does not bill.
        """
        rate = self.rate
        if rate.per_s <= 0:
            return None
        slot = key_id % SLOTS
        each_s = 1 / rate.per_s
        full_s = rate.burst * each_s
        served_until = max(self._served_until[slot], now_s)
        # what costs more than a whole burst could never go on; it takes the burst
        wanted = served_until + min(cost, rate.burst) * each_s
        wait_s = wanted - full_s - now_s
        if wait_s > each_s * 1e-6:
            return Grant(rate, self._remaining(served_until, now_s), math.ceil(served_until - now_s), math.ceil(wait_s))
        self._served_until[slot] = wanted
        return Grant(rate, self._remaining(wanted, now_s), math.ceil(wanted - now_s), 0)

    def _remaining(self, served_until: float, now_s: float) -> int:
        left = self.rate.burst - (served_until - now_s) * self.rate.per_s
        return max(0, math.floor(left + 1e-6))


def describe_limits(config: ServerConfig) -> dict[str, str]:
    """The bounds that do not depend on who asks and on what was sent before, as headers."""
    return {
        "Km-Limit-Body-Bytes": str(config.max_body_bytes),
        "Km-Limit-Inflated-Bytes": str(config.max_inflated_bytes),
        "Km-Limit-Batch-Events": str(config.max_batch_events),
        "Km-Limit-Event-Bytes": str(config.max_event_bytes),
        **Rate(config.rate_requests_per_s, config.rate_requests_burst).headers,
    }


def too_many(what: str, grant: Grant) -> ApiError:
    """The 429 for a key that sends faster than it may."""
    return ApiError(
        429,
        "rate_limited",
        f"this API key sends more than {grant.rate.per_s:g} {what} per second",
        hint=f"come again in {grant.wait_s} s",
        headers={"Retry-After": str(grant.wait_s)},
    )


@dataclass(slots=True)
class Lease:
    """The bytes that one request holds."""

    budget: "BodyBudget"
    held_bytes: int = 0

    def take(self, count: int) -> None:
        """Hold *count* bytes more. Raises ApiError 503: all requests together would hold too much."""
        budget = self.budget
        with budget.lock:
            fits = budget.used_bytes + count <= budget.limit_bytes
            if fits:
                budget.used_bytes += count
                self.held_bytes += count
                budget.watch(budget.used_bytes)
        if not fits:
            raise ApiError(
                503,
                "server_busy",
                "too many bodies are being taken in at once",
                hint="the same request may succeed in a moment",
                headers={"Retry-After": str(IN_FLIGHT_RETRY_S)},
            )


@dataclass(slots=True)
class BodyBudget:
    """
    Memory for bodies, packed and unpacked, of all requests together. Threads unpack, so there is a lock.

    `watch` is told how much is held whenever that changes.
    """

    limit_bytes: int
    watch: Callable[[int], None] = lambda used_bytes: None
    used_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """A request's part, given back at the end."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            with self.lock:
                self.used_bytes -= lease.held_bytes
                self.watch(self.used_bytes)

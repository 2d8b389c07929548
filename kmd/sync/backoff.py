"""How long to wait before the next try. Pure: randomness is an argument."""

from collections.abc import Callable

BASE_S = 1.0
CAP_S = 300.0
RETRY_AFTER_MAX_S = 900.0
"""A server may ask for patience, not for silence."""
PAUSE_S = 300.0
"""Between probes while a person has to act."""


def delay_s(attempt: int, *, rand: Callable[[], float], retry_after_s: float = 0.0) -> float:
    """Seconds before try *attempt* (0 is the first retry): full jitter under a doubling, capped ceiling."""
    asked = min(max(retry_after_s, 0.0), RETRY_AFTER_MAX_S)
    return max(asked, rand() * min(CAP_S, BASE_S * 2.0 ** min(attempt, 32)))

"""Under which day a session is filed, and what is too old to be kept. Pure."""

import uuid

import pytest
from km_server.store.fate import AHEAD_MAX_NS, ANCIENT, LATE_DAYS, Clock, clock_at, filing_day, uuid7_ns
from km_server.store.rollup import DAY_NS

TODAY = 20_000
NOW_NS = TODAY * DAY_NS + DAY_NS // 2
CLOCK = Clock(NOW_NS)


def uuid7(at_ns: int) -> str:
    """A UUIDv7 of that moment (RFC 9562 section 5.7)."""
    return str(uuid.UUID(int=(at_ns // 10**6) << 80 | 7 << 76 | 2 << 62))


@pytest.mark.parametrize(
    ("said", "filed"),
    [
        (TODAY, TODAY),
        (TODAY - LATE_DAYS + 1, TODAY - LATE_DAYS + 1),
        (TODAY - LATE_DAYS, TODAY),
        (TODAY + 1, TODAY),
        (0, TODAY),
    ],
)
def test_without_a_time_in_its_name_a_session_is_filed_as_it_says_if_that_can_be(said: int, filed: int) -> None:
    assert filing_day("named-by-hand", said * DAY_NS, CLOCK) == filed


@pytest.mark.parametrize(
    ("at_ns", "filed"),
    [
        (NOW_NS, TODAY),
        ((TODAY - LATE_DAYS + 1) * DAY_NS, TODAY - LATE_DAYS + 1),
        ((TODAY - LATE_DAYS + 1) * DAY_NS - 10**6, ANCIENT),
        (NOW_NS + AHEAD_MAX_NS, TODAY + 1),
        (NOW_NS + AHEAD_MAX_NS + 10**6, None),
    ],
)
def test_the_time_in_a_name_decides_whatever_the_sender_says(at_ns: int, filed: int | None) -> None:
    assert uuid7_ns(uuid7(at_ns)) == at_ns
    assert filing_day(uuid7(at_ns), NOW_NS, CLOCK) == filed


def test_whole_days_are_kept() -> None:
    assert clock_at(None, NOW_NS).oldest_ns == 0
    assert clock_at(30, NOW_NS).oldest_ns == (TODAY - 30) * DAY_NS
    assert clock_at(TODAY + 1, NOW_NS).oldest_ns == 0

"""The pace of the link: a pause is used, and no wait is for ever."""

import pytest

from kmd.shim.pace import (
    BULK_MAX_S,
    DRAIN_ANYWAY_ABOVE_BYTES,
    DRAIN_ANYWAY_AFTER_S,
    GATHER_MAX_S,
    MANY_CHUNKS,
    PAUSE_S,
    QUIET_S,
    Pace,
)

START_S = 1000.0


def test_small_chunks_never_wait_for_a_pause() -> None:
    pace = Pace()
    for number in range(5):
        pace.observe(number, START_S, has_bulk=False, is_aside=False)
        assert pace.may_absorb()
    assert pace.timeout_s() is None


def test_a_bulk_waits_for_a_pause_but_not_for_ever() -> None:
    pace = Pace()
    pace.observe(1, START_S, has_bulk=True, is_aside=False)
    assert not pace.may_absorb()
    assert pace.timeout_s() == PAUSE_S
    pace.observe(1, START_S + PAUSE_S * 1.01, has_bulk=True, is_aside=False)
    assert pace.may_absorb()
    for step in range(1, 7):
        pace.observe(1 + step, START_S + step * BULK_MAX_S / 5.99, has_bulk=True, is_aside=False)
        assert pace.may_absorb() == (step == 6)
    pace.observe(9, START_S + 1, has_bulk=False, is_aside=False)
    pace.observe(10, START_S + 2, has_bulk=True, is_aside=False)
    assert not pace.may_absorb()


def test_the_spool_is_drained_when_it_is_quiet_or_late_or_large() -> None:
    pace = Pace()
    assert not pace.may_drain(DRAIN_ANYWAY_ABOVE_BYTES + 1)
    pace.observe(1, START_S, has_bulk=False, is_aside=True)
    assert not pace.may_drain(1)
    assert pace.may_drain(DRAIN_ANYWAY_ABOVE_BYTES + 1)
    assert pace.timeout_s() == QUIET_S
    pace.observe(1, START_S + QUIET_S * 1.01, has_bulk=False, is_aside=True)
    assert pace.may_drain(1)
    pace.observe(2, START_S + QUIET_S * 1.02, has_bulk=False, is_aside=True)
    assert not pace.may_drain(1)
    pace.observe(3, START_S + DRAIN_ANYWAY_AFTER_S, has_bulk=False, is_aside=True)
    assert pace.may_drain(1)
    pace.observe(4, START_S + DRAIN_ANYWAY_AFTER_S, has_bulk=False, is_aside=False)
    pace.observe(5, START_S + DRAIN_ANYWAY_AFTER_S + 1, has_bulk=False, is_aside=True)
    assert not pace.may_drain(1)


@pytest.mark.parametrize(
    ("chunks", "waited_s", "is_called", "gathers_on"),
    [
        (MANY_CHUNKS - 1, 0.0, False, False),
        (MANY_CHUNKS, 0.0, False, True),
        (MANY_CHUNKS, GATHER_MAX_S, False, False),
        (MANY_CHUNKS, 0.0, True, False),
    ],
)
def test_much_at_once_waits_for_a_pause_though_not_for_ever(
    chunks: int, waited_s: float, *, is_called: bool, gathers_on: bool
) -> None:
    assert Pace().gathers_on(chunks, waited_s, is_called=is_called) == gathers_on

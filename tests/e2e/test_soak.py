"""A minute of the soak (make soak runs it for longer): memory, open files and threads of kmd do not grow."""

from pathlib import Path

import pytest

from tests.support.soak import WARM_UP, Sample, SoakReport, soak


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_nothing_grows(tmp_path: Path) -> None:
    assert soak(tmp_path, 90).faults() == []


@pytest.mark.parametrize(
    ("grows", "fault"),
    [
        (lambda n: Sample(40 + n * 0.5, 20, 5), "memory grew"),
        (lambda n: Sample(40, 20 + n, 5), "descriptors grew"),
        (lambda n: Sample(40, 20, 5 + n // 2), "threads grew"),
    ],
)
def test_what_grows_is_found(grows: object, fault: str) -> None:
    assert callable(grows)
    report = SoakReport([grows(number) for number in range(WARM_UP + 40)])
    assert [found[: len(fault)] for found in report.faults()] == [fault]


def test_what_only_wavers_is_no_fault() -> None:
    report = SoakReport([Sample(40 + number % 9, 20 + number % 2, 5) for number in range(WARM_UP + 40)])
    assert report.faults() == []

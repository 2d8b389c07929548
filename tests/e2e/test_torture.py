"""A short run of `make torture` with a fixed seed."""

from pathlib import Path

import pytest

from tests.support.torture import Torture


@pytest.mark.timeout(180)
def test_twelve_kills_lose_double_and_alter_nothing(tmp_path: Path) -> None:
    report = Torture(tmp_path, seed=11).run(12)
    assert report.faults == []
    assert report.messages > 0
    assert set(report.rounds) >= {"kmd", "server"}

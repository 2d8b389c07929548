"""Every scenario bare and through km: the two records must be equal."""

from pathlib import Path

import pytest

from tests.transparency.scenarios import SCENARIOS
from tests.transparency.stage import Scenario, bare, km, observe


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=list(SCENARIOS))
def test_km_cannot_be_told_from_the_bare_server(scenario: Scenario, tmp_path: Path) -> None:
    assert observe(scenario.act, km, tmp_path) == observe(scenario.act, bare, tmp_path)

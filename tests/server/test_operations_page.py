"""docs/operations.md says what the settings and the numbers are, and no others."""

import re
from pathlib import Path

from km_server.config import SETTINGS
from km_server.metrics import Metrics

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")


def test_the_page_has_every_setting_with_its_default_and_its_sentence() -> None:
    rows = {name: (default, text) for name, default, text in re.findall(r"\| `(\w+)` \| (.+?) \| (.+?) \|\n", PAGE)}
    assert set(rows) == {row.name for row in SETTINGS}
    for row in SETTINGS:
        default, text = rows[row.name]
        assert text == row.bounds.help
        if row.default != "":
            assert default == str(row.default)


def test_the_page_has_every_number() -> None:
    names = set(re.findall(r"^# TYPE (km_\w+) (?:counter|gauge|histogram)$", Metrics().render().decode(), re.MULTILINE))
    names = {name for name in names if not name.endswith("_created")}
    assert len(names) > 8
    documented = set(re.findall(r"`(km_\w+)`", PAGE))
    assert documented == names

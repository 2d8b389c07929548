"""docs/faults.md names tests that are there, and misses no number of the list."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "faults.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \| .* \| (.*) \|$", PAGE, re.MULTILINE)
FAULTS = 36


def test_every_fault_has_its_row() -> None:
    assert [int(number) for number, _ in ROWS] == list(range(1, FAULTS + 1))


def test_every_test_that_the_page_names_is_there() -> None:
    named = 0
    for _, tests in ROWS:
        file = ""
        for path, name in re.findall(r"`([\w/.]*?\.py)?(?:::(\w+))?`", tests):
            file = path or file
            text = (TESTS / file).read_text(encoding="utf-8")
            assert not name or f"def {name}(" in text, f"{file}::{name}"
            named += 1
    assert named > FAULTS

"""The suite can fail: wrappers with one defect each are told from the bare server, by the scenario that is about it."""

import sys
from pathlib import Path

import pytest

from tests.transparency import client
from tests.transparency.scenarios import SCENARIOS
from tests.transparency.stage import Wrap, bare, observe

CONTROLS = Path(__file__).with_name("controls.py")
DEFECTS = {
    "lines": ("partial_line_is_not_held_back", "bytes_come_back[not_utf8]", "bytes_come_back[crlf]"),
    "merged": ("errors_stay_apart_from_output", "stderr_is_the_very_file"),
    "flat": ("exit_code[seven]", "exit_code[all_bits]", "dies_by_itself[KILL]"),
    "late": ("usr1_arrives_at_once", "term_ends_it_at_once"),
}
HARMLESS = ("bytes_come_back[line]", "exit_code[zero]", "exit_code[one]")
"""What every control gets right, so that it is the defect that the suite sees and not a control that does not run."""


def control(how: str) -> Wrap:
    def wrap(home: Path, words: list[str]) -> list[str]:
        return [sys.executable, "-I", "-S", str(CONTROLS), how, *words]

    wrap.__name__ = how
    return wrap


def is_equal(name: str, how: str, folder: Path) -> bool:
    """Whether scenario *name* cannot tell the control from the bare server; a time-out is a difference."""
    act = SCENARIOS[name].act
    try:
        seen = observe(act, control(how), folder)
    except TimeoutError:
        return False
    return seen == observe(act, bare, folder)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some defects show as bytes that never come."""
    monkeypatch.setattr(client, "WAIT_S", 3.0)


@pytest.mark.parametrize(("how", "name"), [(how, name) for how, names in DEFECTS.items() for name in names])
def test_a_defect_is_seen(how: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "sound").mkdir()
    (tmp_path / "defect").mkdir()
    assert is_equal(name, "sound", tmp_path / "sound")
    assert not is_equal(name, how, tmp_path / "defect")


@pytest.mark.parametrize("how", DEFECTS)
@pytest.mark.parametrize("name", HARMLESS)
def test_a_control_works_but_for_its_defect(how: str, name: str, tmp_path: Path) -> None:
    assert is_equal(name, how, tmp_path)

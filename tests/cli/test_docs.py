"""docs/kmctl.md against the commands themselves: none is missing, and neither is an option."""

import re
from pathlib import Path

import click
import pytest

from tests.cli.test_cli import EVERY

PAGE = (Path(__file__).parents[2] / "docs" / "kmctl.md").read_text()
SECTIONS = dict(re.findall(r"^## kmctl (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
EVERYWHERE = {"--home", "--json", "--plain", "--help"}


@pytest.mark.parametrize(("words", "command"), EVERY, ids=lambda value: " ".join(value) if type(value) is tuple else "")
def test_the_page_knows_every_command_and_option(words: tuple[str, ...], command: click.Command) -> None:
    section = SECTIONS[words[0]]
    assert len(words) == 1 or re.search(rf"`{words[1]}`|kmctl {' '.join(words)}\b", section)
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden and not EVERYWHERE & set(parameter.opts):
            assert any(re.search(rf"(?<![\w-]){option}(?![\w-])", section) for option in parameter.opts), parameter.opts


def test_the_page_knows_no_command_that_is_gone() -> None:
    assert set(SECTIONS) == {words[0] for words, _ in EVERY}

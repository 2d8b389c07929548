"""Other systems than this one: what can be said about them from here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kmctl.cli import COMMANDS

ROOT = Path(__file__).parents[2]
WORKFLOW = (ROOT / ".github" / "workflows" / "hosted.yml").read_text()
POSIX_ONLY = ("fcntl", "pwd", "grp", "termios", "tty", "pty", "resource", "syslog")
LOAD = "import sys; sys.modules.update(dict.fromkeys(sys.argv[2:])); __import__(sys.argv[1])"
"""A module that is None in sys.modules cannot be imported: as on a system that lacks it."""


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_loads_where_there_is_no_posix(name: str) -> None:
    words = [sys.executable, "-c", LOAD, f"kmctl.{name}", *POSIX_ONLY]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_workflow_names_files_that_are_there() -> None:
    named = re.findall(r"\b(?:tests/[\w/]+\.py|constraints\.txt|docs/[\w.]+\.md)", WORKFLOW)
    assert len(named) >= 4
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_workflow_calls_what_make_has() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"run: make (\w+)", WORKFLOW):
        assert f"\n{target}: " in makefile

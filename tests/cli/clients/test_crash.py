"""kill -9 at each step of install and uninstall: the old file or the new one, and always a way back."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.clients.homes import contents, make_runners, write_sample
from tests.cli.clients.reading import find_commands, read_config
from tests.cli.clients.samples import SAMPLES, Sample
from tests.support.processes import WAIT_S

STEPS_MAX = 200
CHOSEN = [one for one in SAMPLES if one.place in (".cursor/mcp.json", ".codex/config.toml")]


class Killer:
    """Runs kmctl so that it dies at a step."""

    def __init__(self, process: subprocess.Popen[str], home: Path) -> None:
        self.process = process
        self.home = home

    def run(self, step: int, *arguments: str) -> str:
        """How it ended: `killed`, or the number of steps."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(self.home), step, "--home", str(self.home / "km"), *arguments]) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@contextmanager
def killer(home: Path) -> Iterator[Killer]:
    """A process that can run kmctl again and again."""
    words = [sys.executable, "-m", "tests.cli.clients.dying"]
    root = Path(__file__).parents[3]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            yield Killer(process, home)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(WAIT_S)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home, and beside it the commands that its servers are started by: wrapping writes their paths."""
    make_runners(tmp_path / "ann.bin")
    (tmp_path / "ann").mkdir()
    return tmp_path / "ann"


def reset(home: Path, samples: list[Sample]) -> None:
    """The files as they were before anything was done, and nothing else."""
    for path in sorted(home.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (home / "shop").mkdir()
    for sample in samples:
        write_sample(home, sample)


def check_files(home: Path, samples: list[Sample]) -> None:
    """Each file is whole: its old text, or a text that its client can read with every server wrapped."""
    for sample in samples:
        raw = (home / sample.place).read_bytes()
        if raw != sample.raw:
            ours = ["launch.py" in " ".join(words) for _, words, _ in find_commands(read_config(home / sample.place))]
            assert ours == [True] * len(ours)


INSTALL, UNINSTALL = ("install", "--yes", "--no-service"), ("uninstall", "--yes")


def test_killed_while_it_installs(home: Path) -> None:
    with killer(home) as kmctl:
        for step in range(STEPS_MAX):
            reset(home, CHOSEN)
            before = contents(home)
            if kmctl.run(step, *INSTALL) != "killed":
                break
            check_files(home, CHOSEN)
            if step % 2:
                assert kmctl.run(-1, *INSTALL).isdigit()
                assert not list(home.rglob("*.tmp"))
            assert kmctl.run(-1, *UNINSTALL).isdigit()
            assert contents(home) == before
        assert 20 < step < STEPS_MAX - 1


def test_killed_while_it_uninstalls(home: Path) -> None:
    with killer(home) as kmctl:
        for step in range(STEPS_MAX):
            reset(home, CHOSEN)
            before = contents(home)
            assert kmctl.run(-1, *INSTALL).isdigit()
            if kmctl.run(step, *UNINSTALL) != "killed":
                break
            check_files(home, CHOSEN)
            assert kmctl.run(-1, *UNINSTALL).isdigit()
            assert contents(home) == before
            assert not list(home.rglob("*.tmp"))
        assert 15 < step < STEPS_MAX - 1


@pytest.mark.parametrize("step", [3, 7, 12, 17])
def test_killed_again_and_again(home: Path, step: int) -> None:
    with killer(home) as kmctl:
        reset(home, CHOSEN)
        before = contents(home)
        for arguments in (INSTALL, INSTALL, UNINSTALL, INSTALL, UNINSTALL, UNINSTALL):
            kmctl.run(step, *arguments)
            check_files(home, CHOSEN)
        assert kmctl.run(-1, *UNINSTALL).isdigit()
        assert contents(home) == before

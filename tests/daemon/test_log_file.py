"""`kmd --log-file`: everything that would go to stderr, private, and bounded while it runs."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import WAIT_S, command, read_status, wait_for

TALK = """
import os, sys
from pathlib import Path
from kmd.logs import redirect_stderr
redirect_stderr(Path(sys.argv[1]))
for number in range(int(sys.argv[2])):
    print(f"line {number:09}" + "x" * 100, file=sys.stderr)
os.write(2, b"from below\\n")
raise ValueError("the end")
"""


def talk(path: Path, lines: int) -> subprocess.CompletedProcess[bytes]:
    words = [sys.executable, "-c", TALK, str(path), str(lines)]
    return subprocess.run(words, capture_output=True, timeout=WAIT_S)


def test_everything_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "kmd.log"
    done = talk(path, 3)
    assert (done.returncode, done.stderr) == (1, b"")
    text = path.read_text()
    assert text.count("line 0") == 3
    assert "from below\n" in text
    assert "ValueError: the end" in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    talk(path, 3)
    assert path.read_text().count("line 0") == 6


def test_it_is_bounded_while_it_runs(tmp_path: Path) -> None:
    talk(tmp_path / "kmd.log", 30_000)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"kmd.log", "kmd.log.1"}
    assert all(size < (1 << 20) + 4096 for size in sizes.values())
    both = (tmp_path / "kmd.log.1").read_text() + (tmp_path / "kmd.log").read_text()
    numbers = [int(line[5:14]) for line in both.splitlines() if line.startswith("line ")]
    assert numbers == list(range(numbers[0], 30_000))  # the last ones, none missing


@pytest.mark.parametrize("what", ["a link", "below a file"])
def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path, what: str) -> None:
    path = tmp_path / "kmd.log"
    path.symlink_to(tmp_path / "elsewhere")
    if what == "below a file":
        (tmp_path / "elsewhere").touch()
        path = tmp_path / "elsewhere" / "kmd.log"
    words = [command("kmd"), "--home", str(tmp_path / "home"), "--log-file", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=WAIT_S)
    error, hint = done.stderr.splitlines()
    assert done.returncode == 1
    assert error.startswith(f"error: {path}: cannot be written")
    assert "--log-file" in hint
    assert not (tmp_path / "home").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full_does_not_end_kmd(tmp_path: Path) -> None:
    words = [command("kmd"), "--home", str(tmp_path / "home"), "--log-file", "/dev/full"]
    with subprocess.Popen(words, env=os.environ) as process:
        try:
            assert wait_for(lambda: pid_of(tmp_path / "home"), "kmd") == process.pid
        finally:
            process.terminate()
        assert process.wait(WAIT_S) == 0


def pid_of(home: Path) -> int:
    try:
        return int(read_status(home)["daemon"]["pid"])
    except OSError:
        return 0

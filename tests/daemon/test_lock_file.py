"""Lock files: one process has one, others see that, and what the holder has written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kmd.lock_file import is_taken, read_text, take_lock, take_to_read, write_text
from tests.support.processes import WAIT_S

HOLD = """
import sys
from pathlib import Path
from kmd.lock_file import take_lock, write_text
write_text(take_lock(Path(sys.argv[1])), b"4711")
print("held", flush=True)
sys.stdin.read()
"""


def test_the_end_of_its_holder_gives_it_back(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    words = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == b"held"
        assert is_taken(path)
        assert take_lock(path) is None
        assert take_to_read(path) is None
        assert read_text(path) == b"4711"
        holder.kill()
        holder.wait(WAIT_S)
    assert not is_taken(path)
    descriptor = take_to_read(path)
    assert descriptor is not None
    assert is_taken(path)
    os.close(descriptor)


def test_looking_does_not_make_one(tmp_path: Path) -> None:
    for look in (is_taken, take_to_read, read_text):
        with pytest.raises(FileNotFoundError):
            look(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("a longer text than the next")
    descriptor = take_lock(path)
    assert descriptor is not None
    write_text(descriptor, b"short\n")
    write_text(descriptor, b"5\n")
    os.close(descriptor)
    assert path.read_bytes() == b"5\n"


def test_a_link_in_its_place_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        take_lock(tmp_path / "lock")
    assert not (tmp_path / "elsewhere").exists()

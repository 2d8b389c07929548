"""
The tests of this folder on a system that is not Windows: in a Windows python that KM_TEST_WINE names.

KM_TEST_WINE is one command that takes python's arguments and runs the Windows build of it, such as a script around
`wine python.exe`, with the project's dependencies installed; drive Z: must be the root of this system's files. Nobody
has to have that: without it these tests are skipped.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NOT_THERE = {Path(__file__).name, "test_traffic.py"}
"""The second has POSIX descriptors for ends."""
WAIT_S = 280.0
"""A file of tests takes up to a minute where every process is slow to start, and may not be alone on the machine."""


def as_windows(path: Path) -> str:
    return "Z:" + str(path).replace("/", "\\")


@pytest.mark.timeout(WAIT_S + 10)
@pytest.mark.skipif(sys.platform == "win32", reason="the tests run here as they are")
@pytest.mark.skipif("KM_TEST_WINE" not in os.environ, reason="KM_TEST_WINE names no Windows python")
@pytest.mark.parametrize("name", sorted({path.name for path in HERE.glob("test_*.py")} - NOT_THERE))
def test_under_a_windows_python(name: str) -> None:
    python = os.environ["KM_TEST_WINE"]
    roots = ";".join(as_windows(root) for root in (ROOT, ROOT / "server"))
    done = subprocess.run(
        [python, "-m", "pytest", as_windows(HERE / name)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": roots},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=WAIT_S,
        check=False,
    )
    print(done.stdout.decode(errors="replace"))
    assert done.returncode == 0
    assert b" passed" in done.stdout

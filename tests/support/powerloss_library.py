"""Builds tests/support/disk_trace.c and says how a subprocess is put under it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("disk_trace.c")
FAULTS = "faults"
MARKS = "marks"
TRACE = "trace"


def build_library(folder: Path) -> Path:
    """The compiled library. Skips where it cannot be had, but never on CI."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if sys.platform != "linux" or compiler is None:
        missing = "a C compiler" if sys.platform == "linux" else "Linux"
        if os.environ.get("CI") and sys.platform == "linux":
            raise FileNotFoundError(f"power loss cannot be tested without {missing}")
        pytest.skip(f"POWER LOSS IS NOT TESTED: that needs {missing}")
    library = folder / "disk_trace.so"
    words = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(library), str(SOURCE)]
    subprocess.run([*words, "-ldl", "-lpthread"], check=True, timeout=60)
    return library


def watch(library: Path, root: Path, folder: Path, *, is_traced: bool = True, kill_at: int = 0) -> dict[str, str]:
    """
    The environment under which what happens below *root* is recorded in *folder*, and can be made to fail.

    kill_at: the process ends itself instead of its operation of that number; 0 lets it live.
    """
    faults = folder / FAULTS
    faults.mkdir(parents=True, exist_ok=True)
    for left in faults.iterdir():
        left.unlink()
    environ = {
        "LD_PRELOAD": str(library),
        "DISK_ROOT": str(root.resolve()),
        "DISK_FAULTS": str(faults.resolve()),
        "DISK_MARKS": str((folder / MARKS).resolve()),
        "DISK_KILL_AT": str(kill_at),
    }
    return {**environ, "DISK_TRACE": str((folder / TRACE).resolve())} if is_traced else environ

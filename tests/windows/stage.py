"""
What the Windows tests share: a server is a few lines of Python, bare or through km; a *record* is what its client saw.

Everything here is started from a Windows python (see test_elsewhere for how that may come about on another system).
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import quick_km, wait_for

WINDOWS_ONLY = pytest.mark.skipif(sys.platform != "win32", reason="needs Windows, or KM_TEST_WINE (test_elsewhere.py)")
WAIT_S = 60.0
"""Generous on purpose: a loaded machine must not fail a test, a hang must."""
ANSWERS_BUT_NOT_WELL = 4
"""What `kmctl status` says of a kmd that runs but has something to tell."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a client saw of a server that has ended."""

    exit_code: int
    stdout: bytes
    stderr: bytes


def python(code: str, *args: str) -> list[str]:
    """The command of a server that is these lines of Python."""
    return [sys.executable, "-I", "-c", code, *args]


def through_km(home: Path, *server: str) -> list[str]:
    return quick_km(home, "tested", *server)


def run(words: list[str], data: bytes = b"", cwd: Path | None = None) -> Record:
    """Write *data* to its stdin, close that, and read both outputs to their ends."""
    done = subprocess.run(words, input=data, capture_output=True, cwd=cwd, timeout=WAIT_S)
    return Record(done.returncode, done.stdout, done.stderr)


def kmctl(home: Path, *args: str) -> Record:
    return run([sys.executable, "-m", "kmctl", *args, "--home", str(home)])


def read_status(home: Path) -> dict[str, Any] | None:
    """What `kmctl status --json` prints, or None while kmd does not answer."""
    said = kmctl(home, "status", "--json")
    if said.exit_code not in (0, ANSWERS_BUT_NOT_WELL):
        return None
    status: dict[str, Any] = json.loads(said.stdout)
    return status


def kmd_words(home: Path) -> list[str]:
    return [sys.executable, "-m", "kmd", "--home", str(home)]


@contextmanager
def running_kmd(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """kmd under *home*, which answers; it is killed at the end of the block."""
    log = home.with_name(f"{home.name}.kmd.log")
    with log.open("ab") as stderr:
        process = subprocess.Popen(kmd_words(home), stdin=subprocess.DEVNULL, stderr=stderr)
    try:
        wait_for(lambda: answers(home, process, log), "kmd", WAIT_S)
        yield process
    finally:
        process.kill()
        process.wait(WAIT_S)


def answers(home: Path, process: subprocess.Popen[bytes], log: Path) -> bool:
    """Raises RuntimeError when kmd has ended instead."""
    if process.poll() is not None:
        raise RuntimeError(f"kmd ended with {process.returncode}:\n{log.read_text(errors='replace')}")
    status = read_status(home)
    return status is not None and bool(status["daemon"]["pid"] == process.pid)


def wait_for_events(home: Path, count: int) -> dict[str, Any]:
    """kmd's status as soon as its outbox has *count* events."""

    def enough() -> dict[str, Any] | None:
        status = read_status(home)
        return status if status is not None and status["outbox"]["events"] >= count else None

    return wait_for(enough, f"{count} events", WAIT_S)

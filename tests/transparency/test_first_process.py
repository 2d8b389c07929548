"""km as the first process of a container: last words, statuses and signals come through, and nobody stays."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.processes import LAUNCH, read_status, running_kmd, wait_for
from tests.transparency.stage import probe_words

IN_CONTAINER = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
WAIT_S = 30
BURSTS = 15


@pytest.fixture(autouse=True)
def unshare() -> None:
    """Name spaces need root, or a kernel that lets others make them."""
    done = subprocess.run([*IN_CONTAINER, "true"], capture_output=True, text=True, timeout=WAIT_S)
    if done.returncode:
        pytest.skip(f"no pid name space can be made here: {done.stderr.strip()}")


def contained(home: Path, *server: str) -> list[str]:
    return [*IN_CONTAINER, sys.executable, "-I", "-S", str(LAUNCH), "--home", str(home), "--", *server]


@pytest.mark.parametrize("size", [100, 300_000])
def test_last_words_arrive_whole(size: int, tmp_path: Path) -> None:
    """The kernel ends the relay with the first process; so that must not be the server."""
    for _ in range(BURSTS):
        words = contained(tmp_path / "home", *probe_words("emit"), str(size), "3")
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=WAIT_S)
        assert (len(done.stdout), done.stderr, done.returncode) == (size, b"", 3)


def test_everything_is_captured(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running_kmd(home):
        done = subprocess.run(contained(home, "cat"), input=b"one\ntwo\n", capture_output=True, timeout=WAIT_S)
        assert done.stdout == b"one\ntwo\n"
        wait_for(lambda: read_status(home)["outbox"]["events"] == 4, "the lines")


@contextmanager
def obeying(home: Path, *caught: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The `obey` probe in a container, ready; and the first process' pid as seen from here."""
    words = contained(home, *probe_words("obey"), *caught)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as outer:
        assert outer.stdout is not None
        assert outer.stdout.readline() == b"ready\n"
        (first,) = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        yield outer, int(first)


@pytest.mark.parametrize("name", ["TERM", "INT", "USR2"])
def test_a_signal_to_the_container_reaches_the_server(name: str, tmp_path: Path) -> None:
    with obeying(tmp_path / "home") as (outer, first):
        os.kill(first, getattr(signal, f"SIG{name}"))
        assert outer.wait(WAIT_S) == 128 + getattr(signal, f"SIG{name}")


def test_a_caught_signal_comes_once(tmp_path: Path) -> None:
    with obeying(tmp_path / "home", "HUP", "TERM") as (outer, first):
        assert outer.stdout is not None
        os.kill(first, signal.SIGHUP)
        assert outer.stdout.readline() == b"caught SIGHUP\n"
        os.kill(first, signal.SIGTERM)
        assert outer.stdout.read() == b"caught SIGTERM\n"
        assert outer.wait(WAIT_S) == 3


def test_a_child_that_keeps_the_pipes_does_not_keep_the_container(tmp_path: Path) -> None:
    words = contained(tmp_path / "home", *probe_words("leave_deaf_child"))
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=WAIT_S)
    assert (done.stdout, done.returncode) == (b"ready\n", 5)


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    words = contained(tmp_path / "home", "no-such-server")
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=WAIT_S)
    assert (done.stdout, done.returncode) == (b"", 127)
    assert done.stderr.startswith(b"km: command not found")

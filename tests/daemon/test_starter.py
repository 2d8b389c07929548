"""km starts kmd where no service manager does: once, only with the user's leave, and less often the more it fails."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmctl.supervisors.by_km import AUTOSTART, render_autostart
from kmctl.supervisors.lifecycle import find_deployment
from kmctl.supervisors.process import STARTER_LOCK, holder_pid, stop_daemon
from kmd.shim import starter
from kmd.shim.starter import BACKOFF_MAX_S, delay_s, parse_autostart, parse_tries
from tests.support.processes import WAIT_S, read_status, wait_for

ROOT = Path(__file__).parents[2]
START = (
    "import sys; sys.path.insert(0, sys.argv[1]);from kmd.shim.starter import start_kmd; print(start_kmd(sys.argv[2]))"
)


def start(meeting: Path, environ: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """A process that does what a relay does when kmd is away."""
    words = [sys.executable, "-I", "-S", "-c", START, str(ROOT), str(meeting)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environ or {})})


def has_started(process: subprocess.Popen[str]) -> bool:
    out, _ = process.communicate(timeout=WAIT_S)
    return {"True\n": True, "False\n": False}[out]


def allow(meeting: Path, *words: str) -> Path:
    """The user's leave; with the words of a real kmd unless others are given."""
    meeting.mkdir(mode=0o700, exist_ok=True)
    path = meeting / AUTOSTART
    path.write_text("".join(f"word {word}\n" for word in words) or render_autostart(find_deployment(meeting, {})))
    path.chmod(0o600)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A meeting place; a kmd that was started there is ended again."""
    try:
        yield tmp_path / "home"
    finally:
        if pid := holder_pid(tmp_path / "home" / "kmd.lock"):
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda: holder_pid(tmp_path / "home" / "kmd.lock") is None, "the end of kmd")


def answering(home: Path) -> Callable[[], int]:
    def probe() -> int:
        try:
            return int(read_status(home)["daemon"]["pid"])
        except OSError:
            return 0

    return probe


def logged(home: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (home / "kmd.log").read_text().splitlines()]


def test_twenty_start_exactly_one(home: Path) -> None:
    allow(home)
    started = [has_started(process) for process in [start(home) for _ in range(20)]]
    assert started.count(True) == 1
    wait_for(answering(home), "kmd")
    assert not has_started(start(home))
    assert logged(home) == ["kmd is ready"]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_it_holds_nothing_of_the_one_that_started_it(home: Path) -> None:
    allow(home)
    assert has_started(start(home, {"SERVER_TOKEN": "secret", "LANG": "C.UTF-8"}))
    pid = wait_for(answering(home), "kmd")
    environ = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"LANG=" in environ
    assert b"SERVER_TOKEN" not in environ
    held = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    assert not any(name.startswith("pipe:") for name in held)
    assert str(home / "kmd.autostart.lock") in held
    assert os.getsid(pid) == pid


def test_it_may_be_started_again_when_it_has_ended(home: Path) -> None:
    allow(home)
    assert has_started(start(home))
    pid = wait_for(answering(home), "kmd")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: has_started(start(home)), "another start")
    assert wait_for(answering(home), "kmd") != pid


def test_without_leave_nothing_is_started(home: Path) -> None:
    home.mkdir()
    assert not has_started(start(home))
    assert not has_started(start(home / "missing"))
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("fault", ["others may write", "a link", "a folder", "a pipe", "no words", "no program"])
def test_a_file_that_cannot_be_the_users_leave(home: Path, fault: str) -> None:
    path = allow(home, "/bin/true" if fault != "no program" else str(home / "missing"))
    match fault:
        case "others may write":
            path.chmod(0o622)
        case "a link":
            path.rename(home / "elsewhere")
            path.symlink_to(home / "elsewhere")
        case "a folder":
            path.unlink()
            path.mkdir()
        case "a pipe":
            path.unlink()
            os.mkfifo(path, 0o600)
        case "no words":
            path.write_text("# nothing\nnonsense\n")
        case _:
            pass
    assert not has_started(start(home))


def test_one_that_fails_is_tried_less_and_less_often(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1e9
    launched: list[list[str]] = []

    def launch(words: list[str], _environ: dict[str, str], _lock: int) -> None:
        launched.append(words)

    monkeypatch.setattr(time, "time", lambda: now_s)
    monkeypatch.setattr(starter, "launch", launch)
    allow(home, "/bin/false")
    waits = []
    for _ in range(12):
        before_s = now_s
        while not starter.start_kmd(str(home)):
            now_s += 0.5
        waits.append(now_s - before_s)
    assert waits[:4] == [0, 1, 2, 4]
    assert waits[-1] == BACKOFF_MAX_S
    assert launched == [["/bin/false"]] * 12
    now_s += 601  # it has lived
    assert starter.start_kmd(str(home))
    now_s += 1
    assert starter.start_kmd(str(home))
    now_s -= 1e6  # somebody has set the clock
    assert starter.start_kmd(str(home))


@given(
    st.lists(st.text(st.characters(exclude_categories=["C", "Z"])), min_size=1),
    st.dictionaries(
        st.from_regex(r"[A-Z_]{1,9}", fullmatch=True), st.text(st.characters(exclude_categories=["C", "Z"]))
    ),
)
def test_what_kmctl_writes_is_what_km_reads(words: list[str], environ: dict[str, str]) -> None:
    lines = [*(f"env {name}={value}" for name, value in environ.items()), *(f"word {word}" for word in words)]
    assert parse_autostart("\n".join(["# comment", *lines]) + "\n") == (words, environ)


@pytest.mark.parametrize("text", [b"", b"x", b"1", b"a b", b"1 2 3", b"\xff 1", b"1 x"])
def test_a_damaged_count_is_none(text: bytes) -> None:
    assert parse_tries(text) == (0, 0.0)


def test_both_sides_name_the_files_alike() -> None:
    assert (AUTOSTART, STARTER_LOCK) == (starter.AUTOSTART, starter.LOCK)


def test_the_wait_is_bounded() -> None:
    assert [delay_s(tries) for tries in (0, 1, 2, 3, 32)] == [0, 1, 2, 4, BACKOFF_MAX_S]


def test_one_that_is_just_being_started_is_ended_too(home: Path) -> None:
    """Between the relay's spawn and kmd's own lock."""
    slow = home / "slow"
    words = " ".join(find_deployment(home, {}).program)
    allow(home, str(slow))
    slow.write_text(f"#!/bin/sh\nsleep 1\nexec {words}\n")
    slow.chmod(0o755)
    assert has_started(start(home))
    assert holder_pid(home / "kmd.lock") is None
    (home / AUTOSTART).unlink()  # as 'kmctl service stop' does first
    assert stop_daemon(find_deployment(home, {}).places)
    assert holder_pid(home / "kmd.lock") is None
    assert holder_pid(home / starter.LOCK) is None

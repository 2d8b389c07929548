"""km with the real kmd where no service manager is: sessions start it, once, and only with the user's leave."""

import os
import signal
import subprocess
from pathlib import Path

from kmctl.supervisors.process import holder_pid
from tests.cli.terminal import run_kmctl
from tests.daemon.test_starter import allow, home, logged
from tests.support.processes import WAIT_S, command, read_status, wait_for

__all__ = ["home"]
"""The fixture: pytest finds it by its name here."""
MESSAGE = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'


def run_sessions(home: Path, number: int) -> None:
    """*number* sessions at once, each with one message to a server that sends it back."""
    words = [command("km"), "--home", str(home), "--name", "echo", "--", "cat"]
    started = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(number)]
    for process in started:
        out, _ = process.communicate(MESSAGE, timeout=WAIT_S)
        assert (process.returncode, out) == (0, MESSAGE)


def events(home: Path) -> int:
    try:
        return int(read_status(home)["outbox"]["events"])
    except OSError:
        return 0


def test_of_twenty_sessions_one_starts_kmd_and_all_are_captured(home: Path) -> None:
    allow(home)
    run_sessions(home, 20)
    wait_for(lambda: events(home) == 40, "forty captured messages", 60)
    assert logged(home).count("kmd is ready") == 1
    assert "already running" not in (home / "kmd.log").read_text()


def test_without_leave_a_session_leaves_nothing_running(home: Path) -> None:
    home.mkdir(mode=0o700)
    run_sessions(home, 1)
    wait_for(lambda: list((home / "spool").glob("*")), "the spool")
    assert {path.name for path in home.iterdir()} == {"spool"}


def test_after_it_was_stopped_on_purpose_no_session_starts_it(home: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(home / "nowhere")}  # no service manager, whatever this machine has
    for action in (["install", "--manager", "km"], ["stop"]):
        code, _, err = run_kmctl("--home", str(home), "service", *action, environ=environ)
        assert (code, err) == (0, "")
    run_sessions(home, 1)
    wait_for(lambda: list((home / "spool").glob("*")), "the spool")
    assert holder_pid(home / "kmd.lock") is None
    code, _, _ = run_kmctl("--home", str(home), "service", "start", environ=environ)
    assert code == 0
    wait_for(lambda: events(home) == 2, "the captured messages")
    os.kill(holder_pid(home / "kmd.lock") or 0, signal.SIGKILL)  # killed, not stopped: the next session starts it
    run_sessions(home, 1)
    wait_for(lambda: events(home) == 4, "the captured messages")

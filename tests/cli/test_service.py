"""`kmctl service` with the real kmd: under a real systemd user instance, under socket activation, and without."""

import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.terminal import clean_environ, run_kmctl
from tests.support.processes import WAIT_S, Running, command, read_status, start_kmd, wait_for
from tests.support.user_systemd import give_up, user_systemd

MESSAGE = '{"jsonrpc":"2.0","id":1,"method":"ping"}\n'
Environ = dict[str, str]


def kmctl(environ: Environ, *arguments: str) -> str:
    """stdout of a kmctl that has to succeed."""
    code, shown, err = run_kmctl(*arguments, environ=environ)
    assert (code, err) == (0, ""), shown
    return shown


def as_json(environ: Environ, *arguments: str) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(kmctl(environ, *arguments, "--json"))
    return shown


def service_state(environ: Environ, *arguments: str) -> dict[str, Any]:
    code, shown, _ = run_kmctl(*arguments, "service", "status", "--json", environ=environ)
    state: dict[str, Any] = json.loads(shown)
    assert code == (0 if state["running"] else 3)
    return state


def told_to_start(environ: Environ) -> str:
    """With what kmctl says kmd is started, now that it does not run."""
    code, _, err = run_kmctl("status", environ=environ)
    assert code == 3
    return err.split("start it with '")[1].rstrip("'\n")


def send_message(environ: Environ, *options: str) -> None:
    """One message through km to a server that sends it back."""
    words = [command("km"), *options, "--name", "echo", "--", "cat"]
    done = subprocess.run(
        words, input=MESSAGE, text=True, capture_output=True, timeout=WAIT_S, env=clean_environ(environ)
    )
    assert done.stdout == MESSAGE


def wait_for_messages(environ: Environ, number: int, *options: str) -> None:
    def captured() -> bool:
        code, shown, _ = run_kmctl(*options, "tail", "--json", environ=environ)
        return code == 0 and shown.count('"ping"') == number

    wait_for(captured, f"{number} captured messages")


def systemctl(environ: Environ, *arguments: str) -> None:
    words = ["systemctl", "--user", *arguments]
    subprocess.run(words, env=clean_environ(environ), check=True, timeout=WAIT_S, capture_output=True)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Environ]:
    """A user's home without a service manager; a kmd that a test leaves behind is ended."""
    environ = {"HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path / "nowhere")}
    (tmp_path / "home").mkdir()
    try:
        yield environ
    finally:
        run_kmctl("service", "remove", environ=environ)


def test_systemd_starts_kmd_at_login_and_on_the_first_message(tmp_path: Path) -> None:
    with user_systemd(tmp_path) as environ:
        assert told_to_start(environ) == "kmctl service install"
        assert "started at login by systemd" in kmctl(environ, "service", "install")
        state = service_state(environ)
        assert (state["manager"], state["running"], state["starts_at_login"]) == ("systemd", True, True)
        assert [Path(path).name for path in state["files"]] == ["kmd.socket", "kmd.service"]
        meeting = Path(environ["HOME"]) / ".kilometers"
        for name in ("kmd.sock", "control.sock"):
            assert stat.S_IMODE((meeting / name).stat().st_mode) == 0o600
        assert stat.S_IMODE(meeting.stat().st_mode) == 0o700

        systemctl(environ, "stop", "kmd.service")  # as before the first message after login without kmd.service
        assert not service_state(environ)["running"]
        send_message(environ)
        wait_for_messages(environ, 2)
        assert service_state(environ)["running"]


def test_systemd_install_twice_restart_stop_start_remove(tmp_path: Path) -> None:
    with user_systemd(tmp_path) as environ:
        first = as_json(environ, "service", "install")
        again = as_json(environ, "service", "install")
        assert (again["changed"], again["pid"]) == (False, first["pid"])
        restarted = as_json(environ, "service", "restart")
        assert restarted["stopped_pid"] == first["pid"]
        assert restarted["pid"] != first["pid"]
        assert as_json(environ, "service", "stop")["stopped_pid"] == restarted["pid"]
        assert told_to_start(environ) == "kmctl service start"
        meeting = Path(environ["HOME"]) / ".kilometers"
        assert not list(meeting.glob("*.sock"))  # km must not wait for a kmd that was stopped on purpose
        send_message(environ)
        assert not service_state(environ)["running"]
        started = as_json(environ, "service", "start")
        wait_for_messages(environ, 2)
        removed = as_json(environ, "service", "remove")
        assert (removed["changed"], removed["stopped_pid"]) == (True, started["pid"])
        assert not service_state(environ)["installed"]
        assert not list((Path(environ["HOME"]) / ".config" / "systemd" / "user").rglob("kmd*"))
        assert as_json(environ, "service", "remove")["changed"] is False


def test_systemd_takes_over_from_a_kmd_that_was_started_by_hand(tmp_path: Path) -> None:
    with user_systemd(tmp_path) as environ:
        words = [command("kmd")]
        with (tmp_path / "kmd.log").open("wb") as stderr:
            by_hand = subprocess.Popen(words, env=clean_environ(environ), stderr=stderr)
        try:
            wait_for(lambda: service_state(environ)["pid"] == by_hand.pid, "kmd")
            installed = as_json(environ, "service", "install")
            assert installed["stopped_pid"] == by_hand.pid
            assert by_hand.wait(WAIT_S) == 0
        finally:
            by_hand.kill()
            by_hand.wait()


def test_of_two_that_could_start_it_the_one_chosen_last_does(tmp_path: Path) -> None:
    with user_systemd(tmp_path) as environ:
        kmctl(environ, "service", "install", "--manager", "km")
        autostart = Path(environ["HOME"]) / ".kilometers" / "kmd.autostart"
        assert autostart.exists()
        assert as_json(environ, "service", "install")["manager"] == "systemd"
        assert not autostart.exists()
        assert as_json(environ, "service", "install", "--manager", "km")["manager"] == "km"
        assert service_state(environ)["manager"] == "km"
        kmctl(environ, "service", "remove")


def test_systemd_starts_it_again_when_it_dies_and_nothing_is_lost(tmp_path: Path) -> None:
    with user_systemd(tmp_path) as environ:
        pid = as_json(environ, "service", "install")["pid"]
        os.kill(pid, signal.SIGKILL)
        send_message(environ)
        wait_for_messages(environ, 2)
        assert service_state(environ)["pid"] != pid


def test_systemd_with_a_home_whose_name_is_awkward(tmp_path: Path) -> None:
    with user_systemd(tmp_path) as environ:
        home = str(Path(environ["HOME"]) / 'a %h $HOME "b" \\n ü')
        kmctl(environ, "--home", home, "service", "install")
        send_message(environ, "--home", home)
        wait_for_messages(environ, 2, "--home", home)
        state = service_state(environ, "--home", home)
        assert state["running"]
        assert not any(Path(path).name.startswith("kmd.") for path in state["files"])  # beside the default one
        kmctl(environ, "--home", home, "service", "remove")


def test_kmd_is_started_by_the_first_message_through_an_activated_socket(tmp_path: Path) -> None:
    """systemd-socket-activate does what systemd does: it listens, and starts kmd when somebody comes."""
    if not shutil.which("systemd-socket-activate"):
        give_up("needs systemd-socket-activate (Debian: apt-get install systemd)")
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    listen = [f"--listen={home / name}" for name in ("kmd.sock", "control.sock")]
    words = ["systemd-socket-activate", *listen, "--fdname=kmd:control", command("kmd"), "--home", str(home)]
    with (tmp_path / "log").open("wb") as stderr:
        process = subprocess.Popen(words, stderr=stderr, env=clean_environ())
    running = Running(process, tmp_path / "log")
    try:
        wait_for(lambda: (home / "control.sock").exists(), "the sockets")
        assert not (home / "kmd.lock").exists()
        send_message({}, "--home", str(home))
        wait_for_messages({}, 2, "--home", str(home))
        assert read_status(home)["daemon"]["pid"] == process.pid  # it has become kmd
    finally:
        assert running.stop() == 0


def test_without_a_service_manager_km_is_the_one(home: Environ) -> None:
    shown = kmctl(home, "service", "install")
    assert "km starts it when it is away" in shown
    state = service_state(home)
    assert (state["manager"], state["running"]) == ("km", True)
    (file,) = state["files"]
    assert stat.S_IMODE(Path(file).stat().st_mode) == 0o600
    again = as_json(home, "service", "install")
    assert (again["changed"], again["pid"]) == (False, state["pid"])
    assert as_json(home, "service", "restart")["stopped_pid"] == state["pid"]
    kmctl(home, "service", "stop")
    assert "it was stopped" in run_kmctl("service", "status", environ=home)[1]
    assert "runs (pid" in kmctl(home, "service", "start")
    assert "runs already" in kmctl(home, "service", "start")
    kmctl(home, "service", "remove")
    assert not service_state(home)["running"]
    assert not list(Path(file).parent.glob("kmd.autostart*"))


def test_a_kmd_that_was_stopped_by_a_signal_ends_all_the_same(home: Environ) -> None:
    kmctl(home, "service", "install")
    pid = service_state(home)["pid"]
    os.kill(pid, signal.SIGSTOP)
    assert as_json(home, "service", "stop")["stopped_pid"] == pid


def test_a_socket_that_is_gone_comes_back_with_the_hint(home: Environ) -> None:
    kmctl(home, "service", "install")
    (socket,) = Path(home["HOME"]).rglob("control.sock")
    socket.unlink()
    code, _, err = run_kmctl("status", environ=home)
    assert (code, "hint: start it with 'kmctl service restart'" in err) == (3, True)
    kmctl(home, "service", "restart")
    assert run_kmctl("status", environ=home)[0] == 0


def test_the_log_can_be_read_and_followed(home: Environ) -> None:
    kmctl(home, "service", "install")
    assert kmctl(home, "service", "logs", "-n", "1").count("\n") == 1
    words = [command("kmctl"), "service", "logs", "-f", "-n", "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=clean_environ(home)) as process:
        try:
            assert process.stdout is not None
            assert "kmd is ready" in process.stdout.readline()  # by now it follows
            kmctl(home, "service", "restart")
            assert "kmd has stopped" in process.stdout.readline()
            assert "kmd is ready" in process.stdout.readline()
        finally:
            process.terminate()


@pytest.mark.parametrize("command_name", ["start", "restart"])
def test_what_is_not_installed_cannot_be_started(home: Environ, command_name: str) -> None:
    code, shown, err = run_kmctl("service", command_name, environ=home)
    assert (code, shown) == (1, "")
    assert "kmd is not installed as a service" in err
    assert "kmctl service install" in err


def test_nothing_is_installed_and_nothing_runs(home: Environ) -> None:
    assert kmctl(home, "service", "stop") == "kmd does not run\n"
    assert "nothing to remove" in kmctl(home, "service", "remove")
    code, shown, _ = run_kmctl("service", "status", environ=home)
    assert (code, "nobody" in shown) == (3, True)
    code, _, err = run_kmctl("service", "logs", environ=home)
    assert (code, "has not written a log" in err) == (3, True)


def test_remove_leaves_a_kmd_alone_that_it_does_not_know(tmp_path: Path) -> None:
    kmd = start_kmd(tmp_path / "home")
    try:
        assert as_json({}, "--home", str(tmp_path / "home"), "service", "remove")["changed"] is False
        assert read_status(tmp_path / "home")["daemon"]["pid"] == kmd.process.pid
        assert as_json({}, "--home", str(tmp_path / "home"), "service", "stop")["stopped_pid"] == kmd.process.pid
        assert kmd.process.wait(WAIT_S) == 0
    finally:
        kmd.stop()


def test_a_manager_that_refuses_is_an_error_with_its_own_words(home: Environ, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    script = '#!/bin/sh\ncase "$*" in *show*|*reset*) exit 0;; esac\necho "no such bus" >&2; exit 4\n'
    (programs / "systemctl").write_text(script)
    (programs / "systemctl").chmod(0o755)
    code, shown, err = run_kmctl("service", "install", environ={**home, "PATH": f"{programs}:{os.environ['PATH']}"})
    assert (code, shown) == (1, "")
    error, hint = err.splitlines()
    assert error == "error: 'systemctl --user daemon-reload' failed (4): no such bus"
    assert "--manager km" in hint


def test_a_configuration_that_kmd_cannot_use_is_said_before_anything_is_done(home: Environ) -> None:
    kmctl(home, "service", "install")
    pid = service_state(home)["pid"]
    kmctl(home, "init", "--local")
    (config,) = Path(home["HOME"]).rglob("config.toml")
    config.write_text("[log]\nlevel = 5\n")
    for action in ("install", "restart"):
        code, shown, err = run_kmctl("service", action, environ=home)
        assert (code, shown) == (1, "")
        assert "log.level: must be a text (line 2)" in err
    assert service_state(home)["pid"] == pid
    kmctl(home, "service", "stop")
    assert run_kmctl("service", "start", environ=home)[0] == 1

"""What the supervisors would do on each platform, as plans: no service manager is needed to see that."""

import plistlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from xml.etree import ElementTree as ET

import pytest

from kmctl.supervisors.by_km import ByKm, render_autostart
from kmctl.supervisors.lifecycle import check_kind, detect_kind, open_supervisor, read_user
from kmctl.supervisors.plan import (
    Answered,
    Deployment,
    Kind,
    RemoveFile,
    Run,
    Spawn,
    Supervisor,
    WriteFile,
    pick_environ,
    pick_label,
)
from kmctl.supervisors.systemd import quote
from kmctl.supervisors.windows_task import NAMESPACE, windowless
from kmd.errors import KilometersError
from kmd.paths import Places

ONE = Deployment(
    places=Places(Path("/u/.config/k/config.toml"), Path("/u/state"), Path("/u/.kilometers")),
    label="kmd",
    program=("/opt/py/bin/python", "-P", "-m", "kmd"),
    environ=(("XDG_STATE_HOME", "/u/a state"),),
    user_home=Path("/u"),
    user="me",
    uid=501,
)
KINDS = list(Kind)


def written(supervisor: Supervisor, one: Deployment = ONE) -> dict[str, str]:
    """The files of an installation by their names."""
    return {step.path.name: step.text for step in supervisor.plan_install(one) if isinstance(step, WriteFile)}


def words(plan: tuple[object, ...]) -> list[str]:
    return [" ".join(step.words) for step in plan if isinstance(step, Run)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_install_writes_is_what_remove_takes_away(kind: Kind) -> None:
    supervisor = open_supervisor(kind)
    wrote = {step.path for step in supervisor.plan_install(ONE) if isinstance(step, WriteFile)}
    assert wrote == set(supervisor.files(ONE))
    assert wrote <= {step.path for step in supervisor.plan_remove(ONE) if isinstance(step, RemoveFile)}
    assert all(step.may_fail for step in supervisor.plan_remove(ONE) if isinstance(step, Run))  # half installed


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_to_be_filled_in(kind: Kind) -> None:
    for text in written(open_supervisor(kind)).values():
        assert "@" not in text.replace("between two @", "")


@pytest.mark.parametrize("kind", KINDS)
def test_another_home_has_a_service_of_its_own(kind: Kind) -> None:
    other = replace(ONE, label="kmd-1a2b3c4d", places=replace(ONE.places, meeting_dir=Path("/x"), state_dir=Path("/x")))
    assert not set(open_supervisor(kind).files(ONE)) & set(open_supervisor(kind).files(other))


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_with_a_line_end_is_refused(kind: Kind) -> None:
    with pytest.raises(KilometersError) as caught:
        open_supervisor(kind).plan_install(replace(ONE, program=("/opt/py\n/python",)))
    assert caught.value.hint


def test_systemd() -> None:
    supervisor = open_supervisor(Kind.SYSTEMD)
    files = written(supervisor)
    listens = [line for line in files["kmd.socket"].splitlines() if line.startswith("ListenStream")]
    assert listens == ["ListenStream=/u/.kilometers/kmd.sock", "ListenStream=/u/.kilometers/control.sock"]
    service = files["kmd.service"].splitlines()
    assert 'ExecStart="/opt/py/bin/python" "-P" "-m" "kmd"' in service
    assert 'Environment="XDG_STATE_HOME=/u/a state"' in service
    assert "Requires=kmd.socket" in service
    ran = words(supervisor.plan_install(ONE))
    assert ran[:2] == ["systemctl --user daemon-reload", "systemctl --user enable kmd.socket kmd.service"]
    assert ran[-1] == "systemctl --user start kmd.socket kmd.service"
    without = written(supervisor, replace(ONE, environ=()))["kmd.service"]
    assert "Environment" not in without


@pytest.mark.parametrize(
    ("word", "quoted"),
    [("a b", '"a b"'), ("100%", '"100%%"'), ('"', r'"\""'), ("\\", r'"\\"')],
)
def test_systemd_quoting(word: str, quoted: str) -> None:
    assert quote(word) == quoted


def test_a_variable_of_systemd_is_none() -> None:
    text = written(open_supervisor(Kind.SYSTEMD), replace(ONE, program=("/a/$HOME/python",)))["kmd.service"]
    assert 'ExecStart="/a/$$HOME/python"' in text


def test_systemd_cannot_listen_on_a_long_path() -> None:
    long = replace(ONE, places=replace(ONE.places, meeting_dir=Path("/" + "x" * 100)))
    with pytest.raises(KilometersError, match="too long") as caught:
        open_supervisor(Kind.SYSTEMD).plan_install(long)
    assert "--manager km" in caught.value.hint


@pytest.mark.parametrize(
    ("active", "file", "runs", "starts"),
    [("active", "enabled", True, True), ("inactive", "disabled", False, False), ("activating", "enabled", True, True)],
)
def test_systemd_state(active: str, file: str, runs: bool, starts: bool) -> None:  # noqa: FBT001 - a table
    answer = (
        f"Id=kmd.socket\nLoadState=loaded\nActiveState=active\nUnitFileState={file}\n\n"
        f"Id=kmd.service\nLoadState=loaded\nActiveState={active}\nUnitFileState=enabled\n"
    )
    state = open_supervisor(Kind.SYSTEMD).parse_state(ONE, Answered(0, answer, ""))
    assert (state.installed, state.runs, state.starts_at_login) == (True, runs, starts)
    assert not open_supervisor(Kind.SYSTEMD).parse_state(ONE, Answered(1, "", "no bus")).installed


def test_launchd() -> None:
    supervisor = open_supervisor(Kind.LAUNCHD)
    (text,) = written(supervisor).values()
    agent = plistlib.loads(text.encode())
    assert agent["Label"] == "dev.kilometers.kmd"
    assert agent["ProgramArguments"] == [*ONE.program, "--log-file", "/u/state/kmd.log"]
    assert agent["EnvironmentVariables"] == {"XDG_STATE_HOME": "/u/a state"}
    assert (agent["RunAtLoad"], agent["KeepAlive"], agent["Umask"]) == (True, {"SuccessfulExit": False}, 0o077)
    assert supervisor.files(ONE) == (Path("/u/Library/LaunchAgents/dev.kilometers.kmd.plist"),)
    ran = words(supervisor.plan_install(ONE))
    assert ran[-1] == "launchctl bootstrap gui/501 /u/Library/LaunchAgents/dev.kilometers.kmd.plist"
    assert words(supervisor.plan_stop(ONE)) == ["launchctl kill SIGTERM gui/501/dev.kilometers.kmd"]


def test_launchd_state() -> None:
    supervisor = open_supervisor(Kind.LAUNCHD)
    assert supervisor.parse_state(ONE, Answered(0, "{\n\tstate = running\n\tpid = 5\n}", "")).runs is True
    assert supervisor.parse_state(ONE, Answered(0, "{\n\tstate = not running\n}", "")).runs is False
    assert supervisor.parse_state(ONE, Answered(113, "", "Could not find service")).starts_at_login is False


def find(task: ET.Element, name: str) -> list[str | None]:
    return [element.text for element in task.iter(f"{{{NAMESPACE}}}{name}")]


def test_windows_task() -> None:
    supervisor = open_supervisor(Kind.TASK)
    program = (r"C:\Users\me\a b\python.exe", "-P", "-m", "kmd", "--home", "C:\\k m\\")
    (step,) = (step for step in supervisor.plan_install(replace(ONE, program=program)) if isinstance(step, WriteFile))
    assert step.encoding == "utf-16"
    assert step.text.startswith('<?xml version="1.0" encoding="UTF-16"?>')
    task = ET.fromstring(step.text.partition("?>")[2])  # noqa: S314 - our own
    assert task.tag == f"{{{NAMESPACE}}}Task"
    assert find(task, "UserId") == ["me", "me"]
    assert find(task, "Command") == [r"C:\Users\me\a b\pythonw.exe"]
    assert find(task, "Arguments") == [f'-P -m kmd --home "C:\\k m\\\\" --log-file {ONE.log_file}']
    assert find(task, "ExecutionTimeLimit") == ["PT0S"]  # the default ends it after three days
    assert find(task, "DisallowStartIfOnBatteries") == ["false"]
    ran = words(supervisor.plan_install(ONE))
    assert ran[0].startswith("schtasks /Create /TN \\Kilometers\\kmd /XML")


@pytest.mark.parametrize(
    ("python", "without_window"),
    [
        (r"C:\py\python.exe", r"C:\py\pythonw.exe"),
        (r"C:\py\pythonw.exe", r"C:\py\pythonw.exe"),
        ("/usr/bin/python3", "/usr/bin/python3"),
    ],
)
def test_no_console_window(python: str, without_window: str) -> None:
    assert PureWindowsPath(windowless(python)) == PureWindowsPath(without_window)


@pytest.mark.parametrize(
    ("answer", "installed", "runs"),
    [
        (Answered(0, '"\\Kilometers\\kmd","N/A","Running"\r\n', ""), True, True),
        (Answered(0, '"\\Kilometers\\kmd","N/A","Bereit"\r\n', ""), True, None),
        (Answered(1, "", "ERROR: The system cannot find the file"), False, None),
    ],
)
def test_windows_state(answer: Answered, installed: bool, runs: bool | None) -> None:  # noqa: FBT001 - a table
    state = open_supervisor(Kind.TASK).parse_state(ONE, answer)
    assert (state.installed, state.runs) == (installed, runs)


def test_km_starts_what_the_file_says() -> None:
    supervisor = ByKm()
    (text,) = written(supervisor).values()
    assert text == render_autostart(ONE)
    assert text.splitlines()[1:] == [
        "env XDG_STATE_HOME=/u/a state",
        *(f"word {word}" for word in (*ONE.program, "--log-file", "/u/state/kmd.log")),
    ]
    (spawn,) = (step for step in supervisor.plan_install(ONE) if isinstance(step, Spawn))
    assert spawn.words == (*ONE.program, "--log-file", "/u/state/kmd.log")
    first = supervisor.plan_stop(ONE)[0]
    assert isinstance(first, WriteFile)  # at no moment do both say nothing: it stays installed
    assert first.path.name == "kmd.autostart.off"


@pytest.mark.parametrize(
    ("platform", "code", "kind"),
    [
        ("linux", 0, Kind.SYSTEMD),
        ("linux", 1, Kind.KM),
        ("linux", 127, Kind.KM),
        ("darwin", 127, Kind.LAUNCHD),
        ("win32", 127, Kind.TASK),
        ("freebsd14", 127, Kind.KM),
    ],
)
def test_who_keeps_kmd_running_here(platform: str, code: int, kind: Kind) -> None:
    asked: list[Sequence[str]] = []

    def ask(words: Sequence[str]) -> Answered:
        asked.append(words)
        return Answered(code, "", "")

    assert detect_kind(platform, ask) is kind
    assert bool(asked) == (platform not in ("darwin", "win32"))


def test_km_cannot_be_chosen_where_it_starts_nothing() -> None:
    for kind in Kind:
        assert check_kind(kind, "linux") is kind
    assert check_kind(Kind.TASK, "win32") is Kind.TASK
    with pytest.raises(KilometersError, match="not start kmd on Windows") as caught:
        check_kind(Kind.KM, "win32")
    assert "task scheduler" in caught.value.hint


def test_the_scheduler_never_kills_kmd() -> None:
    task = open_supervisor(Kind.TASK)
    assert task.plan_stop(ONE) == ()
    plans = (*task.plan_install(ONE), *task.plan_remove(ONE), *task.plan_start(ONE))
    assert [step for step in plans if isinstance(step, Run) and "/End" in step.words] == []


def test_a_user_of_windows_has_a_domain() -> None:
    environ = {"USERNAME": "me", "USERDOMAIN": "OFFICE"}
    assert read_user(environ, "win32") == "OFFICE\\me"
    assert read_user(environ, "linux") == "me"
    assert read_user({"USERNAME": "me"}, "win32") == "me"


def test_the_environment_that_goes_along_holds_no_secret_of_a_server() -> None:
    environ = {
        "GITHUB_TOKEN": "t", "KM_HOME": "/x", "XDG_STATE_HOME": "/s", "https_proxy": "http://p", "SSL_CERT_FILE": "/c",
        "XDG_CONFIG_HOME": "",
    }  # fmt: skip
    assert dict(pick_environ(environ, has_home=False)) == {
        "XDG_STATE_HOME": "/s", "SSL_CERT_FILE": "/c", "https_proxy": "http://p",
    }  # fmt: skip
    assert "XDG_STATE_HOME" not in dict(pick_environ(environ, has_home=True))


def test_labels() -> None:
    assert pick_label(ONE.places, Path("/u/.kilometers")) == "kmd"
    other = pick_label(replace(ONE.places, meeting_dir=Path("/x")), Path("/u/.kilometers"))
    assert other.startswith("kmd-")
    assert other != pick_label(replace(ONE.places, meeting_dir=Path("/y")), Path("/u/.kilometers"))

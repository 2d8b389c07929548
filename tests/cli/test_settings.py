"""`kmctl config`: what is set, where it comes from, and changing it without disturbing what a person has written."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmctl.cli import run
from kmctl.settings import drop_setting, put_setting
from kmd.config import SETTINGS, Setting, parse_config, render_config
from kmd.toml_lines import find_line
from tests.cli.stub import stub_daemon
from tests.cli.terminal import run_kmctl, run_on_terminal
from tests.daemon.test_config import other_value

Shown = pytest.CaptureFixture[str]
FILE = Path("/somewhere/config.toml")
OWN = """\
# mine
[log]   # how loud
# level = "info"
level = 'debug' # for now

[[destinations]]
name = "team"  # us
url = "https://km.example.com"
key = "km_secret"
"""


def config(home: Path, *arguments: str) -> int:
    return run(["--home", str(home), "config", *arguments])


def write_own(home: Path, text: str = OWN) -> Path:
    path = home / "config.toml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def read_all(home: Path, capsys: Shown, *options: str) -> dict[str, Any]:
    assert config(home, *options, "--json") == 0
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    return shown


def test_each_value_has_its_source(tmp_path: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    write_own(tmp_path)
    monkeypatch.setenv("KM_SYNC_TIMEOUT_S", "5")
    for options in ([], ["list"]):
        told = read_all(tmp_path, capsys, *options)
        found = {one["name"]: (one["value"], one["source"]) for one in told["settings"]}
        assert found["log.level"] == ("debug", "file")
        assert found["sync.timeout_s"] == (5, "environment")
        assert found["outbox.max_age_days"] == (14, "default")
        assert (told["source"], told["exists"]) == ("--home", True)
        assert told["destinations"] == [
            {"name": "team", "url": "https://km.example.com", "key": "set", "key_from": None, "ca_file": None}
        ]
    assert config(tmp_path) == 0
    shown = capsys.readouterr().out
    assert "(from --home)" in shown.splitlines()[0]
    assert "KM_SYNC_TIMEOUT_S" in shown
    assert "km_secret" not in shown


def test_the_place_of_the_file_has_a_source_too(tmp_path: Path) -> None:
    environ = {"KM_HOME": str(tmp_path)}
    assert "(from KM_HOME, not there: defaults)" in run_kmctl("config", environ=environ)[1]
    assert "(from the platform" in run_kmctl("config", environ={"HOME": str(tmp_path)})[1]


def test_get(tmp_path: Path, capsys: Shown) -> None:
    write_own(tmp_path)
    assert config(tmp_path, "get", "log.level") == 0
    assert capsys.readouterr().out == "debug\n"
    assert config(tmp_path, "get", "capture.payloads", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["value"], told["source"], told["variable"]) == (True, "default", "KM_CAPTURE_PAYLOADS")


def test_set_keeps_what_a_person_wrote(tmp_path: Path, capsys: Shown) -> None:
    path = write_own(tmp_path)
    assert config(tmp_path, "set", "log.level", "error") == 0
    assert "log.level = error" in capsys.readouterr().out
    assert path.read_text() == OWN.replace("'debug'", '"error"')
    assert config(tmp_path, "set", "sync.timeout_s", "5") == 0
    assert path.read_text().startswith(OWN.replace("'debug'", '"error"'))
    assert parse_config(path.read_text(), {}).timeout_s == 5
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.toml"]


def test_set_makes_the_file_that_init_would(tmp_path: Path) -> None:
    assert config(tmp_path / "new", "set", "capture.payloads", "no") == 0
    text = (tmp_path / "new" / "config.toml").read_text()
    assert parse_config(text, {}).keep_payloads is False
    assert text.replace("payloads = false\n", "") == render_config(())


def test_unset(tmp_path: Path, capsys: Shown) -> None:
    path = write_own(tmp_path)
    assert config(tmp_path, "unset", "log.level") == 0
    assert "log.level = info" in capsys.readouterr().out
    assert path.read_text() == OWN.replace("level = 'debug' # for now\n", "")
    assert config(tmp_path, "unset", "log.level") == 0
    assert "log.level = info already" in capsys.readouterr().out


@pytest.mark.parametrize("action", [["set", "log.level", "debug"], ["unset", "sync.timeout_s"]], ids=str)
def test_what_is_so_already_changes_nothing(tmp_path: Path, action: list[str]) -> None:
    path = write_own(tmp_path)
    before = path.stat()
    with stub_daemon(tmp_path, {"reload": [{"done": True}]}) as stub:
        assert config(tmp_path, *action) == 0
    assert (path.stat().st_ino, stub.requests) == (before.st_ino, [])


def test_a_running_kmd_is_told(tmp_path: Path, capsys: Shown) -> None:
    with stub_daemon(tmp_path, {"reload": [{"done": True}]}) as stub:
        assert config(tmp_path, "set", "sync.timeout_s", "5") == 0
        assert "kmd has read the new configuration" in capsys.readouterr().out
        assert config(tmp_path, "set", "log.level", "debug") == 0
        assert "kmctl service restart --home" in capsys.readouterr().out  # it looks only when it starts
    assert stub.requests == [{"op": "reload"}] * 2
    with stub_daemon(tmp_path / "other", {"reload": [{"error": {"message": "no", "hint": "do"}}]}):
        assert config(tmp_path / "other", "set", "sync.timeout_s", "5") == 1
    assert "kmd did not take the new configuration: no (do)" in capsys.readouterr().err


def test_a_variable_that_wins_is_named(tmp_path: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KM_LOG_LEVEL", "warning")
    assert config(tmp_path, "set", "log.level", "debug") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["log.level = warning", "but KM_LOG_LEVEL in the environment wins over the file here"]


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["get", "log.levels"], "log.levels: no such setting", "kmctl config list"),
        (["get", "logging.level"], "logging.level: no such setting", "did you mean log.level?"),
        (["set", "log.level", "loud"], "log.level: must be one of debug, info, warning, error", "How much"),
        (["set", "sync.timeout_s", "0"], "sync.timeout_s: must be 1 to 600", "Total seconds"),
        (["set", "sync.timeout_s", "soon"], "sync.timeout_s: must be a whole number", "Total seconds"),
        (["set", "capture.payloads", "maybe"], "capture.payloads: must be true or false", "Keep"),
        (["set", "destinations.team.url", "x"], "destinations.team.url: no such setting", "kmctl login"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(tmp_path: Path, capsys: Shown, arguments: list[str], error: str, hint: str) -> None:
    path = write_own(tmp_path)
    assert config(tmp_path, *arguments) == 1
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == f"error: {error}"
    assert hint in shown[1]
    assert path.read_text() == OWN


def test_a_file_that_is_wrong_says_which_line(tmp_path: Path, capsys: Shown) -> None:
    write_own(tmp_path, OWN.replace("'debug'", "'loud'"))
    assert config(tmp_path) == 1
    assert "log.level: must be one of debug, info, warning, error (line 4)" in capsys.readouterr().err
    assert config(tmp_path, "set", "sync.timeout_s", "5") == 1
    assert "(line 4)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("log", 2),
        ("log.level", 4),
        ("destinations[1]", 6),
        ("destinations[1].name", 7),
        ("destinations[1].key", 9),
        ("destinations[1].missing", 6),
        ("destinations[2].url", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_lines(where: str, line: int | None) -> None:
    assert find_line(OWN, where) == line


@pytest.mark.parametrize(
    ("text", "where", "line"),
    [
        ("a = 1\nlog.level = 5\n", "log.level", 2),
        ("\n[ 'log' ] # x\n  \"level\" = 5", "log.level", 3),
        ("log = {level = 5}\n", "log.level", 1),
        ("[[destinations]]\n[[destinations]]\nurl = 5", "destinations[2].url", 3),
        ("[log]\r\nlevel = 5\r\n", "log.level", 2),
    ],
)
def test_lines_in_other_layouts(text: str, where: str, line: int) -> None:
    assert find_line(text, where) == line


LAYOUTS = [
    "",
    OWN,
    OWN.replace("\n", "\r\n"),
    "log = {level = 'info'}\n",
    "log.level = 'info'\nsync.timeout_s = 5\n",
    "[sync]\ntimeout_s = 5\n[log]",
    "[capture]\n\n\n# end",
]


@given(st.sampled_from(SETTINGS), st.sampled_from(LAYOUTS))
def test_put_and_drop_touch_nothing_else(setting: Setting, text: str) -> None:
    value = other_value(setting)
    put = put_setting(text, setting, value, FILE)
    now = parse_config(put, {})
    assert getattr(now, setting.field) == value
    before = parse_config(text, {})
    for other in SETTINGS:
        if other is not setting:
            assert getattr(now, other.field) == getattr(before, other.field)
    assert now.destinations == before.destinations
    for comment in ("# mine", "# how loud", "# us", "# end"):
        assert (comment in put) == (comment in text)
    assert put_setting(put, setting, value, FILE) == put
    dropped = drop_setting(put, setting, FILE)
    assert parse_config(dropped, {}).sources[setting.name] == "default"


def editor(folder: Path, script: str) -> dict[str, str]:
    """An editor that does what *script* says to its `$1`."""
    path = folder / "editor"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"EDITOR": str(path), "VISUAL": ""}


def test_edit(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    path = write_own(home)
    environ = editor(tmp_path, 'ls -l "$1" | cut -c1-10; sed -i s/debug/error/ "$1"')
    code, shown, err = run_kmctl("--home", str(home), "config", "edit", environ=environ)
    assert (code, err) == (0, "")
    assert "-rw-------" in shown
    assert path.read_text() == OWN.replace("debug", "error")
    (backup,) = home.glob("config.toml.*.bak")
    assert backup.read_text() == OWN
    code, shown, _ = run_kmctl("--home", str(home), "config", "edit", environ=editor(tmp_path, "true"))
    assert (code, shown) == (0, "nothing was changed\n")


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ('echo "[log" > "$1"', "not valid TOML"),
        ('echo "[log]\nlevel = 5" > "$1"', "must be a text (line 2)"),
        ("exit 3", "ended with 3; nothing was changed"),
    ],
)
def test_an_edit_that_is_wrong_changes_nothing(tmp_path: Path, script: str, problem: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    path = write_own(home)
    code, _, err = run_kmctl("--home", str(home), "config", "edit", environ=editor(tmp_path, script))
    assert code == 1
    assert problem in err
    assert path.read_text() == OWN
    assert len(list(home.iterdir())) == 1


@pytest.mark.parametrize("there", [True, False])
def test_what_another_program_wrote_during_an_edit_stays(tmp_path: Path, there: bool) -> None:  # noqa: FBT001 - two cases
    home = tmp_path / "home"
    home.mkdir()
    path = home / "config.toml"
    if there:
        write_own(home)
    other = "[log]\nlevel = 'warning'\n"
    script = f"sed -i s/debug/error/ $1; echo '# mine' >> $1; printf %s \"{other}\" > {path}; chmod 600 {path}"
    code, _, err = run_kmctl("--home", str(home), "config", "edit", environ=editor(tmp_path, script))
    assert code == 1
    assert "has changed while you edited it" in err
    assert path.read_text() == other
    (kept,) = home.glob("config.toml.*.bak")
    assert kept.read_text().endswith("# mine\n")
    assert str(kept) in err
    assert kept.stat().st_mode & 0o077 == 0


def test_no_editor(tmp_path: Path) -> None:
    environ = {"EDITOR": str(tmp_path / "missing"), "VISUAL": ""}
    code, _, err = run_kmctl("--home", str(tmp_path), "config", "edit", environ=environ)
    assert (code, "set VISUAL or EDITOR" in err) == (1, True)


def test_on_a_terminal_it_may_be_edited_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    path = write_own(home)
    correct, spoil = 's/level = 5/level = "error"/', "s/level = .*/level = 5/"
    script = f"if grep -q 'level = 5' $1; then sed -i '{correct}' $1; else sed -i '{spoil}' $1; fi"
    environ = editor(tmp_path, script)
    code, shown = run_on_terminal(["--home", str(home), "config", "edit"], typed="y\n", environ=environ)
    assert code == 0, shown
    assert parse_config(path.read_text(), {}).log_level == "error"
    path.write_text(OWN)
    code, shown = run_on_terminal(["--home", str(home), "config", "edit"], typed="n\n", environ=environ)
    assert code == 130
    assert path.read_text() == OWN

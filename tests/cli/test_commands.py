"""status, flush, tail and config against a control socket that plays a script."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from kmctl.answers import Progress
from kmctl.cli import run
from kmctl.flush import make_line_printer
from kmd.config import SETTINGS
from tests.cli.stub import Script, destination_of, status_of, stub_daemon
from tests.cli.terminal import run_kmctl, run_on_terminal

Shown = pytest.CaptureFixture[str]

EVENT = {
    "seq": 5,
    "server": "git",
    "session": "s",
    "stream": "to_client",
    "offset": 0,
    "at_ns": 1_767_225_600_123_456_789,
    "kind": "response",
    "method": "tools/call",
    "target": "git_log",
    "rpc_id": '"a"',
    "size_bytes": 300,
    "took_ns": 5_000_000,
    "outcome": "ok",
    "later": {"unknown": 1},
}


def progress(pending: int, state: str = "sending") -> dict[str, Any]:
    return {"progress": [{"name": "team", "mark": 100, "cursor": 100 - pending, "pending": pending, "state": state}]}


def flush_scripts(*answers: dict[str, Any] | float) -> dict[str, Script]:
    return {"status": [{"status": status_of(destination_of())}], "flush": answers}


def test_status_json_is_what_kmd_said(tmp_path: Path, capsys: Shown) -> None:
    status = {**status_of(destination_of(name="\x1b[2J")), "later": [1]}
    with stub_daemon(tmp_path, {"status": [{"status": status}]}):
        assert run(["--home", str(tmp_path), "status", "--json"]) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown) == status
    assert "\x1b" not in shown


@pytest.mark.parametrize("extra", [[], ["--json"]], ids=str)
@pytest.mark.parametrize("fault", [{"state": "paused"}, {"state": "retrying"}, {"quarantined": 1}], ids=str)
def test_a_degraded_status_prints_and_exits_4(
    tmp_path: Path, capsys: Shown, extra: list[str], fault: dict[str, Any]
) -> None:
    with stub_daemon(tmp_path, {"status": [{"status": status_of(destination_of(**fault))}]}):
        assert run(["--home", str(tmp_path), "status", *extra]) == 4
    shown = capsys.readouterr()
    assert "team" in shown.out
    assert shown.err == ""


def test_status_in_a_pipe_has_whole_values_and_no_filling(tmp_path: Path, capsys: Shown) -> None:
    url = "https://km.example.com/" + "a" * 300
    with stub_daemon(tmp_path, {"status": [{"status": status_of(destination_of(url=url))}]}):
        assert run(["--home", str(tmp_path), "status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(url in line for line in lines)
    assert all(line == line.rstrip() for line in lines)


def test_an_error_of_kmd_is_shown(tmp_path: Path, capsys: Shown) -> None:
    with stub_daemon(tmp_path, {"status": [{"error": {"message": "it broke", "hint": "mend it"}}]}):
        assert run(["--home", str(tmp_path), "status"]) == 1
    assert capsys.readouterr().err == "error: it broke\nhint: mend it\n"


def test_flush_without_destinations(tmp_path: Path, capsys: Shown) -> None:
    with stub_daemon(tmp_path, {"status": [{"status": status_of()}]}) as stub:
        assert run(["--home", str(tmp_path), "flush"]) == 0
        assert run(["--home", str(tmp_path), "flush", "--json"]) == 0
    plain, as_json = capsys.readouterr().out.splitlines()
    assert plain == "nothing to sync to: local only"
    assert json.loads(as_json) == {"done": True, "reasons": [], "destinations": []}
    assert {request["op"] for request in stub.requests} == {"status"}


def test_flush_that_ends_well(tmp_path: Path, capsys: Shown) -> None:
    with stub_daemon(tmp_path, flush_scripts(progress(40), progress(0, "idle"), {"done": True})) as stub:
        assert run(["--home", str(tmp_path), "flush", "--timeout", "7"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "everything is synced\n"
    assert shown.err == "team: 40 pending (sending)\n"
    assert stub.requests[-1] == {"op": "flush", "timeout_s": 7.0}


REASON = {
    "name": "team",
    "pending": 3,
    "state": "paused",
    "error": "the key was refused (401)",
    "hint": "check the key",
}


def test_flush_that_cannot_end(tmp_path: Path, capsys: Shown) -> None:
    other = {**REASON, "name": "other", "error": None, "hint": None}
    with stub_daemon(tmp_path, flush_scripts(progress(3), {"done": False, "reasons": [REASON, other]})):
        assert run(["--home", str(tmp_path), "flush"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[1:] == [
        "error: team: 3 events pending, paused: the key was refused (401) (check the key)",
        "error: other: 3 events pending, paused",
    ]


@pytest.mark.parametrize(
    ("final", "code"), [({"done": True}, 0), ({"done": False, "reasons": [REASON]}, 1), ({"done": False}, 1)]
)
def test_flush_json_is_one_object(tmp_path: Path, capsys: Shown, final: dict[str, Any], code: int) -> None:
    with stub_daemon(tmp_path, flush_scripts(progress(40), progress(3), final)):
        assert run(["--home", str(tmp_path), "flush", "--json"]) == code
    shown = capsys.readouterr()
    assert shown.err == ""
    assert json.loads(shown.out) == {"reasons": [], **final, "destinations": progress(3)["progress"]}


def test_flush_when_kmd_goes_away(tmp_path: Path, capsys: Shown) -> None:
    with stub_daemon(tmp_path, flush_scripts(progress(40))):
        assert run(["--home", str(tmp_path), "flush"]) == 3
    assert "kmd went away" in capsys.readouterr().err


def test_flush_on_a_terminal_has_a_bar(tmp_path: Path) -> None:
    with stub_daemon(tmp_path, flush_scripts(progress(40), progress(60), progress(0, "idle"), {"done": True})):
        code, shown = run_on_terminal(["--home", str(tmp_path), "flush"])
    assert code == 0
    assert "60/60" in shown
    assert "━" in shown
    assert "everything is synced" in shown


def test_progress_lines_come_at_most_once_a_second(capsys: Shown) -> None:
    times = iter([0.0, 0.0, 0.0, 0.5, 0.99, 1.0, 1.0, 1.5, 2.2, 2.2])
    show = make_line_printer(lambda: next(times))
    for pending in (60, 50, 40, 30, 20, 10):
        show([Progress(name="team", pending=pending, state="sending")])
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["60", "30", "10"]


def test_tail_asks_for_what_was_wanted(tmp_path: Path) -> None:
    with stub_daemon(tmp_path, {"tail": []}) as stub:
        assert run(["--home", str(tmp_path), "tail"]) == 0
        assert run(["--home", str(tmp_path), "tail", "-n", "3", "-f"]) == 3
    assert stub.requests == [
        {"op": "tail", "limit": 20, "follow": False},
        {"op": "tail", "limit": 3, "follow": True},
    ]


def test_tail_in_a_pipe_is_whole(tmp_path: Path) -> None:
    event = {**EVENT, "target": "x" * 3000}
    with stub_daemon(tmp_path, {"tail": [{"event": event}, {"event": EVENT}]}):
        code, shown, err = run_kmctl("--home", str(tmp_path), "tail", environ={"FORCE_COLOR": "1"})
    assert (code, err) == (0, "")
    first, second = shown.splitlines()
    assert "x" * 3000 in first
    assert second.startswith("2026-01-01T00:00:00.123+0000 git")
    assert second.split("response")[1].split() == ["tools/call", "git_log", '#"a"', "300", "B", "5.00", "ms", "ok"]


@pytest.mark.parametrize("columns", [20, 80])
def test_tail_on_a_terminal_never_wraps(tmp_path: Path, columns: int) -> None:
    events = [{"event": {**EVENT, "target": target}} for target in ("x" * 500, "大" * 100, "a\nb")]
    with stub_daemon(tmp_path, {"tail": events}):
        code, shown = run_on_terminal(["--home", str(tmp_path), "tail"], columns=columns, environ={"NO_COLOR": "1"})
    lines = shown.splitlines()
    assert (code, len(lines)) == (0, 3)
    assert all(cell_len(line) <= columns for line in lines)


def test_tail_is_coloured_but_events_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x9b2J"
    with stub_daemon(tmp_path, {"tail": [{"event": {**EVENT, "server": evil, "method": evil, "target": evil}}]}):
        _, shown = run_on_terminal(["--home", str(tmp_path), "tail"], columns=200)
    assert "\x1b[" in shown
    assert "\x1b]" not in shown
    assert not {"\x07", "\x9b"} & set(shown)


def test_tail_json_is_an_object_per_line(tmp_path: Path, capsys: Shown) -> None:
    events = [EVENT, {**EVENT, "method": "\x1b[2J\ud800\u2028\n"}]
    with stub_daemon(tmp_path, {"tail": [{"event": event} for event in events]}):
        assert run(["--home", str(tmp_path), "tail", "--json"]) == 0
    shown = capsys.readouterr().out
    assert [json.loads(line) for line in shown.splitlines()] == events
    assert shown.isascii()
    assert "\x1b" not in shown


@pytest.mark.parametrize("command", [["tail", "-f"], ["flush", "--timeout", "1"]], ids=str)
def test_a_command_that_waits_for_something_outlasts_a_silence(
    tmp_path: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setattr("kmctl.tail.ANSWER_TIMEOUT_S", 0.05)
    scripts: dict[str, Script] = {**flush_scripts(progress(1), 1.2, {"done": True}), "tail": [0.2, {"event": EVENT}]}
    with stub_daemon(tmp_path, scripts):
        code = run(["--home", str(tmp_path), *command])
    shown = capsys.readouterr()
    if command[0] == "tail":
        assert "git_log" in shown.out
    else:
        assert (code, shown.out) == (0, "everything is synced\n")


def test_tail_follow_says_when_kmd_stops(tmp_path: Path, capsys: Shown) -> None:
    with stub_daemon(tmp_path, {"tail": [{"event": EVENT}]}):
        assert run(["--home", str(tmp_path), "tail", "-f"]) == 3
    shown = capsys.readouterr()
    assert "git_log" in shown.out
    assert shown.err.startswith("error: kmd stopped\n")


def test_config_shows_values_and_sources_but_no_key(
    tmp_path: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = '[[destinations]]\nurl = "https://km.example.com"\nkey = "km_secret"\n'
    (tmp_path / "config.toml").write_text('[log]\nlevel = "debug"\n' + destination)
    monkeypatch.setenv("KM_SYNC_TIMEOUT_S", "7")
    assert run(["--home", str(tmp_path), "config"]) == 0
    plain = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in plain.splitlines()}
    assert rows["log.level"] == ["debug", "file"]
    assert rows["sync.timeout_s"] == ["7", "KM_SYNC_TIMEOUT_S"]
    assert rows["capture.payloads"] == ["true", "default"]
    assert rows["destination"] == ["default", "https://km.example.com", "(key", "set)"]
    assert run(["--home", str(tmp_path), "config", "--json"]) == 0
    as_json = capsys.readouterr().out
    assert "secret" not in plain + as_json
    shown = json.loads(as_json)
    assert [row["name"] for row in shown["settings"]] == [setting.name for setting in SETTINGS]
    assert {row["name"]: row["source"] for row in shown["settings"]}["sync.timeout_s"] == "environment"
    (destination_shown,) = shown["destinations"]
    assert destination_shown == {
        "name": "default",
        "url": "https://km.example.com",
        "key": "set",
        "key_from": None,
        "ca_file": None,
    }
    assert (shown["file"], shown["exists"]) == (str(tmp_path / "config.toml"), True)


def test_config_of_a_broken_file(tmp_path: Path, capsys: Shown) -> None:
    (tmp_path / "config.toml").write_text("[log\n")
    assert run(["--home", str(tmp_path), "config"]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {tmp_path / 'config.toml'}: not valid TOML")
    assert hint.startswith("hint: correct that line")

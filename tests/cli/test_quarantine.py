"""kmctl quarantine: what it asks, what it shows, and what it asks a person first."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kmctl.cli import run
from tests.cli.stub import stub_daemon
from tests.cli.terminal import run_on_terminal
from tests.daemon.test_quarantine import BAD, GOOD, quarantined, send_lines
from tests.support.misbehaving import misbehaving, poison
from tests.support.processes import running_kmd, wait_for, write_config

Shown = pytest.CaptureFixture[str]
Answers = Sequence[dict[str, Any]]


def refused(seq: int = 5, **event: object) -> dict[str, Any]:
    usual = {"session": "s", "stream": "to_server", "offset": 9, "at_ns": 10**18, "kind": "request", "size_bytes": 3}
    return {
        "refused": {
            "destination": "team",
            "seq": seq,
            "reason": "bad \x1b[2J offset",
            "refused_at": "2026-01-02T03:04:05.678Z",
            "server": "files",
            "event": {**usual, "method": "tools/call", "target": "read\x07", **event},
        }
    }


def asked(home: Path, answers: Answers, *words: str) -> tuple[int, dict[str, Any]]:
    """Run `kmctl quarantine`: its exit code and what it asked kmd."""
    with stub_daemon(home, {"quarantine": answers}) as stub:
        code = run(["--home", str(home), "quarantine", *words])
    (home / "control.sock").unlink()
    (request,) = stub.requests
    return code, request


def test_list_shows_each_with_its_reason_and_nothing_that_a_terminal_obeys(tmp_path: Path, capsys: Shown) -> None:
    code, request = asked(tmp_path, [refused(5), refused(-1)], "list", "--destination", "team")
    assert code == 0
    assert request == {
        "op": "quarantine", "action": "list", "destination": "team", "seq": None, "all": False,
    }  # fmt: skip
    shown = capsys.readouterr().out
    assert [line.split()[:2] for line in shown.splitlines()[1:]] == [["5", "team"], ["-1", "team"]]
    assert r"bad \x1b[2J offset" in shown
    assert r"read\x07" in shown
    assert "\x1b" not in shown


def test_list_of_nothing_and_list_for_programs(tmp_path: Path, capsys: Shown) -> None:
    assert asked(tmp_path, [], "list")[0] == 0
    assert capsys.readouterr().out == "no event was refused\n"
    assert asked(tmp_path, [refused(5)], "list", "--json")[0] == 0
    assert json.loads(capsys.readouterr().out) == refused(5)["refused"]


@pytest.mark.parametrize(
    ("event", "last"),
    [
        ({"payload": '{"a":"\x1b[2J\u202e"}'}, r'{"a":"\x1b[2J\u202e"}'),
        ({"payload_base64": base64.b64encode(b"\xff\x00{").decode()}, r"\xff\x00{"),
        ({}, "(no payload was kept)"),
    ],
    ids=["text", "bytes", "none"],
)
def test_show_prints_the_event_with_its_payload_made_harmless(
    tmp_path: Path, capsys: Shown, event: dict[str, object], last: str
) -> None:
    code, request = asked(tmp_path, [refused(-3, **event)], "show", "-3")
    assert (code, request["action"], request["seq"]) == (0, "show", -3)
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == last
    assert "2001-09-09T01:46:40" in shown
    assert "\x1b" not in shown


def test_show_of_an_event_that_was_not_kept(tmp_path: Path, capsys: Shown) -> None:
    answer = refused()
    answer["refused"] |= {"event": None, "server": None}
    assert asked(tmp_path, [answer], "show", "5")[0] == 0
    assert "reason" in capsys.readouterr().out


def retried(seq: int, error: str | None = None) -> dict[str, Any]:
    one = {"destination": "team", "seq": seq, "delivered": error is None, "error": error, "hint": error and "do this"}
    return {"retried": one}


def test_retry_says_what_arrived_and_why_the_rest_did_not(tmp_path: Path, capsys: Shown) -> None:
    answers = [retried(1), retried(2, "still bad"), {"done": True, "delivered": 1, "kept": 1}]
    code, request = asked(tmp_path, answers, "retry", "--all")
    assert (code, request["action"], request["seq"], request["all"]) == (1, "retry", None, True)
    shown = capsys.readouterr()
    assert shown.out == "delivered 1 to team\n1 event delivered, 1 kept\n"
    assert shown.err == "error: not delivered 2 to team: still bad (do this)\n"
    assert asked(tmp_path, [retried(1), {"done": True, "delivered": 1, "kept": 0}], "retry", "1", "--json")[0] == 0
    assert json.loads(capsys.readouterr().out) == retried(1)["retried"]


def test_drop_asks_nobody_when_told_so_and_refuses_when_nobody_is_there(tmp_path: Path, capsys: Shown) -> None:
    code, request = asked(tmp_path, [{"done": True, "dropped": 3}], "drop", "--all", "--yes", "--json")
    assert (code, request["action"], request["all"]) == (0, "drop", True)
    assert json.loads(capsys.readouterr().out) == {"dropped": 3}
    with stub_daemon(tmp_path, {}) as stub:
        assert run(["--home", str(tmp_path), "quarantine", "drop", "7"]) == 2
    assert stub.requests == []
    assert "--yes" in capsys.readouterr().err


@pytest.mark.parametrize(("typed", "code", "requests"), [("y\n", 0, 1), ("n\n", 1, 0), ("\n", 1, 0)])
def test_drop_asks_first_on_a_terminal(tmp_path: Path, typed: str, code: int, requests: int) -> None:
    with stub_daemon(tmp_path, {"quarantine": [{"done": True, "dropped": 1}]}) as stub:
        done, shown = run_on_terminal(["quarantine", "drop", "7", "--home", str(tmp_path)], typed=typed)
    assert (done, len(stub.requests)) == (code, requests)
    assert "Forget refused event 7 for good?" in shown


@pytest.mark.parametrize("words", [["retry"], ["drop"], ["retry", "1", "--all"], ["show"], ["show", "x"], ["dance"]])
def test_what_makes_no_sense_is_a_usage_error(tmp_path: Path, words: list[str]) -> None:
    assert run(["--home", str(tmp_path), "quarantine", *words]) == 2


def test_all_of_it_with_a_real_kmd(tmp_path: Path, capsys: Shown) -> None:
    def quarantine(*words: str) -> int:
        return run(["--home", str(home), "quarantine", *words])

    home = tmp_path / "home"
    with misbehaving() as server:
        server.script = poison(server, {0, len(BAD)}, 422)
        write_config(home, ("team", server.url, ""))
        with running_kmd(home):
            send_lines(home, BAD, BAD, GOOD)
            wait_for(lambda: quarantined(home) == 2, "two refusals")
            assert quarantine("list") == 0
            assert quarantine("show", "1") == 0
            assert r"\x1b[2J" in capsys.readouterr().out
            assert quarantine("retry", "1") == 1
            assert "422" in capsys.readouterr().err
            server.script = server.behave
            assert quarantine("retry", "1") == 0
            assert quarantine("drop", "--all", "--yes") == 0
            assert quarantine("drop", "2", "--yes") == 1
            assert (quarantined(home), len(server.stored)) == (0, 2)

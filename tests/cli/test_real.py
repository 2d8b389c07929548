"""kmctl with the real kmd and the real km-server."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.terminal import run_kmctl
from tests.support.processes import WAIT_S, command, create_key, running_kmd, running_server, wait_for

REQUEST = '{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"say"}}\n'


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """The home of a running kmd without a destination."""
    with running_kmd(tmp_path / "home") as _:
        yield tmp_path / "home"


def kmctl(home: Path, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
    return run_kmctl(*arguments, "--home", str(home), stdin=stdin)


def read_json(home: Path, *arguments: str) -> tuple[int, Any]:
    code, shown, err = kmctl(home, *arguments, "--json")
    assert err == ""
    return code, json.loads(shown)


def send(home: Path, messages: int) -> None:
    """Let *messages* requests cross km to a server that sends them back, and wait until they are committed."""
    before = read_json(home, "status")[1]["outbox"]["events"]
    text = "".join(REQUEST % number for number in range(messages))
    words = [command("km"), "--home", str(home), "--name", "echo", "--", "cat"]
    subprocess.run(words, input=text, text=True, stdout=subprocess.DEVNULL, check=True, timeout=WAIT_S)
    wait_for(lambda: read_json(home, "status")[1]["outbox"]["events"] == before + 2 * messages, "the commit")


def test_status_has_what_the_contract_names(home: Path) -> None:
    code, status = read_json(home, "status")
    assert code == 0
    assert {"version", "pid", "uptime_s"} <= set(status["daemon"])
    assert {"events", "bytes", "oldest_pending_age_s"} <= set(status["outbox"])
    assert (status["sessions"], status["destinations"]) == ([], [])
    assert kmctl(home, "init", "--url", "http://127.0.0.1:1", "--no-check", "--name", "team")[0] == 0
    _, status = read_json(home, "status")
    (destination,) = status["destinations"]
    wanted = {"name", "url", "cursor", "pending", "state", "last_error", "next_attempt_s"}
    assert wanted <= set(destination)
    assert (destination["name"], destination["url"]) == ("team", "http://127.0.0.1:1")


def test_a_live_session_is_shown(home: Path) -> None:
    words = [command("km"), "--home", str(home), "--name", "echo", "--", "cat"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        (session,) = wait_for(lambda: read_json(home, "status")[1]["sessions"], "the session")
        assert (session["name"], session["command"], session["pid"]) == ("echo", "cat", process.pid)
        assert "echo" in kmctl(home, "status")[1]
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(WAIT_S) == 0


def test_tail_shows_what_crossed(home: Path) -> None:
    send(home, 3)
    code, shown, err = kmctl(home, "tail", "-n", "4")
    assert (code, err) == (0, "")
    lines = shown.splitlines()
    assert len(lines) == 4
    assert all("echo" in line and "tools/call say" in line for line in lines)
    events = [json.loads(line) for line in kmctl(home, "tail", "--json")[1].splitlines()]
    assert [event["seq"] for event in events] == list(range(1, 7))
    assert {event["rpc_id"] for event in events} == {"0", "1", "2"}
    assert not any("payload" in event for event in events)


def test_tail_follows(home: Path) -> None:
    words = [command("kmctl"), "tail", "-f", "--json", "--home", str(home)]
    send(home, 1)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [json.loads(process.stdout.readline())["seq"] for _ in range(2)] == [1, 2]
        send(home, 2)
        assert [json.loads(process.stdout.readline())["seq"] for _ in range(4)] == [3, 4, 5, 6]
        process.terminate()
        process.wait(WAIT_S)


def test_local_only_has_nothing_to_flush(home: Path) -> None:
    send(home, 1)
    assert kmctl(home, "flush") == (0, "nothing to sync to: local only\n", "")


def test_init_flush_and_a_key_that_goes_bad(home: Path, tmp_path: Path) -> None:
    database = tmp_path / "server.db"
    with running_server(database) as server:
        for key, words in (("km_bad", "refused the key (401)"), (create_key(database, scope="read"), "(403)")):
            code, shown, err = kmctl(home, "init", "--url", server.url, "--key", key)
            assert (code, shown) == (1, "")
            assert words in err
        assert not (home / "config.toml").exists()
        code, shown, err = kmctl(home, "init", "--url", server.url, "--key-stdin", stdin=create_key(database))
        assert (code, err) == (0, "")
        assert "kmd has read the new configuration" in shown
        send(home, 5)
        code, shown, _ = kmctl(home, "flush")
        assert (code, shown) == (0, "everything is synced\n")
        code, status = read_json(home, "status")
        assert (code, [(one["pending"], one["settled"]) for one in status["destinations"]]) == (0, [(0, 10)])
        assert kmctl(home, "init", "--url", server.url, "--key", "km_bad", "--no-check")[0] == 0
        send(home, 1)
        code, shown, err = kmctl(home, "flush", "--timeout", "10")
        assert (code, shown) == (1, "")
        assert "2 events pending, paused: the key was refused (401)" in err
        code, shown, _ = kmctl(home, "status")
        assert code == 4
        assert "degraded: default is paused" in shown


def test_flush_says_why_a_server_that_is_away_stops_it(home: Path) -> None:
    assert kmctl(home, "init", "--url", "http://127.0.0.1:1", "--no-check")[0] == 0
    send(home, 1)
    code, final = read_json(home, "flush", "--timeout", "0.5")
    assert (code, final["done"]) == (1, False)
    assert [(one["name"], one["pending"]) for one in final["reasons"]] == [("default", 2)]
    assert [(one["name"], one["mark"]) for one in final["destinations"]] == [("default", 2)]


def test_a_file_that_kmd_cannot_use_is_reported(home: Path) -> None:
    (home / "config.toml").write_text("[log\n")
    code, _, err = kmctl(home, "init", "--local")
    assert code == 1
    assert "not valid TOML" in err
    assert "--force" in err

"""`kmctl install`, `uninstall` and `clients` as a person runs them."""

import hashlib
import json
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.clients.homes import contents, make_runners, minimal_environ, write_sample
from tests.cli.clients.reading import find_commands, read_config
from tests.cli.clients.samples import SAMPLES, SECRET, Sample
from tests.cli.stub import STARTS
from tests.cli.terminal import CTRL_C, run_kmctl, run_on_terminal
from tests.support.processes import WAIT_S, read_status, wait_for

CURSOR = next(one for one in SAMPLES if one.place == ".cursor/mcp.json")
CODEX = next(one for one in SAMPLES if one.client == "codex")
PROJECT = next(one for one in SAMPLES if one.place == "shop/.mcp.json")
Kmctl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with three clients in it; the current folder is a project."""
    home = tmp_path / "ann"
    for sample in (CURSOR, CODEX, PROJECT):
        write_sample(home, sample)
    monkeypatch.chdir(home / "shop")
    return home


@pytest.fixture
def environ(home: Path) -> dict[str, str]:
    """What that user's shell has."""
    names = ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "CODEX_HOME", "CLAUDE_CONFIG_DIR", "COPILOT_HOME")
    return {"HOME": str(home), "PATH": str(make_runners(home / "bin")), **dict.fromkeys(names, "")}


@pytest.fixture
def kmctl(environ: dict[str, str]) -> Kmctl:
    """Runs kmctl as that user."""

    def run(*arguments: str) -> tuple[int, str, str]:
        return run_kmctl(*arguments, environ=environ)

    return run


def everything_of(home: Path) -> dict[str, bytes]:
    """The clients' files."""
    return contents(home, skip=("bin", ".local", ".kilometers", ".config"))


def as_json(done: tuple[int, str, str]) -> Any:  # noqa: ANN401 - what it printed
    code, shown, err = done
    assert (code, err) == (0, ""), shown
    return json.loads(shown)


def test_there_and_back(home: Path, kmctl: Kmctl) -> None:
    before = everything_of(home)
    code, shown, err = kmctl("install", "--yes", "--no-service")
    assert (code, err) == (0, "")
    assert "+++ " in shown
    assert "wrapped: context7, py in ~/.cursor/mcp.json" in shown
    assert "backup: ~/.cursor/mcp.json.kilometers-" in shown
    assert "left alone: linear in ~/.cursor/mcp.json: is reached by URL" in shown
    assert "note: ~/shop/.mcp.json is a project's and has" in shown
    assert "next: Cursor: reload its windows" in shown
    assert f"next: start kmd with '{STARTS}'" in shown
    wrapped = everything_of(home)
    assert wrapped != before

    code, shown, err = kmctl("install", "--yes", "--no-service")
    assert (code, err) == (0, "")
    assert "nothing to change: km is in front of 7 servers already" in shown
    assert everything_of(home) == wrapped

    code, shown, err = kmctl("uninstall", "--yes")
    assert (code, err) == (0, "")
    assert "put back: context7, py in ~/.cursor/mcp.json" in shown
    assert everything_of(home) == before
    code, shown, err = kmctl("uninstall")
    assert (code, shown, err) == (0, "nothing to put back: km is in front of no server here\n", "")


def test_kmd_starts_with_it_and_ends_with_it(home: Path, kmctl: Kmctl) -> None:
    made = as_json(kmctl("install", "--yes", "--json"))
    meeting = home / ".kilometers"
    try:
        assert read_status(meeting)["daemon"]["pid"] == made["kmd"]["pid"]
        assert as_json(kmctl("install", "--yes", "--json"))["kmd"] == made["kmd"]
    finally:
        ended = as_json(kmctl("uninstall", "--yes", "--json", "--purge"))
    assert ended["kmd"]["stopped_pid"] == made["kmd"]["pid"]
    assert not meeting.exists()
    assert not (home / ".local" / "state" / "kilometers").exists()
    assert not list(home.rglob("*.bak"))
    assert str(meeting / "kmd.lock") in ended["purged"]


def test_a_home_of_its_own_stands_in_the_words(home: Path, kmctl: Kmctl, tmp_path: Path) -> None:
    as_json(kmctl("install", "--yes", "--no-service", "--json", "--home", str(tmp_path / "a b")))
    text = (home / ".cursor" / "mcp.json").read_text()
    assert f'"--home", "{tmp_path}/a b", "--name"' in text
    assert list((tmp_path / "a b" / "undo").glob("*.json"))
    before = {CURSOR.place: CURSOR.raw, CODEX.place: CODEX.raw, PROJECT.place: PROJECT.raw}
    as_json(kmctl("uninstall", "--yes", "--json"))  # without --home: the words say where the records are
    assert {name: (home / name).read_bytes() for name in before} == before
    assert not list((tmp_path / "a b" / "undo").glob("*.json"))


def test_a_project_elsewhere_is_put_back_too(home: Path, kmctl: Kmctl, monkeypatch: pytest.MonkeyPatch) -> None:
    as_json(kmctl("install", "--yes", "--no-service", "--json"))
    monkeypatch.chdir(home)
    as_json(kmctl("uninstall", "--yes", "--json"))
    assert (home / PROJECT.place).read_bytes() == PROJECT.raw


def test_client_and_server_narrow_it(home: Path, kmctl: Kmctl) -> None:
    made = as_json(kmctl("install", "--yes", "--no-service", "--json", "--client", "codex", "--server", "docs"))
    assert [(one["client"], [server["name"] for server in one["servers"]]) for one in made["files"]] == [
        ("codex", ["docs"])
    ]
    as_json(kmctl("install", "--yes", "--no-service", "--json"))
    as_json(kmctl("uninstall", "--yes", "--json", "--client", "cursor"))
    assert (home / CURSOR.place).read_bytes() == CURSOR.raw
    assert (home / CODEX.place).read_bytes() != CODEX.raw


def test_a_copy_in_another_client_gets_its_bytes_back_after_the_first_was_put_back(home: Path, kmctl: Kmctl) -> None:
    other = home / ".lmstudio" / "mcp.json"
    other.parent.mkdir()
    as_json(kmctl("install", "--yes", "--no-service", "--json"))
    other.write_bytes((home / CURSOR.place).read_bytes())
    as_json(kmctl("uninstall", "--yes", "--json", "--client", "cursor"))
    as_json(kmctl("uninstall", "--yes", "--json", "--client", "lm-studio"))
    assert other.read_bytes() == (home / CURSOR.place).read_bytes() == CURSOR.raw
    as_json(kmctl("uninstall", "--yes", "--json"))
    assert [path.name for path in (home / ".local/state/kilometers/undo").iterdir()] == ["lock"]


def test_wrong_names(kmctl: Kmctl) -> None:
    code, _, err = kmctl("install", "--client", "cursr", "--yes")
    assert (code, "'cursr' is not one of claude-desktop, " in err) == (2, True)
    code, _, err = kmctl("install", "--server", "nosuch", "--yes", "--no-service")
    assert (code, err) == (1, "error: there is no server 'nosuch'\n")
    code, _, err = kmctl("install", "--json")
    assert (code, err.splitlines()[0]) == (2, "error: --json does not ask: give --yes or --dry-run too")
    code, _, err = kmctl("uninstall", "--purge", "--client", "cursor", "--yes")
    assert (code, "--purge is about everything" in err) == (2, True)


def test_nothing_is_done_when_there_is_nobody_to_ask(home: Path, kmctl: Kmctl) -> None:
    before = contents(home)
    code, _, err = kmctl("install")
    assert (code, err.splitlines()[0]) == (2, "error: there is nobody to ask: give --yes")
    assert contents(home) == before


@pytest.mark.parametrize(("typed", "code"), [("n\n", 1), ("\n", 1), (CTRL_C, 130)], ids=["no", "enter", "Ctrl-C"])
def test_a_no_changes_nothing(home: Path, environ: dict[str, str], typed: str, code: int) -> None:
    before = contents(home)
    ended, shown = run_on_terminal(["install", "--no-service"], typed=typed, environ=environ)
    assert ended == code
    assert "Put km in front of 7 servers in 3 files? [y/N]: " in shown
    assert ("nothing was changed" in shown) == (code == 1)
    assert contents(home) == before
    assert not (home / ".local").exists()


def test_a_yes_does_it_in_colour(home: Path, environ: dict[str, str]) -> None:
    ended, shown = run_on_terminal(["install", "--no-service"], typed="y\n", environ=environ)
    assert ended == 0
    assert "\x1b[32m+" in shown
    assert (home / CURSOR.place).read_bytes() != CURSOR.raw
    ended, shown = run_on_terminal(["uninstall"], typed="y\n", environ={**environ, "NO_COLOR": "1"})
    assert ended == 0
    assert "\x1b[" not in shown
    assert (home / CURSOR.place).read_bytes() == CURSOR.raw


def test_a_dry_run_changes_nothing(home: Path, kmctl: Kmctl) -> None:
    before = contents(home)
    code, shown, _ = kmctl("install", "--dry-run")
    assert code == 0
    assert "would put km in front of 7 servers in 3 files and have kmd started at login; nothing was changed" in shown
    planned = as_json(kmctl("install", "--dry-run", "--json"))
    assert planned["dry_run"] is True
    assert {server["action"] for one in planned["files"] for server in one["servers"]} == {"wrap"}
    assert contents(home) == before
    as_json(kmctl("install", "--yes", "--no-service", "--json"))
    before = contents(home)
    code, shown, _ = kmctl("uninstall", "--dry-run", "--purge")
    assert code == 0
    assert "would take km out of 7 servers in 3 files; nothing was changed" in shown
    assert "would delete" in shown
    assert contents(home) == before


def test_one_broken_file_does_not_stop_the_others(home: Path, kmctl: Kmctl) -> None:
    broken = home / ".cursor" / "mcp.json"
    broken.write_text('{"mcpServers": {\n  "a": {"command": "x",,}\n}}')
    for command in ("install", "uninstall"):
        code, shown, err = kmctl(command, "--yes", *(["--no-service"] if command == "install" else []))
        assert code == 1
        assert f"error: {broken}:2: a key in double quotes is missing" in err
        assert "hint: correct the file" in err
        assert "docs, with space" in shown
    assert (home / CODEX.place).read_bytes() == CODEX.raw
    code, shown, err = kmctl("clients", "--json")
    assert (code, json.loads(shown)["errors"][0]["path"]) == (1, str(broken))


def test_no_secret_leaves_the_files(home: Path, kmctl: Kmctl) -> None:
    for sample in SAMPLES:
        write_sample(home, sample)
    (home / ".zed").mkdir()
    write_sample(home, Sample("zed", "shop/.zed/settings.json", '{"context_servers": {"a": "SECRET" "b"}}', 0))
    everything = ""
    for arguments in (
        ["clients"],
        ["clients", "--json"],
        ["install", "--dry-run"],
        ["install", "--yes", "--no-service"],
        ["install", "--dry-run", "--json"],
        ["uninstall", "--dry-run"],
        ["uninstall", "--yes", "--json"],
    ):
        _, shown, err = kmctl(*arguments)
        everything += shown + err
    assert "command" in everything
    assert SECRET[:8] not in everything
    for path in [*home.rglob("*.bak"), *(home / ".local" / "state" / "kilometers").rglob("*.json")]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_list(home: Path, kmctl: Kmctl) -> None:
    as_json(kmctl("install", "--yes", "--no-service", "--json", "--server", "docs"))
    code, shown, _ = kmctl("clients")
    assert code == 0
    rows = [line.split() for line in shown.splitlines()]
    assert ["Codex", "CLI", "docs", "stdio", "wrapped", "~/.codex/config.toml"] in rows
    assert ["Cursor", "context7", "stdio", "not", "wrapped", "~/.cursor/mcp.json"] in rows
    assert ["Cursor", "linear", "http", "left", "alone", "~/.cursor/mcp.json"] in rows
    listed = as_json(kmctl("clients", "--json", "--client", "cursor", "--server", "linear"))
    assert listed == {
        "servers": [
            {
                "client": "cursor",
                "server": "linear",
                "transport": "http",
                "wrapped": False,
                "wrappable": False,
                "reason": "is reached by URL; km stands in front of commands only",
                "path": str(home / CURSOR.place),
                "shared": False,
            }
        ],
        "errors": [],
    }


def test_an_empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": ""}
    code, shown, err = run_kmctl("install", "--yes", "--no-service", environ=environ)
    assert (code, err) == (0, "")
    assert shown.startswith("found no MCP server that is started by a command\n")
    code, shown, err = run_kmctl("clients", environ=environ)
    assert (code, shown, err) == (0, "no MCP server was found in the files of any client\n", "")
    assert list(tmp_path.iterdir()) == []


def test_purge_leaves_what_is_not_ours(home: Path, kmctl: Kmctl, tmp_path: Path) -> None:
    own = tmp_path / "own"
    as_json(kmctl("install", "--yes", "--json", "--home", str(own)))
    (own / "diary.txt").write_text("mine")
    (own / "spool" / "deep").mkdir(parents=True, exist_ok=True)
    wait_for(lambda: (own / "outbox.db").exists(), "the outbox")
    as_json(kmctl("uninstall", "--yes", "--json", "--purge", "--home", str(own)))
    assert [path.name for path in own.rglob("*") if path.is_file()] == ["diary.txt"]


def test_a_wrapped_server_is_captured_under_its_name(home: Path, kmctl: Kmctl) -> None:
    """The promise of the whole command: from then on every message is seen."""
    as_json(kmctl("install", "--yes", "--json"))
    try:
        ((words, _),) = [
            (words, rest) for name, words, rest in find_commands(read_config(home / CURSOR.place)) if name == "context7"
        ]
        message = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'
        subprocess.run(words, input=message, capture_output=True, env=minimal_environ(home), timeout=WAIT_S, check=True)

        def captured() -> list[str]:
            lines = kmctl("tail", "--json")[1].splitlines()
            events = [json.loads(line) for line in lines]
            return [event["method"] for event in events if event["server"] == "context7" and event.get("method")]

        assert "ping" in wait_for(captured, "the message")
    finally:
        as_json(kmctl("uninstall", "--yes", "--json"))


def test_another_home_takes_over_and_gives_back_the_first_bytes(home: Path, kmctl: Kmctl, tmp_path: Path) -> None:
    for options in ([], ["--home", str(tmp_path / "a")], ["--home", str(tmp_path / "b")]):
        done = as_json(kmctl("install", "--yes", "--no-service", "--json", *options))
        assert {server["action"] for one in done["files"] for server in one["servers"]} == {
            "refresh" if options else "wrap"
        }
    as_json(kmctl("uninstall", "--yes", "--json", "--home", str(tmp_path / "c")))
    assert [(home / one.place).read_bytes() for one in (CURSOR, CODEX, PROJECT)] == [CURSOR.raw, CODEX.raw, PROJECT.raw]


def test_a_project_cannot_have_us_take_its_records_for_ours(home: Path, kmctl: Kmctl, tmp_path: Path) -> None:
    as_json(kmctl("install", "--yes", "--no-service", "--json"))
    evil = home / "shop" / "evil"
    (home / ".local" / "state" / "kilometers" / "undo").rename(evil.parent / "undo")
    evil.mkdir()
    (evil.parent / "undo").rename(evil / "undo")
    for path in (evil / "undo").glob("*.json"):
        record = json.loads(path.read_text())
        record["original"] = '{"command": "evil"}'
        record["original_sha256"] = hashlib.sha256(record["original"].encode()).hexdigest()
        path.write_text(json.dumps(record))
    project = home / PROJECT.place
    project.write_text(project.read_text().replace('"--name"', f'"--home", "{evil}", "--name"'))
    _, shown, _ = kmctl("uninstall", "--yes")
    assert "evil" not in shown.replace(str(evil), "")
    assert '"evil"' not in (home / CURSOR.place).read_text()

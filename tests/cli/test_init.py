"""`kmctl init`: what it writes, what it keeps, and that it writes nothing that would not work."""

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from kmctl.cli import run
from kmd.config import load_config, render_config
from tests.cli.stub import STARTS, stub_daemon
from tests.cli.terminal import CTRL_C, run_kmctl, run_on_terminal
from tests.cli.web import RECEIPT, http_server

Shown = pytest.CaptureFixture[str]

OWN_FILE = """\
# my notes
[log]
level = "debug"

[[destinations]]
name = "home"
url = "https://home.example.com"
key = "km_home"
"""


def init(home: Path, *arguments: str) -> int:
    return run(["--home", str(home), "init", *arguments])


def file_of(home: Path) -> Path:
    return home / "config.toml"


def backups(home: Path) -> list[Path]:
    return sorted(home.glob("config.toml.*.bak"))


@pytest.mark.parametrize("flags", [["--local"], [], ["--url", ""]], ids=str)
def test_local_only(tmp_path: Path, flags: list[str]) -> None:
    home = tmp_path / "a home"
    code, shown, err = run_kmctl("--home", str(home), "init", *flags)
    assert (code, err) == (0, "")
    assert file_of(home).read_text() == render_config(())
    assert stat.S_IMODE(file_of(home).stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert "local only" in shown
    assert f"next: start kmd with '{STARTS} --home '{home}''" in shown
    assert f"with 'kmctl install --home '{home}''" in shown
    assert f"km --home '{home}' --name NAME -- COMMAND …" in shown


def test_a_server_that_takes_events(tmp_path: Path, capsys: Shown) -> None:
    with http_server(200, RECEIPT) as (url, seen):
        assert init(tmp_path, "--url", f"{url}/", "--key", "km_x", "--name", "team") == 0
    assert seen == ["/api/v1/events/batch Bearer km_x"]
    (destination,) = load_config(file_of(tmp_path), {}).destinations
    assert (destination.name, destination.url, destination.key) == ("team", url, "km_x")
    shown = capsys.readouterr()
    assert f"syncing to team: {url}" in shown.out
    assert "km_x" not in shown.out + shown.err


@pytest.mark.parametrize("way", ["--key-file", "--key-stdin"])
def test_a_key_that_is_not_in_the_process_list(tmp_path: Path, way: str) -> None:
    key_file = tmp_path / "key.txt"
    key_file.write_text("km_x\n")
    flags = [way, str(key_file)] if way == "--key-file" else [way]
    with http_server(200, RECEIPT) as (url, seen):
        code, _, err = run_kmctl("--home", str(tmp_path), "init", "--url", url, *flags, stdin="  km_x\n")
    assert (code, err) == (0, "")
    assert seen == ["/api/v1/events/batch Bearer km_x"]


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * 5000, b"a b", b"\xff\xfe", b"a\x00b"])
def test_a_key_file_without_a_key(tmp_path: Path, capsys: Shown, content: bytes) -> None:
    (tmp_path / "key.txt").write_bytes(content)
    assert init(tmp_path, "--url", "http://a", "--key-file", str(tmp_path / "key.txt"), "--no-check") == 1
    assert capsys.readouterr().err.startswith("error: --key")
    assert not file_of(tmp_path).exists()


def test_a_key_file_that_is_missing(tmp_path: Path, capsys: Shown) -> None:
    assert init(tmp_path, "--url", "http://a", "--key-file", str(tmp_path / "key.txt")) == 1
    assert "key.txt: --key-file: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, "", "refused the key"),
        (403, "", "may not send events"),
        (404, "", "no km-server"),
        (503, "", "not ready"),
        (200, "<html>", "no km-server"),
        (200, '{"schema": 1, "batch_id": "other", "verdicts": []}', "no km-server"),
    ],
)
def test_what_would_not_work_is_not_written(tmp_path: Path, capsys: Shown, status: int, body: str, words: str) -> None:
    file_of(tmp_path).write_text(OWN_FILE)
    with http_server(status, body) as (url, _):
        assert init(tmp_path, "--url", url, "--key", "km_x") == 1
        error, hint = capsys.readouterr().err.splitlines()
        assert words in error
        assert hint.startswith("hint: ")
        assert file_of(tmp_path).read_text() == OWN_FILE
        assert backups(tmp_path) == []
        assert init(tmp_path, "--url", url, "--key", "km_x", "--no-check") == 0
    assert url in file_of(tmp_path).read_text()


def test_a_server_that_is_not_there(tmp_path: Path, capsys: Shown) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert init(tmp_path, "--url", f"http://127.0.0.1:{free.getsockname()[1]}", "--key", "km_x") == 1
    assert "connection refused" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--url", "km.example.com"], "--url: must be an http"),
        (["--url", "http://u:p@a"], "--url: must hold no user"),
        (["--url", "http://a", "--name", ""], "--name: must be"),
        (["--url", "http://a", "--name", "a\x1bb"], "--name: must be"),
        (["--url", "http://a", "--key", "km secret"], "--key: is not an API key"),
    ],
)
def test_flags_that_cannot_be(tmp_path: Path, capsys: Shown, flags: list[str], words: str) -> None:
    assert init(tmp_path, *flags, "--no-check") == (1 if words.startswith("--key") else 2)
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {words}")
    assert "secret" not in shown
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_kept_around_the_change(tmp_path: Path, capsys: Shown) -> None:
    file_of(tmp_path).write_text(OWN_FILE)
    file_of(tmp_path).chmod(0o644)
    assert init(tmp_path, "--url", "http://a", "--key", "km_a", "--name", "team", "--no-check") == 0
    text = file_of(tmp_path).read_text()
    assert text.startswith(OWN_FILE)
    assert [one.name for one in load_config(file_of(tmp_path), {}).destinations] == ["home", "team"]
    (backup,) = backups(tmp_path)
    assert backup.read_text() == OWN_FILE
    assert {stat.S_IMODE(path.stat().st_mode) for path in (backup, file_of(tmp_path))} == {0o600}
    assert str(backup) in capsys.readouterr().out
    assert init(tmp_path, "--url", "http://b", "--name", "team", "--no-check") == 0
    assert file_of(tmp_path).read_text() == text.replace("http://a", "http://b").replace('key = "km_a"\n', "")
    assert len(backups(tmp_path)) == 2


def test_saying_it_again_changes_nothing(tmp_path: Path, capsys: Shown) -> None:
    flags = ("--url", "http://a", "--key", "km_a", "--no-check")
    assert init(tmp_path, *flags) == 0
    assert init(tmp_path, *flags) == 0
    assert backups(tmp_path) == []
    assert "unchanged" in capsys.readouterr().out


def test_without_flags_a_file_that_is_there_stays(tmp_path: Path) -> None:
    file_of(tmp_path).write_text(OWN_FILE)
    code, shown, _ = run_kmctl("--home", str(tmp_path), "init")
    assert (code, "unchanged" in shown) == (0, True)
    assert file_of(tmp_path).read_text() == OWN_FILE


def test_local_does_not_throw_a_destination_away(tmp_path: Path, capsys: Shown) -> None:
    file_of(tmp_path).write_text(OWN_FILE)
    assert init(tmp_path, "--local") == 1
    assert "--force" in capsys.readouterr().err
    assert file_of(tmp_path).read_text() == OWN_FILE
    assert init(tmp_path, "--local", "--force") == 0
    assert file_of(tmp_path).read_text() == render_config(())
    assert [path.read_text() for path in backups(tmp_path)] == [OWN_FILE]


@pytest.mark.parametrize("text", ["[log\n", "[log]\nlevel = 5\n"])
def test_a_broken_file_is_left_alone_unless_forced(tmp_path: Path, capsys: Shown, text: str) -> None:
    file_of(tmp_path).write_text(text)
    for flags in (["--url", "http://a", "--no-check"], ["--local"]):
        assert init(tmp_path, *flags) == 1
        error, hint = capsys.readouterr().err.splitlines()
        assert error.startswith(f"error: {file_of(tmp_path)}: ")
        assert "--force" in hint
    assert file_of(tmp_path).read_text() == text
    assert init(tmp_path, "--local", "--force") == 0
    assert [path.read_text() for path in backups(tmp_path)] == [text]


@pytest.mark.parametrize("content", [b"\xff", None], ids=["not UTF-8", "a directory"])
def test_a_file_that_cannot_be_read(tmp_path: Path, capsys: Shown, content: bytes | None) -> None:
    if content is None:
        file_of(tmp_path).mkdir()
    else:
        file_of(tmp_path).write_bytes(content)
    assert init(tmp_path, "--local", "--force") == 1
    assert "cannot be read" in capsys.readouterr().err


def test_a_place_that_cannot_be_written(tmp_path: Path, capsys: Shown) -> None:
    (tmp_path / "file").touch()
    assert init(tmp_path / "file" / "home", "--local") == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert "cannot be" in error
    assert hint.startswith("hint: ")


def test_kmd_is_told(tmp_path: Path, capsys: Shown) -> None:
    with stub_daemon(tmp_path, {"reload": [{"done": True}]}) as stub:
        assert init(tmp_path, "--local") == 0
    assert stub.requests == [{"op": "reload"}]
    shown = capsys.readouterr().out
    assert "kmd has read the new configuration" in shown
    assert "start kmd" not in shown


def test_kmd_may_refuse(tmp_path: Path, capsys: Shown) -> None:
    with stub_daemon(tmp_path, {"reload": [{"error": {"message": "no", "hint": "because"}}]}):
        assert init(tmp_path, "--local") == 1
    assert capsys.readouterr().err == "error: kmd did not take the new configuration: no (because)\n"
    assert file_of(tmp_path).exists()


def test_json(tmp_path: Path, capsys: Shown) -> None:
    with http_server(200, RECEIPT) as (url, _):
        assert init(tmp_path, "--url", url, "--key", "km_secret", "--json") == 0
    shown = capsys.readouterr().out
    assert json.loads(shown) == {
        "config": str(file_of(tmp_path)),
        "changed": True,
        "backup": None,
        "checked": True,
        "destinations": [{"name": "default", "url": url}],
        "reloaded": False,
        "reload_error": None,
    }
    assert "secret" not in shown


def test_on_a_terminal_it_asks_and_hides_the_key(tmp_path: Path) -> None:
    with http_server(200, RECEIPT) as (url, seen):
        code, shown = run_on_terminal(["--home", str(tmp_path), "init"], typed=f"{url}\nkm_secret\n")
    assert code == 0
    assert seen == ["/api/v1/events/batch Bearer km_secret"]
    assert "secret" not in shown


def test_on_a_terminal_an_empty_url_means_local_only(tmp_path: Path) -> None:
    code, shown = run_on_terminal(["--home", str(tmp_path), "init"], typed="\n")
    assert code == 0
    assert "API key" not in shown
    assert file_of(tmp_path).read_text() == render_config(())


def test_on_a_terminal_ctrl_c_ends_it_without_a_trace(tmp_path: Path) -> None:
    code, shown = run_on_terminal(["--home", str(tmp_path), "init"], typed=CTRL_C)
    assert code == 130
    assert "Traceback" not in shown
    assert "Abort" not in shown
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - shorter

"""`kmctl login` and `logout`: a key is proved, kept where it is safe, used by kmd from there, and forgotten."""

import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme

from kmctl.check import Reply
from kmctl.identity import judge_identity
from kmd.config import load_config
from kmd.errors import DeliveryError
from tests.cli.terminal import run_kmctl, run_on_terminal
from tests.support import file_keyring
from tests.support.processes import Running, create_key, read_status, running_kmd, running_server, start_kmd

NO_KEYRING = {"PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring"}


@dataclass(slots=True)
class Desk:
    """A person's machine and a km-server. `environ` decides which keyring there is."""

    home: Path
    url: str
    database: Path
    environ: dict[str, str] = field(default_factory=lambda: dict(NO_KEYRING))

    def run(self, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
        return run_kmctl("--home", str(self.home), *arguments, stdin=stdin, environ=self.environ)

    def login(self, key: str, *arguments: str) -> str:
        code, shown, err = self.run("login", "--key-stdin", *arguments, stdin=key)
        assert (code, err) == (0, "")
        assert key not in shown
        return shown

    def key(self, scope: str = "ingest,read") -> str:
        return create_key(self.database, scope=scope)

    @property
    def config(self) -> str:
        return (self.home / "config.toml").read_text()

    def destination(self) -> dict[str, Any]:
        code, shown, _ = self.run("config", "--json")
        assert code == 0
        (one,) = json.loads(shown)["destinations"]
        return dict(one)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    database = tmp_path_factory.mktemp("server") / "server.db"
    with running_server(database) as running:
        yield running, database


@pytest.fixture
def desk(tmp_path: Path, server: tuple[Running, Path]) -> Desk:
    running, database = server
    return Desk(tmp_path / "home", running.url, database)


def test_without_a_keyring_the_key_is_in_a_file_of_ours(desk: Desk) -> None:
    key = desk.key()
    shown = desk.login(key, "--url", desk.url)
    assert "tenant acme, scopes ingest, read" in shown
    file = desk.home / "keys.toml"
    assert str(file) in shown
    assert key in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key not in desk.config
    assert desk.destination() == {"name": "default", "url": desk.url, "key": "set", "key_from": "file", "ca_file": None}


def test_with_a_keyring_it_is_there(desk: Desk, tmp_path: Path) -> None:
    ring = tmp_path / "ring"
    desk.environ = file_keyring.environ_of(ring)
    key = desk.key()
    assert "the key is in the keyring" in desk.login(key, "--url", desk.url, "--name", "team")
    assert json.loads(ring.read_text()) == {f"kilometers team {desk.url}": key}
    assert key not in desk.config
    assert not (desk.home / "keys.toml").exists()
    assert desk.destination()["key_from"] == "keyring"
    assert "key from the keyring" in desk.run("config")[1]
    code, shown, err = desk.run("logout", "--name", "team")
    assert (code, shown, err) == (0, "team: the key is forgotten\n", "")
    assert json.loads(ring.read_text()) == {}
    assert desk.destination()["key"] is None


def test_a_keyring_may_be_left_out_and_a_key_moves(desk: Desk, tmp_path: Path) -> None:
    ring = tmp_path / "ring"
    desk.environ = file_keyring.environ_of(ring)
    desk.login(desk.key(), "--url", desk.url)
    new = desk.key()
    desk.login(new, "--no-keyring")
    assert json.loads(ring.read_text()) == {}  # it is in one place only
    assert new in (desk.home / "keys.toml").read_text()


def test_kmd_takes_the_key_from_where_it_is(desk: Desk, tmp_path: Path) -> None:
    desk.environ = file_keyring.environ_of(tmp_path / "ring")
    kmd = start_kmd(desk.home, desk.environ)
    try:
        shown = desk.login(desk.key(), "--url", desk.url)
        assert "kmd has read the new configuration" in shown
        assert state_of(desk) != "paused"
        code, shown, _ = desk.run("flush", "--json")
        assert (code, json.loads(shown)["done"]) == (0, True)
        assert kmd.stop() == 0
        kmd = start_kmd(desk.home, desk.environ)  # and at its start
        assert "a key cannot be read" not in kmd.log.read_text()
        desk.run("logout")
        assert "key_from" not in desk.config
    finally:
        kmd.stop()


def state_of(desk: Desk) -> str:
    (one,) = read_status(desk.home)["destinations"]
    return str(one["state"])


def test_a_locked_keyring_stops_neither_login_nor_kmd(desk: Desk, tmp_path: Path) -> None:
    ring = tmp_path / "ring"
    desk.environ = file_keyring.environ_of(ring)
    desk.login(desk.key(), "--url", desk.url)
    ring.unlink()
    ring.mkdir()
    kmd = start_kmd(desk.home, desk.environ)
    try:
        assert "the keyring cannot be used (KeyringLocked)" in kmd.log.read_text()
    finally:
        kmd.stop()
    code, shown, err = desk.run("login", "--key-stdin", "--url", desk.url, "--name", "new", stdin=desk.key())
    assert code == 0
    assert "the key goes into a file" in err
    assert str(desk.home / "keys.toml") in shown


@pytest.mark.parametrize("why", ["unknown", "read only", "no server", "no km-server"])
def test_a_key_that_is_not_proved_is_not_kept(desk: Desk, why: str) -> None:
    url, key = desk.url, "km_unknown"
    match why:
        case "read only":
            key = desk.key("read")
        case "no server":
            url = "http://127.0.0.1:1"
        case "no km-server":
            url = desk.url + "/elsewhere"
        case _:
            pass
    code, shown, err = desk.run("login", "--key-stdin", "--url", url, stdin=key)
    assert (code, shown) == (1, "")
    assert key not in err
    assert err.count("\n") == 2
    assert not desk.home.exists()


def test_json(desk: Desk) -> None:
    code, shown, _ = desk.run("login", "--key-stdin", "--url", desk.url, "--json", stdin=desk.key())
    told = json.loads(shown)
    assert (code, told["tenant"], told["scopes"], told["key_from"]) == (0, "acme", ["ingest", "read"], "file")
    assert json.loads(desk.run("logout", "--json")[1])["forgotten"] is True
    assert json.loads(desk.run("logout", "--json")[1])["forgotten"] is False


def test_a_key_in_the_configuration_moves_out_of_it(desk: Desk) -> None:
    old, new = desk.key(), desk.key()
    code, _, _ = desk.run("init", "--url", desk.url, "--key-stdin", stdin=old)
    assert code == 0
    assert old in desk.config
    desk.login(new)
    assert old not in desk.config
    assert load_config(desk.home / "config.toml", {}).destinations[0].key_from == "file"
    code, _, _ = desk.run("init", "--url", desk.url, "--key-stdin", stdin=old)  # and back
    assert (code, old in desk.config, "key_from" in desk.config) == (0, True, False)
    code, shown, _ = desk.run("logout")
    assert code == 0
    assert old not in desk.config
    for backup in desk.home.glob("config.toml.*.bak"):
        assert str(backup) in shown


def test_on_a_terminal_it_asks(desk: Desk) -> None:
    key = desk.key()
    code, shown = run_on_terminal(
        ["--home", str(desk.home), "login"], columns=200, typed=f"{desk.url}\n{key}\n", environ=desk.environ
    )
    assert code == 0, shown
    assert key not in shown
    assert "tenant acme" in shown


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["login", "--key-stdin"], "there is no destination 'default' yet"),
        (["login", "--url", "http://127.0.0.1:1"], "no key was given"),
        (["login", "--url", "http://127.0.0.1:1", "--key", "a", "--key-stdin"], "in one way"),
        (["login", "--url", "ftp://a", "--key", "a"], "--url: must be an http"),
        (["login", "--url", "http://a", "--name", ""], "--name: must be"),
    ],
    ids=str,
)
def test_usage(desk: Desk, arguments: list[str], problem: str) -> None:
    code, shown, err = desk.run(*arguments)
    assert (code, shown) == (2, "")
    assert problem in err


def test_nobody_to_log_out(desk: Desk) -> None:
    code, _, err = desk.run("logout")
    assert (code, "there is none called 'default'" in err) == (1, True)


def test_a_broken_key_file_is_an_error_that_shows_no_key(desk: Desk) -> None:
    key = desk.key()
    desk.login(key, "--url", desk.url)
    (desk.home / "keys.toml").write_text(f'x = "{key}\n')
    code, _, err = desk.run("logout")
    assert code == 1
    assert "keys.toml: cannot be read" in err
    assert key not in err
    with running_kmd(desk.home) as kmd:
        assert "a key cannot be read" in kmd.log.read_text()
        assert key not in kmd.log.read_text()


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        (200, b"", "no km-server"),
        (200, b"[]", "no km-server"),
        (200, b'{"tenant": "a"}', "no km-server"),
        (204, b"\xff", "no km-server"),
        (301, b"", "redirects"),
        (401, b"", "refused the key"),
        (404, b"", "no km-server"),
        (503, b"", "not ready"),
        (700, b"", "not ready"),
        (100, b"", "no km-server"),
    ],
)
def test_every_answer_is_judged(status: int, body: bytes, problem: str) -> None:
    with pytest.raises(DeliveryError, match=problem) as caught:
        judge_identity(Reply(status, "", body), "http://a")
    assert caught.value.hint


def test_a_ca_file_is_written_as_a_whole_path_and_stays_until_another_is_given(desk: Desk, tmp_path: Path) -> None:
    key, file = desk.key(), tmp_path / "authority.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    desk.login(key, "--url", desk.url, "--ca-file", str(file.parent / "." / "authority.pem"))
    for step in (("logout",), ("init", "--url", desk.url, "--key", key)):
        assert desk.run(*step)[0] == 0
        assert desk.destination()["ca_file"] == str(file)
    desk.login(key)
    assert desk.destination()["ca_file"] == str(file)
    code, _, err = desk.run("init", "--local", "--ca-file", str(file))
    assert (code, "neither URL nor key" in err) == (2, True)

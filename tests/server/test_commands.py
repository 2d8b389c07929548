"""The command line: what it prints, where, and with which exit code."""

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.server.clients import WAIT_S, Api, ask_file, database_url, make_batch, make_event
from tests.server.conftest import Served
from tests.support.processes import command, running_server, start_server


def run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [command("km-server"), *words], capture_output=True, text=True, timeout=WAIT_S, env={**os.environ, **environ}
    )


@pytest.mark.parametrize(
    ("missing", "extra"), [("aiohttp", "server"), ("prometheus_client", "server"), ("asyncpg", "postgres")]
)
def test_an_installation_without_its_extra_says_which_one(missing: str, extra: str) -> None:
    """As after `pip install .`, which is enough for km and kmctl."""
    without = f"import sys; sys.modules[{missing!r}] = None; from km_server.__main__ import main; main()"
    words = ["serve", "--port", "0", "--database-url", "postgresql://nobody@127.0.0.1:1/nothing"]
    done = subprocess.run([sys.executable, "-c", without, *words], capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 1
    said, hint = done.stderr.splitlines()
    assert said.startswith("km-server: ")
    assert missing in said
    assert f"'.[{extra}]'" in hint


@pytest.mark.parametrize("words", [[], ["serve"], ["keys"], ["keys", "create"], ["tenants"], ["restore"]])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(words: list[str], flag: str) -> None:
    """With an example, and nothing of it cut off."""
    done = run(*words, flag)
    assert done.returncode == 0
    assert "Usage: km-server" in done.stdout
    assert " ".join(["Example: km-server", *words]) in done.stdout
    assert "...\n" not in done.stdout.replace("[ARGS]...\n", "")


def test_the_version() -> None:
    assert run("--version").stdout.startswith("km-server, version ")


@pytest.mark.parametrize(
    "words",
    [
        ["launch"],
        ["serve", "--port", "70000"],
        ["serve", "--port", "x"],
        ["keys", "create", "--tenant", "a"],
        ["keys", "create", "--tenant", "a b", "--scope", "read"],
        ["keys", "create", "--tenant", "a", "--scope", "everything"],
        ["keys", "create", "--tenant", "a", "--scope", ""],
        ["keys", "revoke", "x"],
        ["keys", "revoke", "0"],
    ],
)
def test_what_is_not_understood_exits_2(words: list[str], tmp_path: Path) -> None:
    done = run(*words, KM_SERVER_DATABASE_URL=database_url(tmp_path / "server.db"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def assert_one_line(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 1
    assert done.stdout == ""
    first, second = done.stderr.strip().splitlines()
    assert first.startswith("km-server: ")
    assert second.startswith("hint: ")


@pytest.mark.parametrize("words", [["serve", "--port", "0"], ["keys", "list"]])
def test_a_database_that_cannot_be_opened(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database " * 1000)
    for url in ("mysql://x", "sqlite:///", database_url(tmp_path), database_url(tmp_path / "text.db")):
        assert_one_line(run(*words, "--database-url", url))


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "--port", str(port), "--database-url", database_url(tmp_path / "server.db"))
    assert_one_line(done)
    assert str(port) in done.stderr


def test_a_host_that_is_not_ours(tmp_path: Path) -> None:
    url = database_url(tmp_path / "server.db")
    assert_one_line(run("serve", "--host", "192.0.2.1", "--port", "0", "--database-url", url))


def test_a_flag_wins_over_the_environment(tmp_path: Path) -> None:
    environ = {"KM_SERVER_DATABASE_URL": database_url(tmp_path / "environment.db")}
    assert run("keys", "list", **environ).returncode == 0
    assert run("keys", "list", "--database-url", database_url(tmp_path / "flag.db"), **environ).returncode == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["environment.db", "flag.db"]


def test_the_default_database_lies_in_the_data_folder(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    assert run("keys", "list", **environ).returncode == 0
    (found,) = tmp_path.rglob("server.db")
    assert found.parent.name == "kilometers-server"
    assert stat.S_IMODE(found.stat().st_mode) == 0o600


def test_the_life_of_a_key(served_file: Served) -> None:
    """Made, used, listed and revoked while the server runs; each step takes effect at once."""
    place = ["--database-url", database_url(served_file.file)]
    made = run("keys", "create", "--tenant", "living", "--scope", "read, ingest", *place)
    key = made.stdout.strip()
    assert made.stdout == key + "\n"
    assert key.startswith("km_")
    assert len(key) >= 46
    assert "living" in made.stderr
    assert key not in made.stderr
    api = Api(served_file.url, key)
    with api.http:
        assert api.send(make_batch([make_event(1)])) == ["accepted"]
        listed = run("keys", "list", "--json", *place).stdout
        (row,) = [row for row in httpx.Response(200, text=listed).json() if row["tenant"] == "living"]
        assert row["scopes"] == "ingest,read"
        assert row["last_used"] is not None
        assert row["revoked"] is None
        assert key not in listed
        assert "living" in run("keys", "list", *place).stdout
        assert run("keys", "revoke", str(row["id"]), *place).returncode == 0
        assert api.http.get("/api/v1/stats").status_code == 401
        assert api.post(b'{"batch_id": "b"}').status_code == 401
    missing = run("keys", "revoke", "999999", *place)
    assert_one_line(missing)


def test_a_key_is_nowhere_in_the_file(file_api: Api, served_file: Served) -> None:
    file_api.stats()
    for file in served_file.file.parent.glob("server.db*"):
        assert file_api.key.encode() not in file.read_bytes()
        assert file_api.key.removeprefix("km_").encode() not in file.read_bytes()


def test_the_last_use_is_not_written_with_every_request(file_api: Api, served_file: Served) -> None:
    question = "SELECT max(last_used_at_ns) FROM api_keys WHERE id = (SELECT max(id) FROM api_keys)"
    file_api.stats()
    file_api.send(make_batch([make_event(1)]))  # its commit comes after the note's
    first = ask_file(served_file.file, question)
    for number in range(5):
        file_api.send(make_batch([make_event(number)]))
    assert ask_file(served_file.file, question) == first != [(None,)]


def test_what_a_library_logs_is_not_quoted() -> None:
    script = (
        "import logging\n"
        "from km_server.logs import set_up_logs\n"
        "set_up_logs()\n"
        "logging.getLogger('aiohttp.server').error('SECRET', exc_info=ValueError('SECRET'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=WAIT_S)
    assert "SECRET" not in done.stderr
    assert {"aiohttp.server", "ERROR", "ValueError"} <= set(done.stderr.split('"'))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    running = start_server(tmp_path / "server.db")
    assert httpx.get(running.url + "/health/ready", timeout=WAIT_S).status_code == 200
    assert running.stop(number) == 0
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".db", ".log"]  # no WAL is left behind
    assert "Traceback" not in running.log.read_text()


def test_it_listens_on_ipv6(tmp_path: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 loopback here")
    process = subprocess.Popen(
        [command("km-server"), "serve", "--host", "::1", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "KM_SERVER_DATABASE_URL": database_url(tmp_path / "server.db")},
    )
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("km-server listening on http://[::1]:")
        assert httpx.get(line.split()[-1] + "/health/live", timeout=WAIT_S).json()["status"] == "ok"
        process.terminate()
        assert process.wait(WAIT_S) == 0


def test_two_servers_may_share_a_file(tmp_path: Path) -> None:
    """Not a way to run it, but it must not lose anything."""
    database = tmp_path / "server.db"
    with running_server(database) as first, running_server(database) as second:
        key = run("keys", "create", "--tenant", "a", "--scope", "ingest,read", "--database-url", database_url(database))
        apis = [Api(running.url, key.stdout.strip()) for running in (first, second)]
        with apis[0].http, apis[1].http:
            assert apis[0].send(make_batch([make_event(1)])) == ["accepted"]
            assert apis[1].send(make_batch([make_event(1), make_event(2)])) == ["duplicate", "accepted"]
            assert apis[0].stats()["totals"] == apis[1].stats()["totals"]

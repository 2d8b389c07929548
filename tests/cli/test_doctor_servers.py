"""`kmctl doctor` and servers that are special, and its fixes done to the letter."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.desk import Desk, Shown, examine, server
from tests.cli.terminal import run_kmctl
from tests.support.processes import WAIT_S, command, wait_for


@pytest.mark.parametrize(
    "fields",
    [
        {"disabled": True},
        {"enabled": False},
        {"envFile": ".env"},
        {"env": {"TOKEN": "$TOKEN"}},
        {"env": {"TOKEN": "{env:TOKEN}"}},
        {"env_keys": ["TOKEN"]},
    ],
    ids=str,
)
def test_what_only_a_client_can_start_is_not_started(desk: Desk, fields: dict[str, Any], capsys: Shown) -> None:
    desk.write_server(server('open("started", "w")'))
    add_fields(desk, fields)
    code, told = examine(desk.km_home, capsys)
    assert code == 0
    assert [one["level"] for one in told["findings"] if one["check"] == "handshake"] == ["note"]
    assert not (desk.home / "started").exists()


@pytest.mark.parametrize(
    "fields", [{"disabled": False}, {"enabled": True, "env_keys": []}, {"env": {"PRICE": "5$"}}], ids=str
)
def test_what_looks_like_it_is_started(desk: Desk, fields: dict[str, Any], capsys: Shown) -> None:
    add_fields(desk, fields)
    code, told = examine(desk.km_home, capsys)
    assert code == 0
    assert [one["level"] for one in told["findings"] if one["check"] == "handshake"] == ["ok"]


def add_fields(desk: Desk, fields: dict[str, Any]) -> None:
    entry = json.loads(desk.client_file.read_text())
    entry["mcpServers"]["own"].update(fields)
    desk.client_file.write_text(json.dumps(entry))


def test_a_relative_command_counts_from_the_servers_folder(desk: Desk, capsys: Shown) -> None:
    folder = desk.home / "place"
    folder.mkdir()
    (folder / "run").write_text(f"#!{sys.executable}\n{server()}")
    (folder / "run").chmod(0o700)
    desk.write_client("./run")
    add_fields(desk, {"cwd": str(folder)})
    assert examine(desk.km_home, capsys)[0] == 0
    add_fields(desk, {"cwd": str(desk.home / "gone")})
    code, told = examine(desk.km_home, capsys)
    assert code == 4
    assert f"there is no folder {desk.home / 'gone'}" in json.dumps(told)


@pytest.mark.parametrize("fields", [{"args": ["a\0b"]}, {"env": {"A=B": "x"}}, {"env": {"A": "x\0"}}], ids=str)
def test_what_no_program_can_be_given_is_said(desk: Desk, fields: dict[str, Any], capsys: Shown) -> None:
    desk.write_server(server())
    entry = json.loads(desk.client_file.read_text())
    entry["mcpServers"]["own"]["args"] += fields.pop("args", [])
    desk.client_file.write_text(json.dumps(entry))
    add_fields(desk, fields)
    code, told = examine(desk.km_home, capsys)
    assert code == 4
    assert "no program can be given its arguments or variables" in json.dumps(told)


def test_a_key_that_a_server_repeats_is_masked(desk: Desk, capsys: Shown) -> None:
    program = desk.home / "server.py"
    program.write_text(
        "import os, sys\n"
        "print('key', os.environ['KEY'], 'bad', sys.argv[2])\n"
        "print('no', os.environ['KEY'], sys.argv[2], file=sys.stderr)\n"
        "sys.exit(3)\n"
    )
    desk.write_client(sys.executable, str(program), "--token", "hunter-two")
    add_fields(desk, {"env": {"KEY": "s3cret-value", "LEVEL": "1"}})
    code, told = examine(desk.km_home, capsys)
    assert code == 4
    shown = json.dumps(told)
    assert "s3cret" not in shown
    assert "hunter" not in shown
    assert "key *** bad ***" in shown
    assert "no *** ***" in shown


def test_a_server_that_asks_first_answers_all_the_same(desk: Desk, capsys: Shown) -> None:
    """Its questions have ids of their own, which may be the same as ours."""
    desk.write_server(server('print(\'{"jsonrpc":"2.0","id":1,"method":"ping"}\', flush=True)'))
    assert examine(desk.km_home, capsys)[0] == 0


def test_ctrl_c_waits_for_no_server(desk: Desk) -> None:
    started = desk.home / "started"
    desk.write_server(f"import os, time; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(1000)")
    words = [command("kmctl"), "--home", str(desk.km_home), "doctor", "--offline"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for(lambda: started.exists() and started.read_text(), "the server")
        process.send_signal(signal.SIGINT)
        shown = process.communicate(timeout=WAIT_S)
    assert (process.returncode, shown) == (130, (b"", b""))
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


def run_fix(desk: Desk, told: dict[str, Any]) -> None:
    """Do what the only fault's fix says, to the letter."""
    (fix,) = [one["fix"] for one in told["findings"] if one["level"] == "bad"]
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{desk.home}:/usr/bin:/bin"}
    line = fix.replace(" && kmctl", " --yes && kmctl") + " --yes"
    if "install" in fix.split():
        line += " --no-service"
    done = subprocess.run(
        ["/bin/sh", "-c", line], env=environ, capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["o'brien", "a b", '"$(x)"'])
def test_a_lost_server_of_any_name_comes_back_by_the_fix(desk: Desk, name: str, capsys: Shown) -> None:
    entry = {"command": sys.executable, "args": [str(desk.home / "server.py")]}
    bare = json.dumps({"mcpServers": {name: entry}})
    desk.client_file.write_text(bare)
    desk.install()
    desk.client_file.write_text(bare)
    code, told = examine(desk.km_home, capsys)
    assert code == 4
    run_fix(desk, told)
    assert examine(desk.km_home, capsys)[0] == 0


def test_who_took_km_out_can_say_so(desk: Desk, capsys: Shown) -> None:
    entry = {"command": sys.executable, "args": [str(desk.home / "server.py")]}
    desk.client_file.write_text(json.dumps({"mcpServers": {"own": entry}}))
    assert examine(desk.km_home, capsys)[0] == 4
    options = ["--home", str(desk.km_home), "uninstall", "--yes", "--client", "cursor", "--server", "own"]
    assert run_kmctl(*options, environ={"HOME": str(desk.home)})[0] == 0
    assert examine(desk.km_home, capsys)[0] == 0


def test_a_km_written_by_hand_that_is_nowhere_comes_back_by_the_fix(desk: Desk, capsys: Shown) -> None:
    words = ["--home", str(desk.km_home), "--name", "own", "--", sys.executable, str(desk.home / "server.py")]
    entry = {"command": "/gone/km", "args": words}
    desk.client_file.write_text(json.dumps({"mcpServers": {"own": entry}}))
    code, told = examine(desk.km_home, capsys)
    assert code == 4
    run_fix(desk, told)
    assert examine(desk.km_home, capsys)[0] == 0


def test_a_command_that_has_moved_comes_back_by_the_fix(
    desk: Desk, capsys: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version manager has another npx on PATH now."""
    old = desk.home / "v1"
    old.mkdir()
    for program in (old / "own-server", desk.home / "own-server"):
        program.write_text(f"#!{sys.executable}\n{server()}")
        program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{desk.home}:{os.environ['PATH']}")
    (desk.home / "own-server").rename(desk.home / "aside")
    desk.client_file.write_text(json.dumps({"mcpServers": {"own": {"command": "own-server"}}}))
    options = ["--home", str(desk.km_home), "install", "--yes", "--no-service", "--client", "cursor"]
    assert run_kmctl(*options, environ={"HOME": str(desk.home), "PATH": str(old)})[0] == 0
    assert str(old / "own-server") in desk.client_file.read_text()
    (old / "own-server").unlink()
    (desk.home / "aside").rename(desk.home / "own-server")
    code, told = examine(desk.km_home, capsys)
    assert code == 4
    run_fix(desk, told)
    assert examine(desk.km_home, capsys)[0] == 0

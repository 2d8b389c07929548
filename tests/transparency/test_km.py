"""What only km does: a command that is not there, the console script, and the relay's own place and manners."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.support.processes import LAUNCH, wait_for
from tests.transparency.client import Client
from tests.transparency.scenarios import SCENARIOS
from tests.transparency.stage import Stage, Wrap, bare, km, km_script, observe

BY_SCRIPT = (
    "bytes_come_back[line_of_1_mib]", "descriptors_seen_by_a_plain_program", "process_state[as_it_is]",
    "environment[no_lang]", "environment[not_utf8]", "ignored_signals[none]",
    "ignored_signals[many]", "blocked_signals", "exit_code[seven]", "client_signals_the_process[TERM]",
    "arguments[options]", "sockets_instead_of_pipes",
)  # fmt: skip
BURSTS = 50


@pytest.mark.parametrize("name", BY_SCRIPT)
def test_the_console_script_is_as_transparent(name: str, tmp_path: Path) -> None:
    act = SCENARIOS[name].act
    assert observe(act, km_script, tmp_path) == observe(act, bare, tmp_path)


def test_last_words_arrive_whole_every_time(tmp_path: Path) -> None:
    """A race that is lost once in a while would be lost here."""
    with Stage(tmp_path, km) as stage:
        for _ in range(BURSTS):
            client = stage.probe("emit", 60_000, 3)
            assert client.wait() == 3
            assert len(client.receive_rest()) == 60_000


@pytest.mark.parametrize("wrap", [km, km_script])
@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        ("no-such-server", 127, b"no-such-server"),
        ("./no/such/server", 127, b"no/such/server"),
        ("{folder}/plain", 126, b"plain"),
        ("{folder}", 126, b"executable"),
        ("{folder}/plain/below", 127, b"below"),
    ],
)
def test_a_command_that_cannot_run(wrap: Wrap, command: str, status: int, says: bytes, tmp_path: Path) -> None:
    """One line on stderr, the shell's status, nothing on stdout, nobody left."""
    (tmp_path / "plain").write_text("not executable")
    with Stage(tmp_path, wrap) as stage:
        record = stage.start([command.format(folder=tmp_path)]).finish(b"request\n")
        assert (record["output"], record["status"]) == (b"", status)
        assert record["errors"].startswith(b"km: ")
        assert record["errors"].count(b"\n") == 1
        assert says in record["errors"]
        assert stage.left() == []


def relay_of(stage: Stage, client: Client) -> int:
    """The relay's pid: what runs of this stage beside the server."""
    return wait_for(lambda: next((pid for pid in stage.running() if pid != client.process.pid), None), "the relay")


def test_the_relay_holds_nothing_of_the_clients(tmp_path: Path) -> None:
    """Own process group, nobody's child here, `/` as its folder, no stderr, no other descriptor."""
    shared, theirs = os.pipe()
    with Stage(tmp_path, km) as stage, os.fdopen(shared, "rb"), os.fdopen(theirs, "wb"):
        client = stage.probe("echo", pass_fds=(theirs,), cwd=tmp_path)
        client.send(b"x")
        client.receive(1)
        relay = relay_of(stage, client)
        entry = Path("/proc", str(relay))
        wait_for(lambda: str(entry.joinpath("cwd").readlink()) == "/", "the relay to leave the folder")
        held = {entry.joinpath("fd", name.name).readlink() for name in entry.joinpath("fd").iterdir()}
        assert os.fstat(theirs).st_ino not in {inode_of(str(link)) for link in held}
        assert os.fstat(client.errors).st_ino not in {inode_of(str(link)) for link in held}
        ppid, pgid = (int(word) for word in entry.joinpath("stat").read_text().rpartition(")")[2].split()[1:3])
        assert ppid not in (os.getpid(), client.process.pid)
        assert pgid not in (relay, os.getpgid(0), client.process.pid)
        client.finish()


def inode_of(link: str) -> int:
    """The inode in `pipe:[123]`; 0 for other links."""
    kind, _, rest = link.partition(":[")
    return int(rest.rstrip("]")) if kind == "pipe" else 0


@pytest.mark.parametrize("name", ["TERM", "HUP", "INT", "USR1", "USR2", "ALRM", "PIPE", "XCPU"])
def test_a_signal_that_meets_the_relay_does_not_end_the_session(name: str, tmp_path: Path) -> None:
    """`pkill -f` finds the relay by the server's words."""
    with Stage(tmp_path, km) as stage:
        client = stage.probe("echo")
        client.send(b"x")
        client.receive(1)
        relay = relay_of(stage, client)
        wait_for(lambda: str(Path(f"/proc/{relay}/cwd").readlink()) == "/", "the relay to settle")
        os.kill(relay, getattr(signal, f"SIG{name}"))
        client.send(b"still there")
        assert client.receive(11) == b"still there"
        assert client.finish() == {"output": b"", "errors": b"", "status": 0}
        assert stage.left() == []


@pytest.mark.parametrize("lacks", ["relay.py", "detached.py"])
@pytest.mark.parametrize("option", [[], ["--stderr"], ["--strict"]])
def test_a_damaged_installation_costs_the_capture_alone(lacks: str, option: list[str], tmp_path: Path) -> None:
    """Its files may be half replaced by an upgrade just now. Who wants it strict gets no server."""
    shim = tmp_path / "kmd" / "shim"
    shutil.copytree(LAUNCH.parent, shim, ignore=shutil.ignore_patterns(lacks, "__pycache__"))

    def damaged(home: Path, words: list[str]) -> list[str]:
        return [sys.executable, "-I", "-S", str(shim / "launch.py"), "--home", str(home), *option, "--", *words]

    with Stage(tmp_path, damaged) as stage:
        if option == ["--strict"]:
            record = stage.probe("echo").finish(b"x")
            assert (record["output"], record["status"]) == (b"", 125)
            assert record["errors"].startswith(b"km: --strict: ")
            return
        client = stage.probe("chatter")
        for number in range(100):
            line = b"%02d" % number * 500 + b"\n"
            assert client.converse(line) == line
        assert client.receive_note() == b"got 1000\n"
        client.close_input()
        assert client.receive_rest() == b""
        assert client.wait() == 0
        assert stage.left() == []

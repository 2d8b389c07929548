"""The command line as a whole: help, usage, exit codes, pipes, Ctrl-C, what start-up loads."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kmctl import cli
from kmctl.cli import COMMANDS, kmctl, load_command, run
from kmd.errors import ConfigError, DaemonUnavailable, KilometersError
from tests.cli.stub import STARTS, destination_of, status_of, stub_daemon
from tests.cli.terminal import KMCTL, WAIT_S, clean_environ, run_kmctl, run_on_terminal


def walk(words: tuple[str, ...], command: click.Command) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """*command* under its *words*, and those in it."""
    yield words, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from walk((*words, name), inner)


def load(name: str) -> click.Command:
    command = load_command(name)
    assert command is not None
    return command


EVERY = [pair for name in sorted(COMMANDS) for pair in walk((name,), load(name))]


@pytest.mark.parametrize("arguments", [(), *(words for words, _ in EVERY)], ids=" ".join)
def test_every_help_has_an_example(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*arguments, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Example:" in shown
    assert " ".join(["kmctl", *arguments]) in shown.split("Example:")[1]


@pytest.mark.parametrize(("words", "command"), EVERY, ids=lambda value: " ".join(value) if type(value) is tuple else "")
def test_every_command_takes_home_and_json(words: tuple[str, ...], command: click.Command) -> None:
    options = {option for parameter in command.params for option in parameter.opts}
    assert "--home" in options
    assert "--json" in options or isinstance(command, click.Group) or words in NOT_JSON


NOT_JSON = {("service", "logs"), ("config", "edit"), ("completion",), ("man",)}
"""What kmd has logged is JSON lines already; an editor is for people; scripts and pages have forms of their own."""


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_table_says_what_the_command_says(name: str) -> None:
    command = load(name)
    assert command.name == name
    first = (command.help or "").split("\n\n")[0].replace("\n", " ")
    assert COMMANDS[name].removesuffix(".") in first


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("kmctl ")


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (["nonsense"], "kmctl"),
        (["--nonsense"], "kmctl"),
        (["tail", "-n", "x"], "kmctl tail"),
        (["tail", "-n", "-1"], "kmctl tail"),
        (["tail", "-n", "10001"], "kmctl tail"),
        (["flush", "--timeout", "-1"], "kmctl flush"),
        (["flush", "--timeout", "nan"], "kmctl flush"),
        (["status", "extra"], "kmctl status"),
        (["init", "--key", "a", "--key-stdin", "--url", "http://a"], "kmctl init"),
        (["init", "--local", "--url", "http://a"], "kmctl init"),
        (["init", "--key", "a"], "kmctl init"),
        (["init", "--key", "a", "--url", ""], "kmctl init"),
    ],
)
def test_usage(arguments: list[str], path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--home", str(tmp_path), *arguments]) == 2
    shown = capsys.readouterr()
    error, hint = shown.err.splitlines()
    assert error.startswith("error: ")
    assert hint == f"hint: see '{path} --help'"
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


def test_no_command_shows_the_help_as_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    assert "Usage: kmctl" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["status"], ["flush"], ["tail"], ["tail", "-f"], ["status", "--json"]], ids=str)
def test_no_daemon(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "a home"
    assert run(["--home", str(home), *arguments]) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"error: kmd is not running\nhint: start it with '{STARTS} --home '{home}''\n"


def test_no_daemon_without_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KM_HOME", str(tmp_path))
    assert run(["status"]) == 3
    assert capsys.readouterr().err.endswith(f"hint: start it with '{STARTS}'\n")


def test_home_after_the_command_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "right"
    with stub_daemon(home, {"status": [{"status": status_of()}]}):
        assert run(["--home", str(tmp_path), "status", "--home", str(home)]) == 0
        assert run(["--home", str(home), "status"]) == 0
    assert capsys.readouterr().out.count("pid 42") == 2


@pytest.mark.parametrize(
    ("exc", "code"),
    [
        (KilometersError("a\nb\x1b[2J", hint="c\x1b"), 1),
        (ConfigError(None, "a", "b", hint="c"), 1),
        (DaemonUnavailable("a", hint="c"), 3),
        (click.FileError("a"), 1),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (BrokenPipeError(), 141),
        (OSError(28, "No space left on device"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_end_has_its_code(
    exc: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def fail() -> None:
        raise exc

    monkeypatch.setitem(kmctl.commands, "fail", fail)
    monkeypatch.setattr(cli, "leave_stdout", lambda code: code)
    assert run(["fail"]) == code
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    if code in (130, 141):
        assert shown == ""
    else:
        assert shown.startswith("error: ")
        assert shown.count("\n") == (2 if isinstance(exc, KilometersError | OSError) else 1)


HEAVY = (
    "httpx",
    "trio",
    "sqlite_utils",
    "rich",
    "aiohttp",
    "structlog",
    "pysqlite3",
    "sqlite3",
    "asyncio",
    "zstandard",
    "ruamel",
    "kmctl.clients",
)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["config"], ["init", "--local"]], ids=str)
def test_start_up_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from kmctl.cli import run; code = run(sys.argv[1:]);"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    words = [sys.executable, "-c", code, "--home", str(tmp_path), *arguments]
    done = subprocess.run(words, capture_output=True, text=True, timeout=WAIT_S, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_ctrl_c_is_quiet(tmp_path: Path) -> None:
    with stub_daemon(tmp_path, {"tail": [{"event": {"seq": 1, "method": "ping"}}]}, hold=True):
        process = subprocess.Popen(
            [*KMCTL, "--home", str(tmp_path), "tail", "-f"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environ(),
        )
        with process:
            assert process.stdout is not None
            assert b"ping" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=WAIT_S)
    assert (process.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize("extra", [[], ["--json"]], ids=str)
def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path, extra: list[str]) -> None:
    events = [{"event": {"seq": number, "method": "ping" * 100}} for number in range(2000)]
    with stub_daemon(tmp_path, {"tail": events}):
        process = subprocess.Popen(
            [*KMCTL, "--home", str(tmp_path), "tail", *extra],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environ(),
        )
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr is not None
            assert process.stderr.read() == b""
            assert process.wait(WAIT_S) == 141


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]], ids=str)
def test_a_reader_that_is_gone_before_the_first_byte(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*KMCTL, *arguments], stdout=writer, stderr=subprocess.PIPE, timeout=WAIT_S, env=clean_environ()
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["config"]], ids=str)
def test_a_full_disk_behind_the_output_is_said(arguments: list[str], tmp_path: Path) -> None:
    words = [*KMCTL, "--home", str(tmp_path), *arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=WAIT_S, env=clean_environ()
        )
        assert done.returncode == 1
        assert done.stderr.startswith("error: the output: No space left on device\nhint: ")
        both = subprocess.run(words, stdout=full, stderr=full, timeout=WAIT_S, env=clean_environ())
        assert both.returncode == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_are_borne(closed: str, tmp_path: Path) -> None:
    line = f"{shlex.join([*KMCTL, '--home', str(tmp_path), 'config'])} {closed}"
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, timeout=WAIT_S, env=clean_environ())
    assert (done.returncode, done.stderr) == (0, b"")
    assert bool(done.stdout) == (">&-" not in closed.split())


def test_a_message_of_several_lines_becomes_one() -> None:
    code, _, err = run_kmctl("completion")
    assert (code, err.count("\n")) == (2, 2)
    assert "Choose from: bash, zsh, fish\n" in err


def test_a_command_that_is_nearly_there_is_named() -> None:
    code, _, err = run_kmctl("instal")
    assert (code, "Did you mean 'install'?" in err) == (2, True)
    assert "Did you mean" not in run_kmctl("xyz")[2]


def test_colours_are_for_terminals(tmp_path: Path) -> None:
    failing = destination_of(state="paused", last_error="the key was refused (401)")
    with stub_daemon(tmp_path, {"status": [{"status": status_of(failing)}]}):
        arguments = ["--home", str(tmp_path), "status"]
        code, shown = run_on_terminal(arguments)
        assert (code, "\x1b[" in shown) == (4, True)
        code, shown = run_on_terminal(arguments, environ={"NO_COLOR": "1"})
        assert (code, "\x1b[" in shown) == (4, False)
        code, shown = run_on_terminal(arguments, environ={"NO_COLOR": ""})
        assert "\x1b[" in shown
        for environ in ({}, {"FORCE_COLOR": "1"}):
            code, shown, _ = run_kmctl(*arguments, environ=environ)
            assert (code, "\x1b[" in shown) == (4, False)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_is_not_utf8_is_no_traceback(tmp_path: Path, encoding: str) -> None:
    with stub_daemon(tmp_path, {"tail": [{"event": {"stream": "to_server", "method": "大"}}]}):
        done = subprocess.run(
            [*KMCTL, "--home", str(tmp_path), "tail"],
            capture_output=True,
            timeout=WAIT_S,
            env=clean_environ({"PYTHONIOENCODING": encoding}),
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert ("→".encode() if encoding == "utf-8" else b"\\u2192") in done.stdout

"""What shells and `man` are given: completion that works in a real shell, pages made from the help."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kmctl.cli import COMMANDS
from kmctl.man import EXIT_STATUS, escape
from tests.cli.stub import destination_of, status_of, stub_daemon
from tests.cli.terminal import KMCTL, WAIT_S, clean_environ, run_kmctl, run_on_terminal
from tests.support.processes import command

ROOT = Path(__file__).parents[2]
BASH = """
source <(kmctl completion bash) || exit 9
COMP_WORDS=({words}) COMP_CWORD={last}
_kmctl_completion kmctl
echo "${{COMPREPLY[@]}}"
"""


def complete(*words: str) -> list[str]:
    """What bash offers for the last of *words*."""
    script = BASH.format(words=" ".join(f"'{word}'" for word in words), last=len(words) - 1)
    environ = clean_environ({"PATH": f"{Path(command('kmctl')).parent}:{os.environ['PATH']}"})
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=WAIT_S, env=environ)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["kmctl", "serv"], ["service"]),
        (["kmctl", "log"], ["login", "logout"]),
        (["kmctl", "service", "re"], ["remove", "restart"]),
        (["kmctl", "config", "get", "outbox."], ["outbox.max_bytes", "outbox.max_age_days"]),
        (["kmctl", "service", "install", "--manager", "sys"], ["systemd"]),
        (["kmctl", "doctor", "--off"], ["--offline"]),
    ],
    ids=str,
)
def test_bash_completes(words: list[str], offered: list[str]) -> None:
    assert sorted(complete(*words)) == sorted(offered)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_other_shells_get_a_script_and_its_answers(shell: str) -> None:
    code, shown, err = run_kmctl("completion", shell)
    assert (code, err) == (0, "")
    assert f"_KMCTL_COMPLETE={shell}_complete" in shown
    environ = {"_KMCTL_COMPLETE": f"{shell}_complete", "COMP_WORDS": "kmctl serv", "COMP_CWORD": "1"}
    environ = {**environ, "COMP_CWORD": "serv"} if shell == "fish" else environ
    done = subprocess.run(KMCTL, capture_output=True, text=True, timeout=WAIT_S, env=clean_environ(environ))
    assert "service" in done.stdout
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=shown, capture_output=True, text=True, timeout=WAIT_S)
        assert checked.returncode == 0, checked.stderr


def test_on_a_terminal_it_says_where_the_script_goes() -> None:
    assert "put this into ~/.config/fish" in run_on_terminal(["completion", "fish"])[1]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man") / "man1"
    code, shown, err = run_kmctl("man", "--dir", str(folder))
    assert (code, err) == (0, "")
    assert "man kmctl" in shown
    return folder


def test_every_command_has_a_page(pages: Path) -> None:
    assert {path.name for path in pages.iterdir()} == {"kmctl.1", *(f"kmctl-{name}.1" for name in COMMANDS)}


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_a_page_says_what_the_help_says(pages: Path, name: str) -> None:
    text = (pages / (f"kmctl-{name}.1" if name else "kmctl.1")).read_text()
    shown = text.replace("\\-", "-").replace("\\e", "\\")
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "ENVIRONMENT", "EXAMPLES", "SEE ALSO"):
        assert f".SH {heading}\n" in text
    _, plain, _ = run_kmctl(*([name] if name else []), "--help")
    for option in re.findall(r"--[a-z-]+", plain.partition("Options:")[2].partition("Commands:")[0]):
        assert option in shown
    for line in plain.partition("Example:")[2].partition("\n\n")[0].splitlines():
        assert line.strip() in shown
    assert "\b" not in text


@pytest.mark.skipif(not shutil.which("groff"), reason="needs groff")
def test_roff_has_nothing_to_say_against_a_page(pages: Path) -> None:
    for path in pages.iterdir():
        done = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww", "-z", str(path)], capture_output=True, text=True, timeout=WAIT_S
        )
        assert (done.returncode, done.stderr) == (0, ""), path.name


def test_one_page_is_printed() -> None:
    assert run_kmctl("man")[1].startswith('.TH "KMCTL" "1"')
    assert run_kmctl("man", "service")[1].startswith('.TH "KMCTL-SERVICE" "1"')
    code, shown, err = run_kmctl("man", "nonsense")
    assert (code, shown, "no command 'nonsense'" in err) == (2, "", True)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = run_kmctl("man", "--dir", str(tmp_path / "file" / "man1"))
    assert (code, "cannot be written" in err) == (1, True)


@pytest.mark.parametrize(("text", "shown"), [("-a", "\\-a"), (".x", "\\&.x"), ("'x", "\\&'x"), ("a\\b", "a\\eb")])
def test_nothing_is_taken_for_a_macro(text: str, shown: str) -> None:
    assert escape(text) == shown


def test_the_exit_codes_are_those_of_the_page() -> None:
    table = re.findall(r"^\| ([\d, ]+) \|", (ROOT / "docs" / "kmctl.md").read_text(), re.MULTILINE)
    assert [code for cell in table for code in cell.split(", ")] == list(EXIT_STATUS)


@pytest.mark.parametrize("way", ["flag", "flag before", "environment"])
def test_plain_is_words_only(tmp_path: Path, way: str) -> None:
    failing = destination_of(state="paused", last_error="the key was refused (401)")
    arguments = ["--home", str(tmp_path), "status"]
    arguments = (
        [*arguments, "--plain"] if way == "flag" else ["--plain", *arguments] if way == "flag before" else arguments
    )
    with stub_daemon(tmp_path, {"status": [{"status": status_of(failing)}]}):
        code, shown = run_on_terminal(arguments, environ={"KMCTL_PLAIN": "1" if way == "environment" else ""})
    assert code == 4
    assert "\x1b" not in shown
    assert "destination: team, state: paused, pending: 0," in shown
    assert "kmd: 9.9, pid 42, up 1 m 01 s" in shown


@pytest.mark.parametrize("arguments", [["config"], ["service", "status"], ["doctor", "-v"]], ids=str)
def test_plain_has_no_columns_and_no_bars(tmp_path: Path, arguments: list[str]) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "config.toml").write_text('[[destinations]]\nurl = "http://127.0.0.1:1"\n')
    (home / "config.toml").chmod(0o600)
    _, shown, err = run_kmctl("--home", str(home), *arguments, "--plain", environ={"HOME": str(tmp_path)})
    assert err == ""
    assert shown
    for line in shown.splitlines():
        assert "  " not in line
        assert "|" not in line


def test_plain_tail_has_no_arrows(tmp_path: Path) -> None:
    event = {"seq": 1, "server": "git", "stream": "to_server", "kind": "request", "method": "ping"}
    with stub_daemon(tmp_path, {"tail": [{"event": event}]}):
        code, shown, _ = run_kmctl("--home", str(tmp_path), "tail", "--plain")
    assert code == 0
    assert ", git to server, request ping, 0 B" in shown

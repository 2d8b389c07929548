"""km's own manners: its command line, how it is installed and reached, and what replaces /proc where there is none."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from functools import partial
from pathlib import Path

import pytest

from kmd.shim import start
from tests.support.processes import LAUNCH, command, read_status, running_kmd, wait_for

WAIT_S = 60.0
FORMS = {"script": [command("km")], "quick": [sys.executable, "-I", "-S", str(LAUNCH)]}
REPOSITORY = LAUNCH.parents[2]


def run(words: list[str], data: bytes = b"", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(words, input=data, capture_output=True, timeout=WAIT_S, env=env)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--name", "x", "--help"], ["--home=/nowhere", "-h"]])
def test_help_says_how_and_gives_an_example(form: str, words: list[str]) -> None:
    done = run([*FORMS[form], *words])
    assert (done.returncode, done.stderr) == (0, b"")
    for said in (b"usage: km ", b"--name NAME", b"--home DIR", b"--stderr", b"--strict", b"mcp-server-time"):
        assert said in done.stdout


@pytest.mark.parametrize("form", FORMS)
def test_version(form: str) -> None:
    done = run([*FORMS[form], "--version"])
    assert done.returncode == 0
    assert done.stdout.startswith(b"km ")
    assert done.stdout.count(b"\n") == 1


def test_the_script_knows_its_version() -> None:
    assert run([command("km"), "--version"]).stdout.split()[1][:1].isdigit()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], b"give its command"),
        (["--"], b"give its command"),
        (["--name", "x"], b"give its command"),
        (["--", ""], b"give its command"),
        (["--name"], b"--name needs a value"),
        (["--name=", "cat"], b"--name needs a value"),
        (["--home", "", "cat"], b"--home needs a value"),
        (["--nmae", "x", "cat"], b"unknown option --nmae"),
        (["-x", "cat"], b"unknown option -x"),
        (["--strict=yes", "cat"], b"--strict takes no value"),
    ],
)
def test_wrong_usage_is_one_line_with_the_next_step(form: str, words: list[str], says: bytes) -> None:
    done = run([*FORMS[form], *words])
    assert (done.returncode, done.stdout) == (2, b"")
    assert says in done.stderr
    assert b"km --help" in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--name", "a", "--home={home}"],
        ["--name=a", "--home", "{home}", "--"],
        ["--home", "{home}", "--name", "b", "--name", "a"],
    ],
)
def test_options_combine_and_the_rest_is_the_servers(words: list[str], tmp_path: Path) -> None:
    """Options behind the command are its own; what is captured is found under the name."""
    home = tmp_path / "home"
    own = [word.format(home=home) for word in words]
    server = ["/bin/sh", "-c", 'printf "%s|" "$@"; cat', "sh", "--name", "x", "--help"]
    with running_kmd(home):
        done = run([*FORMS["quick"], *own, *server], b'{"id":1}\n')
        assert done.stdout == b'--name|x|--help|{"id":1}\n'
        wait_for(lambda: read_status(home)["outbox"]["events"] == 2, "both lines")
    assert done.stderr == b""


def test_names_of_every_kind_of_place(tmp_path: Path) -> None:
    """Spaces, other scripts, a path longer than a socket's may be; python and launch.py behind symbolic links."""
    place = tmp_path / "a b" / "köln 東京" / ("long" * 30)
    place.mkdir(parents=True)
    home, python, launch = place / "home dir", place / "python", place / "launch it.py"
    python.symlink_to(sys.executable)
    launch.symlink_to(LAUNCH)
    with running_kmd(home):
        done = run([str(python), "-I", "-S", str(launch), "--home", str(home), "--", "cat"], b"one\ntwo\n")
        assert (done.stdout, done.stderr, done.returncode) == (b"one\ntwo\n", b"", 0)
        wait_for(lambda: read_status(home)["outbox"]["events"] == 4, "the lines")


def test_km_and_kmd_meet_without_any_variable_but_home(tmp_path: Path) -> None:
    words = [*FORMS["quick"], "--", "cat"]
    environ = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    with running_kmd(tmp_path / ".kilometers"):
        assert run(words, b"one\n", environ).stdout == b"one\n"
        wait_for(lambda: read_status(tmp_path / ".kilometers")["outbox"]["events"] == 2, "the lines")


def test_km_alone_leaves_a_spool_where_kmd_will_look(tmp_path: Path) -> None:
    """`~` in --home is the user's, as no shell has seen what a client's configuration says."""
    environ = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    assert run([*FORMS["quick"], "--home", "~/elsewhere", "--", "cat"], b"one\n", environ).stdout == b"one\n"
    wait_for(lambda: list((tmp_path / "elsewhere" / "spool").glob("*")), "the spool")


FALLBACK = (
    "import sys, json; sys.path.insert(0, {folder!r}); from kmd.shim import start; "
    "environ = start.original_environ('/no/such/file'); "
    "print(json.dumps(sorted([k.decode(), v.decode()] for k, v in zip(environ.keys(), environ.values()))))"
)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"A": "1"},
        {"LANG": "C"},
        {"LC_ALL": "C"},
        {"LANG": "en_US.UTF-8", "LC_CTYPE": "C.UTF-8"},
        {"LC_CTYPE": "C.UTF-8"},
        {"LC_CTYPE": "C.UTF-8", "LANG": "C", "HOME": "/nowhere"},
    ],
)
def test_the_environment_can_be_had_without_proc(environ: dict[str, str]) -> None:
    """As on macOS: what the interpreter adds when it starts in the C locale is taken away again, and only that."""
    words = [sys.executable, "-I", "-S", "-c", FALLBACK.format(folder=str(REPOSITORY))]
    done = run(words, env=environ)
    assert done.stderr == b""
    assert json.loads(done.stdout) == sorted(map(list, environ.items()))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it, as `pip install` leaves it; km needs no other package."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(REPOSITORY)], check=True, timeout=100)
    (wheel,) = folder.glob("*.whl")
    place = folder / "with space"
    venv.create(place, with_pip=False, symlinks=True)
    target = ["--python", str(place / "bin" / "python")]
    subprocess.run([*pip, *target, "install", "--no-deps", str(wheel)], check=True, timeout=100)
    return place


@pytest.mark.parametrize("form", FORMS)
def test_both_forms_work_from_a_wheel(form: str, installed: Path, tmp_path: Path) -> None:
    home, python = tmp_path / "home", installed / "bin" / "python"
    (launch,) = installed.glob("lib/python*/site-packages/kmd/shim/launch.py")
    words = {"script": [str(installed / "bin" / "km")], "quick": [str(python), "-I", "-S", str(launch)]}[form]
    assert run([*words, "--home", str(home), "--", "cat"], b"one\n", {"HOME": str(tmp_path)}).stdout == b"one\n"
    wait_for(lambda: list((home / "spool").glob("*.spool")), "the relay's spool")
    assert not os.access(REPOSITORY / "spool", os.F_OK)


def has_spool(home: Path) -> bool:
    return any(home.glob("spool/*.spool"))


@pytest.mark.parametrize("module", ["start", "relay"])
def test_bytecode_that_a_full_disk_has_cut_off_is_passed_over(module: str, tmp_path: Path) -> None:
    """The server starts, what crosses is captured, and the next start has whole bytecode again."""
    shutil.copytree(LAUNCH.parents[1], tmp_path / "kmd", ignore=shutil.ignore_patterns("__pycache__"))
    words = [sys.executable, "-I", "-S", str(tmp_path / "kmd" / "shim" / "launch.py"), "--home"]
    for place in ("first", "torn", "mended"):
        home = tmp_path / place
        done = subprocess.run([*words, str(home), "cat"], input=b"crosses\n", capture_output=True, timeout=WAIT_S)
        assert (done.stdout, done.stderr, done.returncode) == (b"crosses\n", b"", 0)
        wait_for(partial(has_spool, home), "what was captured")
        if place == "first":
            (bytecode,) = tmp_path.glob(f"kmd/shim/__pycache__/{module}.*.pyc")
            bytecode.write_bytes(bytecode.read_bytes()[:1000])
    assert bytecode.stat().st_size > 1000


def test_the_reference_page_has_every_option_and_no_other() -> None:
    page = (REPOSITORY / "docs" / "km.md").read_text()
    documented = set(re.findall(r"^\| `(--[a-z]+)", page, re.MULTILINE))
    said = set(re.findall(r"^  (--[a-z]+)", run([*FORMS["quick"], "--help"]).stdout.decode(), re.MULTILINE))
    assert documented == said == {*start.FLAGS, *start.VALUES, *start.SHOWS} - {"-h"}
    for status in (start.EX_USAGE, start.EX_UNABLE, start.EX_CANNOT_EXECUTE, start.EX_NOT_FOUND):
        assert re.search(rf"^\|[\d ,]*\b{status}\b", page, re.MULTILINE)

"""Which program a name starts, how, and what km says and exits with when it cannot."""

import ntpath
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmd.shim.windows.plan import (
    CannotStartError,
    creation_flags,
    exit_argument,
    explain_failure,
    plan_launch,
)
from kmd.shim.windows.search import find_program, is_batch, list_candidates
from tests.windows.readers import read_argv

FOLDER = r"C:\project"
SYSTEM = r"C:\Windows\System32"
ENVIRON = {
    "PATH": r'C:\first;D:;"C:\Program Files\nodejs";;relative;C:\last',
    "PATHEXT": ".COM;.EXE;.BAT;.CMD;.JS;.VBS",
}
NODE = r"C:\Program Files\nodejs"
DISK = (
    rf"{NODE}\npx",
    rf"{NODE}\npx.cmd",
    rf"{NODE}\node.exe",
    r"C:\last\node.exe",
    r"C:\last\both.bat",
    r"C:\last\both.exe",
    r"C:\last\tool.js",
    r"C:\last\server.py",
    r"C:\last\server.py.exe",
    r"C:\project\npx.cmd",
    r"C:\project\own.exe",
    r"C:\project\relative\rel.exe",
    r"C:\project\bin\local.cmd",
    r"C:\project\noext",
    r"\\host\share\far.exe",
)
FOUND = {
    "npx": rf"{NODE}\npx.cmd",
    "NPX.CMD": rf"{NODE}\npx.cmd",
    "npx.": rf"{NODE}\npx.cmd",
    "npx.cmd. .": rf"{NODE}\npx.cmd",
    "node": rf"{NODE}\node.exe",
    "node.exe": rf"{NODE}\node.exe",
    "both": r"C:\last\both.exe",
    "both.bat": r"C:\last\both.bat",
    "server.py": r"C:\last\server.py.exe",
    "rel": r"C:\project\relative\rel.exe",
    "own": r"C:\project\own.exe",
    r"bin\local": r"C:\project\bin\local.cmd",
    "bin/local.cmd": r"C:\project\bin\local.cmd",
    r".\npx": r"C:\project\npx.cmd",
    r"\last\node": r"C:\last\node.exe",
    r"C:own": r"C:\project\own.exe",
    r"C:\project\noext": r"C:\project\noext",
    r"\\host\share\far": r"\\host\share\far.exe",
}
MISSING = (
    "tool",
    "noext",
    "none",
    "",
    ".",
    "..",
    "C:",
    "\\",
    "C:\\",
    "node.exe:stream.exe",
    r"C:\last",
    "nod*",
)


def disk(*paths: str) -> Callable[[str], bool]:
    folded = {path.lower() for path in paths}
    return lambda path: path.lower() in folded


@pytest.mark.parametrize("name", FOUND)
def test_a_name_finds(name: str) -> None:
    found = find_program(name, ENVIRON, FOLDER, disk(*DISK))
    assert found is not None
    assert found.lower() == FOUND[name].lower()


@pytest.mark.parametrize("name", MISSING)
def test_a_name_finds_nothing(name: str) -> None:
    assert find_program(name, ENVIRON, FOLDER, disk(*DISK)) is None


def test_a_projects_own_npx_does_not_come_before_the_users() -> None:
    assert find_program("npx", ENVIRON, FOLDER, disk(r"C:\project\npx.cmd", r"C:\last\npx.cmd")) == r"C:\last\npx.cmd"


def test_the_current_folder_can_be_left_out() -> None:
    environ = {**ENVIRON, "NODEFAULTCURRENTDIRECTORYINEXEPATH": ""}
    assert find_program("own", environ, FOLDER, disk(*DISK)) is None
    assert find_program(r".\own", environ, FOLDER, disk(*DISK)) == r"C:\project\own.exe"


@pytest.mark.parametrize("environ", [{}, {"PATHEXT": ""}, {"PATHEXT": ";;"}])
def test_without_pathext_there_are_the_usual_extensions(environ: dict[str, str]) -> None:
    found = find_program("own", environ, FOLDER, disk(r"C:\project\own.cmd"))
    assert found == (None if environ.get("PATHEXT") else r"C:\project\own.cmd")


def test_pathext_decides_the_order() -> None:
    environ = {**ENVIRON, "PATHEXT": ".bat; .EXE"}
    assert find_program("both", environ, FOLDER, disk(*DISK)) == r"C:\last\both.bat"


@given(st.text(st.sampled_from("ab.\\/: C%"), max_size=12))
def test_candidates_are_absolute_and_none_is_a_batch_file_in_disguise(name: str) -> None:
    for path in list_candidates(name, ENVIRON, FOLDER):
        assert ntpath.isabs(path)
        assert ":" not in ntpath.splitdrive(path)[1]
        assert path == ntpath.normpath(path)
        assert is_batch(path) == path.lower().endswith((".bat", ".cmd"))


@pytest.mark.parametrize("path", ["x.bat", "x.CMD", "x.bat.", "x.cmd. . "])
def test_batch_files_are_known(path: str) -> None:
    assert is_batch(path)


@pytest.mark.parametrize("path", ["x.exe", "bat", "x.bat.exe", "x.cmdx", "x.com"])
def test_other_files_too(path: str) -> None:
    assert not is_batch(path)


def test_a_program_is_started_by_its_path_with_the_words_as_given() -> None:
    launch = plan_launch(["node", "a b", ""], ENVIRON, FOLDER, SYSTEM, disk(*DISK))
    assert launch.application == rf"{NODE}\node.exe"
    assert read_argv(launch.command_line) == ["node", "a b", ""]


def test_a_batch_file_is_started_by_the_systems_shell() -> None:
    launch = plan_launch(
        ["npx", "-y", "@a/b", "x&y"], {**ENVIRON, "COMSPEC": r"C:\evil.exe"}, FOLDER, SYSTEM, disk(*DISK)
    )
    assert launch.application == rf"{SYSTEM}\cmd.exe"
    assert launch.command_line == rf'{SYSTEM}\cmd.exe /e:on /v:off /d /s /c ""{NODE}\npx.cmd" -y @a/b "x&y""'


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["none"], 127, "command not found: 'none'"),
        (["npx", "a\nb"], 126, "line break"),
        (["node", "x" * 40_000], 126, "32,766"),
        (["npx", "x" * 9_000], 126, "8,191"),
    ],
)
def test_what_cannot_be_started_is_said_in_one_line(words: list[str], status: int, says: str) -> None:
    with pytest.raises(CannotStartError, match=says) as caught:
        plan_launch(words, ENVIRON, FOLDER, SYSTEM, disk(*DISK))
    assert caught.value.status == status
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (2, 127, "not found"),
        (3, 127, "not found"),
        (5, 126, "permission"),
        (193, 126, "interpreter"),
        (216, 126, "cannot run this file"),
        (740, 126, "administrator"),
        (1450, 126, "no resources"),
    ],
)
def test_windows_refusals_are_explained(error: int, status: int, says: str) -> None:
    failure = explain_failure("x.py", error, "no resources")
    assert failure.status == status
    assert says in str(failure)
    assert "'x.py'" in str(failure)


@pytest.mark.parametrize(
    ("code", "argument"),
    [
        (0, 0),
        (3, 3),
        (255, 255),
        (0x7FFFFFFF, 0x7FFFFFFF),
        (0x80000000, -0x80000000),
        (0xC000013A, -1073741510),
        (0xFFFFFFFF, -1),
    ],
)
def test_an_exit_code_keeps_its_32_bits(code: int, argument: int) -> None:
    assert exit_argument(code) == argument
    assert argument & 0xFFFFFFFF == code
    assert -(1 << 31) <= argument < 1 << 31


def test_a_server_gets_no_window_where_km_has_no_console() -> None:
    assert creation_flags(has_console=False) ^ creation_flags(has_console=True) == 0x08000000
    assert creation_flags(has_console=True) & 0x4

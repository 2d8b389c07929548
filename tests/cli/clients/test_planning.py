"""Which commands become paths, when a wrap is renewed, and the two checks that stand before every write."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from kmctl.client_options import Scope
from kmctl.clients.files import FileRefused
from kmctl.clients.formats import parse_text
from kmctl.clients.installing import check_launcher, find_launcher, plan_work
from kmctl.clients.plan import Action, FilePlan, Path_, Source, Words, check_rest, check_way_back, plan_install
from kmctl.clients.run import check_written, finish, replace_all
from kmctl.clients.sources import make_find
from kmctl.clients.tree import Format, NotUnderstood
from kmctl.clients.undo_store import hold_lock
from kmctl.clients.words import Launcher, resolve_command
from kmctl.install import warn_fleeting
from kmd.errors import KilometersError
from tests.cli.clients.homes import machine_of, make_runners, places_of, write_sample
from tests.cli.clients.samples import SAMPLES

LAUNCHER = Launcher("/opt/python", "/opt/kmd/shim/launch.py", "/h")
KEYS = (("mcpServers",),)
CURSOR = next(one for one in SAMPLES if one.place == ".cursor/mcp.json")


def plan_of(entry: dict[str, Any] | str, launcher: Launcher = LAUNCHER) -> FilePlan:
    """The plan for a file with one server, or for that text."""
    text = entry if isinstance(entry, str) else json.dumps({"mcpServers": {"a": entry}})
    source = Source("x", Path("a.json"), Format.JSON, KEYS)
    found = {"npx": "/usr/bin/npx"}.get
    return plan_install(source, parse_text(text, Format.JSON), launcher, found, "now", lambda _: True, [])


def words_of(plan: FilePlan) -> list[str]:
    """The words of that server afterwards."""
    entry = json.loads(plan.after)["mcpServers"]["a"]
    return [entry["command"], *entry["args"]]


@pytest.mark.parametrize(
    "launcher",
    [
        Launcher("/other/python", LAUNCHER.launch, "/h"),
        Launcher("/opt/python", "/other/kmd/shim/launch.py", "/h"),
        Launcher("/opt/python", LAUNCHER.launch, "/other"),
        Launcher("/opt/python", LAUNCHER.launch, None),
    ],
    ids=["python", "launch.py", "home", "no home"],
)
def test_a_wrap_of_another_installation_or_home_is_renewed(launcher: Launcher) -> None:
    first = plan_of({"command": "npx"})
    assert plan_of(first.after).changes == ()
    second = plan_of(first.after, launcher)
    assert [change.action for change in second.changes] == [Action.REFRESH]
    assert words_of(second) == [*launcher.words("a"), "/usr/bin/npx"]


@pytest.mark.parametrize("key", ["env", "envs", "environment"])
@pytest.mark.parametrize("name", ["PATH", "Path"])
def test_a_server_with_a_path_of_its_own_keeps_its_command(key: str, name: str) -> None:
    assert words_of(plan_of({"command": "npx", key: {name: "/x"}}))[-1] == "npx"
    assert words_of(plan_of({"command": "npx", key: {"PATHS": "/x"}}))[-1] == "/usr/bin/npx"


@pytest.mark.parametrize(
    "command",
    [
        "./npx",
        "/bin/npx",
        "../npx",
        "a/npx",
        "~npx",
        "${HOME}/npx",
        "${npx}",
        "%npx%",
        "$npx",
        "C:\\npx",
        "-npx",
        " npx",
    ],
)
def test_what_is_no_bare_name_stays(command: str) -> None:
    assert resolve_command(command, lambda _: "/found") == command


def test_a_command_at_home_is_looked_up_there(tmp_path: Path) -> None:
    """Some clients expand `~` in a command only, and km makes it an argument."""
    programs(tmp_path / "bin", "own")
    find = make_find({}, tmp_path, "/p", "/p")
    assert resolve_command("~/bin/own", find) == str(tmp_path / "bin" / "own")
    assert resolve_command("~/bin/other", find) == "~/bin/other"


@pytest.mark.parametrize(
    ("command", "args", "reason"),
    [
        ("km", ["npx", "-y", "x"], "a km without '--'"),
        ("/opt/bin/km", [], "a km without '--'"),
        ("npx -y x", [], "whole command line"),
        ("npx\t-y x", ["z"], "whole command line"),
    ],
)
def test_commands_that_would_mean_something_else_behind_km_are_left(command: str, args: list[str], reason: str) -> None:
    plan = plan_of({"command": command, "args": args})
    assert plan.after == plan.before
    ((_, said),) = plan.left
    assert reason in said


@pytest.mark.parametrize("command", ["/Applications/My App/server", "C:\\Program Files\\x.exe", "./my server", "npx "])
def test_a_path_with_a_space_is_no_command_line(command: str) -> None:
    assert words_of(plan_of({"command": command}))[-1] == command


def programs(folder: Path, *names: str) -> Path:
    """A folder with programs in it."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


def test_commands_are_looked_up_as_the_client_would(tmp_path: Path) -> None:
    inside = programs(tmp_path / "venv" / "bin", "npx", "own", "python3")
    outside = programs(tmp_path / "usr", "npx", "uvx", "python3")
    path = os.pathsep.join(["", "relative", str(inside), str(outside)])
    active = {"PATH": path, "VIRTUAL_ENV": str(tmp_path / "venv")}
    find = make_find(active, tmp_path, "/p", "/p")
    assert [find(name) for name in ("uvx", "own", "npx", "python3", "none")] == [
        str(outside / "uvx"),
        str(inside / "own"),
        None,
        None,
        None,
    ]
    find = make_find({"PATH": path}, tmp_path, str(tmp_path / "venv"), "/p")
    assert find("npx") is None
    find = make_find({"PATH": path}, tmp_path, "/p", "/p")
    assert find("npx") == str(inside / "npx")
    assert find("python3") == str(inside / "python3")
    assert make_find({}, tmp_path, "/p", "/p")("npx") is None


@pytest.mark.parametrize(
    "after",
    [
        '{"x": 2, "mcpServers": {"a": {"command": "km", "args": ["b", "c"]}}}',
        '{"x": 1, "mcpServers": {"a": {"command": "km", "args": ["b", "d"]}}}',
        '{"x": 1, "mcpServers": {"a": {"command": "mk", "args": ["b", "c"]}}}',
        '{"x": 1, "mcpServers": {"a": {"command": "km", "args": ["b", "c"], "env": {}}}}',
        '{"x": 1, "mcpServers": {"z": {"command": "km", "args": ["b", "c"]}}}',
    ],
)
def test_a_change_elsewhere_is_never_written(after: str) -> None:
    before = '{"x": 1, "mcpServers": {"a": {"command": "b", "args": ["c"]}}}'
    good = '{"x": 1, "mcpServers": {"a": {"command": "km", "args": ["b", "c"]}}}'
    words: dict[Path_, Words] = {("mcpServers", "a"): (("km", "b"), ("c",))}
    old = parse_text(before, Format.JSON)
    check_rest(old, parse_text(good, Format.JSON), KEYS, words)
    with pytest.raises(NotUnderstood, match="cannot be changed"):
        check_rest(old, parse_text(after, Format.JSON), KEYS, words)


def test_what_could_not_be_put_back_is_never_written() -> None:
    before = json.dumps({"mcpServers": {"a": {"command": "npx"}}})
    plan = plan_of(before)
    check_way_back(plan, parse_text(before, Format.JSON))
    with pytest.raises(NotUnderstood, match="put back exactly"):
        check_way_back(plan, parse_text(before + " ", Format.JSON))


def test_a_launcher_that_does_not_start_stops_everything(tmp_path: Path) -> None:
    check_launcher(find_launcher(None))
    (tmp_path / "launch.py").write_text("raise SystemExit(3)")
    with pytest.raises(KilometersError, match="exit status 3"):
        check_launcher(Launcher(sys.executable, str(tmp_path / "launch.py")))
    with pytest.raises(KilometersError, match="cannot be started"):
        check_launcher(Launcher(str(tmp_path / "python"), "x"))


@pytest.mark.parametrize(
    ("place", "fleeting"),
    [
        ("/home/a/.cache/uv/archive-v0/x/lib/kmd/shim/launch.py", True),
        ("/home/a/Library/Caches/uv/x/kmd/shim/launch.py", True),
        ("/home/a/.local/share/pipx/venvs/kilometers/lib/kmd/shim/launch.py", False),
        ("/home/a/.local/share/uv/tools/kilometers/lib/kmd/shim/launch.py", False),
    ],
)
def test_an_installation_that_will_be_cleaned_away_is_warned_of(place: str, fleeting: bool) -> None:  # noqa: FBT001
    assert bool(warn_fleeting(Launcher("python", place))) is fleeting


def test_a_file_that_changes_after_the_preview_is_refused(tmp_path: Path) -> None:
    machine = machine_of(tmp_path, runners=make_runners(tmp_path / "bin"))
    path = write_sample(tmp_path, CURSOR)
    work = plan_work(machine, places_of(tmp_path), Scope((), ()), find_launcher(None))
    path.write_bytes(CURSOR.raw + b"\n")
    finish(work, places_of(tmp_path).state_dir)
    (problem,) = work.problems
    assert problem.reason == f"{path}: has changed since it was read"
    assert path.read_bytes() == CURSOR.raw + b"\n"
    assert work.written == []


def test_a_client_that_writes_over_it_at_once_is_noticed(tmp_path: Path) -> None:
    machine = machine_of(tmp_path)
    path = write_sample(tmp_path, CURSOR)
    work = plan_work(machine, places_of(tmp_path), Scope((), ()), find_launcher(None))
    with hold_lock(places_of(tmp_path).state_dir) as folder:
        replace_all(work, [folder])
    check_written(work)
    assert work.problems == []
    path.write_bytes(CURSOR.raw)
    check_written(work)
    assert "another program has changed it" in work.problems[0].reason


def test_another_run_is_waited_for_by_nobody(tmp_path: Path) -> None:
    machine = machine_of(tmp_path)
    path = write_sample(tmp_path, CURSOR)
    work = plan_work(machine, places_of(tmp_path), Scope((), ()), find_launcher(None))
    state = places_of(tmp_path).state_dir
    with hold_lock(state), pytest.raises(FileRefused, match="another kmctl"):
        finish(work, state)
    assert path.read_bytes() == CURSOR.raw


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a b", ["--name", "a b"]),
        ("", []),
        ("\0", []),
        ("a\0b", ["--name", "ab"]),
        ("\ud800", ["--name", "?"]),
        ("x" * 999, ["--name", "x" * 200]),
    ],
    ids=["plain", "empty", "NUL", "NUL inside", "surrogate", "endless"],
)
def test_a_name_that_no_process_could_be_given_is_tidied(name: str, words: list[str]) -> None:
    assert list(LAUNCHER.words(name)) == [*LAUNCHER.start(), "--home", "/h", *words, "--"]
    text = json.dumps({"mcpServers": {name: {"command": "npx"}}})
    plan = plan_of(text)
    assert len(plan.changes) == 1
    assert plan_of(plan.after).changes == ()


def test_files_that_would_take_too_much_are_refused() -> None:
    with pytest.raises(NotUnderstood, match="more than 1,000,000 values"):
        parse_text("[" + "0," * 1_000_001 + "0]", Format.JSON)
    with pytest.raises(NotUnderstood, match="larger than 1 MiB"):
        parse_text("#" * ((1 << 20) + 1), Format.YAML)

"""Every client, every format: wrapped, read as its client reads it, really run, and put back byte for byte."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from kmctl.clients.formats import format_of, parse_document
from kmctl.clients.plan import Action, Source, plan_install, plan_uninstall
from kmctl.clients.sources import find_files, find_roots, find_sources
from kmctl.clients.table import BY_ID, CLIENTS, Client, Platform
from kmctl.clients.words import Launcher
from tests.cli.clients.homes import (
    RUNNERS,
    contents,
    install,
    machine_of,
    make_runners,
    minimal_environ,
    places_of,
    uninstall,
    write_sample,
)
from tests.cli.clients.reading import find_commands, read_config
from tests.cli.clients.samples import SAMPLES, Sample
from tests.support.processes import WAIT_S

LAUNCHER = Launcher("/opt/python", "/opt/kmd/shim/launch.py")
STYLES = ("as it is", "CRLF", "BOM", "CRLF and BOM", "no last line end", "one line end more")


def styled(raw: bytes, style: str) -> bytes:
    """The same file from another editor."""
    if "CRLF" in style:
        raw = raw.replace(b"\n", b"\r\n")
    if "BOM" in style:
        raw = b"\xef\xbb\xbf" + raw
    if style == "no last line end":
        raw = raw.rstrip(b"\n")
    return raw + b"\n" if style == "one line end more" else raw


def keys_of(sample: Sample) -> tuple[tuple[str, ...], ...]:
    """The keys that the table has for the sample's file."""
    name = sample.place.rpartition("/")[2]
    keys = [place.keys for place in BY_ID[sample.client].places if place.path.rpartition("/")[2] == name]
    keys += [place.keys for place in BY_ID[sample.client].places if "*" in place.path.rpartition("/")[2]]
    return keys[0]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: str(sample.place))
def test_there_and_back(sample: Sample, style: str) -> None:
    raw = styled(sample.raw, style)
    path = Path(sample.place)
    source = Source(sample.client, path, format_of(path.suffix), keys_of(sample))
    document = parse_document(raw, source.form)
    found = {"npx": "/usr/bin/npx", "uvx": "/usr/bin/uvx"}.get
    wrap = plan_install(source, document, LAUNCHER, found, "now", lambda _: True, [])
    assert len(wrap.changes) == sample.servers
    assert b"\r\n" not in raw or wrap.after.count("\n") == wrap.after.count("\r\n")
    check_meaning(path, raw, wrap.after.encode())

    wrapped = parse_document(wrap.after.encode(), source.form)
    again = plan_install(source, wrapped, LAUNCHER, found, "now", lambda _: True, [])
    assert (again.after, again.changes) == (wrap.after, ())
    records = [change.undo for change in wrap.changes if change.undo]
    back = plan_uninstall(source, wrapped, lambda _: True, records)
    assert back.after.encode() == raw
    assert all(change.exact for change in back.changes)
    idle = plan_uninstall(source, document, lambda _: True, records)
    assert (idle.after.encode(), idle.changes) == (raw, ())

    moved = Launcher("/new place/python", "/new place/kmd/shim/launch.py", "/home/ann/km")
    fresh = plan_install(source, wrapped, moved, found, "later", lambda _: True, records)
    assert {change.action for change in fresh.changes} == {Action.REFRESH}
    records += [change.undo for change in fresh.changes if change.undo]
    back = plan_uninstall(source, parse_document(fresh.after.encode(), source.form), lambda _: True, records)
    assert back.after.encode() == raw

    without = plan_uninstall(source, wrapped, lambda _: True, [])
    for (name, words, rest), (other, bare, kept) in zip(
        find_commands(read_config(path, raw)), find_commands(read_config(path, without.after.encode())), strict=True
    ):
        assert (name, rest, words[1:], words[0]) == (
            other,
            kept,
            bare[1:],
            Path(bare[0]).name if "/" not in words[0] else bare[0],
        )


def check_meaning(path: Path, before: bytes, after: bytes) -> None:
    """To the client each server is started by the same words, with ours in front; nothing else has changed."""
    old, new = list(find_commands(read_config(path, before))), list(find_commands(read_config(path, after)))
    for (name, words, rest), (other, wrapped, kept) in zip(old, new, strict=True):
        ours = [*LAUNCHER.start(), "--name", name, "--"]
        assert (name, rest) == (other, kept)
        assert wrapped[: len(ours)] == ours
        assert wrapped[len(ours) + 1 :] == words[1:]
        assert wrapped[len(ours)] in (words[0], f"/usr/bin/{words[0]}")
    lines = set(after.decode().splitlines())
    gone = [line for line in before.decode().splitlines() if line not in lines]
    assert all(any(word in line for word in ("command", "cmd", "args", "npx", "uvx", "path")) for line in gone)


@pytest.mark.parametrize("platform", Platform)
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: str(client.id))
def test_every_place_of_every_client_is_found(tmp_path: Path, client: Client, platform: Platform) -> None:
    machine = machine_of(tmp_path, platform)
    machine = type(machine)(
        platform,
        tmp_path,
        machine.project,
        {"CODEX_HOME": str(tmp_path / "codex"), "XDG_CONFIG_HOME": str(tmp_path / "xdg")},
    )
    roots = find_roots(machine)
    for number, place in enumerate(client.places):
        root, _, rest = place.path.removeprefix("{").partition("}/")
        for folder in roots[root]:
            path = folder / rest.replace("*", f"x{number}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
            assert path in find_files(roots, place.path)
            sources = {os.path.realpath(source.file): source for source in find_sources(machine, [client])}
            assert sources[os.path.realpath(path)].keys == place.keys
            assert sources[os.path.realpath(path)].shared == ("{project}" in place.path)
            path.unlink()
    assert find_sources(machine, [client]) == []


EXPECTED = {
    Platform.LINUX: ".config/Claude/claude_desktop_config.json .config/Code/User/mcp.json .config/zed/settings.json",
    Platform.MACOS: "Library/Application Support/Claude/claude_desktop_config.json|"
    "Library/Application Support/Code/User/mcp.json|.config/zed/settings.json|.config/goose/config.yaml",
    Platform.WINDOWS: "AppData/Roaming/Claude/claude_desktop_config.json AppData/Roaming/Code/User/mcp.json "
    "AppData/Roaming/Zed/settings.json AppData/Roaming/Block/goose/config/config.yaml AppData/Local/crush/crush.json "
    ".codex/config.toml .cursor/mcp.json AppData/Local/Packages/Claude_pzs8sxrjxfjjc/LocalCache/Roaming/Claude/"
    "claude_desktop_config.json",
}


@pytest.mark.parametrize("platform", Platform)
def test_the_places_of_each_platform(tmp_path: Path, platform: Platform) -> None:
    listed = EXPECTED[platform]
    names = listed.split("|") if "|" in listed else listed.split()
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    found = find_sources(machine_of(tmp_path, platform))
    assert {str(source.file.relative_to(tmp_path)) for source in found} == set(names)


def test_the_whole_way_with_everything_at_once(tmp_path: Path) -> None:
    """Real files, real processes: what could run before runs through km, from a client's poor environment."""
    machine = machine_of(tmp_path, runners=make_runners(tmp_path / "bin"))
    for sample in SAMPLES:
        write_sample(tmp_path, sample).chmod(0o640)
    before = contents(tmp_path)
    work = install(machine)
    assert work.problems == []
    assert sum(len(one.plan.changes) for one in work.written) == sum(sample.servers for sample in SAMPLES)
    assert install(machine).written == []
    run_some(tmp_path)
    assert uninstall(machine).problems == []
    assert contents(tmp_path) == before
    assert {(tmp_path / sample.place).stat().st_mode & 0o777 for sample in SAMPLES} == {0o640}
    assert uninstall(machine).written == []
    assert [path.name for path in (places_of(tmp_path).state_dir / "undo").iterdir()] == ["lock"]


def run_some(home: Path) -> None:
    """Start each wrapped server of the first two of each file whose command is there, and talk to it."""
    for sample in SAMPLES:
        path = home / sample.place
        originals = {name: words for name, words, _ in find_commands(read_config(path, sample.raw))}
        for name, words, _ in list(find_commands(read_config(path)))[:2]:
            if originals[name][0] not in RUNNERS:
                continue
            done = subprocess.run(
                words,
                input=b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n',
                capture_output=True,
                env=minimal_environ(home),
                cwd="/",
                timeout=WAIT_S,
            )
            said, echoed = done.stdout.splitlines()
            assert (json.loads(said), done.returncode, done.stderr) == (originals[name][1:], 0, b"")
            assert echoed == b'{"jsonrpc":"2.0","id":1,"method":"ping"}'

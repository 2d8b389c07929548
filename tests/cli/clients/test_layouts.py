"""Random layouts, all three formats: there and back to the byte, and in between what the client should read."""

from pathlib import Path

from hypothesis import given, settings

from kmctl.clients.entries import find_entries
from kmctl.clients.formats import parse_text
from kmctl.clients.plan import Source, plan_install, plan_uninstall
from kmctl.clients.tree import Format
from kmctl.clients.words import Launcher, resolve_command
from tests.cli.clients.layouts import Server, json_files, toml_files, yaml_files
from tests.cli.clients.reading import find_commands, read_config

LAUNCHER = Launcher("/opt/py thon", "/opt/kmd/shim/launch.py")
KEYS = (("mcpServers",),)
FOUND = {"npx": "/usr/bin/npx"}.get
SUFFIX = {Format.JSON: ".json", Format.TOML: ".toml", Format.YAML: ".yaml"}


def check(text: str, servers: list[Server], form: Format) -> None:
    """Everything that must hold for a file that says *servers*."""
    path = Path(f"x{SUFFIX[form]}")
    source = Source("x", path, form, KEYS)
    document = parse_text(text, form)
    assert {entry.name: entry.words for entry in find_entries(document, KEYS)} == {
        server.name: (server.command, *(server.args or ())) for server in servers
    }
    plan = plan_install(source, document, LAUNCHER, FOUND, "now", lambda _: True, [])
    assert len(plan.changes) == len(servers), plan.left
    wrapped = {name: (words, rest) for name, words, rest in find_commands(read_config(path, plan.after.encode()))}
    for server in servers:
        words, rest = wrapped[server.name]
        assert words == [
            *LAUNCHER.words(server.name),
            resolve_command(server.command, FOUND),
            *(server.args or ()),
        ]
        assert rest.get("env", {}) == dict(server.env)

    after = parse_text(plan.after, form)
    assert plan_install(source, after, LAUNCHER, FOUND, "now", lambda _: True, []).changes == ()
    records = [change.undo for change in plan.changes if change.undo]
    assert plan_uninstall(source, after, lambda _: True, records).after == text

    bare = plan_uninstall(source, after, lambda _: True, []).after
    said = {name: words for name, words, _ in find_commands(read_config(path, bare.encode()))}
    assert said == {server.name: [resolve_command(server.command, FOUND), *(server.args or ())] for server in servers}


@settings(max_examples=150)
@given(json_files())
def test_json(drawn: tuple[str, list[Server]]) -> None:
    check(*drawn, Format.JSON)


@settings(max_examples=100)
@given(toml_files())
def test_toml(drawn: tuple[str, list[Server]]) -> None:
    check(*drawn, Format.TOML)


@settings(max_examples=100)
@given(yaml_files())
def test_yaml(drawn: tuple[str, list[Server]]) -> None:
    check(*drawn, Format.YAML)

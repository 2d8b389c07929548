"""What is shown before anything is asked: a difference in which no secret can be read."""

import json
from pathlib import Path

import pytest

from kmctl.clients.formats import format_of, parse_document
from kmctl.clients.mask import mask_word
from kmctl.clients.plan import FilePlan, Source, plan_install, plan_uninstall
from kmctl.clients.preview import render_diff
from kmctl.clients.words import Launcher
from tests.cli.clients.samples import SAMPLES, SECRET, Sample
from tests.cli.clients.test_matrix import keys_of

LAUNCHER = Launcher("/opt/python", "/opt/kmd/shim/launch.py")


def plan_of(text: str, place: str = "a.json") -> FilePlan:
    """The plan to wrap a file of that text."""
    source = Source("x", Path(place), format_of(Path(place).suffix), (("mcpServers",),))
    return plan_install(
        source, parse_document(text.encode(), source.form), LAUNCHER, lambda _: None, "now", lambda _: True, []
    )


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: str(sample.place))
def test_no_secret_of_any_sample_is_shown(sample: Sample) -> None:
    path = Path(sample.place)
    source = Source(sample.client, path, format_of(path.suffix), keys_of(sample))
    document = parse_document(sample.raw, source.form)
    wrap = plan_install(source, document, LAUNCHER, lambda _: None, "now", lambda _: True, [])
    shown = "\n".join(render_diff(wrap))
    records = [change.undo for change in wrap.changes if change.undo]
    back = plan_uninstall(source, parse_document(wrap.after.encode(), source.form), lambda _: True, records)
    shown += "\n".join(render_diff(back))
    assert SECRET not in shown
    assert SECRET[:8] not in shown
    assert "/opt/kmd/shim/launch.py" in shown


def test_a_secret_anywhere_in_an_entry_but_its_words_is_masked() -> None:
    entry = {
        "type": "stdio",
        "command": "npx",
        "args": ["-y", "x"],
        "env": {"A": "s3cret", "B": {"C": ["s3cret"]}, "N": 12345, "T": True},
        "headers": {"X": "s3cret"},
        "unknown": "s3cret",
        "more": [{"args": ["s3cret"], "command": "s3cret", "name": "s3cret"}],
        "timeout": 60,
    }
    shown = "\n".join(render_diff(plan_of(json.dumps({"mcpServers": {"a": entry}}))))
    assert "s3cret" not in shown
    assert "12345" not in shown
    assert '"timeout": 60' in shown
    assert '"-y"' in shown


def test_a_comment_may_hold_a_key_that_was_taken_out_of_use() -> None:
    text = """{"mcpServers": {"a": { // s3cret
      /* "K": "s3cret"
         s3cret */ "command": "npx", "args": [ "http://x//y" /* s3cret */ ] // s3cret
    }}}"""
    shown = "\n".join(render_diff(plan_of(text)))
    assert "s3cret" not in shown
    assert "http://x//y" in shown


@pytest.mark.parametrize(
    ("before", "word", "shown"),
    [
        ("--api-key", "abc", "***"),
        ("--token", "abc", "***"),
        ("-H", "Authorization: Bearer abc", "***"),
        ("--header", "X-Thing:abc", "***"),
        ("-e", "NAME=abc", "NAME=***"),
        ("--pass", "abc", "***"),
        ("--pat", "abc", "***"),
        ("-k", "abc", "***"),
        ("", "--token=abc", "--token=***"),
        ("", "--env=name=abc", "--env=name=***"),
        ("", "-ename=abc", "-ename=***"),
        ("", "--header=X-Thing: abc", "--header=***"),
        ("", "-HX-Thing: abc", "-H***"),
        ("--config", '{"env": {"X": "abc"}}', "***"),
        ("", "Basic YTpi", "Basic ***"),
        ("--path", "abc", "abc"),
        ("", "--header", "--header"),
        ("", "--password:abc", "--password:***"),
        ("", "GITHUB_TOKEN=abc npx", "GITHUB_TOKEN=***"),
        ("-c", "FOO=abc npx x", "FOO=*** npx x"),
        ("", "postgresql://me:abc@h:5432/db", "postgresql://***@h:5432/db"),
        ("", "https://h/sse?api=abc&v=2", "https://h/sse?api=***&v=***"),
        ("", "ghp_0123456789abcdef", "***"),
        ("", "sk-ant-abc", "***"),
        ("", "eyJhbGciOi.J9.abc", "***"),
        ("", "0123456789abcdef0123456789abcdef", "***"),
        ("", "AbCdEf0123456789GhIjKl", "***"),
        ("-y", "@modelcontextprotocol/server-filesystem", "@modelcontextprotocol/server-filesystem"),
        ("", "mcp-server-time@2026.10.19", "mcp-server-time@2026.10.19"),
        ("", "/home/ann/projects/some-long-name-2026/index.js", "/home/ann/projects/some-long-name-2026/index.js"),
        ("", "--local-timezone=Europe/Berlin", "--local-timezone=Europe/Berlin"),
        ("", "http://localhost:8080/mcp", "http://localhost:8080/mcp"),
        ("--name", "github", "github"),
        ("--port", "8080", "8080"),
    ],
)
def test_words(before: str, word: str, shown: str) -> None:
    assert mask_word(word, before) == shown


def test_line_numbers_are_those_of_the_files() -> None:
    text = '{\n"x": 1,\n"mcpServers": {\n"a": {\n"command": "a"\n},\n"b": {\n"command": "b"\n}}}'
    plan = plan_of(text)
    lines = list(render_diff(plan))
    assert [line for line in lines if line.startswith("@@")] == ["@@ -4,3 +4,4 @@ a", "@@ -7,3 +8,4 @@ b"]
    assert plan.after.splitlines()[8] == '"command": "/opt/python",'


def test_escape_sequences_are_shown_as_text() -> None:
    text = json.dumps({"mcpServers": {"a\x1b[2J": {"command": "x\x1b]0;", "args": ["\u202e"]}}}, ensure_ascii=False)
    shown = "\n".join(render_diff(plan_of(text.replace("\x1b", "\\u001b"))))
    assert "\x1b" not in shown
    assert "\u202e" not in shown

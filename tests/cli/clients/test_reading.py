"""The three readers: what they take, what they refuse with which line, and that positions are right."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmctl.clients.entries import find_entries
from kmctl.clients.formats import format_of, parse_document, parse_text, render_string
from kmctl.clients.plan import Source, plan_install
from kmctl.clients.tree import Document, Format, NotUnderstood, Raw, to_value, walk
from kmctl.clients.words import Launcher
from tests.cli.clients.reading import read_config

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def simplify(value: object) -> object:
    """A JSON value as to_value gives it."""
    match value:
        case dict():
            return {key: simplify(inner) for key, inner in value.items()}
        case list():
            return [simplify(inner) for inner in value]
        case str():
            return value
    return Raw(json.dumps(value))


@given(VALUES, st.sampled_from([None, 2, "\t"]), st.booleans())
def test_json_means_what_it_means(value: object, indent: int | str | None, ascii_only: bool) -> None:  # noqa: FBT001
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    root = parse_text(text, Format.JSON).root
    assert root is not None
    assert to_value(root) == simplify(value)
    for node in walk(root):
        assert simplify(json.loads(text[node.start : node.end])) == to_value(node)


@given(st.text(), st.sampled_from(Format))
def test_strings_are_written_so_that_every_client_reads_them(value: str, form: Format) -> None:
    token = render_string(value, form)
    suffix = {Format.JSON: ".json", Format.TOML: ".toml", Format.YAML: ".yaml"}[form]
    line = {Format.JSON: f'{{"v": {token}}}', Format.TOML: f"v = {token}", Format.YAML: f"v: {token}"}[form]
    assert read_config(Path(f"x{suffix}"), line.encode("utf-8", "surrogatepass")) == {"v": value}


@given(st.text(alphabet="{}[]\":,/*\\ntrue10 \n\t-#=.'&|>%"), st.sampled_from(Format))
def test_nothing_but_a_refusal_comes_of_nonsense(text: str, form: Format) -> None:
    lines = refused_lines(text, form)
    assert all(1 <= line <= text.count("\n") + 2 for line in lines)


def refused_lines(text: str, form: Format) -> list[int]:
    """The line that a refusal names; none when the text is taken."""
    try:
        parse_text(text, form)
    except NotUnderstood as exc:
        return [exc.line]
    return []


@pytest.mark.parametrize(
    ("place", "text", "line", "reason"),
    [
        ("a.json", '{\n"a": 1\n"b": 2}', 3, "a comma or '}' is missing"),
        ("a.json", '{\n"a": [1, 2}', 2, "a comma or ']' is missing"),
        ("a.json", '{"a"\n1}', 2, "a colon is missing"),
        ("a.json", "{a: 1}", 1, "a key in double quotes is missing"),
        ("a.json", '{"a": }', 1, "a value is missing"),
        ("a.json", '{"a": 01}', 1, "a value is missing"),
        ("a.json", '{"a": "x\ny"}', 1, "a string does not end"),
        ("a.json", '{"a": "\\x"}', 1, "a string does not end"),
        ("a.json", "{\n\n", 3, "a key in double quotes is missing"),
        ("a.json", "{}\n{}", 2, "text after the end"),
        ("a.json", "[" * 200, 1, "nested too deeply"),
        ("a.json", "{,}", 1, "a key in double quotes is missing"),
        ("a.json", '{"a": 1,,}', 1, "a key in double quotes is missing"),
        ("a.json", "{/* }", 1, "a key in double quotes is missing"),
        ("a.toml", "a = 1\nb = \n", 2, "Invalid value"),
        ("a.toml", "a = 1\na = 2\n", 2, "Cannot overwrite"),
        ("a.toml", "[a]\n[a]\n", 2, "Cannot declare"),
        ("a.yaml", "a: 1\nb: [1\n", 3, "expected ',' or ']'"),
        ("a.yaml", "a: 1\n  b: 2\n", 2, "mapping values are not allowed"),
        ("a.yaml", "a:\n\t- b\n", 2, "cannot start any token"),
        ("a.yaml", "a: *x\n", 1, "undefined alias"),
        ("a.yaml", "a: 1\n--- \nb: 2\n", 3, "more than one document"),
    ],
)
def test_refusals_name_line_and_reason(place: str, text: str, line: int, reason: str) -> None:
    with pytest.raises(NotUnderstood) as caught:
        parse_text(text, format_of(Path(place).suffix))
    assert (caught.value.line, reason in caught.value.reason) == (line, True), caught.value.reason


def test_bytes_that_are_no_utf8() -> None:
    with pytest.raises(NotUnderstood) as caught:
        parse_document(b'{\n"a": "\xff"}', Format.JSON)
    assert (caught.value.line, caught.value.reason) == (2, "is not UTF-8")
    with pytest.raises(NotUnderstood):
        parse_document('{"a": 1}'.encode("utf-16"), Format.JSON)


@pytest.mark.parametrize("text", ["", " \n", "// nothing\n", "\ufeff", "\ufeff \n"])
def test_a_blank_file_says_nothing(text: str) -> None:
    assert parse_text(text, Format.JSON).root is None


def entries(text: str, form: Format = Format.JSON) -> list[tuple[str, str, str]]:
    """Name, transport and problem of each server."""
    document = parse_text(text, form)
    return [(one.name, one.transport, one.problem) for one in find_entries(document, (("mcpServers",),))]


@pytest.mark.parametrize(
    "text",
    [
        '{"mcpServers": {"a": {"command": "x"},\n"a": {"command": "y"}}}',
        '{"mcpServers": {"a": {"command": "x",\n"command": "y"}}}',
        '{"mcpServers": {"a": {"command": "x", "env": {"K": "1",\n"K": "2"}}}}',
        '{"mcpServers": {},\n"mcpServers": {"a": {"command": "x"}}}',
        '{"mcpServers": {"a": {"command": "x", "\\u0061": 1,\n"a": 2}}}',
    ],
)
def test_a_key_that_is_there_twice_is_refused_where_it_decides(text: str) -> None:
    with pytest.raises(NotUnderstood, match="is there twice") as caught:
        entries(text)
    assert caught.value.line == 2


def test_a_key_that_is_there_twice_elsewhere_is_none_of_our_business() -> None:
    assert entries('{"x": {"a": 1, "a": 2}, "mcpServers": {"b": {"command": "c"}}}') == [("b", "stdio", "")]
    assert entries('{"x": 1, "x": 2, "mcpServers": {"b": {"command": "c"}}}') == [("b", "stdio", "")]


@pytest.mark.parametrize(
    ("entry", "transport", "problem"),
    [
        ('{"url": "http://x"}', "http", "is reached by URL"),
        ('{"type": "sse", "url": "http://x"}', "sse", "is reached by URL"),
        ("{}", "none", "has no command"),
        ("null", "none", "has no command"),
        ("[]", "none", "has no command"),
        ('{"command": 1}', "stdio", "empty or no text"),
        ('{"command": ""}', "stdio", "empty or no text"),
        ('{"command": []}', "stdio", "empty or no text"),
        ('{"command": {}}', "none", "has no command"),
        ('{"command": "x", "args": "y"}', "stdio", "args that are no list"),
        ('{"command": "x", "args": {}}', "stdio", "args that are no list"),
        ('{"command": "x", "args": [1, null]}', "stdio", ""),
    ],
)
def test_entries_that_are_left_alone(entry: str, transport: str, problem: str) -> None:
    ((name, seen, why),) = entries(f'{{"mcpServers": {{"a": {entry}}}}}')
    assert (name, seen) == ("a", transport)
    assert problem in why
    assert bool(problem) == bool(why)


@pytest.mark.parametrize("text", ["[]", "1", '"x"', '{"mcpServers": 1}', '{"mcpServers": null}', '{"mcpServers": "x"}'])
def test_files_without_servers(text: str) -> None:
    assert entries(text) == []


YAML_SERVERS = """\
mcpServers:
  plain: &p
    command: npx
  copy: *p
  merged:
    <<: *p
    args: [a]
  tagged: {command: !!str npx}
  block:
    command: >-
      npx
  anchored: {command: npx, args: [&a x, *a]}
  fine: {command: npx, env: &e {A: b}}
"""


def test_yaml_that_an_edit_could_not_follow_is_left_alone() -> None:
    found = entries(YAML_SERVERS, Format.YAML)
    assert [name for name, _, problem in found if not problem] == ["fine"]
    assert "anchors" in {name: problem for name, _, problem in found}["copy"]


def test_yaml_aliases_do_not_multiply() -> None:
    lines = ["a0: &a0 {x: 1}"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    root = parse_text("\n".join(lines), Format.YAML).root
    assert root is not None
    assert sum(1 for _ in walk(root)) < 1000


def test_large_files_take_time_in_proportion() -> None:
    """Claude Code keeps its history beside the servers: this must not be quadratic."""
    history = {f"/p/{n}": {"history": [{"display": "x" * 200}] * 10, "mcpServers": {}} for n in range(2000)}
    text = json.dumps({"mcpServers": {"a": {"command": "npx"}}, "projects": history}, indent=2)
    assert len(text) > 4 << 20
    source = Source("claude-code", Path("a.json"), Format.JSON, (("mcpServers",), ("projects", "*", "mcpServers")))
    document = parse_text(text, Format.JSON)
    plan = plan_install(source, document, Launcher("/p", "/kmd/shim/launch.py"), lambda _: None, "", lambda _: True, [])
    assert len(plan.changes) == 1
    assert math.isclose(len(plan.after), len(text), rel_tol=0.001)


def test_toml_positions() -> None:
    text = '[mcp_servers.a]\ncommand = "x" # c\n[mcp_servers.a.env]\nK = "v"\n[[l]]\nn = 1\n[[l]]\nn = 2\n'
    document = parse_text(text, Format.TOML)
    assert pick(document, "mcp_servers", "a") == 'command = "x"'
    assert pick(document, "mcp_servers", "a", "env") == 'K = "v"'
    assert document.root is not None
    assert to_value(document.root) == {
        "mcp_servers": {"a": {"command": "x", "env": {"K": "v"}}},
        "l": [{"n": Raw("1")}, {"n": Raw("2")}],
    }


def pick(document: Document, *keys: str) -> str:
    """The text of the node at *keys*."""
    node = document.root
    for key in keys:
        member = node.find(key) if node else None
        node = member.value if member else None
    return document.text[node.start : node.end] if node else ""

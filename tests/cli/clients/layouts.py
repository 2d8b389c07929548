"""Files that nobody would write and every client would read: servers in layouts drawn at random."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from hypothesis import strategies as st

T = TypeVar("T")
NAMES = st.text(st.sampled_from("ab-_.é大 \"'#"), min_size=1, max_size=5)
WORD = st.sampled_from(
    [
        "npx",
        "uvx",
        "./run",
        "-y",
        "--x=1",
        "a b",
        "",
        "#",
        "é",
        "大 \U0001f600",
        '"',
        "'",
        "\\",
        "{x}",
        "[y]",
        "- z",
        "k: v",
        "\t",
    ]
)
COMMANDS = WORD.filter(lambda word: bool(word.strip()) and word != "a b") | st.just("./a b")  # no command line
GAPS = st.sampled_from(["", " ", "\t", "\n", "\r\n  ", ' /* a, ] } " */ ', ' // b " ]\n', "/**/"])
SPACES = st.sampled_from(["", " ", "\t", "   "])


@dataclass(frozen=True, slots=True)
class Server:
    """What an entry says. args: None when there are none; null: they are written as null."""

    name: str
    command: str
    args: tuple[str, ...] | None
    env: tuple[tuple[str, str], ...]
    null: bool = False


SERVERS = st.lists(
    st.builds(
        Server,
        NAMES,
        COMMANDS,
        st.none() | st.lists(WORD, max_size=3).map(tuple),
        st.lists(st.tuples(st.sampled_from(["K", "PATHS"]), WORD), max_size=2, unique_by=lambda pair: pair[0]).map(
            tuple
        ),
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda server: server.name,
)


def shuffled(parts: list[T]) -> st.SearchStrategy[list[T]]:
    """*parts* in any order."""
    return st.permutations(parts).map(list)


@st.composite
def json_files(draw: st.DrawFn) -> tuple[str, list[Server]]:
    """A file in JSON with comments, and what it says."""
    servers = draw(SERVERS)

    def text(value: str) -> str:
        return json.dumps(value, ensure_ascii=draw(st.booleans()))

    def gap() -> str:
        return draw(GAPS)

    def block(brackets: str, parts: Sequence[str]) -> str:
        inner = ",".join(f"{gap()}{part}{gap()}" for part in parts)
        comma = f",{gap()}" if draw(st.booleans()) and parts else gap()
        return f"{brackets[0]}{inner}{comma}{brackets[1]}"

    def pair(key: str, value: str) -> str:
        return f"{text(key)}{gap()}:{gap()}{value}"

    def entry(server: Server) -> str:
        parts = [pair("command", text(server.command))]
        if server.args is not None:
            parts.append(pair("args", block("[]", [text(word) for word in server.args])))
        elif server.null:
            parts.append(pair("args", "null"))
        if server.env:
            parts.append(pair("env", block("{}", [pair(key, text(word)) for key, word in server.env])))
        return block("{}", draw(shuffled(parts)))

    inner = block("{}", [pair(server.name, entry(server)) for server in servers])
    return f"{draw(st.sampled_from(['', BOM]))}{gap()}{block('{}', [pair('mcpServers', inner)])}{gap()}", servers


BOM = "\ufeff"


@st.composite
def toml_files(draw: st.DrawFn) -> tuple[str, list[Server]]:
    """A file in TOML, and what it says: tables, inline tables and dotted keys."""
    servers = draw(SERVERS)
    end = draw(st.sampled_from(["\n", "\r\n"]))

    def text(value: str) -> str:
        literal = "'" not in value and value.isprintable()
        return f"'{value}'" if literal and draw(st.booleans()) else json.dumps(value, ensure_ascii=False)

    def gap() -> str:
        return draw(st.sampled_from(["", " ", f"{end}  ", f" # ] ,{end}"]))

    def items(words: Sequence[str]) -> str:
        inner = ",".join(f"{gap()}{text(word)}{gap()}" for word in words)
        return f"[{inner}{f',{gap()}' if draw(st.booleans()) and words else gap()}]"

    def inline(pairs: Sequence[tuple[str, str]]) -> str:
        return (
            "{"
            + ",".join(f"{draw(SPACES)}{key}{draw(SPACES)}={draw(SPACES)}{value}{draw(SPACES)}" for key, value in pairs)
            + "}"
        )

    def line(key: str, value: str) -> str:
        comment = draw(st.sampled_from(["", " # c", '\t#\t] "']))
        return f"{draw(SPACES)}{key}{draw(SPACES)}={draw(SPACES)}{value}{comment}{end}"

    lines = []
    for server in servers:
        pairs = [("command", text(server.command))]
        if server.args is not None:
            pairs.append(("args", items(server.args)))
        if server.env:
            pairs.append(("env", inline([(key, text(word)) for key, word in server.env])))
        pairs = draw(shuffled(pairs))
        name = json.dumps(server.name, ensure_ascii=False)
        match draw(st.sampled_from(["table", "inline", "dotted"])):
            case "table":
                body = "".join(line(key, value) for key, value in pairs)
                lines.append((1, f"{draw(SPACES)}[mcpServers.{name}]{draw(SPACES)}{end}{body}"))
            case "inline":
                lines.append((0, line(name, inline(pairs))))
            case _:
                lines.append((0, "".join(line(f"{name}{draw(SPACES)}.{key}", value) for key, value in pairs)))
    lines.sort(key=lambda pair: pair[0])
    whole = f"[mcpServers]{end}" + "".join(text for _, text in lines)
    return (whole.removesuffix(end) if draw(st.booleans()) else whole), servers


@st.composite
def yaml_files(draw: st.DrawFn) -> tuple[str, list[Server]]:
    """A file in YAML, and what it says: a map or a list of servers, in blocks or in brackets."""
    servers = draw(SERVERS)
    end = draw(st.sampled_from(["\n", "\r\n"]))
    step = draw(st.integers(1, 4))

    def text(value: str) -> str:
        plain = value.isascii() and value.strip("-").replace("-", "").isalnum() and not value.startswith("-")
        choices = [json.dumps(value, ensure_ascii=False)]
        choices += ["'" + value.replace("'", "''") + "'"] if value.isprintable() else []
        choices += [value] if plain else []
        return draw(st.sampled_from(choices))

    def tail() -> str:
        return draw(st.sampled_from(["", " # c - d", '   # "', f" {end}{end}", f"{end}# - x"])) + end

    def items(indent: str, words: Sequence[str]) -> str:
        if not words or draw(st.booleans()):
            inner = ",".join(
                f"{draw(st.sampled_from(['', ' ']))}{text(word)}{draw(st.sampled_from(['', ' ']))}" for word in words
            )
            return f" [{inner}{', ' if draw(st.booleans()) and words else ''}]{tail()}"
        own = indent + " " * draw(st.integers(0, 3))
        return end + "".join(f"{own}-{' ' * draw(st.integers(1, 3))}{text(word)}{tail()}" for word in words)

    def fields(server: Server, indent: str, *, named: bool) -> list[str]:
        parts = [f"command: {text(server.command)}{tail()}"]
        if server.args is not None:
            parts.append(f"args:{items(indent, server.args)}")
        if server.env:
            inner = ", ".join(f"{key}: {text(word)}" for key, word in server.env)
            parts.append(f"env: {{{inner}}}{tail()}")
        if named:
            parts.append(f"name: {text(server.name)}{tail()}")
        return draw(shuffled(parts))

    as_list = draw(st.booleans())
    out = f"mcpServers:{tail()}"
    pad = " " * step
    for server in servers:
        if as_list:
            lead = f"{pad}-{' ' * draw(st.integers(1, 3))}"
            out += lead + (" " * len(lead)).join(fields(server, " " * len(lead), named=True))
        else:
            inner = pad + " " * draw(st.integers(1, 3))
            out += f"{pad}{json.dumps(server.name, ensure_ascii=False)}:{end}"
            out += "".join(inner + part for part in fields(server, inner, named=False))
    return (out.rstrip("\r\n") if draw(st.booleans()) else out), servers

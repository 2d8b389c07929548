"""
A configuration file as a tree of spans. Pure.

A *node* is a value and where its text stands; a *member* is a key and its node. Everything that is changed is
changed by an *edit*: these characters become those. What no edit names stays as it is, to the byte.
Positions count characters of the decoded text; the text is strict UTF-8, so characters and bytes go together.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

DEPTH_MAX = 100
"""Levels of nesting. A settings file has about six; Python's own recursion limit is ten times this."""


class Kind(StrEnum):
    """What a node is."""

    SCALAR = "scalar"
    MAP = "map"
    LIST = "list"


class Format(StrEnum):
    """How a file is written."""

    JSON = "json"
    TOML = "toml"
    YAML = "yaml"


class Raw(str):
    """The value of a scalar that is no string: a number, a date, `true`, `null`, as it is written."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Raw) and str.__eq__(self, other)

    def __hash__(self) -> int:
        return hash(("raw", str(self)))


NOTHING = Raw("")


@dataclass(frozen=True, slots=True)
class Node:
    """
    A value. start, end: its text. flow: written with brackets, else by lines and indentation.

    editable: False for what is written in a way that an edit could not follow (anchors, aliases, block scalars).
    """

    kind: Kind
    start: int
    end: int
    value: str | Raw = NOTHING
    members: tuple["Member", ...] = ()
    items: tuple["Node", ...] = ()
    flow: bool = True
    editable: bool = True

    def find(self, key: str) -> "Member | None":
        """The member of that name, None when there is none or this is no map."""
        return next((member for member in self.members if member.key == key), None)


@dataclass(frozen=True, slots=True)
class Member:
    """A key and its value. start: where the key begins, with the `a.b.` before it; key_start: its own first letter."""

    key: str
    start: int
    key_start: int
    key_end: int
    value: Node


@dataclass(frozen=True, slots=True)
class Document:
    """A file's text and tree. root: None when the file says nothing."""

    text: str
    format: Format
    root: Node | None


@dataclass(frozen=True, slots=True)
class Edit:
    """The characters from start to end become *text*."""

    start: int
    end: int
    text: str


class NotUnderstood(Exception):
    """A file that is not valid, or is written in a way that we do not touch. line counts from 1."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


def line_of(text: str, position: int) -> int:
    """The number of the line, from 1, in which *position* stands."""
    return text.count("\n", 0, position) + 1


def apply_edits(text: str, edits: Iterable[Edit]) -> str:
    """*text* with all *edits* made; they must not overlap. Raises ValueError when they do."""
    parts: list[str] = []
    done = 0
    for edit in sorted(edits, key=lambda one: (one.start, one.end)):
        if edit.start < done:
            raise ValueError("edits overlap")
        parts += (text[done : edit.start], edit.text)
        done = edit.end
    return "".join([*parts, text[done:]])


def walk(node: Node) -> Iterator[Node]:
    """*node* and everything in it."""
    yield node
    for inner in (*(member.value for member in node.members), *node.items):
        yield from walk(inner)


def check_duplicates(text: str, node: Node) -> None:
    """Raises NotUnderstood when a map in *node* has a key twice: which one counts is each client's own guess."""
    for one in walk(node):
        check_own_duplicates(text, one)


def check_own_duplicates(text: str, node: Node, key: str | None = None) -> None:
    """Raises NotUnderstood when *node* itself has *key*, or with None any key, twice; its values are not looked at."""
    seen: set[str] = set()
    for member in node.members:
        if member.key in seen and key in (None, member.key):
            raise NotUnderstood(line_of(text, member.start), f"the key {member.key!r} is there twice")
        seen.add(member.key)


def to_value(node: Node) -> object:
    """What *node* means: dicts, lists, strings and Raw."""
    match node.kind:
        case Kind.MAP:
            return {member.key: to_value(member.value) for member in node.members}
        case Kind.LIST:
            return [to_value(item) for item in node.items]
        case Kind.SCALAR:
            return node.value


def line_end(text: str) -> str:
    """How lines end in *text*."""
    return "\r\n" if "\r\n" in text else "\n"


def end_of_line(text: str, position: int) -> int:
    """Where the line of *position* ends, before its line end."""
    newline = text.find("\n", position)
    stop = len(text) if newline < 0 else newline
    return stop - 1 if newline > position and text[stop - 1] == "\r" else stop


def start_of_line(text: str, position: int) -> int:
    """Where the line of *position* begins."""
    return text.rfind("\n", 0, position) + 1

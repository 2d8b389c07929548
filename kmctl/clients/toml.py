"""
TOML read as a tree of spans. Pure.

The standard library's parser decides whether a text is valid and what it means, but it forgets where things
stand. The scanner here only finds positions in text that is known to be valid, and what it found must agree
with the parser; else the file is left alone.
"""

import re
import tomllib
from dataclasses import dataclass, field
from typing import Any

from kmctl.clients.tree import Kind, Member, Node, NotUnderstood, Raw, line_of

GAP = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
OTHER = re.compile(r"[^,\]}#\r\n]+")
AT_LINE = re.compile(r"\(at line (\d+), column \d+\)")


def read_toml(text: str, start: int) -> Node | None:
    """
    The tree of *text* from position *start* (after a byte order mark); None when it is blank.

    Raises: NotUnderstood with the line.
    """
    try:
        meaning = tomllib.loads(text[start:])
    except tomllib.TOMLDecodeError as exc:
        found = AT_LINE.search(str(exc))
        line = int(found.group(1)) if found else line_of(text, len(text))
        raise NotUnderstood(line, AT_LINE.sub("", str(exc)).strip()) from None
    root = Scanner(text).read(start)
    if not agrees(root, meaning):
        raise NotUnderstood(1, "is laid out in a way that is not understood")
    return root if root.members else None


def agrees(node: Node, meaning: object) -> bool:
    """Whether the scanner saw what the parser saw: every key, every list, every string."""
    match meaning:
        case dict():
            own = {member.key: member.value for member in node.members}
            return (
                node.kind is Kind.MAP
                and own.keys() == meaning.keys()
                and all(agrees(own[key], value) for key, value in meaning.items())
            )
        case list():
            same = node.kind is Kind.LIST and len(node.items) == len(meaning)
            return same and all(agrees(item, value) for item, value in zip(node.items, meaning, strict=True))
        case str():
            return node.kind is Kind.SCALAR and not isinstance(node.value, Raw) and node.value == meaning
        case _:
            return node.kind is Kind.SCALAR and isinstance(node.value, Raw)


@dataclass(frozen=True, slots=True)
class Key:
    """One part of a dotted key. start: where the whole dotted key begins."""

    name: str
    start: int
    key_start: int
    key_end: int


@dataclass(slots=True)
class Table:
    """A table while it is read. start, end: the lines of its own keys, equal when it has none."""

    members: "dict[str, tuple[Key, Table | list[Table] | Node]]" = field(default_factory=dict)
    start: int = -1
    end: int = -1

    def child(self, key: Key) -> "Table":
        """The table of that key, the last one of an array of tables; made when it is not there."""
        if key.name not in self.members:
            self.members[key.name] = (key, Table())
        _, inner = self.members[key.name]
        if isinstance(inner, list):
            return inner[-1]
        if isinstance(inner, Node):
            raise NotUnderstood(1, "is laid out in a way that is not understood")
        return inner

    def append(self, key: Key) -> "Table":
        """A new table at the end of the array of tables of that key."""
        _, tables = self.members.setdefault(key.name, (key, []))
        table = Table()
        if isinstance(tables, list):
            tables.append(table)
        return table

    def put(self, key: Key, value: Node) -> None:
        """A key and its value, written in this table."""
        self.members[key.name] = (key, value)
        self.start = key.start if self.start < 0 else self.start
        self.end = value.end

    def freeze(self, place: int) -> Node:
        """The node; *place* is where it is named, for a table without keys of its own."""
        members = tuple(
            Member(name, key.start, key.key_start, key.key_end, freeze(inner, key.start))
            for name, (key, inner) in self.members.items()
        )
        start, end = (self.start, self.end) if self.start >= 0 else (place, place)
        return Node(Kind.MAP, start, end, members=members, flow=False)


def freeze(inner: Table | list[Table] | Node, place: int) -> Node:
    """The finished node of a key's value, table or array of tables; *place* is where the key is named."""
    match inner:
        case Node():
            return inner
        case Table():
            return inner.freeze(place)
        case list():
            items = tuple(table.freeze(place) for table in inner)
            return Node(Kind.LIST, place, place, items=items, flow=False)


@dataclass(frozen=True, slots=True)
class Scanner:
    """Finds positions in one valid text."""

    text: str

    def skip(self, position: int) -> int:
        """The next position that is neither space, line end nor comment."""
        found = GAP.match(self.text, position)
        return found.end() if found else position

    def read(self, position: int) -> Node:
        """The node of the whole text, read from *position* on."""
        root = current = Table()
        while (position := self.skip(position)) < len(self.text):
            if self.text.startswith("[[", position):
                keys, position = self.read_keys(position + 2)
                current = self.descend(root, keys[:-1]).append(keys[-1])
                position = self.skip(position) + 2
            elif self.text.startswith("[", position):
                keys, position = self.read_keys(position + 1)
                current = self.descend(root, keys)
                position = self.skip(position) + 1
            else:
                position = self.read_pair(current, position)
        return root.freeze(0)

    def descend(self, table: Table, keys: list[Key]) -> Table:
        """The table that *keys* lead to from *table*; those on the way are made when they are new."""
        for key in keys:
            table = table.child(key)
        return table

    def read_pair(self, table: Table, position: int) -> int:
        """`a.b = value` into *table*; returns where it ends."""
        keys, position = self.read_keys(position)
        value = self.read_value(self.skip(self.skip(position) + 1))
        self.descend(table, keys[:-1]).put(keys[-1], value)
        return value.end

    def read_keys(self, position: int) -> tuple[list[Key], int]:
        """The parts of a dotted key, and where it ends."""
        keys: list[Key] = []
        start = self.skip(position)
        while True:
            position = self.skip(position)
            found = STRING.match(self.text, position) or BARE_KEY.match(self.text, position)
            if found is None:
                raise NotUnderstood(line_of(self.text, position), "a key is not understood")
            token = found.group()
            name = decode(token) if token[0] in "\"'" else token
            keys.append(Key(name, start, found.start(), found.end()))
            position = self.skip_blanks(found.end())
            if not self.text.startswith(".", position):
                return keys, found.end()
            position += 1

    def skip_blanks(self, position: int) -> int:
        """The next position that is neither space nor tab."""
        while self.text.startswith((" ", "\t"), position):
            position += 1
        return position

    def read_value(self, position: int) -> Node:
        """The value that begins at *position*."""
        if found := STRING.match(self.text, position):
            return Node(Kind.SCALAR, position, found.end(), decode(found.group()))
        if self.text.startswith("[", position):
            return self.read_array(position)
        if self.text.startswith("{", position):
            return self.read_inline(position)
        found = OTHER.match(self.text, position)
        token = found.group().rstrip() if found else ""
        if not token:
            raise NotUnderstood(line_of(self.text, position), "a value is not understood")
        return Node(Kind.SCALAR, position, position + len(token), Raw(token))

    def read_array(self, opening: int) -> Node:
        """The array that begins at *opening*."""
        items: list[Node] = []
        position = self.skip(opening + 1)
        while not self.text.startswith("]", position):
            items.append(self.read_value(position))
            position = self.skip(items[-1].end)
            if self.text.startswith(",", position):
                position = self.skip(position + 1)
        return Node(Kind.LIST, opening, position + 1, items=tuple(items))

    def read_inline(self, opening: int) -> Node:
        """The inline table that begins at *opening*."""
        table = Table()
        position = self.skip(opening + 1)
        while not self.text.startswith("}", position):
            position = self.skip(self.read_pair(table, position))
            if self.text.startswith(",", position):
                position = self.skip(position + 1)
        return Node(Kind.MAP, opening, position + 1, members=table.freeze(opening).members)


def decode(token: str) -> str:
    """The text that a string token stands for, without its quotes and escapes."""
    meaning: dict[str, Any] = tomllib.loads(f"v = {token}")
    return str(meaning["v"])

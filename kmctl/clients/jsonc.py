"""
JSON with comments and trailing commas, read as a tree of spans. Pure.

It takes what VS Code and Zed take in their settings; strict JSON is a part of that.
"""

import json
import re
from dataclasses import dataclass, field

from kmctl.clients.tree import DEPTH_MAX, Kind, Member, Node, NotUnderstood, Raw, line_of

VALUES_MAX = 1_000_000
"""About 300 MB of nodes. A history in Claude Code's file has long texts, but far fewer of them."""
GAP = re.compile(r"(?:[ \t\r\n]+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
STRING = re.compile(r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*"')
SCALAR = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![\w.])|(?:true|false|null)\b")


def read_json(text: str, start: int) -> Node | None:
    """
    The tree of *text* from position *start* (after a byte order mark); None when it is blank.

    Raises: NotUnderstood with the line.
    """
    scanner = Scanner(text)
    position = scanner.skip(start)
    if position == len(text):
        return None
    root = scanner.read_value(position, 0)
    rest = scanner.skip(root.end)
    if rest != len(text):
        raise scanner.problem(rest, "text after the end of the value")
    return root


@dataclass(frozen=True, slots=True)
class Scanner:
    """Reads values at positions of one text. values: how many so far."""

    text: str
    values: list[int] = field(default_factory=lambda: [0])

    def problem(self, position: int, reason: str) -> NotUnderstood:
        """What to raise; the reason must hold nothing of the text, which may be secret."""
        return NotUnderstood(line_of(self.text, position), reason)

    def skip(self, position: int) -> int:
        """The next position that is neither space nor comment."""
        found = GAP.match(self.text, position)
        return found.end() if found else position

    def at(self, position: int) -> str:
        """The character there, empty at the end."""
        return self.text[position : position + 1]

    def read_value(self, position: int, depth: int) -> Node:
        """The value that begins at *position*."""
        if depth > DEPTH_MAX:
            raise self.problem(position, "nested too deeply")
        self.values[0] += 1
        if self.values[0] > VALUES_MAX:
            raise self.problem(position, f"holds more than {VALUES_MAX:,} values")
        match self.at(position):
            case "{":
                return self.read_object(position, depth)
            case "[":
                return self.read_array(position, depth)
            case '"':
                return self.read_string(position)
        if found := SCALAR.match(self.text, position):
            return Node(Kind.SCALAR, position, found.end(), Raw(found.group()))
        raise self.problem(position, "a value is missing" if position < len(self.text) else "the text ends too early")

    def read_string(self, position: int) -> Node:
        """The string that begins at *position*."""
        found = STRING.match(self.text, position)
        if found is None:
            raise self.problem(position, "a string does not end, or holds what a string may not hold")
        token = found.group()
        return Node(Kind.SCALAR, position, found.end(), json.loads(token) if "\\" in token else token[1:-1])

    def read_array(self, opening: int, depth: int) -> Node:
        """The array that begins at *opening*."""
        items: list[Node] = []
        position = self.skip(opening + 1)
        while self.at(position) != "]":
            items.append(self.read_value(position, depth + 1))
            position = self.after_comma(items[-1].end, "]")
        return Node(Kind.LIST, opening, position + 1, items=tuple(items))

    def read_object(self, opening: int, depth: int) -> Node:
        """The object that begins at *opening*."""
        members: list[Member] = []
        position = self.skip(opening + 1)
        while self.at(position) != "}":
            if self.at(position) != '"':
                raise self.problem(position, "a key in double quotes is missing")
            key = self.read_string(position)
            colon = self.skip(key.end)
            if self.at(colon) != ":":
                raise self.problem(colon, "a colon is missing")
            value = self.read_value(self.skip(colon + 1), depth + 1)
            members.append(Member(str(key.value), key.start, key.start, key.end, value))
            position = self.after_comma(value.end, "}")
        return Node(Kind.MAP, opening, position + 1, members=tuple(members))

    def after_comma(self, position: int, closing: str) -> int:
        """Past the comma that must come next, or at the closing bracket."""
        position = self.skip(position)
        if self.at(position) == ",":
            return self.skip(position + 1)
        if self.at(position) != closing:
            raise self.problem(position, f"a comma or '{closing}' is missing")
        return position

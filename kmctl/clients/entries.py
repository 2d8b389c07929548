"""
The servers in a client's file. Pure.

An *entry* is one server. Where it has a command, its *slot* says where the words stand: `command` and `args` in
most clients, `cmd` in Goose, one list in opencode, an object of its own in older Zed files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kmctl.clients.tree import (
    Document,
    Format,
    Kind,
    Member,
    Node,
    Raw,
    check_duplicates,
    check_own_duplicates,
    end_of_line,
)
from kmctl.clients.words import Wrapped, find_obstacle, read_wrapped

KeyPath = tuple[str, ...]
"""Keys that lead to the servers; `*` stands for any key."""
ANY = "*"
COMMAND_KEYS = ("command", "cmd")
URL_KEYS = ("url", "serverUrl", "httpUrl", "uri")
ENV_KEYS = ("env", "envs", "environment")
NOT_EDITABLE = "is written with anchors, aliases, tags or block text; put km in front of it by hand"
EMPTY = ("null", "~")


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a server's words stand. as_list: `command` is a list that holds all of them."""

    holder: Node
    command: Member
    args: Member | None

    @property
    def as_list(self) -> bool:
        return self.command.value.kind is Kind.LIST


@dataclass(frozen=True, slots=True)
class Entry:
    """
    One server. path: keys and indexes from the file's root. words: command and arguments, empty without a command.

    problem: why km cannot be put in front of it, empty when it can. transport: `stdio`, `http`, `sse`, ….
    """

    path: tuple[str | int, ...]
    name: str
    node: Node
    transport: str
    slot: Slot | None
    words: tuple[str, ...]
    problem: str

    @property
    def wrapped(self) -> Wrapped | None:
        """How km stands in front of it, None when it does not."""
        return read_wrapped(self.words)

    @property
    def reason(self) -> str:
        """Why km is not put in front of it, empty when it can be, or is."""
        return self.problem or find_obstacle(self.words)

    @property
    def has_own_path(self) -> bool:
        """Whether its environment sets PATH: then only the client knows where its command is."""
        tables = (self.node.find(key) for key in ENV_KEYS)
        return any(one.key.upper() == "PATH" for table in tables if table for one in table.value.members)

    def span(self, document: Document) -> tuple[int, int]:
        """Where its value stands. What is written in lines goes to the end of its last one, with the comment there."""
        end = self.node.end
        return self.node.start, end if self.node.flow else end_of_line(document.text, end)

    def text(self, document: Document) -> str:
        """The entry's text in the file, from the first to the last character of its value."""
        start, end = self.span(document)
        return document.text[start:end]


def find_entries(document: Document, keys: Sequence[KeyPath]) -> list[Entry]:
    """
    All servers of *document* under *keys*, in the order of the file.

    Raises: NotUnderstood when a key that decides about them is there twice.
    """
    found: list[Entry] = []
    if document.root is not None:
        for path in keys:
            for place, container, editable in find_containers(document, document.root, path, ()):
                check_duplicates(document.text, container)
                found += read_container(document, place, container, editable=editable)
    return sorted(found, key=lambda entry: entry.node.start)


def find_containers(
    document: Document, node: Node, keys: KeyPath, place: tuple[str | int, ...], *, editable: bool = True
) -> Iterator[tuple[tuple[str | int, ...], Node, bool]]:
    """The nodes that *keys* lead to, where they are, and whether all above them can be edited."""
    editable = editable and node.editable
    if not keys:
        yield place, node, editable
        return
    check_own_duplicates(document.text, node, None if keys[0] == ANY else keys[0])
    for member in node.members:
        if keys[0] in (ANY, member.key):
            yield from find_containers(document, member.value, keys[1:], (*place, member.key), editable=editable)


def read_container(
    document: Document, place: tuple[str | int, ...], container: Node, *, editable: bool
) -> Iterator[Entry]:
    """The servers in one map (named by their keys) or list (named by their `name`, else by their number)."""
    for member in container.members:
        yield read_entry(document, (*place, member.key), member.key, member.value, editable=editable)
    for number, item in enumerate(container.items):
        name = item.find("name")
        label = str(name.value.value) if name and name.value.kind is Kind.SCALAR else f"#{number + 1}"
        yield read_entry(document, (*place, number), label, item, editable=editable)


def read_entry(document: Document, path: tuple[str | int, ...], name: str, node: Node, *, editable: bool) -> Entry:
    """One server as it is written: how it is reached, its words, and why it cannot be wrapped, if so."""
    slot = find_slot(node)
    if slot is None and not node.editable:
        return Entry(path, name, node, "none", None, (), NOT_EDITABLE)
    if slot is None:
        transport, problem = read_remote(node)
        return Entry(path, name, node, transport, None, (), problem)
    transport = text_of(node.find("type")) or text_of(node.find("transport")) or "stdio"
    problem = find_problem(document, node, slot, editable=editable)
    return Entry(path, name, node, transport, slot, () if problem else read_words(slot), problem)


def find_slot(node: Node) -> Slot | None:
    """Where the words of a server stand, None when it has no command."""
    for key in COMMAND_KEYS:
        command = node.find(key)
        if command is None:
            continue
        if command.value.kind is Kind.MAP:
            inner = command.value.find("path")
            return Slot(command.value, inner, command.value.find("args")) if inner else None
        return Slot(node, command, node.find("args"))
    return None


def read_remote(node: Node) -> tuple[str, str]:
    """Transport and problem of a server without a command."""
    kind = text_of(node.find("type")) or text_of(node.find("transport"))
    if any(node.find(key) for key in URL_KEYS):
        return kind or "http", "is reached by URL; km stands in front of commands only"
    return kind or "none", "has no command"


def text_of(member: Member | None) -> str:
    """A member's string, empty when it is none."""
    if member is None or member.value.kind is not Kind.SCALAR or isinstance(member.value.value, Raw):
        return ""
    return member.value.value


def find_problem(document: Document, node: Node, slot: Slot, *, editable: bool) -> str:
    """Why the words of a slot cannot be changed, empty when they can."""
    command, args = slot.command.value, slot.args.value if slot.args else None
    nodes = [node, slot.holder, command, *([args, *args.items] if args else []), *command.items]
    if not editable or not all(one.editable for one in nodes):
        return NOT_EDITABLE
    if slot.as_list:
        return "" if command.items and is_text(command.items[0]) else "has a command that is empty or no text"
    if not is_text(command) or not command.value:
        return "has a command that is empty or no text"
    if args is None or args.kind is Kind.LIST:
        return ""
    if document.format is not Format.TOML and document.text[args.start : args.end] in EMPTY:
        return ""
    return "has args that are no list"


def is_text(node: Node) -> bool:
    """Whether *node* is a string."""
    return node.kind is Kind.SCALAR and not isinstance(node.value, Raw)


def read_words(slot: Slot) -> tuple[str, ...]:
    """The words that start the server: its command, then its arguments."""
    items = slot.args.value.items if slot.args else ()
    return (
        tuple(str(one.value) for one in (*slot.command.value.items, *items))
        if slot.as_list
        else (
            str(slot.command.value.value),
            *(str(item.value) for item in items),
        )
    )

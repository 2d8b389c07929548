"""
Putting km in front of one server, as edits. Pure.

`command` gets our first word, and the others, with the server's own command behind them, go before the first of
`args`. The server's own arguments are not touched.
"""

from dataclasses import dataclass

from kmctl.clients.entries import Entry, Slot
from kmctl.clients.formats import render_string
from kmctl.clients.tree import (
    Document,
    Edit,
    Format,
    Member,
    Node,
    NotUnderstood,
    end_of_line,
    line_end,
    line_of,
    start_of_line,
)
from kmctl.clients.words import Find, Launcher, resolve_command


@dataclass(frozen=True, slots=True)
class Wrapping:
    """The edits that wrap an entry. words: ours, then the server's command as it is started."""

    edits: tuple[Edit, ...]
    words: tuple[str, ...]


def plan_wrapping(
    document: Document, entry: Entry, launcher: Launcher, find: Find, options: tuple[str, ...] = ()
) -> Wrapping:
    """The edits that put *launcher* in front of *entry*, which has a slot and is not wrapped."""
    slot = entry.slot
    if slot is None:
        raise ValueError("no command to wrap")
    written = slot.command.value.items[0] if slot.as_list else slot.command.value
    command = str(written.value)
    target = command if entry.has_own_path else resolve_command(command, find)
    ours = launcher.words(entry.name, options)
    render = document.format
    token = (
        document.text[written.start : written.end]
        if target == command and render is not Format.YAML
        else render_string(target, render)
    )
    if slot.as_list:
        edits = [*insert_items(document, slot.command.value, [render_string(word, render) for word in ours])]
        if target != command:
            edits.append(Edit(written.start, written.end, token))
        return Wrapping(tuple(edits), (*ours, target))
    first = Edit(written.start, written.end, render_string(ours[0], render))
    rest = [*(render_string(word, render) for word in ours[1:]), token]
    return Wrapping((first, *put_args(document, slot, rest)), (*ours, target))


def put_args(document: Document, slot: Slot, tokens: list[str]) -> list[Edit]:
    """The edits that make *tokens* the first arguments."""
    if slot.args is None:
        return [add_args(document, slot, tokens)]
    node = slot.args.value
    if node.items or document.text[node.start : node.start + 1] == "[":
        return insert_items(document, node, tokens)
    return [Edit(node.start, node.end, f"[{', '.join(tokens)}]")]  # it was null


def insert_items(document: Document, node: Node, tokens: list[str]) -> list[Edit]:
    """The edits that make *tokens* the first items of a list."""
    text = document.text
    if not node.items:
        return [Edit(node.start + 1, node.start + 1, ", ".join(tokens))]
    first = node.items[0].start
    if not node.flow:
        dash = dash_of(text, first)
        gap = line_end(text) + " " * (dash - start_of_line(text, dash))
        return [Edit(dash, dash, "".join(f"- {token}{gap}" for token in tokens))]
    lead = text[start_of_line(text, first) : first]
    alone = lead.isspace() or not lead
    gap = line_end(text) + lead if alone and start_of_line(text, first) > node.start else " "
    return [Edit(first, first, "".join(f"{token},{gap}" for token in tokens))]


def add_args(document: Document, slot: Slot, tokens: list[str]) -> Edit:
    """The edit that gives a server without arguments some, right after its command."""
    text, command = document.text, slot.command
    key = document.text[command.key_start : command.key_end]
    quote = key[0] if key[0] in "\"'" else ""
    between = text[command.key_end : command.value.start]
    mark = between if not between.strip(" \t:=") else (" = " if document.format is Format.TOML else ": ")
    pair = f"{text[command.start : command.key_start]}{quote}args{quote}{mark}[{', '.join(tokens)}]"
    if slot.holder.flow:
        end = command.value.end
        lead = lead_of(document, slot.holder, command) or (" " if mark[-1:].isspace() else "")
        return Edit(end, end, f",{lead}{pair}")
    end = end_of_line(text, command.value.end)
    lead = text[start_of_line(text, command.start) : command.start]
    indent = "".join(char if char.isspace() else " " for char in lead)  # `- command: x` is a list's first key
    return Edit(end, end, line_end(text) + indent + pair)


def lead_of(document: Document, holder: Node, member: Member) -> str:
    """The space before *member*: how members are set apart there."""
    before = [one.value.end for one in holder.members if one.value.end <= member.start]
    lead = document.text[max(before, default=holder.start + 1) : member.start].rpartition(",")[2]
    return lead if not lead.strip() else " "


def dash_of(text: str, item: int) -> int:
    """Where the `-` of a YAML item stands that begins at *item*."""
    dash = text.rfind("-", 0, item)
    if dash < 0 or text[dash + 1 : item].strip():
        raise NotUnderstood(line_of(text, item), "a list is written in a way that is not understood")
    return dash

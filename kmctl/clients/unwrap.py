"""
Taking km out of one server, as edits. Pure.

An entry that is as we wrote it gets its original text back. From one that was edited since, or was wrapped by
hand, only our words are taken out.
"""

import re

from kmctl.clients.entries import Entry, Slot
from kmctl.clients.formats import render_string
from kmctl.clients.tree import Document, Edit, Format, Member, Node, end_of_line, start_of_line
from kmctl.clients.undo import Undo
from kmctl.clients.words import Wrapped
from kmctl.clients.wrap import dash_of

COMMA = re.compile(r"[ \t\r\n]*,")
SPACE = re.compile(r"[ \t\r\n]*")
BLANK = " \t\r\n,"


def plan_unwrapping(document: Document, entry: Entry, wrapped: Wrapped, undo: Undo | None) -> list[Edit]:
    """The edits that take our words out of *entry*; *undo* says how its command and arguments were written."""
    slot = entry.slot
    if slot is None:
        raise ValueError("no command to unwrap")
    if undo is not None and undo.target != entry.words[wrapped.own]:
        undo = None
    if slot.as_list:
        command = slot.command.value.items[wrapped.own]
        edits = take_items(document, slot.command.value, wrapped.own)
        if undo is not None and undo.form is document.format:
            edits.append(Edit(command.start, command.end, undo.command_text))
        return edits
    if slot.args is None:
        raise ValueError("wrapped without arguments")
    command = slot.args.value.items[wrapped.own - 1]
    old = slot.command.value
    edits = [Edit(old.start, old.end, command_text(document, command, undo))]
    if undo is None or undo.args_text is None or len(slot.args.value.items) > wrapped.own:
        return [*edits, *take_items(document, slot.args.value, wrapped.own)]
    if undo.args_text:
        return [*edits, Edit(slot.args.value.start, slot.args.value.end, undo.args_text)]
    return [*edits, *take_args(document, slot, slot.args, wrapped.own)]


def command_text(document: Document, command: Node, undo: Undo | None) -> str:
    """How the server's own command is written as `command`."""
    if undo is not None and undo.form is document.format:
        return undo.command_text
    if document.format is Format.YAML:
        return render_string(str(command.value), Format.YAML)
    return document.text[command.start : command.end]


def take_items(document: Document, node: Node, count: int) -> list[Edit]:
    """The edits that take the first *count* items out of a list. Comments between them stay."""
    text, items = document.text, node.items
    if not node.flow and len(items) == count:
        return [Edit(dash_of(text, items[0].start), items[-1].end, "[]")]
    ends = [after_space(text, after_comma(text, item.end) if node.flow else item.end) for item in items[:count]]
    starts = [item.start if node.flow else dash_of(text, item.start) for item in items[:count]]
    if len(items) == count:
        ends[-1] = after_comma(text, items[-1].end)
        lead, rest = text[node.start + 1 : starts[0]], text[ends[-1] : node.end - 1]
        if lead and not lead.strip() and not rest.strip():  # someone has laid out the list anew
            starts[0], ends[-1] = node.start + 1, node.end - 1
    return [Edit(start, end, "") for start, end in zip(starts, ends, strict=True)]


def after_comma(text: str, position: int) -> int:
    """Past the comma that follows, else *position*."""
    found = COMMA.match(text, position)
    return found.end() if found else position


def after_space(text: str, position: int) -> int:
    """Past the space that follows."""
    found = SPACE.match(text, position)
    return found.end() if found else position


def take_args(document: Document, slot: Slot, args: Member, count: int) -> list[Edit]:
    """The edits that take `args` away again, which the server did not have."""
    text = document.text
    if slot.holder.flow:
        before = max((one.value.end for one in slot.holder.members if one.value.end <= args.start), default=None)
        if before is not None and not text[before : args.start].strip(BLANK):
            return [Edit(before, args.value.end, "")]
        return take_items(document, args.value, count)
    start, end = start_of_line(text, args.start), end_of_line(text, args.value.end)
    alone = not text[start : args.start].strip() and not text[args.value.end : end].strip()
    if not alone or start == 0:
        return take_items(document, args.value, count)
    return [Edit(end_of_line(text, start_of_line(text, start - 1)), end, "")]

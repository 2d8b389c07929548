"""The difference that `kmctl install` shows before it asks: one hunk for each server, secrets masked. Pure."""

import difflib
import re
from collections.abc import Iterator

from kmctl.clients.entries import Entry
from kmctl.clients.mask import mask_entry
from kmctl.clients.plan import Change, FilePlan
from kmctl.clients.tree import Document, line_of, start_of_line
from kmctl.text import harmless

CONTEXT_LINES = 3
HUNK = re.compile(r"@@ -(\d+)(,\d+)? \+(\d+)(,\d+)? @@")


def render_diff(plan: FilePlan) -> Iterator[str]:
    """The lines of a unified diff of *plan*; the line numbers are those of the files."""
    if plan.changes:
        yield f"--- {harmless(str(plan.source.file))}"
        yield f"+++ {harmless(str(plan.source.file))}"
    for change in plan.changes:
        yield from render_change(change)


def render_change(change: Change) -> Iterator[str]:
    """The hunks of one server."""
    before, first_before = lines_of(change.before, change.entry_before)
    after, first_after = lines_of(change.after, change.entry_after)
    lines = list(difflib.unified_diff(before, after, n=CONTEXT_LINES, lineterm=""))[2:]
    for line in lines:
        if found := HUNK.match(line):
            start, count, other, other_count = found.groups()
            line = (  # noqa: PLW2901
                f"@@ -{int(start) + first_before - 1}{count or ''} "
                f"+{int(other) + first_after - 1}{other_count or ''} @@ {change.name}"
            )
        yield harmless(line.replace("\t", "    "))


def lines_of(document: Document, entry: Entry) -> tuple[list[str], int]:
    """An entry's lines, masked, and the number of the first one. What stands before it on its line is left out."""
    start = start_of_line(document.text, entry.node.start)
    lead = document.text[start : entry.node.start]
    indent = lead[: len(lead) - len(lead.lstrip())]
    return (indent + mask_entry(document, entry)).splitlines(), line_of(document.text, entry.node.start)

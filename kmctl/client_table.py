"""The table of `kmctl clients`. Pure."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from kmctl.clients.entries import Entry
from kmctl.clients.report import shorten, title_of
from kmctl.clients.survey import Found
from kmctl.text import harmless


def render_rows(rows: Sequence[tuple[Found, Entry]]) -> Table:
    """One line for each server."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("CLIENT", "SERVER", "TRANSPORT", "KM"):
        table.add_column(name, no_wrap=True)
    table.add_column("FILE", overflow="fold")
    home = Path.home()
    for found, entry in rows:
        table.add_row(
            title_of(found.source.client),
            harmless(entry.name),
            harmless(entry.transport),
            mark_of(entry),
            shorten(found.source.file, home),
        )
    return table


def mark_of(entry: Entry) -> Text:
    """Whether km is in front of a server, or could be."""
    if entry.wrapped:
        return Text("wrapped", "green")
    return Text("not wrapped", "yellow") if entry.slot and not entry.problem else Text("left alone", "dim")

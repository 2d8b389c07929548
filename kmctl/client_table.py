"""The table of `kmctl clients`. Pure."""

from collections.abc import Sequence
from pathlib import Path

from kmctl.clients.entries import Entry
from kmctl.clients.report import shorten, title_of
from kmctl.clients.survey import Found
from kmctl.page import Cell, Column, Page, Table

COLUMNS = (Column("client"), Column("server"), Column("transport"), Column("km"), Column("file"))


def render_rows(rows: Sequence[tuple[Found, Entry]]) -> Page:
    """One line for each server."""
    home = Path.home()
    return (
        Table(
            COLUMNS,
            tuple(
                (
                    Cell(title_of(found.source.client)),
                    Cell(entry.name),
                    Cell(entry.transport),
                    mark_of(entry),
                    Cell(shorten(found.source.file, home)),
                )
                for found, entry in rows
            ),
        ),
    )


def mark_of(entry: Entry) -> Cell:
    """Whether km is in front of a server, or could be."""
    if entry.wrapped:
        return Cell("wrapped", "green")
    return Cell("not wrapped", "yellow") if entry.slot and not entry.reason else Cell("left alone", "dim")

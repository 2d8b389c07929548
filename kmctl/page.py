"""
What a reading command shows, as values: facts, tables and lines. Pure, but for the one door to rich.

Three ways to show a page: `draw` aligns columns, `speak` says one fact a line for those who hear it, and `to_rich`
folds a table that is wider than its terminal. Only the last one loads rich, which costs as much as all the rest.
"""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

import click

from kmctl.text import harmless

if TYPE_CHECKING:
    from rich.console import RenderableType

GAP = "  "
COLOURS = frozenset({"red", "yellow", "green", "cyan", "magenta"})

Paint = Callable[[str, str], str]
"""A text in a style: `bold`, `dim`, or a colour's name."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A value and how it looks."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A table's column. number: its values stand to the right."""

    name: str
    number: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values, one pair a line. A name that is empty goes on with the one before."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, one for each column."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of its own between tables and facts."""

    text: str
    style: str = ""


Block = Facts | Table | Line
Page = tuple[Block, ...]
EMPTY = Line("")


def unpainted(text: str, _style: str) -> str:
    """*text* as a pipe gets it: without colours."""
    return text


def painted(text: str, style: str) -> str:
    """*text* as a terminal shows it in *style*: a colour, `bold`, `dim`, or none."""
    if style in COLOURS:
        return click.style(text, fg=style)
    return click.style(text, bold=style == "bold" or None, dim=style == "dim" or None) if style else text


def draw(page: Page, paint: Paint = unpainted) -> list[str]:
    """The lines of *page*, columns aligned. Whatever a terminal could act on is escaped."""
    return [line.rstrip() for block in page for line in draw_block(block, paint)]


def draw_block(block: Block, paint: Paint) -> Iterator[str]:
    """The lines of one block."""
    match block:
        case Line(text, style):
            yield paint(harmless(text), style)
        case Facts(rows):
            width = max(len(name) for name, _ in rows)
            for name, value in rows:
                yield paint(name.ljust(width), "bold") + GAP + harmless(value)
        case Table(columns, rows):
            yield from draw_table(columns, rows, paint)
        case _:
            assert_never(block)


def draw_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], paint: Paint) -> Iterator[str]:
    """A header and the rows."""
    header = [Cell(column.name, "bold") for column in columns]
    grid = [[Cell(harmless(cell.text), cell.style) for cell in row] for row in (header, *rows)]
    widths = [max(count_cells(row[place].text) for row in grid) for place in range(len(columns))]
    for row in grid:
        parts = zip(row, columns, widths, strict=True)
        yield GAP.join(align(cell, width, paint, right=column.number) for cell, column, width in parts)


def align(cell: Cell, width: int, paint: Paint, *, right: bool) -> str:
    """A cell in its column."""
    room = " " * (width - count_cells(cell.text))
    shown = paint(cell.text, cell.style)
    return room + shown if right else shown + room


def count_cells(text: str) -> int:
    """How wide *text* stands on a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF") for char in text)


def is_wider(page: Page, width: int) -> bool:
    """Whether a table of *page* is wider than a terminal; sentences the terminal folds by itself."""
    tables = tuple(block for block in page if isinstance(block, Table))
    return any(count_cells(line) > width for line in draw(tables))


def speak(page: Page) -> list[str]:
    """The lines of *page* for a screen reader: each value follows its name, and nothing is said by place or colour."""
    lines: list[str] = []
    for block in page:
        match block:
            case Line(text):
                lines += [harmless(text)] if text else []
            case Facts(rows):
                lines += [f"{name}: {harmless(value)}" if name else harmless(value) for name, value in rows]
            case Table(columns, rows):
                for row in rows:
                    pairs = zip(columns, row, strict=True)
                    lines.append(", ".join(f"{column.name}: {harmless(cell.text)}" for column, cell in pairs))
            case _:
                assert_never(block)
    return lines


def to_rich(page: Page) -> "RenderableType":
    """*page* for rich, which folds what is too wide."""
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    parts: list[RenderableType] = []
    for block in page:
        if not isinstance(block, Table):
            parts += [Text.from_ansi(line) for line in draw((block,), painted)]
            continue
        table = RichTable(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
        for column in block.columns:
            table.add_column(column.name, justify="right" if column.number else "left", overflow="fold")
        for row in block.rows:
            table.add_row(*(Text(harmless(cell.text), style=cell.style) for cell in row))
        parts.append(table)
    return Group(*parts)

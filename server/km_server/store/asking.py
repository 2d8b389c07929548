"""
Questions to a database, asked without one.

An *asking* is a generator: it yields a Question (SQL with `$1`, `$2`, … and their values), is sent the rows, and
returns what was wanted. Everything that a store reads, removes or keeps is written once as an asking; each store
runs it in one transaction of its own. Both databases understand the text: it stays within what they share.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

Cell = int | float | str | bytes | None
Row = Sequence[Any]
"""A row of an answer; only the asking that put the question knows its columns."""


@dataclass(frozen=True, slots=True)
class Question:
    """One statement. No value is ever part of the text."""

    text: str
    values: tuple[Cell, ...] = ()


Asking = Generator[Question, Sequence[Row], T]


class Values:
    """Collects the values of a statement while its text is put together."""

    def __init__(self, *values: Cell) -> None:
        self._values = list(values)

    def mark(self, value: Cell) -> str:
        """Take a value; returns what stands for it in the text."""
        self._values.append(value)
        return f"${len(self._values)}"

    def marks(self, values: Sequence[Cell]) -> str:
        """Take several; returns what stands for them, with commas."""
        return ", ".join(self.mark(value) for value in values)

    def question(self, text: str) -> Question:
        """The statement with the values taken so far."""
        return Question(text, tuple(self._values))

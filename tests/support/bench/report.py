"""What a section of the bench hands back, and how it is shown: tables, then one line per budget."""

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console(highlight=False, width=max(110, Console().width))


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks of every section."""

    quick: bool = False
    against: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit from the design and what came out; `value` and `limit` have the same unit."""

    name: str
    value: float
    limit: float
    unit: str = "times"
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def render(self) -> str:
        verdict = "[green]met[/]    " if self.is_met else "[bold red]NOT met[/]"
        sign = "≥" if self.at_least else "≤"
        return f"{verdict} {self.name}: {self.value:.2f} {self.unit} ({sign} {self.limit:g})"


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table: a title, column names, rows of text and numbers."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str | float, ...]]


@dataclass(slots=True)
class Section:
    """What one section measured."""

    name: str
    sheets: list[Sheet] = field(default_factory=list)
    budgets: list[Budget] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        budgets = [{**asdict(budget), "met": budget.is_met} for budget in self.budgets]
        return {**asdict(self), "budgets": budgets}


def print_section(section: Section) -> None:
    console.print(f"\n[bold cyan]{section.name}[/]")
    for sheet in section.sheets:
        table = Table(title=sheet.title, title_justify="left", box=None, pad_edge=False)
        for at, column in enumerate(sheet.columns):
            table.add_column(column, justify="right" if at else "left", no_wrap=True)
        for row in sheet.rows:
            table.add_row(*(cell if isinstance(cell, str) else f"{cell:,.1f}" for cell in row))
        console.print(table)
        console.print()
    for remark in section.remarks:
        console.print(f"[yellow]{remark}[/]")
    for budget in section.budgets:
        console.print(budget.render())

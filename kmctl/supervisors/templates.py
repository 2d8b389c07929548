"""
The texts in packaging/ that the supervisors fill in.

A wheel carries them inside kmctl (`force-include` in pyproject.toml); a work tree has them at its root.
"""

from pathlib import Path

from kmd.errors import KilometersError

IN_WHEEL = Path(__file__).with_name("packaging")
IN_TREE = Path(__file__).parents[2] / "packaging"


def read_template(name: str) -> str:
    """The text of `packaging/<name>`. Raises KilometersError: this installation lacks it."""
    for folder in (IN_WHEEL, IN_TREE):
        try:
            return (folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
    raise KilometersError(f"this installation lacks packaging/{name}", hint="install Kilometers again")

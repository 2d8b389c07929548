"""docs/architecture.md names every room of the tree, and none that is gone."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
SOURCES = ("kmd", "kmctl", "server/km_server")


def named_paths() -> set[str]:
    """The paths in the table's first column; a bare name stands in the folder of the path before it."""
    found = set()
    for cell in re.findall(r"^\| (`[^|]+`) \|", PAGE, re.MULTILINE):
        folder = ""
        for name in re.findall(r"`([\w./]+)`", cell):
            path = name if "/" in name else f"{folder}/{name}"
            folder = path.rpartition("/")[0]
            found.add(path.rstrip("/"))
    return found


def test_every_room_that_the_page_names_is_there() -> None:
    named = named_paths()
    assert len(named) > 30
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_every_folder_of_the_sources_is_on_the_page() -> None:
    modules = [module for source in SOURCES for module in (ROOT / source).rglob("[a-z]*.py")]
    folders = {module.parent.relative_to(ROOT).as_posix() for module in modules}
    shown = named_paths() | {path.rpartition("/")[0] for path in named_paths()}
    assert {path for path in folders - shown if f"`{path.rpartition('/')[2]}/`" not in PAGE} == set()

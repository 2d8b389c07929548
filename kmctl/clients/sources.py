"""
Which of the known files are on this machine, and which commands. Edge: it looks at the file system.

Platform, home, environment and current folder are arguments, so that the places of all three systems can be looked
through on any of them.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmctl.clients.formats import format_of
from kmctl.clients.plan import Source
from kmctl.clients.table import CLIENTS, Client, Platform
from kmctl.clients.words import AT_HOME, PYTHON, Find

PLATFORMS = {"darwin": Platform.MACOS, "win32": Platform.WINDOWS}


@dataclass(frozen=True, slots=True)
class Machine:
    """Where to look."""

    platform: Platform
    home: Path
    project: Path
    environ: Mapping[str, str]


def this_machine() -> Machine:
    """The one that we run on; a current folder that is gone has no project files."""
    home = Path.home()
    try:
        project = Path.cwd()
    except OSError:
        project = home
    return Machine(PLATFORMS.get(sys.platform, Platform.LINUX), home, project, os.environ)


def find_roots(machine: Machine) -> dict[str, list[Path]]:
    """
    What stands for each `{name}` of table.py. Several where programs do not agree.

    home · project: the current folder · config: `~/.config` and XDG_CONFIG_HOME · apps: where programs with windows
    keep their data · local: the same, for what does not roam (Windows) · any other name: that variable.
    """
    home, environ = machine.home, machine.environ
    config = [*absolute(environ.get("XDG_CONFIG_HOME")), home / ".config"]
    roots = {"home": [home], "project": [machine.project], "config": config, "local": []}
    match machine.platform:
        case Platform.LINUX:
            roots["apps"] = config
        case Platform.MACOS:
            roots["apps"] = [home / "Library" / "Application Support"]
        case Platform.WINDOWS:
            roots["apps"] = [*absolute(environ.get("APPDATA")), home / "AppData" / "Roaming"]
            roots["local"] = [*absolute(environ.get("LOCALAPPDATA")), home / "AppData" / "Local"]
    for name in ("CLAUDE_CONFIG_DIR", "COPILOT_HOME", "CODEX_HOME"):
        roots[name] = absolute(environ.get(name))
    return roots


def absolute(path: str | None) -> list[Path]:
    """A path from a variable, if there is one that does not depend on the current folder."""
    return [Path(path)] if path and os.path.isabs(path) else []  # noqa: PTH117 - the text decides


def find_sources(machine: Machine, clients: Sequence[Client] = CLIENTS) -> list[Source]:
    """The files of *clients* that are there, each once, in the order of the table."""
    roots = find_roots(machine)
    found: dict[str, Source] = {}
    for client in clients:
        for place in client.places:
            for file in find_files(roots, place.path):
                source = Source(client.id, file, format_of(file.suffix), place.keys, place.shared)
                found.setdefault(os.path.realpath(file), source)
    return list(found.values())


def find_absent(machine: Machine, clients: Sequence[Client], sources: Sequence[Source]) -> list[str]:
    """One sentence for each of *clients* that none of *sources* belongs to: where its file would be."""
    roots = find_roots(machine)
    there = {source.client for source in sources}
    sentences = []
    for client in (one for one in clients if one.id not in there):
        likely = [
            folder / rest
            for place in client.places
            for root, _, rest in [place.path.removeprefix("{").partition("}/")]
            for folder in roots[root]
        ]
        sentences.append(f"{client.title} has no file with servers here, such as {likely[0]}")
    return sentences


def find_files(roots: Mapping[str, Sequence[Path]], place: str) -> Iterator[Path]:
    """The files that a place stands for and that are there."""
    root, _, rest = place.removeprefix("{").partition("}/")
    for folder in roots[root]:
        try:
            files = sorted(folder.glob(rest)) if "*" in rest else [folder / rest]
        except OSError:
            continue
        yield from (file for file in files if os.path.exists(file))  # noqa: PTH110 - False, not an error, without rights


def make_find(environ: Mapping[str, str], home: Path, prefix: str, base_prefix: str) -> Find:
    """
    Looks commands up on PATH, and those that begin with `~/` below *home*.

    In an active virtual environment (VIRTUAL_ENV, or our own when *prefix* is not *base_prefix*) a name may mean
    something else than in the client: such a name is not resolved when there is one outside too, or when it is Python.
    """
    folders = [folder for folder in environ.get("PATH", "").split(os.pathsep) if os.path.isabs(folder)]  # noqa: PTH117
    active = {environ.get("VIRTUAL_ENV", ""), prefix if prefix != base_prefix else ""} - {""}
    inside = {os.path.realpath(Path(one) / part) for one in active for part in ("bin", "Scripts")}
    outside = [folder for folder in folders if os.path.realpath(folder) not in inside]

    def find(name: str) -> str | None:
        if name.startswith(AT_HOME):
            path = home / name.removeprefix(AT_HOME)
            return str(path) if path.is_file() else None
        first = shutil.which(name, path=os.pathsep.join(folders)) if folders else None
        if first is None or os.path.realpath(Path(first).parent) not in inside:
            return first
        doubtful = PYTHON.fullmatch(name) or (outside and shutil.which(name, path=os.pathsep.join(outside)))
        return None if doubtful else first

    return find

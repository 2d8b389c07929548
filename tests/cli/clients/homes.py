"""A home with the files of MCP clients in it, and kmctl at work on it."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from kmctl.client_options import Scope
from kmctl.clients.installing import check_launcher, find_launcher, plan_work
from kmctl.clients.removing import find_all, forget_rest, plan_removal
from kmctl.clients.run import Work, finish
from kmctl.clients.sources import Machine
from kmctl.clients.table import Platform
from kmd.paths import Places, find_places
from tests.cli.clients.samples import Sample

EVERYTHING = Scope((), ())
RUNNERS = ("npx", "uvx", "node")
ECHO = f"""#!{sys.executable}
import json, sys
print(json.dumps(sys.argv[1:]), flush=True)
sys.stdout.write(sys.stdin.readline())
"""
"""A server that says with which arguments it was started, then repeats one line."""


def make_runners(folder: Path) -> Path:
    """A folder with npx, uvx and node in it, each an ECHO."""
    folder.mkdir()
    for name in RUNNERS:
        (folder / name).write_text(ECHO)
        (folder / name).chmod(0o755)
    return folder


def machine_of(home: Path, platform: Platform = Platform.LINUX, runners: Path | None = None) -> Machine:
    """The machine that has *home*; its current folder is `shop` in there."""
    (home / "shop").mkdir(parents=True, exist_ok=True)
    return Machine(platform, home, home / "shop", {"HOME": str(home), "PATH": str(runners or "")})


def places_of(home: Path) -> Places:
    """Where Kilometers keeps its own files there."""
    return find_places(home / "km", {})


def write_sample(home: Path, sample: Sample, raw: bytes | None = None) -> Path:
    """The sample's file below *home*."""
    path = home / sample.place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sample.raw if raw is None else raw)
    return path


def install(machine: Machine, scope: Scope = EVERYTHING) -> Work:
    """What `kmctl install --yes` does to the clients of that machine."""
    launcher = find_launcher(machine.home / "km")
    check_launcher(launcher)
    work = plan_work(machine, places_of(machine.home), scope, launcher)
    finish(work, places_of(machine.home).state_dir)
    return work


def uninstall(machine: Machine, scope: Scope = EVERYTHING) -> Work:
    """What `kmctl uninstall --yes` does to them."""
    sources, states = find_all(machine, places_of(machine.home), scope)
    work = plan_removal(sources, states, scope)
    finish(work, states[0])
    forget_rest(states, work, scope)
    return work


def contents(folder: Path, skip: Iterable[str] = ("km", "bin")) -> dict[str, bytes]:
    """Every file below *folder* but backups and what is in *skip*."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".bak") and path.relative_to(folder).parts[0] not in skip
    }


def minimal_environ(home: Path) -> dict[str, str]:
    """What a client with windows passes on, with a PATH that leads nowhere."""
    return {"HOME": str(home), "PATH": "/nonexistent", "LANG": os.environ.get("LANG", "C.UTF-8")}

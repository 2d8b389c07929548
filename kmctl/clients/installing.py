"""`kmctl install`, the part about clients: how km is started, and what is to be wrapped. Edge."""

import subprocess
import sys
from pathlib import Path

import kmd.paths
from kmctl.client_options import Scope
from kmctl.clients.plan import FilePlan, plan_install
from kmctl.clients.run import Work, prepare
from kmctl.clients.sources import Machine, find_absent, find_sources, make_find
from kmctl.clients.survey import Found, find_states, survey, time_stamp
from kmctl.clients.table import BY_ID, CLIENTS
from kmctl.clients.undo_store import load_undos
from kmctl.clients.words import Launcher
from kmd.errors import KilometersError
from kmd.paths import Places

CHECK_TIMEOUT_S = 20.0
"""For a bare interpreter that prints its help: a busy machine must not fail it."""


def find_launcher(home: Path | None) -> Launcher:
    """How km is started from this installation."""
    launch = Path(kmd.paths.__file__).absolute().with_name("shim") / "launch.py"  # links may outlive what they point to
    return Launcher(sys.executable, str(launch), str(home) if home else None)


def check_launcher(launcher: Launcher) -> None:
    """Raises KilometersError unless km starts with nothing in its environment, as from a client with windows."""
    words = [*launcher.start(), "--help"]
    hint = "install Kilometers again, then run 'kmctl install'"
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and file
            words, env={}, stdin=subprocess.DEVNULL, capture_output=True, timeout=CHECK_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise KilometersError(f"km cannot be started ({type(exc).__name__}): {launcher.launch}", hint=hint) from exc
    if done.returncode != 0 or not done.stdout.startswith(b"usage: km"):
        raise KilometersError(f"km does not start (exit status {done.returncode}): {launcher.launch}", hint=hint)


def plan_work(machine: Machine, places: Places, scope: Scope, launcher: Launcher) -> Work:
    """Everything that `kmctl install` would change on *machine*."""
    chosen = [BY_ID[name] for name in scope.clients]
    sources = find_sources(machine, chosen or CLIENTS)
    surveyed = survey(sources)
    find = make_find(machine.environ, machine.home, sys.prefix, sys.base_prefix)
    records = load_undos(find_states(surveyed[0], places, machine.environ))
    now = time_stamp()

    def plan(found: Found) -> FilePlan:
        return plan_install(
            found.source,
            found.document,
            launcher,
            find,
            now,
            lambda entry: scope.includes(entry.name),
            records,
        )

    work = prepare(surveyed, plan)
    work.absent = find_absent(machine, chosen, sources)
    return work

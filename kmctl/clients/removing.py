"""`kmctl uninstall`, the part about clients: find what is wrapped, wherever it is now, and put it back. Edge."""

import os
from collections.abc import Sequence
from pathlib import Path

from kmctl.client_options import Scope
from kmctl.clients.plan import FilePlan, Source, plan_uninstall
from kmctl.clients.run import Work, prepare
from kmctl.clients.sources import Machine, find_sources
from kmctl.clients.survey import Found, find_states, survey
from kmctl.clients.table import BY_ID, CLIENTS
from kmctl.clients.undo import Undo
from kmctl.clients.undo_store import FOLDER, drop_undo, hold_lock, load_undos, retire_undo
from kmd.paths import Places


def find_all(machine: Machine, places: Places, scope: Scope) -> tuple[list[Source], list[Path]]:
    """
    The files in which something may be wrapped, and the state directories that have records about it.

    Files: those of the table, and those that a record names, such as of projects elsewhere.
    """
    ids = scope.clients
    sources = find_sources(machine, [BY_ID[name] for name in ids] or CLIENTS)
    states = find_states(survey(sources)[0], places, machine.environ)
    known = {os.path.realpath(source.file) for source in sources}
    for undo in load_undos(states):
        path = os.path.realpath(undo.file)
        if path not in known and os.path.exists(path) and (not ids or undo.client in ids):  # noqa: PTH110
            known.add(path)
            sources.append(Source(undo.client, Path(undo.file), undo.form, undo.keys))
    return sources, states


def plan_removal(sources: Sequence[Source], states: Sequence[Path], scope: Scope) -> Work:
    """Everything that `kmctl uninstall` would change."""
    records = load_undos(states)

    def plan(found: Found) -> FilePlan:
        return plan_uninstall(found.source, found.document, lambda entry: scope.includes(entry.name), records)

    return prepare(survey(sources), plan)


def forget_rest(states: Sequence[Path], work: Work, scope: Scope) -> None:
    """
    Settle the records of files in which everything was put back, also of servers that a person deleted or unwrapped.

    They are dropped when nothing is wrapped any more, else kept for copies only.

    Records of files that are not there now stay: a disk may come back. Raises: FileRefused when another run is at work.
    """
    done = {os.path.realpath(plan.source.file) for plan, _ in work.plans}
    settle = drop_undo if scope.everything else retire_undo
    rest = [undo for undo in load_undos(states, retired=scope.everything) if covers(scope, undo)]
    rest = [undo for undo in rest if os.path.realpath(undo.file) in done]
    if rest:
        with hold_lock(states[0]):
            for undo in rest:
                for state in states:
                    settle(state / FOLDER, undo)


def covers(scope: Scope, undo: Undo) -> bool:
    """Whether the server that a record was made of is meant."""
    return scope.includes(undo.name) and (not scope.clients or undo.client in scope.clients)

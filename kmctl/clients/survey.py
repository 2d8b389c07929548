"""What is in the clients' files, and carrying out what is planned for one of them. Edge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kmctl.clients.entries import Entry, find_entries
from kmctl.clients.files import FileRefused, Snapshot, read_file, replace_file
from kmctl.clients.formats import parse_document
from kmctl.clients.plan import Action, FilePlan, Source
from kmctl.clients.tree import Document, NotUnderstood
from kmctl.clients.undo_store import retire_undo, save_undo
from kmd.paths import Places, find_places


@dataclass(frozen=True, slots=True)
class Found:
    """A client's file that was read, and the servers in it."""

    source: Source
    snapshot: Snapshot
    document: Document
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that is left alone. reason: one sentence with the file, and the line where there is one."""

    source: Source
    reason: str
    hint: str


def survey(sources: Sequence[Source]) -> tuple[list[Found], list[Problem]]:
    """Read every file: those that are understood, and those that are not."""
    found: list[Found] = []
    problems: list[Problem] = []
    for source in sources:
        try:
            snapshot = read_file(source.file)
            document = parse_document(snapshot.raw, source.form)
            entries = tuple(find_entries(document, source.keys))
        except FileRefused as exc:
            problems.append(Problem(source, str(exc), exc.hint))
        except NotUnderstood as exc:
            problems.append(explain(source, exc))
        else:
            found.append(Found(source, snapshot, document, entries))
    return found, problems


def find_states(found: Sequence[Found], places: Places, environ: Mapping[str, str]) -> list[Path]:
    """
    The state directories that may have records about what is wrapped: ours, and those of homes in the wrapped words.

    Project files are not asked: whoever wrote them could have us take their records for ours.
    """
    states = [places.state_dir]
    wrapped = [old for one in found if not one.source.shared for entry in one.entries if (old := entry.wrapped)]
    for home in dict.fromkeys(old.home for old in wrapped if old.quick):
        state = state_of(home, environ)
        states += [state] if state not in states else []
    return states


def state_of(home: str | None, environ: Mapping[str, str]) -> Path:
    """The state directory of a home that stands in a wrapped server's words; None: of the default one."""
    return find_places(Path(home) if home else None, {**environ, "KM_HOME": ""}).state_dir


def explain(source: Source, exc: NotUnderstood) -> Problem:
    """What to say about a file that is not understood."""
    return Problem(source, f"{source.file}:{exc.line}: {exc.reason}", "correct the file, then run the command again")


def carry_out(plan: FilePlan, snapshot: Snapshot, folders: Sequence[Path], stamp: str) -> Path:
    """
    Replace a file as planned: undo records first, then the file; then records that only copies may need are set aside.

    folders: where records are kept; new ones go to the first. Returns: the backup.
    Raises: FileRefused; the file is as it was then.
    """
    try:
        for change in plan.changes:
            if change.action is not Action.UNWRAP and change.undo is not None:
                save_undo(folders[0], change.undo)
    except OSError as exc:
        hint = "check the room on its disk"
        raise FileRefused(f"{folders[0]}: cannot be written ({exc.strerror})", hint=hint) from exc
    backup = replace_file(plan.source.file, snapshot, plan.after.encode("utf-8"), stamp)
    for change in plan.changes:
        if change.action is Action.UNWRAP and change.undo is not None:
            for folder in folders:
                retire_undo(folder, change.undo)
    return backup


def time_stamp() -> str:
    """Now, as it stands in file names."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")

"""
What to do with one file: its text before and after, and what changed in it. Pure.

Nothing is trusted: the new text is read again, everything but the changed commands must mean what it meant, and
what is wrapped must come back byte for byte. A layout that fails this is left alone, never damaged.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from kmctl.clients.entries import Entry, KeyPath, find_entries
from kmctl.clients.formats import parse_text
from kmctl.clients.tree import Document, Edit, Format, NotUnderstood, apply_edits, line_of, to_value
from kmctl.clients.undo import Sighting, Undo, digest, find_undo
from kmctl.clients.unwrap import plan_unwrapping
from kmctl.clients.words import Find, Launcher
from kmctl.clients.wrap import plan_wrapping

Chosen = Callable[[Entry], bool]
Path_ = tuple[str | int, ...]
Words = tuple[tuple[str, ...], tuple[str, ...]]
"""How an entry's words must begin (not checked when empty), and how they must go on after that or the command."""


class Action(StrEnum):
    """What happens to an entry."""

    WRAP = "wrap"
    REFRESH = "refresh"
    UNWRAP = "unwrap"


@dataclass(frozen=True, slots=True)
class Source:
    """A file of a client. keys: where its servers are. shared: it belongs to a project, not to this user alone."""

    client: str
    file: Path
    form: Format
    keys: tuple[KeyPath, ...]
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """
    One entry that changes. before, after: its text, with the line on which each begins.

    undo: what to remember (wrap) or what may be forgotten (unwrap). exact: whether it gets its own text back.
    """

    action: Action
    path: Path_
    name: str
    before: Document
    after: Document
    entry_before: Entry
    entry_after: Entry
    undo: Undo | None
    exact: bool


@dataclass(frozen=True, slots=True)
class FilePlan:
    """before == after when nothing is to be done. left: why entries were not touched, by name."""

    source: Source
    before: str
    after: str
    changes: tuple[Change, ...]
    left: tuple[tuple[str, str], ...]


def plan_install(
    source: Source,
    document: Document,
    launcher: Launcher,
    find: Find,
    now: str,
    chosen: Chosen,
    records: Sequence[Undo],
) -> FilePlan:
    """
    Wrap every chosen server of a file that has a command.

    Returns: entries that are wrapped as `launcher` would do it stay as they are; those that another one has
    wrapped are unwrapped first. Raises: NotUnderstood.
    """
    entries = [entry for entry in find_entries(document, source.keys) if chosen(entry)]
    left = [(entry.name, entry.reason) for entry in entries if entry.reason]
    stale = [entry for entry in entries if (old := entry.wrapped) and not old.is_current(launcher)]
    kept = {entry.path: old for entry in stale if (old := entry.wrapped)}
    bare = unwrap_entries(source, document, stale, records)[0] if stale else document
    todo = [
        entry
        for entry in find_entries(bare, source.keys)
        if chosen(entry) and entry.slot and entry.wrapped is None
        if not entry.problem and (entry.path in kept or not entry.reason)
    ]
    edits: list[Edit] = []
    words: dict[Path_, Words] = {}
    for entry in todo:
        old = kept.get(entry.path)
        named = replace(entry, name=old.name or entry.name) if old else entry
        try:
            wrapping = plan_wrapping(bare, named, launcher, find, old.options if old else ())
        except NotUnderstood as exc:
            left.append((entry.name, f"line {exc.line}: {exc.reason}"))
            continue
        edits += wrapping.edits
        words[entry.path] = wrapping.words, entry.words[1:]
    after = parse_text(apply_edits(bare.text, edits), bare.format)
    done = by_path(after, source.keys)
    check_rest(bare, after, source.keys, words)
    origin, original = by_path(bare, source.keys), by_path(document, source.keys)
    changes = []
    for path, (ours, _) in words.items():
        undo = remember(source, bare, origin[path], after, done[path], ours, now)
        action = Action.REFRESH if path in kept else Action.WRAP
        entry = done[path]
        changes.append(Change(action, path, entry.name, document, after, original[path], entry, undo, exact=True))
    plan = FilePlan(source, document.text, after.text, tuple(changes), tuple(left))
    check_way_back(plan, bare)
    return plan


def remember(
    source: Source, bare: Document, entry: Entry, after: Document, done: Entry, words: tuple[str, ...], now: str
) -> Undo:
    """The undo record of an entry that is wrapped with *words*."""
    slot = entry.slot
    if slot is None:
        raise ValueError("no command")
    written = slot.command.value.items[0] if slot.as_list else slot.command.value
    args = slot.args.value if slot.args else None
    args_text: str | None = None
    if not slot.as_list:
        args_text = "" if args is None else bare.text[args.start : args.end]
        args_text = None if args is not None and (args.items or args_text.startswith("[")) else args_text
    return Undo(
        client=source.client,
        file=str(source.file),
        form=bare.format,
        keys=source.keys,
        path=entry.path,
        name=entry.name,
        made_at=now,
        original=entry.text(bare),
        original_sha256=digest(entry.text(bare)),
        wrapped_sha256=digest(done.text(after)),
        command_text=bare.text[written.start : written.end],
        words=words,
        args_text=args_text,
    )


def plan_uninstall(source: Source, document: Document, chosen: Chosen, records: Sequence[Undo]) -> FilePlan:
    """Take km out of every chosen server of a file. Raises: NotUnderstood."""
    entries = [entry for entry in find_entries(document, source.keys) if chosen(entry) and entry.wrapped]
    after, found = unwrap_entries(source, document, entries, records)
    done = by_path(after, source.keys)
    changes = []
    for entry in entries:
        undo, exact = found[entry.path]
        last = done[entry.path]
        exact = exact and undo is not None and digest(last.text(after)) == undo.original_sha256
        changes.append(Change(Action.UNWRAP, entry.path, entry.name, document, after, entry, last, undo, exact))
    return FilePlan(source, document.text, after.text, tuple(changes), ())


def unwrap_entries(
    source: Source, document: Document, entries: Sequence[Entry], records: Sequence[Undo]
) -> tuple[Document, Mapping[Path_, tuple[Undo | None, bool]]]:
    """*document* with *entries* unwrapped, and the record that each was unwrapped with. Raises NotUnderstood."""
    edits: list[Edit] = []
    found: dict[Path_, tuple[Undo | None, bool]] = {}
    words: dict[Path_, Words] = {}
    for entry in entries:
        wrapped = entry.wrapped
        if wrapped is None:
            raise ValueError("not wrapped")
        text = entry.text(document)
        seen = Sighting(source.client, source.file, entry.path, entry.name, text, entry.words[: wrapped.own + 1])
        undo, exact = found[entry.path] = find_undo(records, seen)
        if undo is not None and exact:
            edits.append(Edit(*entry.span(document), undo.original))
        else:
            edits += plan_unwrapping(document, entry, wrapped, undo)
        words[entry.path] = (), entry.words[wrapped.own + 1 :]
    after = parse_text(apply_edits(document.text, edits), document.format)
    check_rest(document, after, source.keys, words)
    return after, found


def by_path(document: Document, keys: Sequence[KeyPath]) -> dict[Path_, Entry]:
    """The entries of a document by where they are."""
    return {entry.path: entry for entry in find_entries(document, keys)}


def check_rest(before: Document, after: Document, keys: Sequence[KeyPath], words: Mapping[Path_, Words]) -> None:
    """Raises NotUnderstood when anything but the words of the named entries means something else now."""
    if not words:
        return
    old, new = by_path(before, keys), by_path(after, keys)
    for path, (head, tail) in words.items():
        entry = new.get(path)
        start = len(head) or 1
        if entry is None or (head and entry.words[:start] != head) or entry.words[start:] != tail:
            raise NotUnderstood(line_of(before.text, old[path].node.start), "cannot be changed without a risk")
    if blank(before, old, words) != blank(after, new, words):
        raise NotUnderstood(1, "cannot be changed without touching the rest of the file")


def blank(document: Document, entries: Mapping[Path_, Entry], paths: Iterable[Path_]) -> object:
    """What a document means, without the command and arguments of the entries at *paths*."""
    value: Any = to_value(document.root) if document.root else None
    for path in paths:
        holder = value
        for step in path:
            holder = holder[step]
        slot = entries[path].slot
        if slot is None:
            continue
        if slot.holder is not entries[path].node:
            holder = holder["command"]
        for key in (slot.command.key, "args"):
            holder.pop(key, None)
    return value


def check_way_back(plan: FilePlan, bare: Document) -> None:
    """
    Raises NotUnderstood when what is wrapped would not come back byte for byte, both from the records' whole texts and
    by taking out our words alone.
    """
    wanted = {change.path for change in plan.changes}
    document = parse_text(plan.after, bare.format)
    edits: list[Edit] = []
    undos = {change.path: change.undo for change in plan.changes}
    for entry in find_entries(document, plan.source.keys):
        if entry.path in wanted and (wrapped := entry.wrapped):
            edits += plan_unwrapping(document, entry, wrapped, undos[entry.path])
    entries = [entry for entry in find_entries(document, plan.source.keys) if entry.path in wanted]
    records = [undo for undo in undos.values() if undo]
    whole, _ = unwrap_entries(plan.source, document, entries, records)
    if apply_edits(document.text, edits) != bare.text or whole.text != bare.text:
        raise NotUnderstood(1, "could not be put back exactly later")

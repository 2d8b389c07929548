"""
What is remembered of an entry when km is put in front of it, and how it is found again. Pure.

An *undo record* holds the entry as it was. Entries move: clients rename them and write their files anew, people
copy them elsewhere. So a record is found by what the wrapped entry says, and only then by where it stood.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kmctl.clients.tree import Format

VERSION = 1
"""Of the record's shape. A reader leaves records of another version alone."""


@dataclass(frozen=True, slots=True)
class Undo:
    """
    One wrapped entry.

    keys: where in the file to look for servers · original: the entry's text · wrapped_sha256: of its text
    afterwards · command_text: the command as it was written · words: ours, then the command as it is started ·
    args_text: how missing arguments were written (`null`, or nothing at all), None when there was a list.
    """

    client: str
    file: str
    form: Format
    keys: tuple[tuple[str, ...], ...]
    path: tuple[str | int, ...]
    name: str
    made_at: str
    original: str
    original_sha256: str
    wrapped_sha256: str
    command_text: str
    words: tuple[str, ...]
    args_text: str | None

    @property
    def target(self) -> str:
        """The server's command as it is started."""
        return self.words[-1]

    def key(self) -> str:
        """Names the record's file: the same wrapping has the same name."""
        parts = [self.file, list(self.path), self.original_sha256, self.wrapped_sha256]
        return digest(json.dumps(parts))[:32]


def digest(text: str) -> str:
    """SHA-256 of *text*, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def render_undo(undo: Undo) -> str:
    """The record as JSON."""
    return json.dumps({"version": VERSION, **asdict(undo)}, indent=1) + "\n"


def parse_undo(text: str) -> Undo | None:
    """A record as render_undo wrote it; None when it is of another version or damaged."""
    try:
        fields: dict[str, Any] = json.loads(text)
        if fields.pop("version") != VERSION:
            return None
        undo = Undo(
            **{
                **fields,
                "form": Format(fields["form"]),
                "keys": tuple(tuple(key) for key in fields["keys"]),
                "path": tuple(fields["path"]),
                "words": tuple(fields["words"]),
            }
        )
        return undo if undo.words and digest(undo.original) == undo.original_sha256 else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class Sighting:
    """A wrapped entry as it is now. words: ours, then the server's command."""

    client: str
    file: Path
    path: tuple[str | int, ...]
    name: str
    text: str
    words: tuple[str, ...]


def find_undo(records: Sequence[Undo], seen: Sighting) -> tuple[Undo | None, bool]:
    """
    The record that belongs to an entry, and whether the entry is still as we wrote it.

    Of several that fit, the one from the same place wins, then the one with the same words, of the same file, the same
    name, the same client, the newest.
    """

    def nearness(undo: Undo) -> tuple[bool, bool, bool, bool, bool, str]:
        same_file = undo.file == str(seen.file)
        same_place = same_file and undo.path == seen.path
        names = undo.name == seen.name, undo.client == seen.client
        return same_place, undo.words == seen.words, same_file, *names, undo.made_at

    same = digest(seen.text)
    exact = [undo for undo in records if undo.wrapped_sha256 == same]
    if exact:
        return max(exact, key=nearness), True
    near = [undo for undo in records if undo.target == seen.words[-1] and any(nearness(undo)[:-1])]
    return max(near, key=nearness, default=None), False

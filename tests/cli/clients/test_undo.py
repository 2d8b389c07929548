"""Which of several records belongs to an entry: the order that find_undo promises."""

from dataclasses import replace
from pathlib import Path

import pytest

from kmctl.clients.tree import Format
from kmctl.clients.undo import Sighting, Undo, digest, find_undo

SEEN = Sighting(
    client="cursor",
    file=Path("/home/me/.cursor/mcp.json"),
    path=("mcpServers", "git"),
    name="git",
    text='{"command": "km", "args": ["--", "git-server"]}',
    words=("km", "--", "git-server"),
)
STRANGE = Undo(
    client="zed",
    file="/elsewhere.json",
    form=Format.JSON,
    keys=(("mcpServers",),),
    path=("mcpServers", "other"),
    name="other",
    made_at="2026-11-24T10:00:00Z",
    original="{}",
    original_sha256=digest("{}"),
    wrapped_sha256=digest("wrapped otherwise"),
    command_text='"git-server"',
    words=("old-km", "--", "git-server"),
    args_text=None,
)
NEARER = [
    replace(STRANGE, client=SEEN.client),
    replace(STRANGE, name=SEEN.name),
    replace(STRANGE, file=str(SEEN.file)),
    replace(STRANGE, words=SEEN.words),
    replace(STRANGE, file=str(SEEN.file), path=SEEN.path),
]
"""Each with one thing in common with the entry, the nearest last."""


@pytest.mark.parametrize("nearest", range(len(NEARER)))
def test_the_nearest_record_wins_whatever_else_is_known(nearest: int) -> None:
    older = replace(NEARER[nearest], made_at="2026-11-24T09:00:00Z")
    assert find_undo([older, *NEARER[:nearest]], SEEN) == (older, False)
    assert find_undo([*NEARER[:nearest], older], SEEN) == (older, False)


def test_of_equal_records_the_newest_wins() -> None:
    newer = replace(NEARER[0], made_at="2026-11-24T11:00:00Z")
    assert find_undo([newer, NEARER[0]], SEEN) == (newer, False)


def test_an_entry_as_we_wrote_it_is_found_by_its_text_wherever_it_is() -> None:
    same = replace(STRANGE, wrapped_sha256=digest(SEEN.text))
    assert find_undo([same, *NEARER], SEEN) == (same, True)


def test_a_record_with_nothing_in_common_or_of_another_command_belongs_to_nobody() -> None:
    assert find_undo([STRANGE], SEEN) == (None, False)
    assert find_undo([replace(NEARER[4], words=("km", "--", "another"))], SEEN) == (None, False)

"""Official clients against public servers: the results are those of the bare server, the events what crossed."""

import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import pytest

from kmd.mcp.names import Stream
from kmd.outbox.outbox import Outbox
from tests.support.processes import quick_km, read_status, running_kmd, wait_for
from tests.transparency.real import node_client, python_client
from tests.transparency.real.played import Played, Spawned
from tests.transparency.real.servers import NAMES, Part, make_parts, mask

Client = Callable[[list[Part]], list[Played]]
CLIENTS: dict[str, Client] = {
    "python": python_client.play_all,
    "typescript_v1": partial(node_client.play_all, "v1"),
    "typescript_v2": partial(node_client.play_all, "v2"),
}
pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),  # older servers' methods
]

Crossed = tuple[list[bytes], list[bytes]]
"""The lines of one process: to the server, to the client."""


@dataclass(frozen=True, slots=True)
class Sight:
    """Everything that one client saw of every server, bare and wrapped, and what kmd then had."""

    bare: dict[str, Played]
    wrapped: dict[str, Played]
    captured: dict[str, list[Crossed]]


@pytest.fixture(scope="module", params=CLIENTS)
def sight(request: pytest.FixtureRequest, npm_packages: None, tmp_path_factory: pytest.TempPathFactory) -> Sight:
    """Bare and wrapped sessions with all servers, all at the same time."""
    folder = tmp_path_factory.mktemp("real")
    home = folder / "home"
    bare, wrapped = make_parts(folder / "bare"), make_parts(folder / "wrapped")
    through_km = [replace(part, words=quick_km(home, part.name, *part.words)) for part in wrapped]
    with running_kmd(home):
        played = CLIENTS[request.param]([*bare, *through_km])
        lines = sum(count_lines(each) for each in played[len(bare) :])
        wait_for(lambda: read_status(home)["outbox"]["events"] >= lines, f"{lines} events")
    return Sight(
        by_name(played[: len(bare)], folder / "bare"), by_name(played[len(bare) :], folder / "wrapped"), captured(home)
    )


def by_name(played: list[Played], folder: Path) -> dict[str, Played]:
    """*played* under the servers' names, without what differs from run to run."""
    return {
        name: replace(each, results=mask(each.results, folder / name)) for name, each in zip(NAMES, played, strict=True)
    }


def count_lines(played: Played) -> int:
    return sum(each.sent.count(b"\n") + each.received.count(b"\n") for each in played.spawned)


def crossed_of(spawned: Spawned) -> Crossed:
    return spawned.sent.split(b"\n")[:-1], spawned.received.split(b"\n")[:-1]


def captured(home: Path) -> dict[str, list[Crossed]]:
    """The lines of each session in kmd's outbox, by the server's name."""
    with Outbox(home / "outbox.db") as outbox:
        rows = outbox.read_events(0, 1_000_000)
    found: dict[str, list[Crossed]] = {name: [] for name in NAMES}
    of_session = sorted(rows, key=lambda row: (row.session.session, row.message.offset))
    for _, grouped in groupby(of_session, lambda row: row.session.session):
        session = list(grouped)
        to_server, to_client = (
            [row.message.payload or b"" for row in session if row.message.stream is stream and row.message.index == 0]
            for stream in (Stream.TO_SERVER, Stream.TO_CLIENT)
        )
        found[session[0].session.name].append((to_server, to_client))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_client_gets_the_same(name: str, sight: Sight) -> None:
    assert sight.wrapped[name].results == sight.bare[name].results


@pytest.mark.parametrize("name", NAMES)
def test_the_server_ends_the_same(name: str, sight: Sight) -> None:
    """Whether it needs SIGTERM depends on how busy the machine is just then; test_stops.py looks at that."""
    bare, wrapped = (
        ["in time" if each.status in (0, -signal.SIGTERM) else each.status for each in side[name].spawned]
        for side in (sight.bare, sight.wrapped)
    )
    assert wrapped == bare


@pytest.mark.parametrize("name", NAMES)
def test_the_events_are_the_lines_that_crossed(name: str, sight: Sight) -> None:
    assert sorted(sight.captured[name]) == sorted(map(crossed_of, sight.wrapped[name].spawned))
    assert all(each.sent.endswith(b"\n") and each.received.endswith(b"\n") for each in sight.wrapped[name].spawned)


def test_the_sessions_were_real(sight: Sight) -> None:
    """Every server has answered most steps, so the comparison is not one of error messages."""
    for played in sight.bare.values():
        assert isinstance(played.results, list)
        steps = played.results[3:]
        assert len([step for step in steps if "result" in step]) > len(steps) / 2

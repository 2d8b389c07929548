"""The official clients' own ways of ending a server take as long through km as bare, and leave nobody."""

import statistics
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import wait_for
from tests.transparency.real.stops import Stop, open_stopper
from tests.transparency.stage import Stage, Wrap, bare, km

CLIENTS = ("python", "typescript_v1", "typescript_v2")
GRACEFUL_S = 0.05
"""How far the medians may be apart when the server ends by itself."""
ROUNDS_MIN, ROUNDS_MAX = 5, 40
"""Of pairs. A slow relay is slow in every pair; a machine that is busy just now is not."""
PROBES = {"stubborn": (4.0, 4.0), "deaf": (2.0, 2.0), "leave_deaf_child": (0.0, 2.0)}
"""What each needs in seconds from the Python and the TypeScript clients: their timers, 2 s a step."""
ESCALATION_S = 1.5
"""How far from that it may be on a busy machine; less than a step, so that none is missed or added."""


def open_stage(folder: Path, wrap: Wrap) -> Stage:
    place = folder / wrap.__name__
    place.mkdir()
    return Stage(place, wrap)


def compare_medians(stop: Stop, plain: Stage, wrapped: Stage) -> float:
    """How much longer *wrapped* takes, the two taking turns until the medians agree or it is plain that they don't."""
    pairs: list[list[float]] = []
    while True:
        (plain_s,), (wrapped_s,) = stop([(plain, "obey")]), stop([(wrapped, "obey")])
        pairs.append([plain_s, wrapped_s])
        slower_s = statistics.median(pair[1] for pair in pairs) - statistics.median(pair[0] for pair in pairs)
        if len(pairs) >= ROUNDS_MAX or (len(pairs) >= ROUNDS_MIN and abs(slower_s) <= GRACEFUL_S):
            return slower_s


@pytest.mark.parametrize("client", CLIENTS)
def test_a_graceful_stop_takes_as_long(client: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if client != "python":
        request.getfixturevalue("npm_packages")
    with (
        open_stage(tmp_path, bare) as plain,
        open_stage(tmp_path, km) as wrapped,
        open_stopper(client) as stop,
    ):
        assert abs(compare_medians(stop, plain, wrapped)) <= GRACEFUL_S
        assert wrapped.left() == []


@dataclass(frozen=True, slots=True)
class Escalation:
    """Seconds by probe, and who was still there afterwards by side."""

    plain_s: dict[str, float]
    wrapped_s: dict[str, float]
    left: tuple[list[str], list[str]]


def left_but_one(stage: Stage) -> list[str]:
    """Who is still there once there is at most one, or after a while."""
    with suppress(TimeoutError):
        wait_for(lambda: len(stage.running()) <= 1, "the others to leave")
    return stage.left(0)


def escalate(client: str, folder: Path) -> Escalation:
    """All probes at once, bare and through km."""
    with open_stage(folder, bare) as plain, open_stage(folder, km) as wrapped:
        with open_stopper(client) as stop:
            taken = stop([(stage, probe) for stage in (plain, wrapped) for probe in PROBES])
        half = len(PROBES)
        return Escalation(
            dict(zip(PROBES, taken[:half], strict=True)),
            dict(zip(PROBES, taken[half:], strict=True)),
            (left_but_one(plain), left_but_one(wrapped)),
        )


@pytest.fixture(scope="module")
def escalations(npm_packages: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Escalation]:
    """Every client at once: they mostly wait."""
    folders = [tmp_path_factory.mktemp(client) for client in CLIENTS]
    with ThreadPoolExecutor(len(CLIENTS)) as threads:
        return dict(zip(CLIENTS, threads.map(escalate, CLIENTS, folders), strict=True))


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("client", CLIENTS)
def test_an_escalation_takes_as_long(client: str, probe: str, escalations: dict[str, Escalation]) -> None:
    """stdin closed, 2 s, SIGTERM, 2 s, SIGKILL: at the client's own pace, with and without km."""
    expected_s = PROBES[probe][client != "python"]
    seen = escalations[client]
    assert expected_s - ESCALATION_S < seen.plain_s[probe] < expected_s + ESCALATION_S
    assert expected_s - ESCALATION_S < seen.wrapped_s[probe] < expected_s + ESCALATION_S


@pytest.mark.parametrize("client", CLIENTS)
def test_an_escalation_ends_server_and_relay(client: str, escalations: dict[str, Escalation]) -> None:
    """Only the child that no client knows of stays, bare as wrapped; of ours nobody."""
    plain, wrapped = escalations[client].left
    assert wrapped == plain
    assert len(plain) == 1

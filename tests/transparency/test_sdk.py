"""The official Python client's own ways of ending a server, bare and through km."""

import asyncio
import statistics
import time
from contextlib import suppress
from pathlib import Path

from mcp import StdioServerParameters, stdio_client

from tests.transparency.stage import Stage, Wrap, bare, km, probe_words

ROUNDS = 7
GRACEFUL_S = 0.05
"""How far the medians may be apart when the server ends by itself."""
ESCALATION_S = 0.5
"""The same for an escalation of 4 s, which the client's own timers govern."""


async def stop_s(stage: Stage, probe: str) -> float:
    """Seconds that the client's transport needs to close, from the closing on."""
    words = stage.wrap(stage.home, probe_words(probe))
    parameters = StdioServerParameters(command=words[0], args=words[1:], env={"MARK": stage.mark})
    async with asyncio.timeout(30):
        async with stdio_client(parameters) as (reader, _):
            with suppress(Exception):
                await reader.receive()  # 'ready' is no message, but it has come
            start = time.monotonic()
        return time.monotonic() - start


async def stop_in_turns(stages: list[Stage], probe: str, rounds: int) -> list[float]:
    """The medians, the stages taking turns."""
    taken: list[list[float]] = [[] for _ in stages]
    for _ in range(rounds):
        for stage, times in zip(stages, taken, strict=True):
            times.append(await stop_s(stage, probe))
    return [statistics.median(times) for times in taken]


def open_stage(folder: Path, wrap: Wrap) -> Stage:
    place = folder / wrap.__name__
    place.mkdir()
    return Stage(place, wrap)


def test_a_graceful_stop_takes_as_long(tmp_path: Path) -> None:
    with open_stage(tmp_path, bare) as plain, open_stage(tmp_path, km) as wrapped:
        plain_s, wrapped_s = asyncio.run(stop_in_turns([plain, wrapped], "obey", ROUNDS))
        assert abs(wrapped_s - plain_s) <= GRACEFUL_S
        assert wrapped.left() == []


def test_an_escalation_ends_server_and_relay(tmp_path: Path) -> None:
    """stdin closed, 2 s, SIGTERM to the group, 2 s, SIGKILL to the group: at the client's own pace."""

    async def both(plain: Stage, wrapped: Stage) -> list[float]:
        return list(await asyncio.gather(stop_s(plain, "stubborn"), stop_s(wrapped, "stubborn")))

    with open_stage(tmp_path, bare) as plain, open_stage(tmp_path, km) as wrapped:
        plain_s, wrapped_s = asyncio.run(both(plain, wrapped))
        assert plain_s > 3.5
        assert abs(wrapped_s - plain_s) <= ESCALATION_S
        assert wrapped.left() == []


def test_sigterm_is_enough_where_it_is_bare(tmp_path: Path) -> None:
    """A server that does not read: 2 s, then SIGTERM ends it."""

    async def both(plain: Stage, wrapped: Stage) -> list[float]:
        return list(await asyncio.gather(stop_s(plain, "deaf"), stop_s(wrapped, "deaf")))

    with open_stage(tmp_path, bare) as plain, open_stage(tmp_path, km) as wrapped:
        plain_s, wrapped_s = asyncio.run(both(plain, wrapped))
        assert 1.5 < plain_s < 3.5
        assert abs(wrapped_s - plain_s) <= ESCALATION_S
        assert wrapped.left() == []

"""
How long an official client takes to stop a server, from its closing on.

A *stopper* is a client that waits to be told: it starts some servers at once, waits until each has said something,
closes them all, and tells the seconds that each needed.
"""

import asyncio
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress

from mcp import StdioServerParameters, stdio_client

from tests.support.node import FOLDER, node
from tests.support.sessions import quiet
from tests.transparency.stage import Stage, probe_words

STOP_MAX_S = 60.0

Target = tuple[Stage, str]
"""A probe server on a stage."""
Stop = Callable[[Sequence[Target]], list[float]]


def words_of(target: Target) -> list[str]:
    stage, probe = target
    return stage.wrap(stage.home, probe_words(probe))


@contextmanager
def python_stopper() -> Iterator[Stop]:
    """The official Python client."""

    def stop(targets: Sequence[Target]) -> list[float]:
        return asyncio.run(stop_all(targets))

    yield stop


async def stop_all(targets: Sequence[Target]) -> list[float]:
    return await asyncio.gather(*map(stop_s, targets))


async def stop_s(target: Target) -> float:
    words = words_of(target)
    parameters = StdioServerParameters(command=words[0], args=words[1:], env={"MARK": target[0].mark})
    async with asyncio.timeout(STOP_MAX_S):
        with quiet() as errlog:
            async with stdio_client(parameters, errlog=errlog) as (reader, _):
                with suppress(Exception):
                    await reader.receive()  # the probe's first word is no message, but it has come
                start = time.monotonic()
            return time.monotonic() - start


@contextmanager
def node_stopper(sdk: str) -> Iterator[Stop]:
    """One of the official TypeScript clients (`v1`, `v2`), in a Node.js of its own."""
    words = [node(), str(FOLDER / "stop.mjs")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        told, answers = process.stdin, process.stdout

        def tell(line: object) -> None:
            told.write(json.dumps(line) + "\n")
            told.flush()

        def stop(targets: Sequence[Target]) -> list[float]:
            tell([{"words": words_of(target), "env": {"MARK": target[0].mark}} for target in targets])
            return [taken_ms / 1000 for taken_ms in json.loads(answers.readline())]

        tell({"sdk": sdk})
        try:
            yield stop
        finally:
            told.close()
            process.wait(STOP_MAX_S)


def open_stopper(client: str) -> AbstractContextManager[Stop]:
    """`python`, `typescript_v1` or `typescript_v2`."""
    return python_stopper() if client == "python" else node_stopper(client.removeprefix("typescript_"))

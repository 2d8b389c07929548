"""
Scripted MCP sessions: the official client against real third-party servers, with every message counted.

The counts are the client's own: what it wrote to and read from its transport, on its side of `km`.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from mcp import Client, MCPError, StdioServerParameters, stdio_client
from mcp.client._transport import ReadStream, TransportStreams, WriteStream
from mcp.shared.message import SessionMessage

from tests.support.processes import command, quick_km


@dataclass(slots=True)
class Seen:
    """Messages that crossed, as the client saw them, per wrapped server's name."""

    sent: dict[str, int] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.sent.values()) + sum(self.received.values())


class CountingReader:
    """The client's incoming messages."""

    def __init__(self, inner: ReadStream[SessionMessage | Exception], count: Callable[[], None]) -> None:
        self._inner = inner
        self._count = count

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        item = await self._inner.__anext__()
        self._count()
        return item

    async def receive(self) -> SessionMessage | Exception:
        item = await self._inner.receive()
        self._count()
        return item

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._inner.__aexit__(kind, exc, trace)


class CountingWriter:
    """The client's outgoing messages."""

    def __init__(self, inner: WriteStream[SessionMessage], count: Callable[[], None]) -> None:
        self._inner = inner
        self._count = count

    async def send(self, item: SessionMessage, /) -> None:
        await self._inner.send(item)
        self._count()

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._inner.__aexit__(kind, exc, trace)


def quiet() -> TextIO:
    """Where the servers' own chatter on stderr goes."""
    return Path(os.devnull).open("w")


@asynccontextmanager
async def counted_stdio(words: list[str], name: str, seen: Seen) -> AsyncIterator[TransportStreams]:
    """The official stdio transport for *words*, its messages counted under *name*."""

    def count_into(counts: dict[str, int]) -> Callable[[], None]:
        def count() -> None:
            counts[name] = counts.get(name, 0) + 1

        return count

    parameters = StdioServerParameters(command=words[0], args=words[1:])
    with quiet() as errlog:
        async with stdio_client(parameters, errlog=errlog) as (reader, writer):
            yield CountingReader(reader, count_into(seen.received)), CountingWriter(writer, count_into(seen.sent))


Script = Callable[[Client], Awaitable[None]]


async def run_session(words: list[str], name: str, seen: Seen, script: Script) -> None:
    """Start the server that *words* name, run *script* against it, close it."""
    async with asyncio.timeout(60):
        async with Client(counted_stdio(words, name, seen)) as client:
            await script(client)


async def ask_the_time(client: Client) -> None:
    """mcp-server-time: tools, two good calls, one bad time zone (a tool error), one unknown tool."""
    await client.list_tools()
    await client.call_tool("get_current_time", {"timezone": "Europe/Berlin"})
    arguments: dict[str, Any] = {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}
    await client.call_tool("convert_time", arguments)
    await try_call(client, "get_current_time", {"timezone": "Middle/Earth"})
    await try_call(client, "tell_a_joke", {})


def read_history(repository: Path) -> Script:
    """mcp-server-git: status, log and diff of *repository*, and one path that is none."""

    async def script(client: Client) -> None:
        await client.list_tools()
        await client.call_tool("git_status", {"repo_path": str(repository)})
        await client.call_tool("git_log", {"repo_path": str(repository), "max_count": 5})
        await client.call_tool("git_diff_unstaged", {"repo_path": str(repository)})
        await try_call(client, "git_status", {"repo_path": str(repository / "missing")})

    return script


async def try_call(client: Client, tool: str, arguments: dict[str, Any]) -> None:
    """A call that may fail: as a tool error or a protocol error, both are traffic."""
    with suppress(MCPError):
        await client.call_tool(tool, arguments)


async def drive_both(home: Path, repository: Path, seen: Seen) -> None:
    """One session with each server, through km, at the same time."""
    time_server = quick_km(home, "time", command("mcp-server-time"))
    git_server = quick_km(home, "git", command("mcp-server-git"), "--repository", str(repository))
    await asyncio.gather(
        run_session(time_server, "time", seen, ask_the_time),
        run_session(git_server, "git", seen, read_history(repository)),
    )

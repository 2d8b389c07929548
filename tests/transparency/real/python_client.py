"""Plays parts with the official Python client, recording what crosses where the client hands it to its pipes."""

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import Process
from mcp import Client, MCPError, StdioServerParameters, stdio_client
from mcp.client import ClientRequestContext
from mcp_types import (
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequestParams,
    ElicitResult,
    ListRootsResult,
    Root,
    TextContent,
)
from pydantic import BaseModel, FileUrl

from tests.support.sessions import quiet
from tests.transparency.real.played import Played, Spawned
from tests.transparency.real.servers import Part, Step

PLAY_MAX_S = 100.0
open_process = anyio.open_process


@dataclass(slots=True)
class Recording:
    """One process as it runs."""

    process: Process
    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)


RECORDINGS: ContextVar[list[Recording]] = ContextVar("RECORDINGS")
"""Where the processes of the part that is being played are recorded."""


async def open_recorded(*args: Any, **options: Any) -> Process:  # noqa: ANN401
    """anyio.open_process, with both pipes of the process recorded."""
    process = await open_process(*args, **options)
    recording = Recording(process)
    RECORDINGS.get().append(recording)
    assert process.stdin is not None
    assert process.stdout is not None
    send, receive = process.stdin.send, process.stdout.receive

    async def send_recorded(item: bytes) -> None:
        recording.sent.extend(item)
        await send(item)

    async def receive_recorded(max_bytes: int = 65536) -> bytes:
        chunk = await receive(max_bytes)
        recording.received.extend(chunk)
        return chunk

    setattr(process.stdin, "send", send_recorded)  # noqa: B010 - a method may not be assigned to
    setattr(process.stdout, "receive", receive_recorded)  # noqa: B010
    return process


def play_all(parts: list[Part]) -> list[Played]:
    """Play all *parts* at once; what was seen of each."""

    async def play_each() -> list[Played]:
        anyio.open_process = open_recorded
        try:
            async with asyncio.timeout(PLAY_MAX_S):
                return await asyncio.gather(*(play(part) for part in parts))
        finally:
            anyio.open_process = open_process

    return asyncio.run(play_each())


async def play(part: Part) -> Played:
    recordings: list[Recording] = []
    RECORDINGS.set(recordings)
    parameters = StdioServerParameters(command=part.words[0], args=part.words[1:], env=part.env, cwd=part.cwd)
    with quiet() as errlog:
        client = Client(
            stdio_client(parameters, errlog=errlog),
            mode=part.mode,
            sampling_callback=answer_sampling,
            elicitation_callback=answer_elicitation,
            list_roots_callback=answer_roots,
        )
        async with client:
            about = (client.server_info, client.server_capabilities, client.instructions)
            results = [dump(each) for each in about]
            results += [await take(client, step) for step in part.steps]
    ends = [Spawned(bytes(each.sent), bytes(each.received), each.process.returncode) for each in recordings]
    return Played(results, ends)


async def take(client: Client, step: Step) -> object:
    """The result of one step, or its error."""
    try:
        return {"result": dump(await call(client, step))}
    except MCPError as exc:
        return {"error": exc.error.message, "code": exc.error.code}


async def ignore_progress(progress: float, total: float | None, message: str | None) -> None:
    """Asking for progress makes the server send it."""


async def call(client: Client, step: Step) -> BaseModel:
    params = step.params
    match step.method:
        case "tools/call":
            return await client.call_tool(params["name"], params["arguments"], progress_callback=ignore_progress)
        case "tools/list":
            return await client.list_tools()
        case "resources/list":
            return await client.list_resources()
        case "resources/templates/list":
            return await client.list_resource_templates()
        case "resources/read":
            return await client.read_resource(params["uri"])
        case "prompts/list":
            return await client.list_prompts()
        case "prompts/get":
            return await client.get_prompt(params["name"], params.get("arguments"))
        case "completion/complete":
            return await client.complete(params["ref"], params["argument"])
        case "logging/setLevel":
            return await client.set_logging_level(params["level"])
        case "ping":
            return await client.send_ping()
        case other:
            raise ValueError(f"no such step: {other}")


def dump(value: object) -> object:
    return value.model_dump(mode="json", by_alias=True) if isinstance(value, BaseModel) else value


async def answer_sampling(context: ClientRequestContext, params: CreateMessageRequestParams) -> CreateMessageResult:
    content = TextContent(type="text", text="sampled: ä€")
    return CreateMessageResult(role="assistant", content=content, model="none", stop_reason="endTurn")


async def answer_elicitation(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
    return ElicitResult(action="decline")


async def answer_roots(context: ClientRequestContext) -> ListRootsResult:
    return ListRootsResult(roots=[Root(uri=FileUrl("file:///nowhere"), name="nowhere")])

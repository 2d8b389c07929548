"""
Public MCP servers and what a client does with each: a *part* is a server, how it is started, and its *steps*.

Steps are data, so the same are played by each official client. A part has a folder of its own for each run; what
must differ between runs (that folder, the hour) is masked before results are compared.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.node import FOLDER as NODE_FOLDER
from tests.support.node import node, server_script
from tests.support.processes import command

COMMITTED = "2026-01-02T03:04:05+00:00"
LARGE = "ä€" * 60_000
"""300 kB as UTF-8: many chunks and pipes full."""
TIMES = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d:\d\d)?|[A-Z][a-z]{2} [A-Z][a-z]{2} \d\d \d{4} [\d:]{8} GMT[^\"\\]*")
"""Dates as the servers write them."""


@dataclass(frozen=True, slots=True)
class Step:
    """One request that the client makes."""

    method: str
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """One server's session. `mode` is the client's era: `legacy` starts with initialize, `auto` asks first."""

    name: str
    words: list[str]
    steps: list[Step]
    env: dict[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    mode: str = "auto"


def tool(name: str, **arguments: object) -> Step:
    return Step("tools/call", {"name": name, "arguments": arguments})


def mask(results: object, folder: Path) -> object:
    """*results* without what differs from run to run: the folder, and dates."""
    text = json.dumps(results, sort_keys=True, ensure_ascii=False)
    masked: object = json.loads(TIMES.sub("DATE", text.replace(str(folder), "FOLDER")))
    return masked


def everything(folder: Path) -> Part:
    """Requests both ways, progress, errors of both kinds. It does not leave when its input ends."""
    link = {"type": "ref/prompt", "name": "completable-prompt"}
    steps = [
        Step("ping"),
        Step("tools/list"),
        Step("resources/list"),
        Step("resources/templates/list"),
        Step("prompts/list"),
        Step("prompts/get", {"name": "args-prompt", "arguments": {"city": "Köln"}}),
        Step("prompts/get", {"name": "no-such-prompt"}),
        Step("completion/complete", {"ref": link, "argument": {"name": "department", "value": "E"}}),
        Step("resources/read", {"uri": "demo://resource/static/document/architecture.md"}),
        Step("resources/read", {"uri": "demo://no/such/thing"}),
        Step("logging/setLevel", {"level": "error"}),
        tool("echo", message="ä€\u2028\r\n\\"),
        tool("echo", message=LARGE),
        tool("echo", wrong=1),
        tool("get-sum", a=2, b=40),
        tool("get-tiny-image"),
        tool("get-annotated-message", messageType="error", includeImage=True),
        tool("get-structured-content", location="Chicago"),
        tool("get-env"),
        tool("trigger-long-running-operation", duration=0.2, steps=4),
        tool("trigger-sampling-request", prompt="say something", maxTokens=9),
        tool("trigger-elicitation-request"),
        tool("get-roots-list"),
        tool("no-such-tool"),
    ]
    return Part("everything", [node(), str(server_script("server-everything"))], steps, mode="legacy")


def filesystem(folder: Path) -> Part:
    """Long lines in both directions."""
    path = str(folder / "large.txt")
    steps = [
        Step("tools/list"),
        tool("list_allowed_directories"),
        tool("write_file", path=path, content=LARGE),
        *[tool("read_text_file", path=path)] * 3,
        tool("read_multiple_files", paths=[path] * 5),
        tool("edit_file", path=str(folder / "absent"), edits=[]),
        tool("list_directory", path=str(folder)),
        tool("read_text_file", path="/etc/hostname"),
        Step("prompts/list"),
    ]
    return Part("filesystem", [node(), str(server_script("server-filesystem")), str(folder)], steps)


def memory(folder: Path) -> Part:
    return Part("memory", [node(), str(server_script("server-memory"))], MEMORY_STEPS, memory_env(folder))


def memory_by_npx(folder: Path) -> Part:
    """The same behind a launcher that stays: npx, a shell and the server hold the pipes together."""
    words = ["npx", "--no-install", "mcp-server-memory"]
    return Part("memory_by_npx", words, MEMORY_STEPS[:3], memory_env(folder), NODE_FOLDER)


def memory_env(folder: Path) -> dict[str, str]:
    return {"MEMORY_FILE_PATH": str(folder / "memory.jsonl")}


MEMORY_STEPS = [
    Step("tools/list"),
    tool("create_entities", entities=[{"name": "Zoë", "entityType": "person", "observations": ["likes \U0001f9ea"]}]),
    tool("read_graph"),
    tool("add_observations", observations=[{"entityName": "Zoë", "contents": ["a", "b"]}]),
    tool("add_observations", observations=[{"entityName": "nobody", "contents": ["a"]}]),
    tool("search_nodes", query="likes"),
    tool("delete_entities", entityNames=["Zoë"]),
    tool("open_nodes", names=["Zoë"]),
]


def time(folder: Path) -> Part:
    steps = [
        Step("tools/list"),
        tool("get_current_time", timezone="Pacific/Honolulu"),
        tool("convert_time", source_timezone="UTC", time="12:00", target_timezone="Asia/Tokyo"),
        tool("get_current_time", timezone="Middle/Earth"),
        tool("tell_a_joke"),
        Step("prompts/list"),
    ]
    return Part("time", [command("mcp-server-time"), "--local-timezone", "UTC"], steps)


def git(folder: Path) -> Part:
    """Reads and writes a repository; with the dates fixed each run makes the same commits."""
    dates = {"GIT_AUTHOR_DATE": COMMITTED, "GIT_COMMITTER_DATE": COMMITTED}
    environ = {**os.environ, **dates}
    (folder / "note.txt").write_text("first line\n")
    identity = ["-c", "user.name=Demo", "-c", "user.email=demo@example.com"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "A first note"]):
        subprocess.run(["git", *words], cwd=folder, check=True, timeout=30, env=environ)
    (folder / "note.txt").write_text("first line\nsecond line\n" * 2000)
    path = str(folder)
    steps = [
        Step("tools/list"),
        tool("git_status", repo_path=path),
        tool("git_diff_unstaged", repo_path=path),
        tool("git_add", repo_path=path, files=["note.txt"]),
        tool("git_diff_staged", repo_path=path),
        tool("git_log", repo_path=path, max_count=5),
        tool("git_show", repo_path=path, revision="HEAD"),
        tool("git_create_branch", repo_path=path, branch_name="side"),
        tool("git_status", repo_path=str(folder / "missing")),
    ]
    return Part("git", [command("mcp-server-git"), "--repository", path], steps, dates)


MAKERS: tuple[Callable[[Path], Part], ...] = (everything, filesystem, memory, memory_by_npx, time, git)
NAMES = tuple(make.__name__ for make in MAKERS)


def make_parts(folder: Path) -> list[Part]:
    """Every part, in the order of NAMES, with what it needs prepared under *folder*."""
    for name in NAMES:
        (folder / name).mkdir(parents=True)
    return [make(folder / make.__name__) for make in MAKERS]

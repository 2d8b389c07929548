"""
How a client reads its file: with a parser of its own, none of ours.

JSON with comments is cleaned here by a small state machine and then given to the standard library.
"""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML


def strip_comments(text: str) -> str:
    """JSON with comments and trailing commas as strict JSON."""
    out: list[str] = []
    place = 0
    while place < len(text):
        if text[place] == '"':
            end = place + 1
            while text[end] != '"':
                end += 2 if text[end] == "\\" else 1
            out.append(text[place : end + 1])
            place = end + 1
        elif text.startswith("//", place):
            place = text.find("\n", place) % (len(text) + 1)
        elif text.startswith("/*", place):
            place = text.index("*/", place) + 2
        else:
            if text[place] in "]}":
                while out and (out[-1].isspace() or out[-1] == ","):
                    if out.pop() == ",":
                        break
            out.append(text[place])
            place += 1
    return "".join(out)


def read_config(path: Path, raw: bytes | None = None) -> Any:  # noqa: ANN401 - whatever it says
    """What the file means to its client."""
    text = (path.read_bytes() if raw is None else raw).decode("utf-8-sig")
    match path.suffix:
        case ".toml":
            return tomllib.loads(text)
        case ".yaml" | ".yml":
            return YAML(typ="safe", pure=True).load(text)
        case _:
            return json.loads(strip_comments(text))


SERVER_KEYS = ("mcpServers", "servers", "context_servers", "extensions", "mcp", "mcp_servers", "amp.mcpServers")


def find_commands(config: Any) -> Iterator[tuple[str, list[str], dict[str, Any]]]:  # noqa: ANN401
    """Each server that has a command: its name, the words that its client starts, and the rest of the entry."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if key == "projects":
            for project in value.values():
                yield from find_commands(project)
        elif key in SERVER_KEYS:
            if key == "mcp" and "servers" in value:
                value = value["servers"]  # noqa: PLW2901
            rows = value.items() if isinstance(value, dict) else [(row["name"], row) for row in value]
            for name, entry in rows:
                if words := words_of(entry):
                    rest = {field: entry[field] for field in entry if field not in ("command", "cmd", "args")}
                    yield name, words, rest


def words_of(entry: dict[str, Any]) -> list[str]:
    """Command and arguments as the client that has this shape starts them."""
    command = entry.get("command", entry.get("cmd"))
    if isinstance(command, list):
        return command
    if isinstance(command, dict):
        return [command["path"], *(command.get("args") or [])]
    return [command, *(entry.get("args") or [])] if command else []

"""
Changing one destination in a config file that a person may have edited. Pure: text in, text out.

Only the lines of that destination's name, url, key, key_from and ca_file are touched. The result is parsed again and
must say exactly what was wanted: a file that is laid out in a way not foreseen here is refused, never damaged.
"""

import re
from pathlib import Path
from typing import Any

import tomli_w

from kmd.config import DEFAULT_NAME, DESTINATION_KEYS, LOCAL_ONLY, Destination, parse_config, parse_toml
from kmd.errors import ConfigError

HEADER = re.compile(r"""[ \t]*\[\[[ \t]*(?:destinations|"destinations"|'destinations')[ \t]*\]\][ \t]*(?:#.*)?""")
ANY_HEADER = re.compile(r"[ \t]*\[")
KEY = re.compile(r"""[ \t]*["']?(name|url|key|key_from|ca_file)["']?[ \t]*=""")

Row = dict[str, str]


def put_destination(text: str, destination: Destination, path: Path | None) -> str:
    """
    *text* with *destination* added, or put in the place of the one of the same name.

    Returns: *text* itself when it says that already. Comments and everything else stay as they are.
    Raises: ConfigError when *text* is not a valid configuration, or is laid out in a way that is not understood.
    """
    parse_config(text, {}, path)
    before = parse_toml(text, path)
    rows: list[Row] = before.get("destinations", [])
    names = [row.get("name", DEFAULT_NAME) for row in rows]
    wanted = render_row(destination)
    if destination.name not in names:
        edited = append_block(text, wanted)
        rows = [*rows, wanted]
    else:
        number = names.index(destination.name)
        if {"name": DEFAULT_NAME, **rows[number]} == wanted:
            return text
        edited = replace_block(text, number, wanted)
        rows = [*rows[:number], wanted, *rows[number + 1 :]]
    if not says(edited, {**before, "destinations": rows}):
        hint = f"write the destination {destination.name!r} into the file by hand"
        raise ConfigError(path, "destinations", "cannot be changed without touching the rest", hint=hint)
    return edited


def render_row(destination: Destination) -> Row:
    """A destination as its table in the file; an empty key is left out."""
    row = {key: getattr(destination, key) for key in DESTINATION_KEYS}
    return {key: text for key, text in row.items() if text}


def says(text: str, wanted: dict[str, Any]) -> bool:
    """Whether *text* is TOML that means exactly *wanted*, but for a name that is left out."""
    try:
        tables = parse_toml(text, None)
    except ConfigError:
        return False
    rows = [{"name": DEFAULT_NAME, **row} for row in tables.get("destinations", [])]
    other = [{"name": DEFAULT_NAME, **row} for row in wanted["destinations"]]
    return {**tables, "destinations": rows} == {**wanted, "destinations": other}


def append_block(text: str, row: Row) -> str:
    """*text* with a `[[destinations]]` table at its end."""
    end = line_end(text)
    text = text.replace(LOCAL_ONLY + end, "").removesuffix(LOCAL_ONLY)
    before = text if not text or text.endswith("\n") else text + end
    lines = ["[[destinations]]", *render_lines(row)]
    if before and not before.endswith(end * 2):
        lines.insert(0, "")
    return before + "".join(line + end for line in lines)


def replace_block(text: str, number: int, row: Row) -> str:
    """*text* with the lines of name, url and keys of the `[[destinations]]` table *number* (from 0) made *row*."""
    lines = text.split("\n")
    headers = [place for place, line in enumerate(lines) if HEADER.fullmatch(line.rstrip("\r"))]
    if number >= len(headers):
        return text
    start = headers[number] + 1
    stop = next((place for place in range(start, len(lines)) if ANY_HEADER.match(lines[place])), len(lines))
    if stop == len(lines) and lines[-1] != "":
        lines.append("")  # the last line had no end of its own
        stop = len(lines) - 1
    kept = [line for line in lines[start:stop] if not KEY.match(line)]
    return_mark = "\r" if line_end(text) == "\r\n" else ""
    new = [line + return_mark for line in render_lines(row)]
    return "\n".join([*lines[:start], *new, *kept, *lines[stop:]])


def render_lines(row: Row) -> list[str]:
    """A table's lines of TOML."""
    return [tomli_w.dumps({key: text}).strip() for key, text in row.items()]


def line_end(text: str) -> str:
    """How lines end in *text*."""
    return "\r\n" if "\r\n" in text else "\n"

"""
Changing settings in a config file that a person has written. Pure: text in, text out.

tomlkit keeps comments, order and layout. The result is read again and must say exactly what was wanted.
"""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from kmd.config import SETTINGS, Setting, Value, check_value, parse_config, parse_text, parse_toml
from kmd.errors import ConfigError

LOGIN_HINT = "destinations and keys are for 'kmctl init', 'kmctl login' and 'kmctl config edit'"


def find_setting(name: str) -> Setting:
    """The row of the table of settings. Raises ConfigError naming what comes close."""
    for setting in SETTINGS:
        if setting.name == name:
            return setting
    close = [setting.name for setting in SETTINGS if setting.name.rpartition(".")[2] == name.rpartition(".")[2]]
    hint = f"did you mean {close[0]}?" if close else "'kmctl config list' shows them all"
    raise ConfigError(None, name, "no such setting", hint=LOGIN_HINT if name.startswith("destination") else hint)


def parse_value(setting: Setting, text: str) -> Value:
    """What a person typed as the setting's value. Raises ConfigError with the setting's range."""
    return check_value(setting, parse_text(setting, text), None, setting.name)


def put_setting(text: str, setting: Setting, value: Value, path: Path | None) -> str:
    """*text* with the setting made *value*; *text* itself when it says so. Raises ConfigError."""
    table_name, key = setting.name.split(".")
    wanted = parse_toml(text, path)
    if wanted.get(table_name, {}).get(key) == value and key in wanted.get(table_name, {}):
        return text
    wanted.setdefault(table_name, {})[key] = value
    document = read_document(text, path)
    if table_name not in document:
        document[table_name] = tomlkit.table()
    table_of(document, table_name, path)[key] = value
    return check_says(tomlkit.dumps(document), wanted, setting.name, path)


def drop_setting(text: str, setting: Setting, path: Path | None) -> str:
    """*text* without the setting, so that its default holds; *text* itself when it is not there. Raises ConfigError."""
    table_name, key = setting.name.split(".")
    wanted = parse_toml(text, path)
    if key not in wanted.get(table_name, {}):
        return text
    del wanted[table_name][key]
    document = read_document(text, path)
    del table_of(document, table_name, path)[key]
    return check_says(tomlkit.dumps(document), wanted, setting.name, path)


def read_document(text: str, path: Path | None) -> tomlkit.TOMLDocument:
    """The file as tomlkit sees it. Raises ConfigError."""
    try:
        return tomlkit.parse(text)
    except TOMLKitError as exc:
        hint = "correct it with 'kmctl config edit'"
        raise ConfigError(path, "", f"not valid TOML: {exc}", hint=hint) from exc


def table_of(document: tomlkit.TOMLDocument, name: str, path: Path | None) -> MutableMapping[str, Any]:
    """The table *name*. Raises ConfigError: something else has that name."""
    table = document[name]
    if not isinstance(table, MutableMapping):
        raise ConfigError(path, name, "must be a table", hint=f"write [{name}] on a line of its own")
    return table


def check_says(text: str, wanted: dict[str, Any], what: str, path: Path | None) -> str:
    """*text*, when it says exactly what is *wanted* and is valid. Raises ConfigError."""
    parse_config(text, {}, path)
    if without_empty(parse_toml(text, path)) != without_empty(wanted):
        hint = "change it by hand: kmctl config edit"
        raise ConfigError(path, what, "cannot be changed without touching the rest", hint=hint)
    return text


def without_empty(tables: dict[str, Any]) -> dict[str, Any]:
    """*tables* but for empty ones, which mean nothing: dotted keys leave none behind."""
    return {name: table for name, table in tables.items() if table != {}}

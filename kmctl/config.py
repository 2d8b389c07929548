"""`kmctl config`: every value that kmd would run with, and where it comes from."""

import os

import click

from kmctl.options import current_places, home_option, json_option
from kmctl.screen import print_json
from kmctl.text import harmless
from kmd.config import SETTINGS, Config, load_config


@click.command()
@home_option
@json_option
def config(as_json: bool) -> int:  # noqa: FBT001 - click's shape
    """
    Show each setting, its value and its source. Keys are never shown.

    \b
    Example:
      kmctl config
      KM_LOG_LEVEL=debug kmctl config --json
    """
    path = current_places().config_file
    values = load_config(path, os.environ)
    if as_json:
        print_json(describe_config(str(path), path.exists(), values), indent=2)
        return 0
    click.echo(f"# {harmless(str(path))}" + ("" if path.exists() else " (not there: defaults)"))
    for line in render_config_lines(values):
        click.echo(line)
    return 0


def describe_config(path: str, exists: bool, values: Config) -> dict[str, object]:  # noqa: FBT001 - one fact of three
    """What --json prints: file, exists, settings, destinations (key: whether one is set)."""
    return {
        "file": path,
        "exists": exists,
        "settings": [
            {
                "name": setting.name,
                "value": getattr(values, setting.field),
                "source": values.sources[setting.name],
                "default": setting.default,
                "variable": setting.variable,
            }
            for setting in SETTINGS
        ],
        "destinations": [
            {"name": one.name, "url": one.url, "key": "set" if one.key else None} for one in values.destinations
        ],
    }


def render_config_lines(values: Config) -> list[str]:
    """One line per setting and per destination."""
    width = max(len(setting.name) for setting in SETTINGS)
    lines = []
    for setting in SETTINGS:
        value, source = getattr(values, setting.field), values.sources[setting.name]
        where = setting.variable if source == "environment" else source
        lines.append(f"{setting.name:<{width}}  {render_value(value):<10}  {where}")
    for one in values.destinations:
        key = "key set" if one.key else "no key"
        lines.append(harmless(f"{'destination':<{width}}  {one.name:<10}  {one.url} ({key})"))
    return lines


def render_value(value: int | str | bool) -> str:  # noqa: FBT001 - a setting's value
    """A value as the file would have it, but for the quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)

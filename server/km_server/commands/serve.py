"""`km-server serve` and `km-server config`."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from km_server.commands.options import config_option, echo_table, json_option, load, setting_options
from km_server.config import SETTINGS, show_value
from km_server.logs import set_up_logs
from km_server.workers import run


@click.command(epilog="Example: km-server serve --database-url sqlite:////var/lib/kilometers/server.db")
@config_option
@setting_options()
def serve(config_file: Path | None, **flags: int | float | str | None) -> None:
    """
    Serve until SIGTERM or Ctrl-C.

    Each setting comes from its flag, else from the environment variable in brackets, else from the same variable
    with _FILE behind it (a file that holds the value), else from the TOML file.
    """
    set_up_logs()
    config = load(config_file, **flags).config
    run(config, lambda url: click.echo(f"km-server listening on {url}"))


@click.command("config", epilog="Example: km-server config --config /etc/kilometers/server.toml --json")
@config_option
@setting_options()
@json_option
def show_config(config_file: Path | None, *, as_json: bool, **flags: int | float | str | None) -> None:
    """Show every setting with its value and where that came from; passwords are left out."""
    loaded = load(config_file, **flags)
    values = asdict(loaded.config)
    rows = [
        {
            "name": row.name,
            "value": show_value(row, values[row.name]),
            "source": loaded.sources[row.name],
            "help": row.bounds.help,
        }
        for row in SETTINGS
    ]
    if as_json:
        click.echo(json.dumps(rows))
    else:
        echo_table(("name", "value", "source"), rows)

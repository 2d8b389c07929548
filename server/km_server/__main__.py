"""Entry point of `km-server`: runs a command, and turns what stops it into one line and a hint."""

import sys

import click

from km_server.cli import cli
from km_server.errors import ServerError

SERVER_EXTRA = ("aiohttp", "prometheus_client")
"""What only `[server]` installs; km and kmctl do without."""


def main() -> None:
    """Run the command line. Exit code 1: it failed; 2: it was not understood."""
    try:
        cli(prog_name="km-server")
    except ServerError as exc:
        click.echo(f"km-server: {exc}", err=True)
        if exc.hint:
            click.echo(f"hint: {exc.hint}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as exc:
        if exc.name not in SERVER_EXTRA:
            raise
        click.echo(f"km-server: serving needs {exc.name}, which is not installed", err=True)
        click.echo("hint: install Kilometers with its extra: pip install '.[server]'", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

"""The command line: one file per command in `commands/`."""

import click

from km_server.commands.keys import keys
from km_server.commands.serve import serve, show_config


@click.group(epilog="Example: km-server serve --port 8713")
@click.version_option(package_name="kilometers", prog_name="km-server")
def cli() -> None:
    """The Kilometers server: takes events in and answers questions about them."""


cli.add_command(serve)
cli.add_command(show_config)
cli.add_command(keys)

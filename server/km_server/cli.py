"""The command line: one file per command in `commands/`."""

import click

from km_server.commands.database import backup, checksum, migrate, rebuild_rollups, restore
from km_server.commands.keys import keys
from km_server.commands.options import Group
from km_server.commands.serve import serve, show_config
from km_server.commands.tenants import tenants


@click.group(
    cls=Group,
    epilog="Example: km-server serve --port 8713",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="kilometers", prog_name="km-server")
def cli() -> None:
    """The Kilometers server: takes events in and answers questions about them."""


cli.add_command(serve)
cli.add_command(show_config)
cli.add_command(keys)
cli.add_command(tenants)
cli.add_command(migrate)
cli.add_command(rebuild_rollups)
cli.add_command(backup)
cli.add_command(restore)
cli.add_command(checksum)

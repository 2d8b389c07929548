"""`kmctl logout`: forget an API key."""

import click

from kmctl.config_file import read_config, replace_config
from kmctl.edit import put_destination
from kmctl.login import find_destination
from kmctl.options import current_places, home_option, json_option
from kmctl.screen import print_json
from kmctl.text import harmless
from kmd.config import DEFAULT_NAME, Destination
from kmd.errors import ConfigError
from kmd.keys import forget_key
from kmd.paths import Places


@click.command()
@click.option("--name", default=DEFAULT_NAME, show_default=True, help="Name of the destination.")
@home_option
@json_option
def logout(name: str, as_json: bool) -> int:  # noqa: FBT001 - click's shape
    """
    Forget a server's API key, wherever it is kept.

    The destination stays, and so do the events that wait for it: 'kmctl login' lets them go on.

    \b
    Example:
      kmctl logout
      kmctl logout --name team
    """
    places = current_places()
    text = read_config(places.config_file)
    one = find_destination(text, name, places)
    if text is None or one is None:
        hint = "'kmctl config list' shows the destinations"
        raise ConfigError(places.config_file, "destinations", f"there is none called {name!r}", hint=hint)
    forgotten = forget_key(one, places.config_file) if one.key_from else bool(one.key)
    new = put_destination(text, Destination(one.name, one.url, ca_file=one.ca_file), places.config_file)
    written = replace_config(places.config_file, places.control_socket, text, new)
    backups = old_copies(places) if one.key else []
    if as_json:
        print_json({"name": name, "forgotten": forgotten, "copies": backups, "reloaded": written.reloaded}, indent=2)
    else:
        click.echo(harmless(f"{name}: the key is forgotten" if forgotten else f"{name}: there was no key"))
        for path in backups:
            click.echo(harmless(f"an older configuration may still hold it: {path}"))
    return 0


def old_copies(places: Places) -> list[str]:
    """Files that 'kmctl init' and 'kmctl config edit' have left beside the configuration."""
    return [str(path) for path in sorted(places.config_file.parent.glob(f"{places.config_file.name}.*.bak"))]

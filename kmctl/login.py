"""`kmctl login`: keep an API key where it is safe, after the server has said whose it is."""

import sys
from dataclasses import replace
from pathlib import Path

import click

from kmctl.config_file import Written, read_config, replace_config, report
from kmctl.edit import put_destination
from kmctl.identity import Identity, ask_identity, check_may_send
from kmctl.init import Answers, read_key, render_ca_file
from kmctl.options import ca_file_option, current_places, home_option, json_option
from kmctl.screen import print_json
from kmctl.text import harmless
from kmd.config import DEFAULT_NAME, Destination, check_key, check_name, check_url, parse_config, render_config
from kmd.errors import KilometersError
from kmd.keys import KeySource, forget_key, has_keyring, key_file, store_key
from kmd.paths import Places


@click.command()
@click.option("--name", default=DEFAULT_NAME, show_default=True, help="Name of the destination.")
@click.option("--url", help="Root URL of the km-server, when the destination is new or has moved.")
@click.option("--key", help="API key; other users may see it in the process list: prefer --key-file or --key-stdin.")
@click.option("--key-file", type=click.Path(path_type=Path, dir_okay=False), help="File that holds the API key.")
@click.option("--key-stdin", is_flag=True, help="Read the API key from standard input.")
@ca_file_option
@click.option("--no-keyring", is_flag=True, help="Keep the key in a file of yours, not in the system's keyring.")
@home_option
@json_option
def login(
    *,
    name: str,
    url: str | None,
    key: str | None,
    key_file: Path | None,
    key_stdin: bool,
    ca_file: Path | None,
    no_keyring: bool,
    as_json: bool,
) -> int:
    """
    Store a server's API key, after asking the server whose it is.

    The key goes into the operating system's keyring, or, where there is none, into a file that only you can
    read; the configuration only says which.

    \b
    Example:
      kmctl login --url https://km.example.com
      echo "$KEY" | kmctl login --name team --key-stdin
    """
    answers = Answers(url, key, key_file, key_stdin, check_name(name, None, "--name"), local=False, ca_file=ca_file)
    places = current_places()
    text = read_config(places.config_file)
    before = find_destination(text, name, places)
    destination = choose_destination(answers, before)
    key = choose_key(answers)
    identity = ask_identity(destination.url, key, destination.ca_file).identity
    check_may_send(identity, destination.url)
    kept = keep_key(destination, key, before, places, may_ask_keyring=not no_keyring)
    old = render_config(()) if text is None else text
    written = replace_config(
        places.config_file, places.control_socket, text, put_destination(old, kept, places.config_file)
    )
    return show(kept, identity, written, places, as_json=as_json)


def find_destination(text: str | None, name: str, places: Places) -> Destination | None:
    """The destination *name* in the file, None when it is not there. Raises ConfigError: the file is not valid."""
    config = parse_config(text or "", {}, places.config_file)
    return next((one for one in config.destinations if one.name == name), None)


def choose_destination(answers: Answers, before: Destination | None) -> Destination:
    """Where the key is for: the flag's URL, else the one in the file, else what the user says. Raises ConfigError."""
    url = answers.url or (before.url if before else None)
    if not url and sys.stdin.isatty() and not answers.key_stdin:
        url = click.prompt("URL of the km-server", err=True)
    if not url:
        raise click.UsageError(f"there is no destination {answers.name!r} yet: give its --url")
    ca_file = render_ca_file(answers.ca_file) if answers.ca_file else before.ca_file if before else ""
    return Destination(answers.name, check_url(url.strip(), None, "--url"), ca_file=ca_file)


def choose_key(answers: Answers) -> str:
    """The key from the flags, else from the user. Raises ConfigError, which does not show it; click.UsageError."""
    if sum([answers.key is not None, answers.key_file is not None, answers.key_stdin]) > 1:
        raise click.UsageError("give the key in one way: --key, --key-file or --key-stdin")
    key = read_key(answers)
    if key is None and sys.stdin.isatty():
        key = click.prompt("API key (not shown)", hide_input=True, err=True)
    if not key:
        raise click.UsageError("no key was given: use --key-file or --key-stdin")
    return check_key(key.strip(), None, "--key")


def keep_key(
    destination: Destination, key: str, before: Destination | None, places: Places, *, may_ask_keyring: bool
) -> Destination:
    """Store *key*; returns the destination as the file is to have it. Raises KilometersError: it cannot be kept."""
    source = KeySource.KEYRING if may_ask_keyring and has_keyring() else KeySource.FILE
    try:
        store_key(destination, key, places.config_file, source)
    except KilometersError as exc:
        if source is KeySource.FILE:
            raise
        click.echo(f"note: {harmless(str(exc))}; the key goes into a file", err=True)
        source = KeySource.FILE
        store_key(destination, key, places.config_file, source)
    kept = replace(destination, key_from=source.value)
    if before is not None and before.key_from and before != kept:
        forget_key(before, places.config_file)
    return kept


def show(kept: Destination, identity: Identity, written: Written, places: Places, *, as_json: bool) -> int:
    """Say what was done. Returns the exit code: 1 when kmd did not take the new configuration."""
    if as_json:
        print_json(
            {
                "name": kept.name,
                "url": kept.url,
                "tenant": identity.tenant,
                "scopes": list(identity.scopes),
                "key_from": kept.key_from,
                "reloaded": written.reloaded,
                "reload_error": written.reload_error or None,
            },
            indent=2,
        )
        return 1 if written.reload_error else 0
    where = "the keyring" if kept.key_from == KeySource.KEYRING else str(key_file(places.config_file))
    whose = f"tenant {identity.tenant}, scopes {', '.join(identity.scopes)}"
    return report(written, [f"{kept.name}: {kept.url}", whose, f"the key is in {where}"])

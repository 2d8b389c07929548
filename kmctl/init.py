"""`kmctl init`: write the configuration, after asking the server whether it would work."""

import sys
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import click

from kmctl.config_file import read_config, reload_daemon, write_config
from kmctl.edit import put_destination
from kmctl.options import ca_file_option, current_places, home_flag, home_option, json_option
from kmctl.screen import print_json
from kmctl.start import start_command
from kmctl.text import harmless
from kmd.config import (
    DEFAULT_NAME,
    Config,
    Destination,
    check_ca_file,
    check_key,
    check_name,
    check_url,
    parse_config,
    render_config,
)
from kmd.errors import ConfigError

KEY_MAX_BYTES = 4096
"""A key file holds one key; what is longer is another file."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What was given as flags; None where it was not."""

    url: str | None
    key: str | None
    key_file: Path | None
    key_stdin: bool
    name: str
    local: bool
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What init did. backup: where the file that was there before is. reload_error: kmd's own words."""

    path: Path
    changed: bool
    backup: Path | None
    checked: bool
    destinations: tuple[Destination, ...]
    reloaded: bool
    reload_error: str


@click.command()
@click.option("--url", help="Root URL of a km-server; empty: local only.")
@click.option("--key", help="API key; other users may see it in the process list: prefer --key-file or --key-stdin.")
@click.option("--key-file", type=click.Path(path_type=Path, dir_okay=False), help="File that holds the API key.")
@click.option("--key-stdin", is_flag=True, help="Read the API key from standard input.")
@click.option("--name", default=DEFAULT_NAME, show_default=True, help="Name of the destination.")
@ca_file_option
@click.option("--local", is_flag=True, help="Sync to nothing; ask nothing.")
@click.option("--no-check", is_flag=True, help="Do not ask the server whether URL and key work.")
@click.option("--force", is_flag=True, help="Write a new file; the one that is there is kept beside it.")
@home_option
@json_option
def init(
    *,
    url: str | None,
    key: str | None,
    key_file: Path | None,
    key_stdin: bool,
    name: str,
    ca_file: Path | None,
    local: bool,
    no_check: bool,
    force: bool,
    as_json: bool,
) -> int:
    """
    Write the configuration: where to sync to, or nowhere.

    A file that is there keeps its settings, comments and other destinations; only the destination of this name
    is added or replaced. Without flags it asks; where it cannot ask, it sets up local only.

    \b
    Example:
      kmctl init --local
      kmctl init --url https://km.example.com --key-file key.txt
    """
    answers = Answers(url, key, key_file, key_stdin, name, local, ca_file)
    check_flags(answers)
    places = current_places()
    text = read_config(places.config_file)
    destination = choose_destination(answers, may_ask=not as_json and sys.stdin.isatty())
    if destination is not None and not force:
        destination = keep_ca_file(destination, text, places.config_file)
    new = plan_text(text, destination, places.config_file, local=local, force=force)
    if checked := destination is not None and not no_check:
        assert destination is not None  # noqa: S101 - for mypy
        check_destination(destination)
    backup = write_config(places.config_file, text, new)
    reloaded, reload_error = reload_daemon(places.control_socket)
    config = parse_config(new, {}, places.config_file)
    done = Done(places.config_file, new != text, backup, checked, config.destinations, reloaded, reload_error)
    if as_json:
        print_json(describe_done(done), indent=2)
    else:
        print_done(done, home_flag(), start_command())
    return 1 if reload_error else 0


def check_flags(answers: Answers) -> None:
    """Raises click.UsageError for flags that contradict each other."""
    ways = [answers.key is not None, answers.key_file is not None, answers.key_stdin]
    if sum(ways) > 1:
        raise click.UsageError("give the key in one way: --key, --key-file or --key-stdin")
    if answers.local and (answers.url or any(ways) or answers.ca_file):
        raise click.UsageError("--local takes neither URL nor key nor certificates")
    if any(ways) and answers.url == "":
        raise click.UsageError("a key needs --url")


def choose_destination(answers: Answers, *, may_ask: bool) -> Destination | None:
    """
    The destination that is wanted, None for local only; asks for what was not given when it may.

    Raises ConfigError naming the flag, click.UsageError for a key without a URL, click.Abort.
    """
    name = check_name(answers.name, None, "--name")
    if answers.local:
        return None
    key = read_key(answers)
    url = answers.url
    if url is None and may_ask and not answers.key_stdin:
        url = click.prompt("URL of the km-server (nothing for local only)", default="", show_default=False, err=True)
    if not url:
        if key is not None:
            raise click.UsageError("a key needs --url")
        return None
    url = check_url(url.strip(), None, "--url")
    if key is None and may_ask:
        key = click.prompt("API key (not shown)", default="", show_default=False, hide_input=True, err=True)
    ca_file = render_ca_file(answers.ca_file) if answers.ca_file else ""
    return Destination(name, url, check_key((key or "").strip(), None, "--key"), ca_file=ca_file)


def render_ca_file(given: Path) -> str:
    """The file as kmd finds it from anywhere. Raises ConfigError: there is none."""
    path = given.expanduser().absolute()
    if not path.is_file():
        raise ConfigError(path, "--ca-file", "there is no such file", hint="give a PEM file of certificates")
    return check_ca_file(str(path), None, "--ca-file")


def keep_ca_file(destination: Destination, text: str | None, path: Path) -> Destination:
    """*destination* with the ca_file that the file at *path* says for it, when it says none itself. Pure."""
    if destination.ca_file or text is None:
        return destination
    try:
        known = parse_config(text, {}, path).destinations
    except ConfigError:  # which is said by who changes the file
        return destination
    ca_file = next((one.ca_file for one in known if one.name == destination.name), "")
    return replace(destination, ca_file=ca_file)


def read_key(answers: Answers) -> str | None:
    """The key from wherever the flags say, None without one. Raises ConfigError, which does not show it."""
    if answers.key is not None:
        return answers.key
    if answers.key_stdin:
        raw, where = sys.stdin.buffer.read(KEY_MAX_BYTES + 1), "--key-stdin"
    elif answers.key_file is not None:
        where = "--key-file"
        try:
            with answers.key_file.open("rb") as file:
                raw = file.read(KEY_MAX_BYTES + 1)
        except OSError as exc:
            raise ConfigError(answers.key_file, where, f"cannot be read ({exc.strerror})", hint="check it") from exc
    else:
        return None
    key = raw.decode("utf-8", "replace").strip()
    if not key or len(raw) > KEY_MAX_BYTES:
        raise ConfigError(None, where, "holds no key", hint="it must hold the API key and nothing else")
    return key


def plan_text(text: str | None, destination: Destination | None, path: Path, *, local: bool, force: bool) -> str:
    """
    What the file at *path* should say, given the *text* that it has. Pure.

    Raises ConfigError when *text* cannot be kept: it is not valid, or --local contradicts its destinations.
    """
    if text is None or force:
        return render_config((destination,) if destination else ())
    try:
        known: Config = parse_config(text, {}, path)
        if destination is not None:
            return put_destination(text, destination, path)
    except ConfigError as exc:
        raise ConfigError(None, "", str(exc), hint=f"{exc.hint}; or start over with --force") from exc
    if local and known.destinations:
        names = ", ".join(one.name for one in known.destinations)
        hint = "remove it from the file, or start over with --local --force"
        raise ConfigError(path, "destinations", f"syncs to {names} already", hint=hint)
    return text


def check_destination(destination: Destination) -> None:
    """Raises DeliveryError with what to do when the server would not take events."""
    from kmctl.check import check_server

    check_server(destination.url, destination.key, str(uuid.uuid4()), destination.ca_file)


def describe_done(done: Done) -> dict[str, object]:
    """What --json prints."""
    return {
        "config": str(done.path),
        "changed": done.changed,
        "backup": str(done.backup) if done.backup else None,
        "checked": done.checked,
        "destinations": [{"name": one.name, "url": one.url} for one in done.destinations],
        "reloaded": done.reloaded,
        "reload_error": done.reload_error or None,
    }


def print_done(done: Done, home: str, start: str) -> None:
    """What was done and the next step. home: ` --home DIR` or nothing; start: the words that start kmd."""
    for line in render_done(done, home, start):
        click.echo(harmless(line))
    if done.reload_error:
        click.echo(f"error: kmd did not take the new configuration: {harmless(done.reload_error)}", err=True)


def render_done(done: Done, home: str, start: str) -> list[str]:
    """The lines of print_done. Pure."""
    lines = [f"wrote {done.path}" if done.changed else f"unchanged: {done.path}"]
    if done.backup:
        lines.append(f"the file before is {done.backup}")
    lines += [f"syncing to {one.name}: {one.url}" for one in done.destinations]
    if not done.destinations:
        lines.append("local only: nothing leaves this machine")
    if done.checked:
        lines.append("the server takes events with this key")
    if done.reloaded:
        lines.append("kmd has read the new configuration")
    elif not done.reload_error:
        lines.append(f"next: start kmd with '{start}'")
    lines.append(f"next: put km in front of your MCP servers with 'kmctl install{home}'")
    lines.append(f"      or of one of them by hand: km{home} --name NAME -- COMMAND …")
    return lines

"""`kmctl config`: every value that kmd would run with and where it comes from, and changing it."""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from kmctl.config_file import check_untouched, read_config, replace_config, report
from kmctl.options import chosen_home, current_places, home_flag, home_option, is_plain, json_option
from kmctl.screen import print_json
from kmctl.text import harmless
from kmd.config import SETTINGS, Config, Setting, Value, load_config, parse_config, render_config
from kmd.errors import ConfigError, KilometersError

AFTER_RESTART = frozenset({"log.level"})
"""What kmd looks at only when it starts."""
EDITOR = "notepad" if sys.platform == "win32" else "vi"


def complete_setting(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The settings that begin so, for the shell."""
    return [setting.name for setting in SETTINGS if setting.name.startswith(incomplete)]


@click.group(invoke_without_command=True)
@home_option
@json_option
@click.pass_context
def config(ctx: click.Context, as_json: bool) -> int:  # noqa: FBT001 - click's shape
    """
    Show and change settings, with their sources. Keys are never shown.

    Without a command: list.

    \b
    Example:
      kmctl config
      kmctl config set log.level debug
      kmctl config edit
    """
    return 0 if ctx.invoked_subcommand else show_all(as_json=as_json)


@config.command("list")
@home_option
@json_option
def list_(as_json: bool) -> int:  # noqa: FBT001 - click's shape
    """
    Show each setting, its value and its source, and the destinations.

    \b
    Example:
      kmctl config list
      KM_LOG_LEVEL=debug kmctl config list --json
    """
    return show_all(as_json=as_json)


@config.command()
@click.argument("name", shell_complete=complete_setting)
@home_option
@json_option
def get(name: str, as_json: bool) -> int:  # noqa: FBT001 - click's shape
    """
    Print one setting's value.

    \b
    Example:
      kmctl config get outbox.max_bytes
    """
    from kmctl.settings import find_setting

    setting = find_setting(name)
    values = load_config(current_places().config_file, os.environ)
    if as_json:
        print_json(describe_setting(setting, values), indent=2)
    else:
        click.echo(render_value(getattr(values, setting.field)))
    return 0


@config.command("set")
@click.argument("name", shell_complete=complete_setting)
@click.argument("value")
@home_option
@json_option
def set_(name: str, value: str, as_json: bool) -> int:  # noqa: FBT001 - click's shape
    """
    Write a setting into the file. Comments stay; a running kmd reads it at once.

    \b
    Example:
      kmctl config set capture.payloads false
      kmctl config set outbox.max_age_days 30
    """
    from kmctl.settings import find_setting, parse_value, put_setting

    setting = find_setting(name)
    wanted = parse_value(setting, value)
    path = current_places().config_file
    old = read_config(path)
    new = put_setting(render_config(()) if old is None else old, setting, wanted, path)
    return write(setting, old, new, as_json=as_json)


@config.command()
@click.argument("name", shell_complete=complete_setting)
@home_option
@json_option
def unset(name: str, as_json: bool) -> int:  # noqa: FBT001 - click's shape
    """
    Take a setting out of the file, so that its default holds again.

    \b
    Example:
      kmctl config unset log.level
    """
    from kmctl.settings import drop_setting, find_setting

    setting = find_setting(name)
    path = current_places().config_file
    old = read_config(path)
    return write(setting, old, drop_setting(old or "", setting, path), as_json=as_json)


@config.command()
@home_option
def edit() -> int:
    """
    Open the file in $VISUAL or $EDITOR; it is checked before it replaces the one that is there.

    \b
    Example:
      EDITOR=nano kmctl config edit
    """
    places = current_places()
    old = read_config(places.config_file)
    new = edit_text(render_config(()) if old is None else old, places.config_file)
    if new != old:
        check_untouched(places.config_file, old, new)
    written = replace_config(places.config_file, places.control_socket, old, new, keep_old=True)
    return report(written, [f"wrote {places.config_file}" if written.changed else "nothing was changed"])


def show_all(*, as_json: bool) -> int:
    """What `list` prints. Raises ConfigError."""
    path = current_places().config_file
    values = load_config(path, os.environ)
    if as_json:
        print_json(describe_config(str(path), path.exists(), values), indent=2)
        return 0
    missing = "" if path.exists() else ", not there: defaults"
    click.echo(f"# {harmless(str(path))} (from {file_source()}{missing})")
    for line in render_config_lines(values, plain=is_plain()):
        click.echo(line)
    return 0


def file_source() -> str:
    """What has decided where the file is."""
    if chosen_home() is not None:
        return "--home"
    return "KM_HOME" if os.environ.get("KM_HOME") else "the platform"


def write(setting: Setting, old: str | None, new: str, *, as_json: bool) -> int:
    """Put *new* in the file's place and say what holds now. Raises ConfigError."""
    places = current_places()
    written = replace_config(places.config_file, places.control_socket, old, new)
    values = load_config(places.config_file, os.environ)
    if as_json:
        done = {"changed": written.changed, "reloaded": written.reloaded, "reload_error": written.reload_error or None}
        print_json({**describe_setting(setting, values), **done}, indent=2)
        return 1 if written.reload_error else 0
    lines = [
        f"{setting.name} = {render_value(getattr(values, setting.field))}" + ("" if written.changed else " already")
    ]
    if values.sources[setting.name] == "environment":
        lines.append(f"but {setting.variable} in the environment wins over the file here")
    if written.changed and setting.name in AFTER_RESTART:
        lines.append(f"kmd takes it up when it starts again: kmctl service restart{home_flag()}")
    return report(written, lines)


def edit_text(text: str, path: Path) -> str:
    """*text* as the user leaves it in the editor, valid. Raises KilometersError: no editor; ConfigError: not valid."""
    descriptor, name = tempfile.mkstemp(suffix=".toml", prefix="kilometers-")  # 0600: it holds keys
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        while True:
            run_editor(draft)
            edited = draft.read_text(encoding="utf-8")
            try:
                parse_config(edited, {}, path)
            except ConfigError as exc:
                if not sys.stdin.isatty():
                    raise
                click.echo(f"error: {harmless(str(exc))}\nhint: {harmless(exc.hint)}", err=True)
                click.confirm("edit it again (no: everything stays as it was)", default=True, abort=True, err=True)
            else:
                return edited
    finally:
        draft.unlink(missing_ok=True)


def run_editor(draft: Path) -> None:
    """Let the user edit *draft*. Raises KilometersError."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or EDITOR
    try:
        words = [*split_words(editor, sys.platform), str(draft)]
        code = subprocess.run(words, check=False).returncode  # noqa: S603 - the user's own editor
    except (OSError, ValueError) as exc:
        raise KilometersError(f"{editor}: cannot be run", hint="set VISUAL or EDITOR to your editor") from exc
    if code:
        raise KilometersError(
            f"{editor} ended with {code}; nothing was changed", hint="save and quit to change the file"
        )


def split_words(line: str, platform: str) -> list[str]:
    """The words of a command line; on Windows a backslash stands for itself. Pure. Raises ValueError."""
    if platform != "win32":
        return shlex.split(line)
    return [word.strip('"') for word in shlex.split(line, posix=False)]


def describe_config(path: str, exists: bool, values: Config) -> dict[str, object]:  # noqa: FBT001 - one fact of three
    """What --json prints: file, exists, settings, destinations (key: whether and where one is set)."""
    return {
        "file": path,
        "exists": exists,
        "source": file_source(),
        "settings": [describe_setting(setting, values) for setting in SETTINGS],
        "destinations": [
            {
                "name": one.name,
                "url": one.url,
                "key": "set" if one.has_key else None,
                "key_from": one.key_from or None,
                "ca_file": one.ca_file or None,
            }
            for one in values.destinations
        ],
    }


def describe_setting(setting: Setting, values: Config) -> dict[str, object]:
    """One setting for a program."""
    return {
        "name": setting.name,
        "value": getattr(values, setting.field),
        "source": values.sources[setting.name],
        "default": setting.default,
        "variable": setting.variable,
        "help": setting.help,
    }


def render_config_lines(values: Config, *, plain: bool) -> list[str]:
    """One line per setting and per destination; plain: a sentence instead of columns."""
    width = max(len(setting.name) for setting in SETTINGS)
    lines = []
    for setting in SETTINGS:
        value, source = getattr(values, setting.field), values.sources[setting.name]
        where = setting.variable if source == "environment" else source
        columns = f"{setting.name:<{width}}  {render_value(value):<10}  {where}"
        lines.append(f"{setting.name}: {render_value(value)}, from {where}" if plain else columns)
    for one in values.destinations:
        key = "key set" if one.key else f"key from the {one.key_from}" if one.key_from else "no key"
        trust = f", certificates of {one.ca_file}" if one.ca_file else ""
        columns = f"{'destination':<{width}}  {one.name:<10}  {one.url} ({key}{trust})"
        lines.append(harmless(f"destination {one.name}: {one.url}, {key}{trust}" if plain else columns))
    return lines


def render_value(value: Value) -> str:
    """A value as the file would have it, but for the quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)

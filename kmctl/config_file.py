"""Reading and replacing the config file: the one before stays beside it, and a running kmd is told."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from kmctl.daemon import ask
from kmctl.text import harmless
from kmd.config import read_regular, write_private
from kmd.errors import ConfigError, DaemonUnavailable, KilometersError


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a change. backup: where the file before is. reload_error: kmd's own words."""

    changed: bool
    backup: Path | None
    reloaded: bool
    reload_error: str


def read_config(path: Path) -> str | None:
    """The text of the file at *path*, None when there is none. Raises ConfigError."""
    try:
        return read_regular(path).decode("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(path, "", f"cannot be read ({type(exc).__name__})", hint="check its permissions") from exc


def write_config(path: Path, old: str | None, new: str) -> Path | None:
    """Write *new* unless it is there already; returns where *old* was kept. Raises ConfigError."""
    if new == old:
        return None
    backup = None if old is None else keep_aside(path, old)
    write_text(path, new)
    return backup


def check_untouched(path: Path, old: str | None, new: str) -> None:
    """Raises ConfigError when the file says something else than *old* by now; *new* is not lost then."""
    if read_config(path) != old:
        hint = f"your text is in {keep_aside(path, new)}; put what you changed into the file"
        raise ConfigError(path, "", "has changed while you edited it", hint=hint)


def keep_aside(path: Path, text: str) -> Path:
    """Write *text* beside the file, under a name of today's; returns where it is. Raises ConfigError."""
    backup = path.with_name(f"{path.name}.{datetime.now(UTC).strftime('%Y%m%dT%H%M%S.%fZ')}.bak")
    write_text(backup, text)
    return backup


def write_text(path: Path, text: str) -> None:
    """Replace the file at *path* in one step, for this user alone. Raises ConfigError."""
    try:
        write_private(path, text)
    except OSError as exc:
        raise ConfigError(path, "", f"cannot be written ({exc.strerror})", hint="check its folder's owner") from exc


def reload_daemon(socket: Path) -> tuple[bool, str]:
    """Have kmd read the file again: whether it did, and its own words when it could not."""
    try:
        ask(socket, {"op": "reload"})
    except DaemonUnavailable:
        return False, ""
    except KilometersError as exc:
        return False, f"{exc}" + (f" ({exc.hint})" if exc.hint else "")
    return True, ""


def replace_config(path: Path, socket: Path, old: str | None, new: str, *, keep_old: bool = False) -> Written:
    """Write *new*, unless it is there already, and tell kmd. keep_old: leave *old* beside it. Raises ConfigError."""
    if new == (old or ""):
        return Written(changed=False, backup=None, reloaded=False, reload_error="")
    backup = write_config(path, old if keep_old else None, new)
    reloaded, reload_error = reload_daemon(socket)
    return Written(changed=True, backup=backup, reloaded=reloaded, reload_error=reload_error)


def report(written: Written, lines: list[str]) -> int:
    """Print *lines*, and what kmd made of the change. Returns the exit code: 1 when kmd did not take it."""
    for line in lines:
        click.echo(harmless(line))
    if written.reloaded:
        click.echo("kmd has read the new configuration")
    if written.reload_error:
        click.echo(f"error: kmd did not take the new configuration: {harmless(written.reload_error)}", err=True)
        return 1
    return 0

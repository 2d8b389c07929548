"""The `kmd` command: run the daemon in the foreground."""

import gc
import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import click
import trio

from kmd.config import Config, load_config
from kmd.daemon import run_daemon, warn_of_keys
from kmd.errors import KilometersError, OutboxCorrupt
from kmd.keys import resolve_keys
from kmd.logs import configure_logs, redirect_stderr
from kmd.paths import Places, find_places
from kmd.scheduling import ask_for_long_turns

REPAIRS_MAX = 3
"""Of one process. Where the disk damages the file again and again, whoever starts kmd has to see it end."""
GC_THRESHOLDS = (50_000, 20, 100)
"""Objects made before the interpreter looks for cycles: what traffic makes by the thousand is in none."""


@click.command(epilog="Example: kmd --home ~/km-test")
@click.option("--home", type=click.Path(path_type=Path, file_okay=False), help="Keep everything under this folder.")
@click.option(
    "--log-file", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file instead of stderr."
)
@click.version_option(package_name="kilometers", prog_name="kmd")
def main(home: Path | None, log_file: Path | None) -> None:
    """Take in what km captures, keep it, and sync it. Runs in the foreground until SIGTERM or Ctrl-C."""
    try:
        if log_file is not None:
            redirect_stderr(log_file)
        places = find_places(home, os.environ)
        config, problems = resolve_keys(load_config(places.config_file, os.environ), places.config_file)
        configure_logs(config.log_level)
        warn_of_keys(problems)
        ask_for_long_turns()
        gc.freeze()  # what is there now stays to the end
        gc.set_threshold(*GC_THRESHOLDS)
        run_and_repair(places, config)
    except* KilometersError as group:
        show(group)
        sys.exit(1)


def run_and_repair(places: Places, config: Config) -> None:
    """Run kmd; when it meets damage in its outbox, start over within this process, which repairs it. Raises as kmd."""
    for repairs in range(REPAIRS_MAX + 1):
        try:
            trio.run(partial(run_daemon, places, config, dict(os.environ), is_damaged=repairs > 0))
        except* OutboxCorrupt:
            if repairs == REPAIRS_MAX:
                raise
            with suppress(KilometersError):  # what has changed since the start
                config, _ = resolve_keys(load_config(places.config_file, os.environ), places.config_file)
        else:
            return


def show(group: BaseExceptionGroup[KilometersError]) -> None:
    """One line, and one with the next thing to do."""
    exc: BaseException = group
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    click.echo(f"error: {exc}", err=True)
    if isinstance(exc, KilometersError) and exc.hint:
        click.echo(f"hint: {exc.hint}", err=True)


if __name__ == "__main__":
    main()

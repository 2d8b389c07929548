"""The command behind `make torture`: a seed, a number of rounds, a report, exit 1 when something was lost."""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import click

from tests.support.torture import Torture


@click.command(epilog="Example: make torture ARGS='--seed 7 --rounds 300'")
@click.option("--seed", default=1, show_default=True, help="What is killed when.")
@click.option("--rounds", default=300, show_default=True, help="How often something is killed.")
def main(seed: int, rounds: int) -> None:
    """Kill kmd, km-server and relays under traffic, then look whether anything is lost, doubled or altered."""
    with tempfile.TemporaryDirectory(prefix="km-torture-") as folder:
        report = Torture(Path(folder), seed).run(rounds, lambda text: click.echo(text, err=True))
    click.echo(json.dumps({"seed": seed, **dataclasses.asdict(report)}, indent=2))
    sys.exit(1 if report.faults or not report.sent_again else 0)


if __name__ == "__main__":
    main()

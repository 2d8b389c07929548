"""kmctl's section: what a command costs from its start to its end, next to an interpreter that imports click."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.bench.report import Budget, Options, Section, Sheet
from tests.support.processes import command, running_kmd

CLICK = "python -c 'import click'"
ROUNDS, QUICK_ROUNDS = 40, 12
LIMIT = 2.5


def measure_kmctl(options: Options) -> Section:
    """`--help` and `status`, in turns with the bare import, so that whatever else the machine does hits all alike."""
    section = Section("kmctl: start to end")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        with running_kmd(home):
            took = run_in_turns(home, QUICK_ROUNDS if options.quick else ROUNDS)
    bare_s = statistics.median(took[CLICK])
    rows: list[tuple[str | float, ...]] = []
    for name, times in took.items():
        middle_s = statistics.median(times)
        rows.append((name, middle_s * 1e3, max(times) * 1e3, f"{middle_s / bare_s:.2f}"))
        if name != CLICK:
            section.budgets.append(Budget(f"{name} against {CLICK}", middle_s / bare_s, LIMIT))
    section.sheets.append(Sheet("milliseconds", ("command", "p50", "worst", "ratio"), rows))
    return section


def run_in_turns(home: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each run, by command."""
    kmctl = [command("kmctl"), "--home", str(home)]
    words = {
        CLICK: [sys.executable, "-c", "import click"],
        "kmctl --help": [*kmctl, "--help"],
        "kmctl status": [*kmctl, "status"],
        "kmctl status --json": [*kmctl, "status", "--json"],
    }
    took: dict[str, list[float]] = {name: [] for name in words}
    environ = {name: text for name, text in os.environ.items() if not name.startswith("KM_")}
    for _ in range(rounds):
        for name, line in words.items():
            began_s = time.perf_counter()
            subprocess.run(line, stdout=subprocess.DEVNULL, check=True, env=environ)
            took[name].append(time.perf_counter() - began_s)
    return took

"""
`make bench`: ratios against the budgets, all contenders in one run, interleaved.

A section is a function that takes the Options and returns a Section; SECTIONS names them. Exits 1 when a
budget is not met.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.bench.kmctl import measure_kmctl
from tests.support.bench.kmd import measure_kmd
from tests.support.bench.relay import measure_relay
from tests.support.bench.report import Options, Section, print_section
from tests.support.bench.server import measure_server

SECTIONS: dict[str, Callable[[Options], Section]] = {
    "relay": measure_relay,
    "kmd": measure_kmd,
    "kmctl": measure_kmctl,
    "server": measure_server,
}


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description="Measure the budgets of the design.")
    parser.add_argument("--section", action="append", choices=list(SECTIONS), help="only this one (may repeat)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: for a first look, not for a decision")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything here")
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="'CMD …'",
        help="another wrapper (may be label=CMD …): the server's command follows it",
    )
    given = parser.parse_args(words)
    options = Options(quick=given.quick, against=tuple(given.against))
    sections = []
    for name in given.section or SECTIONS:
        sections.append(SECTIONS[name](options))
        print_section(sections[-1])
    if given.json:
        given.json.write_text(json.dumps([section.as_json() for section in sections], indent=2) + "\n")
    return 0 if all(budget.is_met for section in sections for budget in section.budgets) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

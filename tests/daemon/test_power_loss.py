"""
Power is lost at random points of a recorded run of the real outbox: nothing that was acknowledged may be gone.

The run is killed and goes on twice, checkpoints, settles and makes room; tests/support/powerloss.py says what the
simulated disk may do. The same test must find losses where syncs are left out.
"""

from pathlib import Path
from random import Random

import pytest

from tests.support.powerloss import Kind, Operation, lose_power
from tests.support.powerloss_kmd import lose_power_of_kmd, record_kmd
from tests.support.powerloss_library import build_library
from tests.support.powerloss_oracle import Finding, Run, lose_power_once, record_run

SEEDS = range(25)
TAKE_OVER_SEEDS = range(10, 25)
MANY_SEEDS = range(100, 300)
RUNS_OF_MANY = 8
TAKE_OVER_OPERATIONS = 200
"""From the start of a process: about as many as it needs to fold the log of the one before into the file."""
ROOT = "/disk"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("library"))


def lose_power_often(run: Run, folder: Path, seeds: range) -> list[Finding]:
    return [lose_power_once(run, folder / f"left-{seed}", seed) for seed in seeds]


def find_wrong(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.lost or finding.faults]


def test_nothing_acknowledged_is_lost(library: Path, tmp_path: Path) -> None:
    run = record_run(library, tmp_path / "run", 1)
    kinds = {operation.kind for operation in run.operations}
    assert kinds == set(Kind) - {Kind.RENAME, Kind.FAILED_SYNC}
    assert run.last_mark("removed", len(run.operations)) > 0
    assert run.last_mark("settled", len(run.operations)) > 0
    assert find_wrong(lose_power_often(run, tmp_path, SEEDS)) == []


def test_nothing_acknowledged_is_lost_where_syncs_and_writes_failed_before(library: Path, tmp_path: Path) -> None:
    run = record_run(library, tmp_path / "run", 2, fault_share=0.1)
    assert any(operation.kind is Kind.FAILED_SYNC for operation in run.operations)
    assert find_wrong(lose_power_often(run, tmp_path, SEEDS)) == []


def test_nothing_is_lost_while_a_new_process_takes_over_from_one_whose_syncs_failed(
    library: Path, tmp_path: Path
) -> None:
    run = record_run(library, tmp_path / "run", 20, fault_share=0.1, lives=10)
    assert len(run.restarts) == 9
    findings = [
        lose_power_once(run, tmp_path / f"left-{restart}-{seed}", seed, slice(restart, restart + TAKE_OVER_OPERATIONS))
        for restart in run.restarts
        for seed in TAKE_OVER_SEEDS
    ]
    assert find_wrong(findings) == []


def test_what_kmd_acknowledges_is_there_after_a_power_loss(library: Path, tmp_path: Path) -> None:
    recorded = record_kmd(library, tmp_path / "run", 5)
    assert any(operation.kind is Kind.FAILED_SYNC for operation in recorded.operations)
    faults = [fault for seed in SEEDS for fault in lose_power_of_kmd(recorded, tmp_path / f"left-{seed}", seed)]
    assert faults == []


def test_with_weaker_syncs_the_same_test_finds_losses(library: Path, tmp_path: Path) -> None:
    run = record_run(library, tmp_path / "run", 3, synchronous="NORMAL")
    findings = lose_power_often(run, tmp_path, SEEDS)
    assert sum(finding.lost > 0 for finding in findings) >= len(findings) // 4


@pytest.mark.heavy
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("synchronous", "fault_share"), [("FULL", 0.0), ("FULL", 0.1), ("NORMAL", 0.0)])
def test_two_hundred_losses(library: Path, tmp_path: Path, synchronous: str, fault_share: float) -> None:
    findings = []
    for number in range(RUNS_OF_MANY):
        run = record_run(library, tmp_path / f"run-{number}", number, synchronous=synchronous, fault_share=fault_share)
        findings += lose_power_often(run, tmp_path, MANY_SEEDS[number::RUNS_OF_MANY])
    assert len(findings) == 200
    lost = sum(finding.lost > 0 for finding in findings)
    print(f"{synchronous}, faults at {fault_share:.0%} of the groups: acknowledged events lost in {lost} of 200 seeds")
    if synchronous == "FULL":
        assert find_wrong(findings) == []
    else:
        assert lost > 50


def done(kind: Kind, name: str = "", offset: int = 0, data: bytes = b"") -> Operation:
    return Operation(kind, f"{ROOT}/{name}" if name else ROOT, offset, data)


MADE = [done(Kind.CREATE, "a"), done(Kind.SYNC)]
OLD, NEW = b"o" * 2048, b"n" * 2048


def outcomes(*operations: Operation) -> set[bytes | None]:
    """What the file `a` holds after a loss, under many seeds; None where its name is gone."""
    return {lose_power(ROOT, operations, Random(seed)).get("a") for seed in range(1000)}


def test_the_simulated_disk_keeps_what_was_synced() -> None:
    assert outcomes(*MADE, done(Kind.WRITE, "a", 0, OLD), done(Kind.SYNC, "a")) == {OLD}


def test_the_simulated_disk_drops_and_reorders_sectors_that_were_not_synced() -> None:
    old = [done(Kind.WRITE, "a", 0, OLD), done(Kind.SYNC, "a")]
    left = outcomes(*MADE, *old, done(Kind.WRITE, "a", 0, NEW))
    assert {OLD, NEW, OLD[:512] + NEW[512:], NEW[:512] + OLD[512:]} <= left
    assert len(left) == 2**4


def test_the_simulated_disk_may_forget_names_from_the_last_one_on() -> None:
    assert outcomes(done(Kind.CREATE, "a"), done(Kind.SYNC, "a")) == {None, b""}
    assert outcomes(*MADE, done(Kind.UNLINK, "a")) == {None, b""}
    assert outcomes(*MADE, done(Kind.UNLINK, "a"), done(Kind.SYNC)) == {None}
    moved = [done(Kind.CREATE, "b"), done(Kind.RENAME, "b", 0, b"/disk/a"), done(Kind.SYNC)]
    assert outcomes(*moved) == {b""}


def test_on_the_simulated_disk_a_second_sync_does_not_make_good_for_one_that_failed() -> None:
    failed = [*MADE, done(Kind.WRITE, "a", 0, NEW), done(Kind.FAILED_SYNC, "a")]
    assert {b"", NEW} <= outcomes(*failed, done(Kind.SYNC, "a"))
    assert outcomes(*failed, done(Kind.WRITE, "a", 0, NEW), done(Kind.SYNC, "a")) == {NEW}

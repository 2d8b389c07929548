"""Turns: what kmd asks of Linux's scheduler for itself, and for nobody else."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kmd.scheduling import TURN_NS
from tests.support.processes import LAUNCH, WAIT_S, running_kmd


def read_turn_ns(task: Path) -> int | None:
    """The turn that the kernel gives a thread; None where it does not say."""
    try:
        found = re.search(r"^se\.slice\s*:\s*(\d+)", task.joinpath("sched").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def is_new_enough(release: str) -> bool:
    """Since Linux 6.12 a thread may have turns of its own."""
    return tuple(int(part) for part in re.findall(r"\d+", release)[:2]) >= (6, 12)


needs_turns = pytest.mark.skipif(
    read_turn_ns(Path("/proc/self")) is None or not is_new_enough(os.uname().release),
    reason="this kernel knows no turns of one's own",
)


def tell_after(preparation: str) -> list[str]:
    """Of a process that prepares itself and then asks for long turns: policy, nice, and its threads' turns."""
    program = f"""
import os, threading, time
from pathlib import Path
from kmd.scheduling import ask_for_long_turns
from tests.daemon.test_scheduling import read_turn_ns
{preparation}
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
ask_for_long_turns()
turns = sorted({{read_turn_ns(task) for task in Path("/proc/self/task").iterdir()}})
print(os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0), *turns, flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=True,
        cwd=LAUNCH.parents[2],
    )
    return done.stdout.split()


@needs_turns
def test_every_thread_gets_long_turns_and_niceness_stays() -> None:
    policy, nice, *turns = tell_after("os.nice(3)")
    assert (int(policy), int(nice)) == (os.SCHED_OTHER, os.getpriority(os.PRIO_PROCESS, 0) + 3)
    assert turns == [str(TURN_NS)]


@needs_turns
def test_a_policy_that_somebody_chose_stays() -> None:
    policy, _, *turns = tell_after("os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))")
    assert int(policy) == os.SCHED_BATCH
    assert str(TURN_NS) not in turns


@needs_turns
def test_kmd_has_long_turns_also_in_the_threads_that_it_makes_later(tmp_path: Path) -> None:
    with running_kmd(tmp_path) as kmd:
        threads = list(Path(f"/proc/{kmd.process.pid}/task").iterdir())
        assert len(threads) > 1
        assert {read_turn_ns(task) for task in threads} == {TURN_NS}

"""What the kernel holds about the server: what execve(2) keeps, and what a fork beforehand could leave behind."""

import json
import os
import sys
from pathlib import Path

from tests.transparency.client import Client, Record
from tests.transparency.stage import Stage, cases, probe_words, scenario

KERNEL_PROBE = Path(__file__).parents[1] / "kernel_probe.py"
LAUNCHERS: dict[str, str] = {
    "plain": "pass",
    "signal_blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGUSR1])",
    "all_blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "child_ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "death_signal": "libc.prctl(1, signal.SIGTERM)",
    "no_new_privileges": "libc.prctl(38, 1, 0, 0, 0)",
    "timer_slack": "libc.prctl(29, 12345, 0, 0, 0)",
    "timer_running": "signal.setitimer(signal.ITIMER_REAL, 60)",
    "pending": "signal.pthread_sigmask(signal.SIG_BLOCK, [10]); os.kill(os.getpid(), 10)",
    "batch": "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",
    "idle_disk": "libc.syscall(251, 1, 0, 3 << 13)",
    "likely_to_be_killed": "open('/proc/self/oom_score_adj', 'w').write('500')",
    "no_dumps": "open('/proc/self/coredump_filter', 'w').write('0')",
    "personality": "libc.personality(0x0040000)",
    "capabilities_dropped": "libc.prctl(24, 21, 0, 0, 0)",
    "own_name_space": "libc.unshare(0x04000000)",
    "signals_default": "signal.signal(signal.SIGINT, signal.SIG_DFL)",
}
"""Statements of a program that prepares itself and then becomes the next one, as clients and supervisors do."""
BEFORE = "import ctypes, os, signal, sys; libc = ctypes.CDLL(None); signal.signal(13, signal.SIG_DFL); "
AFTER = "; signal.signal(25, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"


def launched(statement: str, words: list[str]) -> list[str]:
    """The words that start *words* from a process that has carried out *statement*."""
    return [sys.executable, "-I", "-S", "-c", f"{BEFORE}{statement}{AFTER}", *words]


@cases(**LAUNCHERS)
def kernel_view(stage: Stage, statement: str) -> Record:
    words = stage.wrap(stage.home, [sys.executable, "-I", "-S", str(KERNEL_PROBE)])
    client = stage.start_bare(launched(statement, words))
    output = client.receive_rest()
    return {"about": json.loads(output), **client.finish()}


@scenario
def a_timer_that_the_client_set_ends_the_server(stage: Stage) -> Record:
    """alarm(2) outlives execve."""
    words = stage.wrap(stage.home, probe_words("deaf"))
    return stage.start_bare(launched("signal.setitimer(signal.ITIMER_REAL, 0.4)", words)).finish()


@scenario
def death_signal_ends_the_server_with_its_client(stage: Stage) -> Record:
    """PR_SET_PDEATHSIG outlives execve and is not for the relay."""
    words = launched("libc.prctl(1, signal.SIGTERM)", stage.wrap(stage.home, probe_words("deaf")))
    client = stage.start_bare([*probe_words("orphaned"), *words])
    client.receive_note()
    client.process.kill()
    return {"status": client.wait()}


@scenario
def repeated_names_in_the_environment(stage: Stage) -> Record:
    """execve(2) takes any list; only programs that read it themselves see the second one."""
    statement = (
        "E = type('E', (), {'__len__': lambda e: 3, '__getitem__': lambda e, name: name,"
        " 'keys': lambda e: [b'A', b'B', b'A'], 'values': lambda e: [b'1', b'2', b'3']});"
        " os.execve(sys.argv[1], sys.argv[1:], E())"
    )
    words = stage.wrap(stage.home, ["/bin/cat", "/proc/self/environ"])
    return stage.start_bare(launched(statement, words)).finish()


@scenario
def children_of_the_client(stage: Stage) -> Record:
    """The client has one child, the server; the server has none."""
    client = stage.probe("echo")
    client.send(b"x")
    client.receive(1)
    return {"client": others(children(os.getpid()), client), "server": children(client.process.pid), **client.finish()}


def children(pid: int) -> list[int]:
    """Children of all threads of *pid*, dead ones too."""
    found = (path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(word) for text in found for word in text.split()]


def others(pids: list[int], client: Client) -> list[int]:
    return [pid for pid in pids if pid != client.process.pid]

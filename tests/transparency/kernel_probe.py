"""
What the kernel says about the process that runs this, as one JSON object: `python -I -S kernel_probe.py`.

Its own file, because ctypes takes long to import. Numbers that differ between any two processes are left out.
"""
# ruff: noqa: PTH109, PTH115, PTH123, PTH208 - as in probes.py

import ctypes
import json
import os
import signal

VARYING = ("Pid", "PPid", "Tgid", "NS", "Vm", "Rss", "Huge", "SigQ", "x86_Thread", "voluntary", "nonvoluntary")
"""How lines of /proc/self/status begin that are left out: pids, sizes, counters."""
FILES = (
    "oom_score_adj", "coredump_filter", "cgroup", "loginuid", "sessionid", "timerslack_ns", "personality",
    "attr/current", "autogroup", "limits", "comm", "cmdline", "uid_map", "setgroups",
)  # fmt: skip
PRCTLS = {
    "pdeathsig": 2, "dumpable": 3, "keepcaps": 7, "timing": 13, "securebits": 27, "timerslack": 30,
    "child_subreaper": 37, "no_new_privs": 39, "thp_disable": 42,
}  # fmt: skip
"""prctl(2) questions that answer with a number, or through a pointer."""
BY_POINTER = ("pdeathsig", "child_subreaper")
STAT_FIELDS = {"tty": 7, "threads": 20, "exit_signal": 38, "rt_priority": 40, "policy": 41}
"""Of proc_pid_stat(5), counted from 1."""


def main() -> None:
    libc = ctypes.CDLL(None)
    stat = read("stat").rpartition(")")[2].split()
    about = {
        "status": [line for line in read("status").splitlines() if not line.startswith(VARYING)],
        "files": {name: read(name) for name in FILES},
        "namespaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))},
        "prctl": {name: ask(libc, name, number) for name, number in PRCTLS.items()},
        "stat": {name: stat[field - 3] for name, field in STAT_FIELDS.items()},
        "root": os.readlink("/proc/self/root"),
        "exe": os.readlink("/proc/self/exe"),
        "scheduler": os.sched_getscheduler(0),
        "ioprio": libc.syscall(252, 1, 0),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "timer": signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        "children": read(f"task/{os.getpid()}/children"),
        "groups": os.getgroups(),
        "ids": [os.getresuid(), os.getresgid()],
    }
    os.write(1, json.dumps(about).encode())


def read(name: str) -> str:
    try:
        with open(f"/proc/self/{name}", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError as exc:
        return f"cannot be read: {exc.errno}"


def ask(libc: ctypes.CDLL, name: str, number: int) -> int:
    if name not in BY_POINTER:
        return int(libc.prctl(number, 0, 0, 0, 0))
    value = ctypes.c_int(-1)
    libc.prctl(number, ctypes.byref(value), 0, 0, 0)
    return value.value


if __name__ == "__main__":
    main()

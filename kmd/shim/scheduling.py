"""
Short turns: the relay asks Linux's scheduler for turns of a tenth of a millisecond.

A thread that wakes may take the place of another one whose turn is longer. Without that a message waits, now and then,
until somebody else's turn of some milliseconds is over: kmd's, or any other program's. Linux has it since 6.12, for
everyone and without a privilege; elsewhere, and on older ones, nothing changes. Source: sched_setattr(2),
Documentation/scheduler/sched-eevdf.rst.
"""

import os
import struct

TURN_NS = 100_000
"""The shortest that Linux takes."""
CALL_NUMBERS = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
"""sched_setattr(2) by machine: many C libraries have no function for it."""
ATTRIBUTES = struct.Struct("<IIQiIQQQ")
"""struct sched_attr: size, policy, flags, nice, priority, runtime (here: the turn), deadline, period."""


def shorten_turns() -> None:
    """Ask it for every thread of this process; those that it makes later are like the one that makes them."""
    number = CALL_NUMBERS.get(os.uname().machine)
    if number is None or not hasattr(os, "sched_getscheduler"):
        return
    try:
        import ctypes  # noqa: PLC0415 - Linux only, and the pumps are running by now

        if os.sched_getscheduler(0) != os.SCHED_OTHER:
            return  # whoever chose another policy had reasons
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        attributes = ATTRIBUTES.pack(ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, TURN_NS, 0, 0)
        call = ctypes.CDLL(None).syscall
        for thread in os.listdir("/proc/self/task"):
            call(ctypes.c_long(number), ctypes.c_int(int(thread)), attributes, ctypes.c_uint(0))
    except (ImportError, OSError, AttributeError):
        return  # the traffic runs without, too

"""
Turns: how long a thread may go on before Linux's scheduler looks whether another one should.

A thread that wakes may take the place of one whose turn is longer. So kmd asks for the longest turns, and the traffic
that it watches does not wait until one of them is over. Its share of the processor stays what it is. Linux has it since
6.12, for everyone and without a privilege; elsewhere, and on older ones, nothing changes.

Source: sched_setattr(2), and the kernel's Documentation/scheduler/sched-eevdf.rst.
"""

import ctypes
import os
import struct
import sys
from pathlib import Path

TURN_NS = 100_000_000
"""The longest that Linux takes."""
CALL_NUMBERS = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
"""sched_setattr(2) by machine: many C libraries have no function for it."""
ATTRIBUTES = struct.Struct("<IIQiIQQQ")
"""struct sched_attr: size, policy, flags, nice, priority, runtime (here: the turn), deadline, period."""


def ask_for_long_turns() -> None:
    """For every thread of this process; those that it makes later are like the one that makes them."""
    if sys.platform != "linux":
        return
    number = CALL_NUMBERS.get(os.uname().machine)
    if number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return  # whoever chose another policy had reasons
    try:
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        attributes = ATTRIBUTES.pack(ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, TURN_NS, 0, 0)
        call = ctypes.CDLL(None).syscall
        for thread in Path("/proc/self/task").iterdir():
            call(ctypes.c_long(number), ctypes.c_int(int(thread.name)), attributes, ctypes.c_uint(0))
    except (OSError, AttributeError):
        return  # all works without, too

"""
Turns: how long a thread may go on before Linux's scheduler looks whether another one should.

A thread that wakes may take the place of one whose turn is longer. So the relay asks for the shortest turns, and a
message does not wait, now and then, until another program's turn of some milliseconds is over; kmd asks for long ones,
and is in nobody's way. Their share of the processor stays what it is. Linux has it since 6.12, for everyone and without
a privilege; elsewhere, and on older ones, nothing changes.

Source: sched_setattr(2), and the kernel's Documentation/scheduler/sched-eevdf.rst.
"""

import os
import struct

SHORT_NS, LONG_NS = 100_000, 100_000_000
"""The shortest and the longest that Linux takes."""
CALL_NUMBERS = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
"""sched_setattr(2) by machine: many C libraries have no function for it."""
ATTRIBUTES = struct.Struct("<IIQiIQQQ")
"""struct sched_attr: size, policy, flags, nice, priority, runtime (here: the turn), deadline, period."""


def set_turns(turn_ns: int) -> None:
    """Ask it for every thread of this process; those that it makes later are like the one that makes them."""
    if not hasattr(os, "sched_getscheduler"):
        return  # not Linux
    number = CALL_NUMBERS.get(os.uname().machine)
    if number is None:
        return
    try:
        import ctypes  # noqa: PLC0415 - Linux only, and the pumps are running by now

        if os.sched_getscheduler(0) != os.SCHED_OTHER:
            return  # whoever chose another policy had reasons
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        attributes = ATTRIBUTES.pack(ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, turn_ns, 0, 0)
        call = ctypes.CDLL(None).syscall
        for thread in os.listdir("/proc/self/task"):
            call(ctypes.c_long(number), ctypes.c_int(int(thread)), attributes, ctypes.c_uint(0))
    except (ImportError, OSError, AttributeError):
        return  # all works without, too

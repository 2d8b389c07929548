"""
The relay: stands between client and server, passes bytes on, and shows kmd a copy.

The *pump*, a thread of its own, does the passing. The main thread is the *link*: it connects to kmd, again and again if
need be, and after the last byte waits a little until kmd has everything. Nothing here can stop or delay the traffic.
"""

import _signal
import gc
import os
import sys
import time
from _thread import start_new_thread

from kmd.record import STDERR, TO_CLIENT, TO_SERVER
from kmd.shim.hello import describe, meeting_dir, new_session_id
from kmd.shim.link import Ending, Link
from kmd.shim.pump import Pump
from kmd.shim.spool import Spool
from kmd.shim.start import Plan, let_go_of_stderr
from kmd.shim.tap import Tap

SWITCH_S = 0.00002
"""How long the link may keep the interpreter while the pump waits for it; the interpreter's own 5 ms is a pause."""
KEPT_SIGNALS = frozenset(
    getattr(_signal, name)
    for name in ("SIGCHLD", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGSEGV", "SIGSYS")
)
"""
All others are ignored: the relay ends with the traffic, and with nothing else. `pkill -f` of a server's name hits its
relay, too, as both have the same words, and the server's answer to the signal must still arrive.
"""


def run(plan: Plan, server_pid: int, ends: dict[int, int], errors_fd: int, ready_fd: int) -> None:
    """
    Relay between the client's descriptors and *ends*, the other sides of the server's, until all directions have
    ended. errors_fd: the client's stderr, where it is captured or reported on, or -1; ready_fd: see start.READY.

    Raises an exception only before the first byte.
    """
    now_ns = time.time_ns()
    session_id = new_session_id(now_ns, os.urandom(10))
    hello = describe(plan.command, plan.name, server_pid, session_id, now_ns)
    try:
        meeting = meeting_dir(plan.home)
    except OSError:
        meeting = "/"  # a relative home under a folder that is gone: nothing to connect to, but the traffic runs
    let_go(keep=(0, 1, errors_fd, ready_fd, *ends.values()))
    wake_in, wake_out = os.pipe()
    os.set_blocking(wake_out, False)
    os.set_blocking(wake_in, False)
    flows = [(0, ends[0], TO_SERVER), (ends[1], 1, TO_CLIENT)]
    if 2 in ends:
        flows.append((ends[2], errors_fd, STDERR))
    ending = Ending()
    spool: Spool
    tap: Tap
    pump: Pump
    if plan.strict:
        from kmd.shim.strict import StrictPump, StrictTap, SyncedSpool  # noqa: PLC0415 - the others need not wait

        spool = synced = SyncedSpool(meeting, session_id, hello)
        tap = recorder = StrictTap(wake_out, synced)
        pump = strict = StrictPump(recorder, ending, flows, errors_fd)
        strict.get_ready(ready_fd)
    else:
        spool = Spool(meeting, session_id, hello)
        tap = Tap(wake_out, spool)
        if os.isatty(0):
            from kmd.shim.terminal import TerminalPump  # noqa: PLC0415 - no MCP client gives a terminal

            pump = TerminalPump(tap, ending, flows, server_pid)
        else:
            pump = Pump(tap, ending, flows)
    sys.setswitchinterval(SWITCH_S)
    try:
        start_new_thread(pump.run, ())
    except RuntimeError:
        pump.run()  # the user may have no more threads: the link, which has this one, comes after the traffic
    try:
        pump.load_tee()
        Link(tap, spool, ending, hello, meeting, wake_in).run()
    except Exception:  # noqa: BLE001, S110 - no fault of the capture may end the traffic
        pass
    finally:
        pump.wait()


def let_go(keep: tuple[int, ...]) -> None:
    """Hold nothing of the client's but the two pipes: not its directory, its stderr or another descriptor."""
    os.chdir("/")
    for signum in range(1, _signal.NSIG):
        if signum not in KEPT_SIGNALS:
            try:
                _signal.signal(signum, _signal.SIG_IGN)
            except (OSError, ValueError):
                pass  # not to be ignored, or the C library's own
    try:
        listed = os.listdir("/dev/fd")
    except OSError:
        listed = [str(number) for number in range(3, 256)]
    for text in listed:
        if int(text) not in keep:
            try:
                os.close(int(text))
            except OSError:
                pass  # the listing's own descriptor
    let_go_of_stderr(keep)
    gc.disable()  # nothing here makes cycles, and a collection would delay a message

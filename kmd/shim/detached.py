"""
What the detached process does before the relay runs.

Whatever fails here fails before the first byte; kmd.shim.start then has the bytes cross uncaptured.
"""

from kmd.shim.start import Channels, Plan
from kmd.shim.torn import TORN, pass_over_bytecode

F_SETPIPE_SZ, F_GETPIPE_SZ = 1031, 1032
"""Linux's fcntl(2) commands for a pipe's capacity."""


def run_detached(plan: Plan, server_pid: int, channels: Channels, errors_fd: int, ready_fd: int) -> None:
    """Relay until every direction has ended. errors_fd: the client's stderr, or -1; ready_fd: see start.READY."""
    ends = {target: relay_end for target, (_, relay_end) in channels.items()}
    for target, end in ends.items():
        match_capacity(errors_fd if target == 2 else target, end)
    try:
        from kmd.shim.relay import run  # noqa: PLC0415 - it takes longer than the server may need to look
    except TORN:
        pass_over_bytecode()
        from kmd.shim.relay import run  # noqa: PLC0415

    run(plan, server_pid, ends, errors_fd, ready_fd)


def match_capacity(theirs: int, ours: int) -> None:
    """Make the pipe behind *ours* as large as the client's *theirs*; most are of one size, and then nothing is done."""
    try:
        from fcntl import fcntl  # noqa: PLC0415 - without it a pipe is as it is

        capacity_bytes = fcntl(theirs, F_GETPIPE_SZ)
        if capacity_bytes != fcntl(ours, F_GETPIPE_SZ):
            fcntl(ours, F_SETPIPE_SZ, capacity_bytes)
    except (ImportError, OSError):
        pass  # no pipe, or not on Linux

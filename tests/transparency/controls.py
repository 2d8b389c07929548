"""
Wrappers that are wrong on purpose: `python -I -S controls.py HOW COMMAND…`.

Each is an honest-looking relay with one defect, the kind that wrappers in use have. The suite must see it.
`sound` is the same relay without the defect: what the suite says about the others is about their defect.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO

LATE_S = 0.5


def main(how: str, words: list[str]) -> int:
    errors = subprocess.STDOUT if how == "merged" else None
    server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    assert server.stdin is not None
    assert server.stdout is not None

    def forward(number: int, _: object) -> None:
        if how == "late":
            time.sleep(LATE_S)
        server.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, forward)
    passing = pass_lines if how == "lines" else pass_chunks
    threading.Thread(target=pass_input, args=(passing, server.stdin), daemon=True).start()
    back = threading.Thread(target=passing, args=(server.stdout.fileno(), 1), daemon=True)
    back.start()
    while server.poll() is None:
        time.sleep(0.002)  # not wait(): it would keep the handlers from running
    back.join(5)
    if how == "flat":
        return 1 if server.returncode else 0
    if server.returncode < 0:
        if server.returncode != -signal.SIGKILL:
            signal.signal(-server.returncode, signal.SIG_DFL)
        os.kill(os.getpid(), -server.returncode)
    return server.returncode


def pass_input(passing: Callable[[int, int], None], far: IO[bytes]) -> None:
    passing(0, far.fileno())
    far.close()


def pass_chunks(near: int, far: int) -> None:
    """Bytes as they come."""
    while chunk := os.read(near, 1 << 16):
        write_all(far, chunk)


def pass_lines(near: int, far: int) -> None:
    """As text, line by line, as a wrapper that wants to see messages does."""
    with os.fdopen(os.dup(near), "r", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            write_all(far, line.encode())


def write_all(far: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        select.select([], [far], [])
        view = view[os.write(far, view) :]


if __name__ == "__main__":
    status = main(sys.argv[1], sys.argv[2:])
    os._exit(status)

"""
A program that runs kmctl and kills it in the middle, again and again: `python -m tests.cli.clients.dying`.

It reads lines `[HOME, STEP, ARGUMENT…]` from stdin, forks for each, and answers with a line: the number of steps that
were taken, or `killed`. STEP is the step towards the disk (opening for writing, syncing, renaming, removing, changing
modes) at which SIGKILL strikes, from 0, before it is taken; a step that never comes lets kmctl end by itself.
Commands are looked up in the folder `HOME.bin`.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

EVENTS = frozenset({"os.rename", "os.remove", "os.mkdir", "os.chmod", "os.chown", "os.setxattr", "os.rmdir"})
WRITING = os.O_WRONLY | os.O_RDWR


class Steps:
    """Counts steps below one folder, and strikes at one of them."""

    def __init__(self, home: str, fatal: int) -> None:
        self.home = home
        self.fatal = fatal
        self.taken = 0

    def step(self) -> None:
        """One more."""
        if self.taken == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        self.taken += 1

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """An audit hook: steps that the interpreter announces."""
        opened = event == "open" and isinstance(args[2], int) and args[2] & WRITING
        changed = event in EVENTS and isinstance(args[0], int)
        if changed or ((opened or event in EVENTS) and self.is_ours(args[0])):
            self.step()

    def is_ours(self, path: object) -> bool:
        """Whether a path is below the folder."""
        return isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(self.home)

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """*function*, with a step before it: for calls that the interpreter does not announce."""

        @wraps(function)
        def stepped(*args: object, **kwargs: object) -> object:
            self.step()
            return function(*args, **kwargs)

        return stepped


def run_dying(home: str, fatal: int, arguments: list[str]) -> int:
    """In a child: run kmctl under the hooks; returns the number of steps taken."""
    from kmctl.cli import run

    steps = Steps(home, fatal)
    os.environ["HOME"] = home
    os.environ["PATH"] = f"{home}.bin"
    os.chdir(f"{home}/shop")
    os.fsync = steps.before(os.fsync)
    sys.addaudithook(steps.hear)
    code = run(arguments)
    if code != 0:
        raise SystemExit(f"kmctl ended with {code}")
    return steps.taken


def serve() -> None:
    """Answer each line of stdin."""
    import kmctl.install
    import kmctl.uninstall  # noqa: F401 - loaded once, for all children

    for line in sys.stdin:
        home, fatal, *arguments = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            taken = run_dying(home, fatal, arguments)
            os.write(writer, str(taken).encode())
            os._exit(0)
        os.close(writer)
        taken_text = os.read(reader, 64).decode()
        os.close(reader)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print("killed" if killed else taken_text or f"failed: {status}", flush=True)


if __name__ == "__main__":
    serve()

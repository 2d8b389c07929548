"""
One process, or several that share the listening socket.

The parent binds the socket, forks the workers, starts one anew that dies, and hands on the signal to end. It runs
no event loop and no thread of its own, so forking is safe; what must be shared (the socket, the rates, the folder
of the metrics) is made before. A worker whose parent is gone ends too.
"""

import asyncio
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from km_server.config import ServerConfig
from km_server.errors import ServerError

RESTART_S = 1.0
"""Between two starts of a worker that dies at once, so that a fault does not eat the machine."""

START_FAILED = 3
"""A worker's exit status when it never served: starting another would fail in the same way."""

log = structlog.get_logger("km_server")


def run(config: ServerConfig, announce: Callable[[str], None]) -> None:
    """Serve until told to end; `announce` gets the URL once requests are taken. Raises ServerError."""
    if config.workers == 1:
        from km_server import app  # noqa: PLC0415 - prometheus-client looks at the environment when it is imported

        listening = app.bind(config)
        url = app.describe_url(config, listening)
        with listening:
            asyncio.run(app.serve(config, listening, lambda: announce(url), app.Rates.of(config)))
        return
    if not hasattr(os, "fork"):
        raise ServerError("this system cannot run several workers", hint="leave --workers at 1, or run more servers")
    folder = tempfile.mkdtemp(prefix="km-server-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    try:
        supervise(config, announce)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def supervise(config: ServerConfig, announce: Callable[[str], None]) -> None:
    """The parent of several workers. Raises ServerError: a worker could not start."""
    from km_server import app  # noqa: PLC0415 - see run

    listening = app.bind(config)
    with listening:
        url = app.describe_url(config, listening)
        rates = app.Rates.of(config)

        def work(ready: Callable[[], None]) -> None:
            asyncio.run(app.serve(config, listening, ready, rates))

        Crew(config.workers, work).run(lambda: announce(url))


@dataclass(slots=True)
class Crew:
    """The workers. `work` serves in a child and calls its argument once requests are taken."""

    size: int
    work: Callable[[Callable[[], None]], None]
    started_at: dict[int, float] = field(default_factory=dict)
    ending: bool = False

    def run(self, announce: Callable[[], None]) -> None:
        """Start all, keep them running, end them on SIGTERM or SIGINT. Raises ServerError."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        heard, told = os.pipe()
        os.set_blocking(told, False)
        alive, kept = os.pipe()  # its end tells the workers that the parent is gone
        for _ in range(self.size):
            self._start(told, alive, kept)
        try:
            self._await_ready(heard)
            announce()
            while self.started_at:
                self._reap(told, alive, kept)
        finally:
            self._end()
            while self.started_at:
                self._reap(told, alive, kept)
            for end in (heard, told, alive, kept):
                os.close(end)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)  # one that comes now must not spoil the exit status

    def _start(self, told: int, alive: int, kept: int) -> None:
        pid = os.fork()
        if pid:
            self.started_at[pid] = time.monotonic()
            if self.ending:  # the signal came between the fork and this line
                os.kill(pid, signal.SIGTERM)
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.close(kept)
        status = START_FAILED
        try:
            self.work(lambda: tell_ready(told, alive))
            status = 0
        except ServerError as exc:
            log.error("worker_failed", reason=str(exc), hint=exc.hint)  # noqa: TRY400 - the place says nothing here
        except Exception as exc:  # noqa: BLE001 - the child must not return into the parent's code
            log.error("worker_failed", error=type(exc).__name__)  # noqa: TRY400 - a trace might quote a request
        finally:
            os._exit(status)

    def _await_ready(self, heard: int) -> None:
        """Wait until every worker has said so. Raises ServerError: one ended before."""
        missing = self.size
        while missing:
            readable, _, _ = select.select([heard], [], [], 0.2)
            if readable:
                missing -= len(os.read(heard, missing))
            elif self.ending:
                return
            else:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid:
                    self.started_at.pop(pid, None)
                    raise ServerError(
                        f"a worker could not start (status {os.waitstatus_to_exitcode(status)})",
                        hint="its log above says why",
                    )

    def _reap(self, told: int, alive: int, kept: int) -> None:
        """Wait for the end of a worker, and start another unless this is the end of all."""
        pid, status = os.waitpid(-1, 0)
        began = self.started_at.pop(pid, None)
        forget_metrics(pid)
        if self.ending or began is None:
            return
        log.warning("worker_ended", pid=pid, status=os.waitstatus_to_exitcode(status))
        time.sleep(max(0.0, RESTART_S - (time.monotonic() - began)))
        if not self.ending:
            self._start(told, alive, kept)

    def _end(self, *_: object) -> None:
        self.ending = True
        for pid in list(self.started_at):
            os.kill(pid, signal.SIGTERM)


def tell_ready(told: int, alive: int) -> None:
    """In a worker: say that requests are taken, and from now on notice the parent's end."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        loop.remove_reader(alive)
        os.kill(os.getpid(), signal.SIGTERM)

    loop.add_reader(alive, end)
    with suppress(BlockingIOError):  # of workers that were started anew nobody counts any more
        os.write(told, b".")


def forget_metrics(pid: int) -> None:
    """The gauges of a worker that is gone count no more."""
    from prometheus_client import multiprocess  # noqa: PLC0415 - see run

    multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]

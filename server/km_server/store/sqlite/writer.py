"""
One thread, one writing connection, group commit.

Whatever waits is done as one transaction, so one sync to disk serves many requests; a request is answered when
the commit has returned. The queue is bounded: when it is full the store is busy, and the sender comes again.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import structlog

from km_server.errors import StoreBusy, StoreError
from km_server.store.sqlite.connection import transaction
from km_server.store.sqlite.driver import is_locked, sqlite3, translate
from km_server.store.sqlite.insert import SeriesIds, Transaction

T = TypeVar("T")

QUEUE_MAX_JOBS = 64
"""Requests that may wait: at some 30 batches a second and more, about two seconds of work."""

GROUP_MAX_WEIGHT = 4_000
"""Events in one transaction; beyond this the sync is paid for and the others only wait longer."""

QUEUE_RETRY_S = 1

log = structlog.get_logger("km_server.store")


@dataclass(slots=True)
class Job(Generic[T]):
    """Work for the writing thread, and where its result goes. `weight` is about its number of events."""

    work: Callable[[Transaction], T]
    weight: int
    future: "Future[T]" = field(default_factory=Future)

    def run(self, transaction: Transaction) -> Callable[[], None]:
        """Do the work. Returns what is to be called once it is committed."""
        result = self.work(transaction)
        return lambda: self.future.set_result(result)


AnyJob = Job[object]


class Writer:
    """The writing thread. `submit` is for the event loop; everything else runs in the thread."""

    def __init__(self, open_connection: Callable[[], sqlite3.Connection]) -> None:
        self._open = open_connection
        self._connection: sqlite3.Connection | None = open_connection()
        self._series: SeriesIds = {}
        self._inbox: queue.Queue[AnyJob | None] = queue.Queue(QUEUE_MAX_JOBS)
        self._thread = threading.Thread(target=self._write_groups, name="km-server-writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many requests wait for the writing thread."""
        return self._inbox.qsize()

    async def submit(self, work: Callable[[Transaction], T], weight: int = 1) -> T:
        """Run *work* in the next transaction; returns its result after the commit. Raises StoreBusy."""
        job = Job(work, weight)
        try:
            self._inbox.put_nowait(job)  # type: ignore[arg-type]
        except queue.Full:
            raise StoreBusy("too many requests wait for the store", retry_after_s=QUEUE_RETRY_S) from None
        return await asyncio.wrap_future(job.future)

    async def aclose(self) -> None:
        """Finish what waits, then close the connection."""
        await asyncio.to_thread(self._inbox.put, None)
        await asyncio.to_thread(self._thread.join)

    def _write_groups(self) -> None:
        """The thread: commit group after group until it is told to end."""
        ended = False
        while not ended:
            group, ended = self._next_group()
            self._commit([job for job in group if job.future.set_running_or_notify_cancel()])
        self._drop_connection()

    def _next_group(self) -> tuple[list[AnyJob], bool]:
        """Wait for a job and take those behind it. The flag says that there will be no more."""
        group: list[AnyJob] = []
        weight = 0
        job = self._inbox.get()
        while job is not None:
            group.append(job)
            weight += job.weight
            if weight >= GROUP_MAX_WEIGHT:
                return group, False
            try:
                job = self._inbox.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _commit(self, group: list[AnyJob]) -> None:
        """Do *group* as one transaction. A job that breaks it must not take the others along: each goes alone."""
        if not group:
            return
        try:
            releases = self._run(group)
        except Exception as exc:  # noqa: BLE001 - whatever it is, its sender must hear of it
            if isinstance(exc, StoreError) or len(group) == 1:
                for job in group:
                    job.future.set_exception(exc)
            else:
                for job in group:
                    self._commit([job])
            return
        for release in releases:
            release()

    def _run(self, group: list[AnyJob]) -> list[Callable[[], None]]:
        """Run and commit. Raises StoreError: the database failed, nothing of it is stored."""
        try:
            if self._connection is None:
                self._connection = self._open()
            with transaction(self._connection):
                open_transaction = Transaction(self._connection, self._series)
                releases = [job.run(open_transaction) for job in group]
                open_transaction.count()
        except BaseException as exc:
            self._series.clear()  # some of them may have been rolled back
            if not isinstance(exc, sqlite3.DatabaseError):
                raise
            if isinstance(exc, sqlite3.IntegrityError | sqlite3.DataError | sqlite3.ProgrammingError):
                raise  # a fault of one job's statements, not of the database
            error = translate(exc)
            log.warning("store_refused", reason=str(error))
            if not is_locked(exc):
                self._drop_connection()  # after a failed sync its cache may not be what is on disk
            raise error from exc
        return releases

    def _drop_connection(self) -> None:
        """Close; the next group opens anew."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

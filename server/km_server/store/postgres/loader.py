"""
Micro-batches: whatever waits for one tenant is loaded as one transaction.

A few tasks take from one bounded queue. While PostgreSQL works for one of them another prepares its rows; what comes
in meanwhile waits together, so the busier the server, the larger the transactions. There is no artificial delay.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from km_server.errors import StoreBusy, StoreError
from km_server.store.judge import Offer
from km_server.store.postgres.driver import persist
from km_server.store.postgres.load import SERIES_KEPT, Load, Parcel, SeriesIds, prepare
from kmd.wire import Verdict

WRITERS = 2
"""While PostgreSQL works for one, the other gets the next rows there. More would only wait for each other."""

MORE_FROM_EVENTS = 300
"""Waiting events for which the second writer begins while the first one is busy; fewer are not worth a transaction."""

QUEUE_MAX_JOBS = 256
"""Requests that may wait."""

GROUP_MAX_EVENTS = 2_000
"""Events in one transaction; beyond this the commit is paid for, and while PostgreSQL works for all senders at once
nobody prepares anything."""

QUEUE_RETRY_S = 1

log = structlog.get_logger("km_server.store")
MakeOffer = Callable[[], Offer]


@dataclass(slots=True)
class Job:
    """A batch that waits. Each attempt to load it judges it anew: one that failed leaves verdicts behind."""

    tenant_id: int
    make: MakeOffer
    parcel: Parcel
    weight: int
    future: "asyncio.Future[list[Verdict]]"


class Loader:
    """The queue and the tasks that empty it. `on_commit` is called after each transaction."""

    def __init__(self, pool: Any, on_commit: Callable[[], None]) -> None:
        self._pool = pool
        self._on_commit = on_commit
        self._jobs: deque[Job] = deque()
        self._wake = asyncio.Semaphore(0)
        self._series: SeriesIds = {}
        self._weight = 0
        self._busy = 0
        self._closing = False
        self._tasks = [asyncio.create_task(self._work()) for _ in range(WRITERS)]

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._jobs)

    async def submit(self, tenant_id: int, make: MakeOffer, weight: int) -> list[Verdict]:
        """Load a batch; returns its verdicts after the commit. Raises StoreError."""
        if len(self._jobs) >= QUEUE_MAX_JOBS:
            raise StoreBusy("too many requests wait for the store", retry_after_s=QUEUE_RETRY_S)
        parcel = await asyncio.to_thread(lambda: prepare(make()))
        job = Job(tenant_id, make, parcel, weight, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._weight += weight
        self._wake.release()
        return await job.future

    async def aclose(self) -> None:
        """Load what waits, then end."""
        self._closing = True
        for _ in self._tasks:
            self._wake.release()
        await asyncio.gather(*self._tasks)

    async def _work(self) -> None:
        """One task: group after group until all is done and it is told to end."""
        while not (self._closing and not self._jobs):
            await self._wake.acquire()
            while group := self._next_group():
                self._busy += 1
                await self._load(group)
                self._busy -= 1

    def _next_group(self) -> list[Job]:
        """
        The oldest job and, of those behind it, what is of the same tenant; nothing if who is busy can take it next.
        """
        if self._busy and self._weight < MORE_FROM_EVENTS:
            return []
        group: list[Job] = []
        others: deque[Job] = deque()
        weight = 0
        while self._jobs and weight < GROUP_MAX_EVENTS:
            job = self._jobs.popleft()
            if group and job.tenant_id != group[0].tenant_id:
                others.append(job)
                continue
            self._weight -= job.weight
            if not job.future.done():  # nobody waits for it any more
                group.append(job)
                weight += job.weight
        self._jobs.extendleft(reversed(others))
        return group

    async def _load(self, group: list[Job]) -> None:
        """Load *group* as one transaction. A job that breaks it must not take the others along: each goes alone."""
        try:
            offers = await self._run(group)
        except Exception as exc:  # noqa: BLE001 - whatever it is, its sender must hear of it
            if isinstance(exc, StoreError) or len(group) == 1:
                if isinstance(exc, StoreError):
                    log.warning("store_refused", reason=str(exc))
                for job in group:
                    if not job.future.done():
                        job.future.set_exception(exc)
            else:
                for job in group:
                    await self._load([job])
            return
        for job, offer in zip(group, offers, strict=True):
            if not job.future.done():
                job.future.set_result(offer.settled())
        self._on_commit()

    async def _run(self, group: Sequence[Job]) -> Sequence[Offer]:
        """One transaction, tried again when it met another one."""

        attempts = 0

        async def attempt() -> Sequence[Offer]:
            nonlocal attempts
            attempts += 1
            if attempts > 1:
                for job in group:
                    job.parcel.offer = job.make()
            load = Load(self._pool, group[0].tenant_id, [job.parcel for job in group], self._series)
            await load.run()
            if len(self._series) > SERIES_KEPT:
                self._series.clear()
            self._series.update(load.made)  # only now are they sure to stay
            return [job.parcel.offer for job in group]

        return await persist(attempt)

"""
The store that puts askings to an engine: one class for both databases.

An *engine* knows how to run an asking in a transaction, how to take events in, and how to keep itself. Everything
that can be said in SQL for both is in the askings, and is the same by construction.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from km_server.errors import StoreError
from km_server.store import feed, figures, keys, removal, senders, sessions
from km_server.store.asking import Asking
from km_server.store.fate import cutoff_ns
from km_server.store.protocol import TenantStore
from km_server.store.removal import Step
from km_server.store.values import (
    EVERYTHING,
    ActivityPage,
    ActivityQuery,
    ApiKey,
    Arrival,
    Filter,
    Maintained,
    News,
    Order,
    Position,
    Progress,
    Removed,
    Scope,
    Sender,
    SessionPage,
    SessionQuery,
    Stats,
    StatsQuery,
    StoredEvent,
    StoredSession,
    StoreFacts,
    Tenant,
)
from kmd.wire import Session, Verdict

T = TypeVar("T")
Ask = Callable[[], Asking[T]]
"""Begins an asking anew: a transaction may have to be run again."""

USE_NOTED_EVERY_NS = 60 * 10**9
"""A key's last use is written once a minute at most, not with every request."""

EXPORT_STEP = 500
"""Events in a portion of an export; its payloads are bounded by feed.PAGE_PAYLOAD_BYTES."""


class Engine(Protocol):
    """What differs between the databases. Every method may raise StoreBusy."""

    async def ask(self, tenant_id: int | None, ask: Ask[T]) -> T:
        """Run an asking on one snapshot that sees the rows of this tenant (None: no tenant's)."""

    async def change(self, tenant_id: int | None, ask: Ask[T]) -> T:
        """Run an asking as one transaction, alone with the tenant's data, and commit."""

    async def ingest(self, tenant: Tenant, sessions: Sequence[Session], arrivals: Sequence[Arrival]) -> list[Verdict]:
        """See TenantStore.ingest."""

    async def newest_id(self) -> int:
        """Every event with an id up to this one is committed, or never will be."""

    async def wait_news(self, timeout_s: float) -> None:
        """See TenantStore.wait_news."""

    async def check(self) -> None:
        """See Store.check."""

    async def facts(self) -> StoreFacts:
        """See Store.facts."""

    async def upkeep(self, tenants: Sequence[Tenant], now_ns: int) -> Maintained | None:
        """What the database itself needs. None: another process is at it."""


class AskedTenantStore:
    """One tenant's part."""

    def __init__(self, engine: Engine, tenant: Tenant) -> None:
        self._engine = engine
        self._tenant = tenant
        self._id = tenant.id

    @property
    def tenant(self) -> Tenant:
        return self._tenant

    async def ingest(self, sessions: Sequence[Session], arrivals: Sequence[Arrival]) -> list[Verdict]:
        return await self._engine.ingest(self._tenant, sessions, arrivals)

    async def read_refusals(self) -> Mapping[str, int]:
        return await self._engine.ask(self._id, lambda: removal.read_refusals(self._id))

    async def note_sender(self, name: str, lost_events: int) -> None:
        now_ns = time.time_ns()
        await self._engine.change(self._id, lambda: senders.note_sender(self._id, name, lost_events, now_ns))

    async def list_senders(self) -> Sequence[Sender]:
        return await self._engine.ask(self._id, lambda: senders.list_senders(self._id))

    async def read_activity(self, query: ActivityQuery) -> ActivityPage:
        return await self._engine.ask(self._id, lambda: feed.read_activity(self._id, query))

    async def find_event(self, event_id: int) -> StoredEvent | None:
        return await self._engine.ask(self._id, lambda: feed.find_event(self._id, event_id))

    async def export(
        self, where: Filter = EVERYTHING, *, payloads: bool = True, limit: int | None = None
    ) -> AsyncIterator[Sequence[StoredEvent]]:
        after: Position | None = None
        while limit is None or limit > 0:
            step = EXPORT_STEP if limit is None else min(EXPORT_STEP, limit)
            page = await self.read_activity(ActivityQuery(step, after, payloads, where, Order.OLDEST_FIRST))
            if page.events:
                yield page.events
            if page.next is None:
                return
            after = page.next
            limit = None if limit is None else limit - len(page.events)

    async def read_stats(self, query: StatsQuery) -> Stats:
        return await self._engine.ask(self._id, lambda: figures.read_stats(self._id, query))

    async def list_sessions(self, query: SessionQuery) -> SessionPage:
        return await self._engine.ask(self._id, lambda: sessions.list_sessions(self._id, query))

    async def find_session(self, session: str) -> StoredSession | None:
        return await self._engine.ask(self._id, lambda: sessions.find_session(self._id, session))

    async def delete_session(self, session: str) -> Removed:
        return await self._remove(lambda: removal.remove_session(self._id, session))

    async def delete_span(self, from_ns: int | None, to_ns: int | None) -> Removed:
        end_ns = removal.TIME_MAX_NS if to_ns is None else to_ns
        return await self._remove(lambda: removal.remove_span(self._id, from_ns or 0, end_ns))

    async def _remove(self, ask: Ask[Step]) -> Removed:
        """Step after step, each a transaction."""
        events = gone = 0
        while True:
            step = await self._engine.change(self._id, ask)
            events, gone = events + step.events, gone + step.sessions
            if step.is_last:
                return Removed(events, gone)

    async def read_news(self, mark: int | None, where: Filter = EVERYTHING, limit: int = 500) -> News:
        until = await self._engine.newest_id()
        if mark is None:
            return News((), until)
        return await self._engine.ask(self._id, lambda: feed.read_news(self._id, mark, until, where, limit))

    async def wait_news(self, timeout_s: float) -> None:
        await self._engine.wait_news(timeout_s)

    async def rebuild_rollups(self) -> AsyncIterator[Progress]:
        total = await self._engine.ask(self._id, lambda: removal.count_events(self._id))
        day = done = 0
        while True:
            rebuilt = await self._engine.change(self._id, lambda from_day=day: removal.rebuild_next(self._id, from_day))  # type: ignore[misc]
            if rebuilt is None:
                return
            day, done = rebuilt[0] + 1, done + rebuilt[1]
            yield Progress(done, max(total, done))

    async def expire(self, now_ns: int) -> int:
        """Remove what the tenant does not keep. Returns how many events went."""
        if self._tenant.retention_days is None:
            return 0
        cutoff = cutoff_ns(self._tenant.retention_days, now_ns)
        return (await self._remove(lambda: removal.expire(self._id, cutoff))).events


class AskedStore:
    """The whole store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._use_noted: dict[int, int] = {}
        self._notes: set[asyncio.Task[None]] = set()

    def bind(self, tenant: Tenant) -> TenantStore:
        return AskedTenantStore(self._engine, tenant)

    async def check(self) -> None:
        await self._engine.check()

    async def facts(self) -> StoreFacts:
        return await self._engine.facts()

    async def maintain(self) -> Maintained:
        now_ns = time.time_ns()
        tenants = await self.list_tenants()
        done = await self._engine.upkeep(tenants, now_ns)
        if done is None:
            return Maintained()
        expired = done.events_expired
        for tenant in tenants:
            expired += await AskedTenantStore(self._engine, tenant).expire(now_ns)
        return Maintained(done.partitions_made, done.partitions_dropped, done.events_refiled, expired)

    async def create_key(
        self, tenant: str, digest: bytes, scopes: frozenset[Scope], expires_at_ns: int | None = None
    ) -> ApiKey:
        now_ns = time.time_ns()
        return await self._engine.change(None, lambda: keys.create_key(tenant, digest, scopes, expires_at_ns, now_ns))

    async def list_keys(self) -> Sequence[ApiKey]:
        return await self._engine.ask(None, keys.list_keys)

    async def revoke_key(self, key_id: int) -> bool:
        now_ns = time.time_ns()
        return await self._engine.change(None, lambda: keys.revoke_key(key_id, now_ns))

    async def rotate_key(self, key_id: int, digest: bytes, overlap_s: int) -> ApiKey | None:
        now_ns = time.time_ns()
        return await self._engine.change(None, lambda: keys.rotate_key(key_id, digest, overlap_s, now_ns))

    async def find_key(self, digest: bytes) -> ApiKey | None:
        now_ns = time.time_ns()
        key = await self._engine.ask(None, lambda: keys.find_key(digest, now_ns))
        if key is not None:
            self._note_use(key.id, now_ns)
        return key

    async def list_tenants(self) -> Sequence[Tenant]:
        return await self._engine.ask(None, keys.list_tenants)

    async def set_tenant(self, name: str, usd_per_kb: float, retention_days: int | None) -> Tenant | None:
        return await self._engine.change(None, lambda: keys.set_tenant(name, usd_per_kb, retention_days))

    def _note_use(self, key_id: int, now_ns: int) -> None:
        """Have the use written soon, unless that was done a moment ago. The request does not wait for it."""
        if now_ns - self._use_noted.get(key_id, 0) < USE_NOTED_EVERY_NS:
            return
        self._use_noted[key_id] = now_ns
        task = asyncio.create_task(self._write_use(key_id, now_ns))
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def _write_use(self, key_id: int, now_ns: int) -> None:
        """A busy store may skip the note: the next minute brings another."""
        try:
            await self._engine.change(None, lambda: keys.note_use(key_id, now_ns))
        except StoreError:
            self._use_noted.pop(key_id, None)

    async def settle(self) -> None:
        """Wait for the notes that are on their way."""
        await asyncio.gather(*self._notes)

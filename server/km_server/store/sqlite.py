"""
The embedded store: one SQLite file. One thread writes, a few read; here the two are put together.

`km-server keys` may open the same file beside a running server: WAL allows it, and every request looks its
key up, so a new key and a revoked one take effect at once.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from km_server.errors import StoreError
from km_server.store import insert, keys, read
from km_server.store.connection import open_reader, open_writer, parse_database_url
from km_server.store.driver import sqlite3
from km_server.store.insert import Transaction
from km_server.store.protocol import (
    ActivityPage,
    ActivityQuery,
    ApiKey,
    Arrival,
    Scope,
    Span,
    Stats,
    Store,
    Tenant,
    TenantStore,
)
from km_server.store.readers import Readers
from km_server.store.writer import Writer
from kmd.wire import Session, Verdict

USE_NOTED_EVERY_NS = 60 * 10**9
"""A key's last use is written once a minute at most, not with every request."""


class SqliteTenantStore:
    """One tenant's part of the file."""

    def __init__(self, tenant: Tenant, writer: Writer, readers: Readers) -> None:
        self._tenant = tenant
        self._writer = writer
        self._readers = readers

    @property
    def tenant(self) -> Tenant:
        return self._tenant

    async def ingest(self, sessions: Sequence[Session], arrivals: Sequence[Arrival]) -> list[Verdict]:
        def work(transaction: Transaction) -> list[Verdict]:
            return insert.ingest(transaction, self._tenant.id, sessions, arrivals)

        return await self._writer.submit(work, weight=len(sessions) + len(arrivals))

    async def read_activity(self, query: ActivityQuery) -> ActivityPage:
        return await self._readers.ask(lambda db: read.read_activity(db, self._tenant.id, query))

    async def read_stats(self, span: Span) -> Stats:
        return await self._readers.ask(lambda db: read.read_stats(db, self._tenant.id, span))


class SqliteStore:
    """The file as a whole."""

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers
        self._use_noted: dict[int, int] = {}
        self._notes: set[asyncio.Task[None]] = set()

    def bind(self, tenant: Tenant) -> TenantStore:
        return SqliteTenantStore(tenant, self._writer, self._readers)

    async def check(self) -> None:
        await self._readers.ask(lambda db: db.execute("SELECT 1 FROM tenants LIMIT 1").fetchone())
        await self._writer.submit(lambda transaction: None)

    async def create_key(self, tenant: str, digest: bytes, scopes: frozenset[Scope]) -> ApiKey:
        now_ns = time.time_ns()
        return await self._writer.submit(
            lambda transaction: keys.create_key(transaction.connection, tenant, digest, scopes, now_ns)
        )

    async def list_keys(self) -> Sequence[ApiKey]:
        return await self._readers.ask(keys.list_keys)

    async def revoke_key(self, key_id: int) -> bool:
        now_ns = time.time_ns()
        return await self._writer.submit(lambda transaction: keys.revoke_key(transaction.connection, key_id, now_ns))

    async def find_key(self, digest: bytes) -> ApiKey | None:
        key = await self._readers.ask(lambda db: keys.find_key(db, digest))
        if key is not None:
            self._note_use(key.id, time.time_ns())
        return key

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
            await self._writer.submit(lambda transaction: keys.note_use(transaction.connection, key_id, now_ns))
        except StoreError:
            self._use_noted.pop(key_id, None)

    async def settle(self) -> None:
        """Wait for the notes that are on their way."""
        await asyncio.gather(*self._notes)


@asynccontextmanager
async def open_store(database_url: str) -> AsyncIterator[Store]:
    """Open the file that *database_url* names, made when it is not there. Raises StoreError."""
    path = parse_database_url(database_url)
    writer = await asyncio.to_thread(Writer, partial(open_writer, path))
    try:
        readers = await asyncio.to_thread(Readers, partial(open_reader, path))
        try:
            store = SqliteStore(writer, readers)
            yield store
            await store.settle()
        finally:
            await readers.aclose()
    finally:
        await writer.aclose()


def linked_version() -> str:
    """The version of the SQLite that does the work."""
    return sqlite3.sqlite_version

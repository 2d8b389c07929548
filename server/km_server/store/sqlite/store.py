"""
The embedded engine: one SQLite file. One thread writes, a few read; here the two are put together.

`km-server keys` may open the same file beside a running server: WAL allows it, and every request looks its
key up, so a new key and a revoked one take effect at once.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from km_server.store.asked import Ask, AskedStore
from km_server.store.bell import Bell
from km_server.store.fate import clock_at
from km_server.store.protocol import Store
from km_server.store.sqlite import insert
from km_server.store.sqlite.connection import open_reader, open_writer, parse_database_url, read_pragma
from km_server.store.sqlite.driver import sqlite3
from km_server.store.sqlite.insert import Transaction
from km_server.store.sqlite.readers import Readers
from km_server.store.sqlite.writer import Writer
from km_server.store.values import Arrival, Maintained, StoreFacts, Tenant
from kmd.wire import Session, Verdict

T = TypeVar("T")

NEWS_POLLED_S = 1.0
"""Another process may write too (rarely): a follower looks this often without being told."""


class SqliteEngine:
    """One file. That a question names its tenant is up to the askings: each takes one (see TenantStore)."""

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers
        self._bell = Bell(NEWS_POLLED_S)

    async def ask(self, tenant_id: int | None, ask: Ask[T]) -> T:
        return await self._readers.ask(lambda db: insert.answer(db, ask()))

    async def change(self, tenant_id: int | None, ask: Ask[T]) -> T:
        def work(transaction: Transaction) -> T:
            transaction.count()
            return transaction.run(ask())

        return await self._writer.submit(work)

    async def ingest(self, tenant: Tenant, sessions: Sequence[Session], arrivals: Sequence[Arrival]) -> list[Verdict]:
        clock = clock_at(tenant.retention_days, time.time_ns())

        def work(transaction: Transaction) -> list[Verdict]:
            return insert.ingest(transaction, tenant, clock, sessions, arrivals)

        verdicts = await self._writer.submit(work, weight=len(sessions) + len(arrivals))
        self._bell.ring()
        return verdicts

    async def newest_id(self) -> int:
        return await self._readers.ask(insert.read_newest_id)

    async def wait_news(self, timeout_s: float) -> None:
        await self._bell.wait(timeout_s)

    async def check(self) -> None:
        await self._readers.ask(lambda db: db.execute("SELECT 1 FROM tenants LIMIT 1").fetchone())
        await self._writer.submit(lambda transaction: None)

    async def facts(self) -> StoreFacts:
        schema = await self._readers.ask(lambda db: read_pragma(db, "user_version"))
        return StoreFacts("sqlite", sqlite3.sqlite_version, schema, waiting=self._writer.waiting)

    async def upkeep(self, tenants: Sequence[Tenant], now_ns: int) -> Maintained | None:
        return Maintained()


@asynccontextmanager
async def open_sqlite(database_url: str) -> AsyncIterator[Store]:
    """Open the file that *database_url* names, made when it is not there. Raises StoreError."""
    path = parse_database_url(database_url)
    writer = await asyncio.to_thread(Writer, partial(open_writer, path))
    try:
        readers = await asyncio.to_thread(Readers, partial(open_reader, path))
        try:
            store = AskedStore(SqliteEngine(writer, readers))
            yield store
            await store.settle()
        finally:
            await readers.aclose()
    finally:
        await writer.aclose()

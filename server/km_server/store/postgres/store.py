"""
The engine for many servers: PostgreSQL. A pool, a loader, and upkeep; here they are put together.

Questions run in read-only transactions on one snapshot; each names its tenant, and row-level security shows that
tenant's rows only. A superuser or a role with BYPASSRLS is not bound by it: that is said in the facts.
"""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from km_server.store.asked import Ask, AskedStore
from km_server.store.bell import Bell
from km_server.store.counting import CREATE_FRESH
from km_server.store.fate import clock_at
from km_server.store.judge import make_offer
from km_server.store.postgres import partitions
from km_server.store.postgres.driver import UPKEEP_MS, Terms, answer, open_pool, persist, transaction
from km_server.store.postgres.load import BLOCK, NEWS_CLASS
from km_server.store.postgres.loader import Loader
from km_server.store.postgres.migrate import LOCK_CLASS, migrate, read_scripts, read_version
from km_server.store.protocol import Store
from km_server.store.values import Arrival, Maintained, StoreFacts, Tenant
from kmd.wire import Session, Verdict

T = TypeVar("T")

SNAPSHOT = "ISOLATION LEVEL REPEATABLE READ READ ONLY"
NEWS_POLLED_S = 0.5
"""Other servers write too: a follower looks this often without being told."""

UNBOUND = "its role is not bound by row-level security"
MISFILED = "events are in the default partition: is upkeep failing?"


class PostgresEngine:
    """One database, perhaps shared with other servers."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._bell = Bell(NEWS_POLLED_S)
        self._loader = Loader(pool, self._bell.ring)

    async def ask(self, tenant_id: int | None, ask: Ask[T]) -> T:
        async def attempt() -> T:
            async with transaction(self._pool, Terms(SNAPSHOT, tenant_id)) as connection:
                return await answer(connection, ask())

        return await persist(attempt)

    async def change(self, tenant_id: int | None, ask: Ask[T]) -> T:
        """The tenant's lock: no events come in, so what is counted here and what is counted there never cross."""
        lock = "" if tenant_id is None else f" SELECT pg_advisory_xact_lock({LOCK_CLASS}, {int(tenant_id)});"
        quiet = "SELECT set_config('client_min_messages', 'warning', true)"
        more = f"{lock} {quiet}; {CREATE_FRESH} ON COMMIT DELETE ROWS;"

        async def attempt() -> T:
            terms = Terms(tenant_id=tenant_id, statement_ms=UPKEEP_MS, more=more)
            async with transaction(self._pool, terms) as connection:
                return await answer(connection, ask())

        return await persist(attempt)

    async def ingest(self, tenant: Tenant, sessions: Sequence[Session], arrivals: Sequence[Arrival]) -> list[Verdict]:
        clock = clock_at(tenant.retention_days, time.time_ns())
        weight = len(sessions) + len(arrivals)
        return await self._loader.submit(tenant.id, lambda: make_offer(sessions, arrivals, clock), weight)

    async def newest_id(self) -> int:
        """
        Ids are taken in blocks, and a transaction with lower ones may commit later. Each holds a lock on the last block
        that was taken when it began: below the lowest of them nothing can come any more.
        """

        async def attempt() -> int:
            async with transaction(self._pool, Terms()) as connection:
                last = await connection.fetchval("SELECT last_value FROM event_blocks")
                writing = await connection.fetchval(
                    "SELECT min(objid::bigint) FROM pg_locks WHERE locktype = 'advisory' AND classid = $1"
                    " AND objsubid = 2 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
                    NEWS_CLASS,
                )
            return int(last if writing is None else min(last, writing)) * BLOCK + BLOCK - 1

        return await persist(attempt)

    async def wait_news(self, timeout_s: float) -> None:
        await self._bell.wait(timeout_s)

    async def check(self) -> None:
        async def attempt() -> None:
            async with transaction(self._pool, Terms()) as connection:
                await connection.fetchval("SELECT 1 FROM tenants LIMIT 1")
                # fails on a standby and on a read-only server
                await connection.execute("DELETE FROM tenants WHERE false")

        await persist(attempt)

    async def facts(self) -> StoreFacts:
        async def attempt() -> StoreFacts:
            async with transaction(self._pool, partitions.UPKEEP) as connection:
                weeks = await partitions.read_weeks(connection)
                ahead = [week for week in weeks if week > partitions.wanted_weeks(time.time_ns())[0]]
                misfiled = await partitions.count_misfiled(connection)
                bound = await connection.fetchval(
                    "SELECT NOT (rolsuper OR rolbypassrls) FROM pg_roles WHERE rolname = current_user"
                )
                problems = [MISFILED] * bool(misfiled) + [UNBOUND] * (not bound)
                return StoreFacts(
                    kind="postgresql",
                    version=await connection.fetchval("SHOW server_version"),
                    schema=await read_version(connection),
                    waiting=self._loader.waiting,
                    misfiled=misfiled,
                    partitions=len(weeks),
                    partitions_ahead=len(ahead),
                    problem="; ".join(problems),
                )

        return await persist(attempt)

    async def upkeep(self, tenants: Sequence[Tenant], now_ns: int) -> Maintained | None:
        return await persist(lambda: partitions.keep(self._pool, tenants, now_ns))

    async def aclose(self) -> None:
        """Load what waits."""
        await self._loader.aclose()


@asynccontextmanager
async def open_postgres(database_url: str) -> AsyncIterator[Store]:
    """Connect, migrate, and have the partitions ready. Raises StoreError."""
    async with open_pool(database_url) as pool:
        await persist(lambda: migrate(pool, read_scripts()))
        await persist(lambda: partitions.make_ready(pool, time.time_ns()))
        engine = PostgresEngine(pool)
        try:
            store = AskedStore(engine)
            yield store
            await store.settle()
        finally:
            await engine.aclose()

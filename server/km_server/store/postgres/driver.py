"""
The one place that talks asyncpg: a pool, transactions, and what its errors mean.

Safe behind PgBouncer in transaction mode: no named prepared statement, nothing that outlives a transaction but what
each creates anew where it is missing, every question inside a transaction. What a transaction needs to know (tenant,
time-outs, locks) is set with it and ends with it. asyncpg has no types: connections are Any behind this door.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg

from km_server.errors import StoreBusy, StoreError
from km_server.store.asking import Asking

T = TypeVar("T")

CONNECT_S = 5.0
ACQUIRE_S = 5.0
"""For a connection of the pool to become free: beyond it the server is asked too much."""

STATEMENT_MS = 10_000
"""A question that takes longer is broken off."""

UPKEEP_MS = 600_000
"""For one step of upkeep or of a migration."""

LOCK_MS = 5_000
"""A lock that takes longer is somebody's long transaction: better to come again."""

STATEMENTS = 3
"""Of one transaction, that may take as long as a statement may; the others take next to nothing."""

POOL_MAX = 12
"""Connections of one process: two that write and ten for questions."""

RETRY_S = 2
AWAY_RETRY_S = 5
FULL_RETRY_S = 30
ATTEMPTS = 4
"""Of a transaction that met another one (deadlock, serialization): the second try usually passes."""

AGAIN = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
LINE_BROKE = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InternalClientError,  # what the library says of a line that broke in the middle of an answer
    OSError,
    TimeoutError,
)
AWAY = (asyncpg.CannotConnectNowError, asyncpg.InterfaceError, *LINE_BROKE)
FULL = (asyncpg.InsufficientResourcesError,)
SHUT = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)
SLOW = (asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError)
KNOWN = (*AGAIN, *AWAY, *FULL, *SHUT, *SLOW)


def translate(error: Exception) -> StoreError:
    """What one of the KNOWN errors means for the request that met it; the text names no row and no secret."""
    match error:
        case asyncpg.DeadlockDetectedError() | asyncpg.SerializationError():
            return StoreBusy("the store met itself", retry_after_s=RETRY_S)
        case asyncpg.QueryCanceledError() | asyncpg.LockNotAvailableError():
            return StoreBusy("the question took too long", retry_after_s=RETRY_S, hint="ask for less at once")
        case asyncpg.InsufficientResourcesError():
            return StoreBusy(f"PostgreSQL is full ({error.sqlstate})", retry_after_s=FULL_RETRY_S)
        case asyncpg.InvalidAuthorizationSpecificationError():
            return StoreError("PostgreSQL refuses the user or the password", hint="check the database URL")
        case asyncpg.InvalidCatalogNameError():
            return StoreError("there is no such database in PostgreSQL", hint="make it: createdb NAME")
        case asyncpg.InsufficientPrivilegeError():
            return StoreError(
                "the PostgreSQL user may not do this", hint="km-server's user must own its tables and their schema"
            )
        case asyncpg.ProtocolViolationError():  # a pooler's word for whatever is wrong
            return StoreBusy(
                "what stands before PostgreSQL refuses (PgBouncer?)",
                retry_after_s=AWAY_RETRY_S,
                hint="its log says why: user, password, the database's name, or no connection to PostgreSQL is free",
            )
        case _:
            return StoreBusy("PostgreSQL does not answer", retry_after_s=AWAY_RETRY_S, hint="is it running?")


async def ignore(_: Any) -> None:
    """Nothing to reset: no transaction leaves anything behind."""


@asynccontextmanager
async def open_pool(database_url: str) -> AsyncIterator[Any]:
    """Connections to the database. Raises StoreError."""
    try:
        pool = await asyncpg.create_pool(
            database_url,
            min_size=1,
            max_size=POOL_MAX,
            timeout=CONNECT_S,
            statement_cache_size=0,
            reset=ignore,
        )
    except ValueError:
        # the library's sentence may quote the URL, and the URL holds a password
        raise StoreError(
            "the database URL is not understood", hint="for example postgresql://user@host:5432/kilometers"
        ) from None
    except KNOWN as exc:
        raise translate(exc) from exc
    try:
        yield pool
    finally:
        try:
            async with asyncio.timeout(CONNECT_S):
                await pool.close()
        except AWAY:
            pool.terminate()


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for a transaction. `begin`: the words after BEGIN. `more`: further settings and locks, as SQL."""

    begin: str = ""
    tenant_id: int | None = None
    statement_ms: int = STATEMENT_MS
    more: str = ""

    @property
    def begin_s(self) -> float:
        """
        How long the beginning may take. A pooler holds it back until a connection to PostgreSQL is free, and none of
        PostgreSQL's own time-outs runs before.
        """
        return ACQUIRE_S + self.statement_ms / 1000

    @property
    def whole_s(self) -> float | None:
        """
        How long all of it may take: several statements at their worst. None: upkeep may take what it needs.

        Where PostgreSQL's machine has vanished nobody refuses and nobody answers; the kernel would go on sending for a
        quarter of an hour, and the tasks that load would wait as long, for a server that has long been replaced.
        """
        return None if self.statement_ms >= UPKEEP_MS else self.begin_s + STATEMENTS * self.statement_ms / 1000

    def render(self) -> str:
        """The statements that open the transaction, in one round trip."""
        tenant = "" if self.tenant_id is None else int(self.tenant_id)
        return (
            f"BEGIN {self.begin}; SELECT set_config('km.tenant_id', '{tenant}', true),"
            f" set_config('statement_timeout', '{self.statement_ms}', true),"
            # compiling a question takes longer than any of ours should
            " set_config('jit', 'off', true),"
            f" set_config('lock_timeout', '{LOCK_MS}', true),"
            # a server process that stops in the middle must not keep its locks
            f" set_config('idle_in_transaction_session_timeout', '{self.statement_ms}', true);{self.more}"
        )


@asynccontextmanager
async def transaction(pool: Any, terms: Terms) -> AsyncIterator[Any]:
    """A transaction on a connection of its own: committed at the end, rolled back on any exception."""
    async with pool.acquire(timeout=ACQUIRE_S) as connection:
        try:
            async with asyncio.timeout(terms.whole_s):
                await connection.execute(terms.render(), timeout=terms.begin_s)
                yield connection
                await connection.execute("COMMIT")
        except BaseException as exc:
            await abandon(connection, exc)
            raise


async def abandon(connection: Any, error: BaseException) -> None:
    """
    Roll back; or let go of a connection of which nobody can tell in what state it is, so that it is not used again.

    It is known when PostgreSQL itself has said what was wrong, or when the error is our own; not when the line broke.
    """
    with suppress(asyncpg.InterfaceError):  # the pool may have let go of it already
        if isinstance(error, LINE_BROKE):
            connection.terminate()
            return
        try:
            if connection.is_in_transaction():
                await connection.execute("ROLLBACK")
        except KNOWN:
            connection.terminate()


async def answer(connection: Any, asking: Asking[T]) -> T:
    """Put an asking's questions one after the other."""
    try:
        question = next(asking)
        while True:
            question = asking.send(await connection.fetch(question.text, *question.values))
    except StopIteration as stop:
        result: T = stop.value
        return result


async def persist(work: Callable[[], Awaitable[T]]) -> T:
    """Run a transaction, again when it met another one. Raises StoreError for what is KNOWN."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return await work()
        except AGAIN as exc:
            if attempt == ATTEMPTS:
                raise translate(exc) from exc
        except KNOWN as exc:
            raise translate(exc) from exc
    raise AssertionError

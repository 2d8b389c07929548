"""The door: a database URL to the store that it names."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from km_server.errors import StoreError
from km_server.store.protocol import Store
from km_server.store.sqlite.store import open_sqlite

POSTGRES_SCHEMES = ("postgresql://", "postgres://")


@asynccontextmanager
async def open_store(database_url: str) -> AsyncIterator[Store]:
    """
    Open the store at `sqlite:///…` or `postgresql://…`; it is migrated to this version's schema first.

    Raises StoreError: it cannot be opened or used as it is.
    """
    async with choose(database_url) as store:
        yield store


def choose(database_url: str) -> AbstractAsyncContextManager[Store]:
    """The store that the URL's scheme names, not opened yet. Raises StoreError."""
    if not database_url.startswith(POSTGRES_SCHEMES):
        return open_sqlite(database_url)
    try:
        from km_server.store.postgres.store import open_postgres  # noqa: PLC0415 - asyncpg is an extra
    except ModuleNotFoundError as exc:
        raise StoreError("PostgreSQL needs asyncpg", hint="pip install 'kilometers[postgres]'") from exc
    return open_postgres(database_url)

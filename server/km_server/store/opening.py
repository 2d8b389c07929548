"""The door: a database URL to the store that it names."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from km_server.store.protocol import Store
from km_server.store.sqlite.store import open_sqlite


@asynccontextmanager
async def open_store(database_url: str) -> AsyncIterator[Store]:
    """
    Open the store at `sqlite:///…` or `postgresql://…`; it is migrated to this version's schema first.

    Raises StoreError: it cannot be opened or used as it is.
    """
    async with open_sqlite(database_url) as store:
        yield store

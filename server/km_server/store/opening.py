"""The door: a database URL to the store that it names; and what can be asked of one that is not open."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from km_server.errors import StoreError
from km_server.store.protocol import Store
from km_server.store.sqlite import connection as sqlite
from km_server.store.sqlite.store import open_sqlite

POSTGRES_SCHEMES = ("postgresql://", "postgres://")


@dataclass(frozen=True, slots=True)
class Schema:
    """The version of a store's schema (0: there is none yet), and the newest one that this program knows."""

    version: int
    newest: int


@asynccontextmanager
async def open_store(database_url: str) -> AsyncIterator[Store]:
    """
    Open the store at `sqlite:///…` or `postgresql://…`; it is migrated to this version's schema first.

    Raises StoreError: it cannot be opened or used as it is.
    """
    async with choose(database_url) as store:
        yield store


def is_postgres(database_url: str) -> bool:
    """Whether a URL names a PostgreSQL database. Raises StoreError when asyncpg is missing then."""
    if not database_url.startswith(POSTGRES_SCHEMES):
        return False
    try:
        import asyncpg  # noqa: F401, PLC0415 - it is an extra
    except ModuleNotFoundError as exc:
        raise StoreError(
            "PostgreSQL needs asyncpg", hint="install Kilometers with its extra: pip install '.[postgres]'"
        ) from exc
    return True


def choose(database_url: str) -> AbstractAsyncContextManager[Store]:
    """The store that the URL's scheme names, not opened yet. Raises StoreError."""
    if not is_postgres(database_url):
        return open_sqlite(database_url)
    from km_server.store.postgres.store import open_postgres  # noqa: PLC0415 - asyncpg is an extra

    return open_postgres(database_url)


async def read_schema(database_url: str) -> Schema:
    """The store's schema; nothing is made or changed. Raises StoreError."""
    if not is_postgres(database_url):
        path = sqlite.parse_database_url(database_url)
        return Schema(sqlite.read_version(path), len(sqlite.read_migrations()))
    from km_server.store.postgres import driver, migrate  # noqa: PLC0415 - asyncpg is an extra

    async with driver.open_pool(database_url) as pool, driver.transaction(pool, driver.Terms()) as connection:
        return Schema(await migrate.read_version(connection), len(migrate.read_scripts()))

"""
The schema: numbered scripts, applied one by one under an advisory lock.

Each step commits as a whole or not at all. Several servers may start at once: one migrates, the others wait and find
nothing to do. The lock lives as long as the step's transaction, so it is safe behind PgBouncer too.
"""

from importlib import resources
from typing import Any

from km_server.errors import StoreError
from km_server.store.postgres.driver import UPKEEP_MS, Terms, transaction

LOCK_CLASS = 0x4B4D
"""`KM`: the first key of all our advisory locks."""

MIGRATING = 0
"""The second key while migrating; a tenant's lock has the tenant's id, and ids begin at 1."""

CREATE_VERSIONS = (
    "CREATE TABLE IF NOT EXISTS schema_migrations"
    " (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
)
ALONE = f" SELECT set_config('lock_timeout', '{UPKEEP_MS}', true), pg_advisory_xact_lock({LOCK_CLASS}, {MIGRATING});"


def read_scripts() -> list[str]:
    """The numbered scripts, in order: the n-th brings the schema from n-1 to n."""
    folder = resources.files("km_server.store") / "migrations" / "postgres"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [file.read_text(encoding="utf-8") for file in files]


async def migrate(pool: Any, scripts: list[str]) -> int:
    """
    Bring the schema to the newest version. Returns how many steps that took.

    Raises StoreError: the database was made by a newer km-server. Raises asyncpg's errors: a step failed.
    """
    steps = 0
    while True:
        async with transaction(pool, Terms(statement_ms=UPKEEP_MS, more=ALONE)) as connection:
            version = await read_version(connection)
            require_known(version, len(scripts))
            if version == len(scripts):
                return steps
            if version == 0:
                await connection.execute(CREATE_VERSIONS)
            await connection.execute(scripts[version])
            await connection.execute("INSERT INTO schema_migrations (version) VALUES ($1)", version + 1)
        steps += 1


def require_known(version: int, newest: int) -> None:
    """Raises StoreError when the schema is newer than this program."""
    if version > newest:
        raise StoreError(
            f"the database has schema {version}, newer than this km-server's {newest}", hint="upgrade km-server"
        )


async def read_version(connection: Any) -> int:
    """The schema's version; 0: there is none yet."""
    there = await connection.fetchval("SELECT to_regclass('schema_migrations') IS NOT NULL")
    if not there:
        return 0
    return int(await connection.fetchval("SELECT coalesce(max(version), 0) FROM schema_migrations"))

"""What a PostgreSQL store holds, for comparing it before pg_dump and after pg_restore."""

from typing import Any

from km_server.store.manifest import Manifest, TableSum, make_manifest
from km_server.store.postgres.driver import UPKEEP_MS, Terms, open_pool, persist, transaction

LIST_TABLES = """
SELECT c.relname FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
AND NOT c.relispartition AND c.relname <> 'schema_migrations' ORDER BY c.relname
"""
ROWS_PER_STEP = 1_000
SEEING_ALL = Terms(
    "ISOLATION LEVEL REPEATABLE READ READ ONLY",
    statement_ms=UPKEEP_MS,
    more=" SELECT set_config('km.upkeep', 'on', true), set_config('timezone', 'UTC', true);",
)


async def read_manifest(database_url: str) -> Manifest:
    """Count and sum every row of every table, on one snapshot. Raises StoreError."""
    async with open_pool(database_url) as pool:

        async def attempt() -> Manifest:
            async with transaction(pool, SEEING_ALL) as connection:
                return await sum_tables(connection)

        return await persist(attempt)


async def sum_tables(connection: Any) -> Manifest:
    """The numbers of every table."""
    sums: dict[str, TableSum] = {}
    for (name,) in await connection.fetch(LIST_TABLES):
        table = sums[name] = TableSum()
        await connection.execute(f'DECLARE rows NO SCROLL CURSOR FOR SELECT * FROM "{name}"')
        while rows := await connection.fetch(f"FETCH {ROWS_PER_STEP} FROM rows"):
            table.add(rows)
        await connection.execute("CLOSE rows")
    return make_manifest(sums)

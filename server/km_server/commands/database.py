"""`km-server migrate`, `rebuild-rollups`, `backup`, `restore`, `checksum`: looking after the store."""

import asyncio
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from km_server.commands.options import config_option, in_store, json_option, load, setting_options
from km_server.errors import ServerError, StoreError
from km_server.store.manifest import Manifest
from km_server.store.opening import is_postgres, open_store, read_schema
from km_server.store.protocol import Store
from km_server.store.sqlite import backup as copies
from km_server.store.sqlite.connection import parse_database_url

POSTGRES_HINT = "use pg_dump and pg_restore: see docs/store.md"


@click.command(epilog="Example: km-server migrate --check")
@config_option
@setting_options("database_url")
@click.option("--check", is_flag=True, help="Change nothing; exit 1 when there is something to do.")
def migrate(config_file: Path | None, database_url: str | None, *, check: bool) -> None:
    """Bring the database to this version's schema. (The server does it by itself when it starts.)"""
    url = load(config_file, database_url=database_url).config.database_url
    before = asyncio.run(read_schema(url))
    if before.version > before.newest:
        raise ServerError(
            f"the database has schema {before.version}, newer than this km-server's {before.newest}",
            hint="upgrade km-server",
        )
    if before.version == before.newest:
        click.echo(f"schema {before.version} is the newest")
        return
    if check:
        raise ServerError(f"the database has schema {before.version} of {before.newest}", hint="run: km-server migrate")

    async def run() -> None:
        async with open_store(url):
            pass

    asyncio.run(run())
    click.echo(f"migrated from schema {before.version} to {before.newest}")


@click.command("rebuild-rollups", epilog="Example: km-server rebuild-rollups --tenant team")
@config_option
@setting_options("database_url")
@click.option("--tenant", help="Only this one.")
def rebuild_rollups(config_file: Path | None, database_url: str | None, tenant: str | None) -> None:
    """Make the statistics anew from the events. Works beside a running server."""
    config = load(config_file, database_url=database_url).config

    async def run(store: Store) -> None:
        wanted = [one for one in await store.list_tenants() if tenant in (None, one.name)]
        if not wanted and tenant is not None:
            raise ServerError(f"there is no tenant {tenant}", hint="see: km-server tenants list")
        with make_progress() as progress:
            for one in wanted:
                task = progress.add_task(one.name, total=None)
                done = 0
                async for step in store.bind(one).rebuild_rollups():
                    done = step.done
                    progress.update(task, completed=done, total=step.total)
                progress.update(task, completed=done, total=done or 1)
                progress.console.print(f"{one.name}: {done} events counted anew")

    in_store(config, run)


@click.command(epilog="Example: km-server backup /backups/kilometers-2026-11-24.db")
@config_option
@setting_options("database_url")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def backup(config_file: Path | None, database_url: str | None, file: Path) -> None:
    """Copy a SQLite store to FILE, while the server runs, and check that the copy is the same."""
    source = sqlite_path(load(config_file, database_url=database_url).config.database_url)
    made = with_progress(lambda report: copies.back_up(source, file, report))
    click.echo(f"{file}: {made.tables['events'].rows} events; counts and checksums are those of the store")


@click.command(epilog="Example: km-server restore /backups/kilometers-2026-11-24.db")
@config_option
@setting_options("database_url")
@click.option("--replace", is_flag=True, help="Overwrite the store that is there. Stop km-server first.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def restore(config_file: Path | None, database_url: str | None, file: Path, *, replace: bool) -> None:
    """Make the SQLite store from a backup, and check that it is the same."""
    target = sqlite_path(load(config_file, database_url=database_url).config.database_url)
    made = with_progress(lambda report: copies.restore(file, target, report, replace=replace))
    click.echo(f"{target}: {made.tables['events'].rows} events; counts and checksums are those of the backup")


@click.command(epilog="Example: km-server checksum --json")
@config_option
@setting_options("database_url")
@json_option
def checksum(config_file: Path | None, database_url: str | None, *, as_json: bool) -> None:
    """Count and sum every table, to compare a store with what was restored from its backup."""
    manifest = read_manifest(load(config_file, database_url=database_url).config.database_url)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(manifest)))
        return
    for name, table in manifest.tables.items():
        click.echo(f"{name:<20} {table.rows:>12} {table.checksum}")


def read_manifest(database_url: str) -> Manifest:
    """The numbers of a store. Raises StoreError."""
    if is_postgres(database_url):
        from km_server.store.postgres import manifest as postgres  # noqa: PLC0415 - asyncpg is an extra

        return asyncio.run(postgres.read_manifest(database_url))
    path = sqlite_path(database_url)

    def run(report: copies.Report) -> Manifest:
        with closing(copies.open_readable(path)) as connection:
            connection.execute("BEGIN")
            return copies.read_manifest(connection, report)

    return with_progress(run)


def sqlite_path(database_url: str) -> Path:
    """The file of a SQLite store. Raises StoreError: it is PostgreSQL."""
    if is_postgres(database_url):
        raise StoreError("this is for SQLite stores", hint=POSTGRES_HINT)
    return parse_database_url(database_url)


def with_progress(work: Callable[[copies.Report], Manifest]) -> Manifest:
    """Do *work*, and show on a terminal how far it is."""
    with make_progress() as progress:
        tasks = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        return work(report)


def make_progress() -> Progress:
    """A bar on stderr, gone when it is done; nothing where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

"""`km-server serve` and `km-server keys …`: flag, else environment, else default."""

import asyncio
import json
import re
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

import click

from km_server import app
from km_server.auth import KEY_BYTES, digest_key, make_key
from km_server.config import DEFAULT_HOST, DEFAULT_PORT, ServerConfig, default_database_url
from km_server.errors import ServerError
from km_server.logs import set_up_logs
from km_server.store.protocol import ApiKey, Scope, Store
from km_server.store.sqlite import open_store

T = TypeVar("T")

TENANT_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PORT_MAX = 65_535

database_option = click.option(
    "--database-url",
    envvar="KM_SERVER_DATABASE_URL",
    default=default_database_url,
    show_default="a file in your data folder",
    help="Where everything is kept, as sqlite:///PATH.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")


@click.group(epilog="Example: km-server serve --port 8713")
@click.version_option(package_name="kilometers", prog_name="km-server")
def cli() -> None:
    """The Kilometers server: takes events in and answers questions about them."""


@cli.command(epilog="Example: km-server serve --database-url sqlite:////var/lib/kilometers/server.db")
@database_option
@click.option("--host", envvar="KM_SERVER_HOST", default=DEFAULT_HOST, show_default=True, help="Listen here.")
@click.option(
    "--port",
    envvar="KM_SERVER_PORT",
    default=DEFAULT_PORT,
    show_default=True,
    type=click.IntRange(0, PORT_MAX),
    help="And on this port; 0 takes a free one.",
)
def serve(database_url: str, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    set_up_logs()
    config = ServerConfig(database_url, host, port)
    asyncio.run(app.serve(config, lambda url: click.echo(f"km-server listening on {url}")))


@cli.group()
def keys() -> None:
    """Make, list and revoke API keys. Works beside a running server, and takes effect at once."""


@keys.command(epilog="Example: km-server keys create --tenant team --scope ingest,read")
@database_option
@click.option("--tenant", required=True, help="Whose data the key opens; made when it is new.")
@click.option("--scope", required=True, help="What the key may do: ingest, read, admin; with commas.")
def create(database_url: str, tenant: str, scope: str) -> None:
    """Make a key and print it, once: it cannot be shown again."""
    check_tenant(tenant)
    scopes = parse_scopes(scope)
    key = make_key(secrets.token_urlsafe(KEY_BYTES))
    made = in_store(database_url, lambda store: store.create_key(tenant, digest_key(key), scopes))
    click.echo(
        f"key {made.id} of tenant {tenant} may {' and '.join(sorted(scopes))}; keep it, it is shown once:", err=True
    )
    click.echo(key)


@keys.command("list", epilog="Example: km-server keys list --json")
@database_option
@json_option
def list_command(database_url: str, *, as_json: bool) -> None:
    """Show every key: its id, tenant, scopes and times, never its text."""
    rows = [render_key(key) for key in in_store(database_url, lambda store: store.list_keys())]
    if as_json:
        click.echo(json.dumps(rows))
        return
    columns = ("id", "tenant", "scopes", "created", "last_used", "revoked")
    table = [columns, *([str(row[column] or "-") for column in columns] for row in rows)]
    widths = [max(len(line[place]) for line in table) for place in range(len(columns))]
    for line in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@keys.command(epilog="Example: km-server keys revoke 3")
@database_option
@click.argument("key_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))
def revoke(database_url: str, key_id: int) -> None:
    """Revoke a key for good."""
    if not in_store(database_url, lambda store: store.revoke_key(key_id)):
        raise ServerError(f"there is no key {key_id}", hint="see: km-server keys list")
    click.echo(f"key {key_id} is revoked", err=True)


def in_store(database_url: str, ask: Callable[[Store], Awaitable[T]]) -> T:
    """Open the store for one question."""

    async def run() -> T:
        async with open_store(database_url) as store:
            return await ask(store)

    return asyncio.run(run())


def check_tenant(tenant: str) -> None:
    """Raises click.BadParameter: a tenant's name is a plain word."""
    if not TENANT_PATTERN.fullmatch(tenant):
        raise click.BadParameter("1 to 64 letters, digits, '.', '_' or '-'", param_hint="--tenant")


def parse_scopes(text: str) -> frozenset[Scope]:
    """Scopes with commas between. Raises click.BadParameter."""
    try:
        return frozenset(Scope(part.strip()) for part in text.split(","))
    except ValueError:
        known = ", ".join(Scope)
        raise click.BadParameter(f"one or more of {known}, with commas", param_hint="--scope") from None


def render_key(key: ApiKey) -> dict[str, str | int | None]:
    """A key as shown."""
    return {
        "id": key.id,
        "tenant": key.tenant.name,
        "scopes": ",".join(sorted(key.scopes)),
        "created": render_time(key.created_at_ns),
        "last_used": render_time(key.last_used_at_ns),
        "revoked": render_time(key.revoked_at_ns),
    }


def render_time(at_ns: int | None) -> str | None:
    """RFC 3339 to the second."""
    if at_ns is None:
        return None
    return f"{datetime.fromtimestamp(at_ns // 10**9, UTC):%Y-%m-%dT%H:%M:%SZ}"

"""`km-server keys …`: the keys of all tenants."""

import json
import re
import secrets
import time
from pathlib import Path

import click

from km_server.commands.options import (
    Group,
    config_option,
    echo_table,
    in_store,
    json_option,
    load,
    render_time,
    setting_options,
)
from km_server.errors import ServerError
from km_server.key_text import KEY_BYTES, digest_key, make_key
from km_server.store.rollup import DAY_NS
from km_server.store.values import ApiKey, Scope

DAYS_MAX = 36_500
HOURS_MAX = 24 * 366
NS_PER_HOUR = 3600 * 10**9
TENANT_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@click.group(cls=Group, epilog="Example: km-server keys create --tenant team --scope ingest,read")
def keys() -> None:
    """Make, list, rotate and revoke API keys. Works beside a running server, and takes effect at once."""


@keys.command(epilog="Example: km-server keys create --tenant team --scope ingest,read")
@config_option
@setting_options("database_url")
@click.option("--tenant", required=True, help="Whose data the key opens; made when it is new.")
@click.option("--scope", required=True, help="What the key may do: ingest, read, admin; with commas.")
@click.option("--expires-days", type=click.IntRange(1, DAYS_MAX), help="The key ends after so many days.")
def create(
    config_file: Path | None, database_url: str | None, tenant: str, scope: str, expires_days: int | None
) -> None:
    """Make a key and print it, once: it cannot be shown again."""
    check_tenant(tenant)
    scopes = parse_scopes(scope)
    key = make_key(secrets.token_urlsafe(KEY_BYTES))
    config = load(config_file, database_url=database_url).config
    expires_at_ns = None if expires_days is None else time.time_ns() + expires_days * DAY_NS
    made = in_store(config, lambda store: store.create_key(tenant, digest_key(key), scopes, expires_at_ns))
    click.echo(
        f"key {made.id} of tenant {tenant} may {' and '.join(sorted(scopes))}; keep it, it is shown once:", err=True
    )
    click.echo(key)


@keys.command("list", epilog="Example: km-server keys list --json")
@config_option
@setting_options("database_url")
@json_option
def list_command(config_file: Path | None, database_url: str | None, *, as_json: bool) -> None:
    """Show every key: its id, tenant, scopes and times, never its text."""
    config = load(config_file, database_url=database_url).config
    rows = [render_key(key) for key in in_store(config, lambda store: store.list_keys())]
    if as_json:
        click.echo(json.dumps(rows))
    else:
        echo_table(("id", "tenant", "scopes", "created", "expires", "last_used", "revoked"), rows)


@keys.command(epilog="Example: km-server keys revoke 3")
@config_option
@setting_options("database_url")
@click.argument("key_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))
def revoke(config_file: Path | None, database_url: str | None, key_id: int) -> None:
    """Revoke a key for good."""
    config = load(config_file, database_url=database_url).config
    if not in_store(config, lambda store: store.revoke_key(key_id)):
        raise ServerError(f"there is no key {key_id}", hint="see: km-server keys list")
    click.echo(f"key {key_id} is revoked", err=True)


@keys.command(epilog="Example: km-server keys rotate 3 --overlap-hours 24")
@config_option
@setting_options("database_url")
@click.option(
    "--overlap-hours",
    type=click.IntRange(0, HOURS_MAX),
    default=24,
    show_default=True,
    help="The old key goes on so long; 0 ends it at once.",
)
@click.argument("key_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))
def rotate(config_file: Path | None, database_url: str | None, overlap_hours: int, key_id: int) -> None:
    """Make a new key in place of an old one, with its tenant, scopes and expiry, and print it, once."""
    key = make_key(secrets.token_urlsafe(KEY_BYTES))
    config = load(config_file, database_url=database_url).config
    made = in_store(config, lambda store: store.rotate_key(key_id, digest_key(key), overlap_hours * 3600))
    if made is None:
        raise ServerError(f"there is no live key {key_id}", hint="see: km-server keys list")
    click.echo(
        f"key {made.id} ({describe_end(made)}) is in place of {key_id}, which {describe_overlap(made, overlap_hours)};"
        " keep it, it is shown once:",
        err=True,
    )
    click.echo(key)


def describe_end(key: ApiKey) -> str:
    """When a key ends, as words."""
    return "never expires" if key.expires_at_ns is None else f"expires {render_time(key.expires_at_ns)}"


def describe_overlap(made: ApiKey, overlap_hours: int) -> str:
    """What becomes of the key that *made* replaces, and whose expiry that has."""
    if not overlap_hours:
        return "has ended"
    overlap_ns = overlap_hours * NS_PER_HOUR
    if made.expires_at_ns is not None and made.expires_at_ns < made.created_at_ns + overlap_ns:
        return f"ends then, too, before the {overlap_hours} h are over"
    return f"ends in {overlap_hours} h"


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
    """What `keys list` shows of a key, by column."""
    return {
        "id": key.id,
        "tenant": key.tenant.name,
        "scopes": ",".join(sorted(key.scopes)),
        "created": render_time(key.created_at_ns),
        "expires": render_time(key.expires_at_ns),
        "last_used": render_time(key.last_used_at_ns),
        "revoked": render_time(key.revoked_at_ns),
    }

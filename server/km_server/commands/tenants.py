"""`km-server tenants …`: what is kept for each tenant, and what a KB costs them."""

import json
from pathlib import Path

import click

from km_server.commands.options import Group, config_option, echo_table, in_store, json_option, load, setting_options
from km_server.errors import ServerError
from km_server.store.protocol import Store
from km_server.store.values import Tenant

DAYS_MAX = 36_500


@click.group(cls=Group, epilog="Example: km-server tenants set team --retention-days 90")
def tenants() -> None:
    """Show tenants and change their settings. (A tenant is made with its first key.)"""


@tenants.command("list", epilog="Example: km-server tenants list --json")
@config_option
@setting_options("database_url")
@json_option
def list_command(config_file: Path | None, database_url: str | None, *, as_json: bool) -> None:
    """Show every tenant: its rate, and how many days are kept."""
    config = load(config_file, database_url=database_url).config
    rows = [render_tenant(tenant) for tenant in in_store(config, lambda store: store.list_tenants())]
    if as_json:
        click.echo(json.dumps(rows))
    else:
        echo_table(("id", "name", "usd_per_kb", "retention_days"), rows)


@tenants.command("set", epilog="Example: km-server tenants set team --retention-days 90")
@config_option
@setting_options("database_url")
@click.argument("name")
@click.option("--retention-days", type=click.IntRange(1, DAYS_MAX), help="Keep events so many days, then remove them.")
@click.option("--keep-all", is_flag=True, help="Keep events for ever.")
@click.option("--usd-per-kb", type=click.FloatRange(0, 1e6), help="What a KB costs, in US dollars.")
def set_command(
    config_file: Path | None,
    database_url: str | None,
    name: str,
    retention_days: int | None,
    usd_per_kb: float | None,
    *,
    keep_all: bool,
) -> None:
    """Change a tenant's settings. A running server takes them up within the hour at most."""
    if keep_all and retention_days is not None:
        raise click.UsageError("--keep-all and --retention-days exclude each other")
    if not keep_all and retention_days is None and usd_per_kb is None:
        raise click.UsageError("nothing to change: give --retention-days, --keep-all or --usd-per-kb")

    async def change(store: Store) -> Tenant | None:
        known = {tenant.name: tenant for tenant in await store.list_tenants()}
        if name not in known:
            return None
        days = None if keep_all else retention_days or known[name].retention_days
        rate = known[name].usd_per_kb if usd_per_kb is None else usd_per_kb
        return await store.set_tenant(name, rate, days)

    changed = in_store(load(config_file, database_url=database_url).config, change)
    if changed is None:
        raise ServerError(f"there is no tenant {name}", hint="see: km-server tenants list")
    kept = "for ever" if changed.retention_days is None else f"for {changed.retention_days} days"
    click.echo(f"tenant {name}: events are kept {kept}; {changed.usd_per_kb:g} USD per KB", err=True)


def render_tenant(tenant: Tenant) -> dict[str, str | int | float | None]:
    """A tenant as shown; no retention days: everything is kept."""
    return {
        "id": tenant.id,
        "name": tenant.name,
        "usd_per_kb": tenant.usd_per_kb,
        "retention_days": tenant.retention_days,
    }

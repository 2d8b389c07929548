"""
Partitions of the events: a week of session starts each, made ahead of time, dropped when all in them is expired.

Weeks, not days: every question about a time has to look into each partition that may hold it, and planning that costs
time. A session whose week has no partition is kept in the default one (`events_misfiled`), which is an alarm; upkeep
makes the partition and moves the events there.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from km_server.store.fate import LATE_DAYS, cutoff_ns
from km_server.store.postgres.driver import UPKEEP_MS, Terms, answer, transaction
from km_server.store.postgres.migrate import LOCK_CLASS
from km_server.store.removal import drop_days
from km_server.store.rollup import DAY_NS
from km_server.store.values import Maintained, Tenant

WEEK = 7
FIRST_MONDAY = 4
"""1970-01-05."""

WEEKS_AHEAD = 4
"""Ready before they begin: upkeep may fail for a month before anything is misfiled."""

UPKEEP_KEY = -1
"""The advisory lock of whoever is at it."""

UPKEEP = Terms(statement_ms=UPKEEP_MS, more=" SELECT set_config('km.upkeep', 'on', true);")
LAST_BY_TENANT = (
    "SELECT tenant_id, max(last_at_ns) FROM sessions WHERE day >= $1 AND day < $2 GROUP BY tenant_id ORDER BY tenant_id"
)
LIST_PARTITIONS = """
SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'events'::regclass ORDER BY c.relname
"""


class Week(NamedTuple):
    """The days first..first+6 (since 1970), from a Monday on."""

    first: int

    @property
    def end(self) -> int:
        return self.first + WEEK

    @property
    def table(self) -> str:
        return f"events_{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=self.first):%Y%m%d}"


def week_of(day: int) -> Week:
    """The week that a day is in."""
    return Week(day - (day - FIRST_MONDAY) % WEEK)


def wanted_weeks(now_ns: int) -> list[Week]:
    """This week and those ahead."""
    first = week_of(now_ns // DAY_NS).first
    return [Week(first + WEEK * number) for number in range(WEEKS_AHEAD + 1)]


async def read_weeks(connection: Any) -> list[Week]:
    """The weeks that have a partition, oldest first."""
    rows = await connection.fetch(LIST_PARTITIONS)
    names = [row[0].removeprefix("events_") for row in rows]
    days = [(datetime.strptime(name, "%Y%m%d") - datetime(1970, 1, 1)).days for name in names if name.isdecimal()]  # noqa: DTZ001, DTZ007 - both without a zone
    return sorted(Week(day) for day in days)


async def make_ready(pool: Any, now_ns: int) -> tuple[int, int]:
    """Make the partitions that are missing. Returns how many, and how many misfiled events went where they belong."""
    async with transaction(pool, UPKEEP) as connection:
        present = set(await read_weeks(connection))
        days = [row[0] for row in await connection.fetch("SELECT DISTINCT day FROM events_misfiled")]
    missing = [week for week in sorted({*wanted_weeks(now_ns), *map(week_of, days)}) if week not in present]
    moved = 0
    for week in missing:
        async with transaction(pool, UPKEEP) as connection:
            moved += await make_partition(connection, week)
    return len(missing), moved


async def make_partition(connection: Any, week: Week) -> int:
    """Make a week's partition, and move there what the default one has of it. Returns how many events that were."""
    # Made beside and attached: CREATE … PARTITION OF would shut everybody out meanwhile.
    await connection.execute("SELECT pg_advisory_xact_lock($1, $2)", LOCK_CLASS, UPKEEP_KEY)
    if week in await read_weeks(connection):
        return 0
    await connection.execute(f"CREATE TABLE {week.table} (LIKE events INCLUDING ALL)")
    await connection.execute(f"SELECT km_guard('{week.table}')")
    await connection.execute("LOCK TABLE events_misfiled IN ACCESS EXCLUSIVE MODE")
    moved = await connection.execute(
        f"WITH moved AS (DELETE FROM events_misfiled WHERE day >= $1 AND day < $2 RETURNING *)"
        f" INSERT INTO {week.table} SELECT * FROM moved",
        week.first,
        week.end,
    )
    await connection.execute(
        f"ALTER TABLE events ATTACH PARTITION {week.table} FOR VALUES FROM ({week.first}) TO ({week.end})"
    )
    return int(moved.rpartition(" ")[2])


async def drop_expired(pool: Any, tenants: Sequence[Tenant], now_ns: int) -> tuple[int, int]:
    """Drop the partitions in which nothing is kept any more. Returns how many, and how many events went with them."""
    oldest_kept = week_of(now_ns // DAY_NS - min([LATE_DAYS, *(days_kept(tenant) for tenant in tenants)]))
    async with transaction(pool, UPKEEP) as connection:
        weeks = [week for week in await read_weeks(connection) if week.end <= oldest_kept.first]
    dropped = events = 0
    for week in weeks:
        async with transaction(pool, UPKEEP) as connection:
            gone = await drop_partition(connection, week, {tenant.id: tenant for tenant in tenants}, now_ns)
        if gone is not None:
            dropped, events = dropped + 1, events + gone
    return dropped, events


def days_kept(tenant: Tenant) -> int:
    """How many days a tenant keeps; those who keep all, more than any."""
    return LATE_DAYS if tenant.retention_days is None else tenant.retention_days


async def drop_partition(connection: Any, week: Week, tenants: dict[int, Tenant], now_ns: int) -> int | None:
    """Drop a week with its sessions if none of them has an event that is kept. Returns its events; None: not yet."""
    owners = await connection.fetch(LAST_BY_TENANT, *bounds(week))
    if not all(is_expired(tenants.get(row[0]), row[1], now_ns) for row in owners):
        return None
    for row in owners:  # nothing comes in for them meanwhile: see load.py
        await connection.execute("SELECT pg_advisory_xact_lock($1, $2)", LOCK_CLASS, row[0])
    still = await connection.fetch(LAST_BY_TENANT, *bounds(week))
    if not all(is_expired(tenants.get(row[0]), row[1], now_ns) for row in still):
        return None
    events = await connection.fetchval(
        "WITH gone AS (DELETE FROM sessions WHERE day >= $1 AND day < $2 RETURNING events)"
        " SELECT coalesce(sum(events), 0)::bigint FROM gone",
        *bounds(week),
    )
    await connection.execute(f"DROP TABLE {week.table}")
    for row in owners:
        await answer(connection, drop_days(row[0], cutoff_ns(tenants[row[0]].retention_days, now_ns)))
    return int(events)


def bounds(week: Week) -> tuple[int, int]:
    """The week's first day and the one after its last, as a question's values."""
    return week.first, week.end


def is_expired(tenant: Tenant | None, last_at_ns: int | None, now_ns: int) -> bool:
    """Whether a tenant keeps nothing of sessions whose last event was then."""
    if tenant is None or tenant.retention_days is None:
        return False
    return (last_at_ns or 0) < cutoff_ns(tenant.retention_days, now_ns)


async def keep(pool: Any, tenants: Sequence[Tenant], now_ns: int) -> Maintained:
    """One round of upkeep."""
    made, refiled = await make_ready(pool, now_ns)
    dropped, expired = await drop_expired(pool, tenants, now_ns)
    return Maintained(made, dropped, refiled, expired)


async def count_misfiled(connection: Any) -> int:
    """Events in the default partition."""
    return int(await connection.fetchval("SELECT count(*) FROM events_misfiled"))

"""Keys and tenants, as SQL. A key is found by its digest; its text never comes here."""

from km_server.errors import StoreError
from km_server.store.driver import sqlite3
from km_server.store.protocol import ApiKey, Scope, Tenant

SELECT_KEYS = (
    "SELECT k.id, t.id, t.name, t.usd_per_kb, k.digest, k.scopes, k.created_at_ns, k.last_used_at_ns,"
    " k.revoked_at_ns FROM api_keys k JOIN tenants t ON t.id = k.tenant_id"
)

KeyRow = tuple[int, int, str, float, bytes, str, int, int | None, int | None]


def parse_key(row: KeyRow) -> ApiKey:
    """A row of SELECT_KEYS. A scope that this version does not know gives nothing."""
    known = frozenset(scope for scope in Scope if scope in row[5].split(","))
    return ApiKey(row[0], Tenant(*row[1:4]), row[4], known, *row[6:9])


def create_key(
    connection: sqlite3.Connection, tenant: str, digest: bytes, scopes: frozenset[Scope], now_ns: int
) -> ApiKey:
    """Store a key, and its tenant when that is new."""
    connection.execute(
        "INSERT INTO tenants (name, created_at_ns) VALUES (?, ?) ON CONFLICT (name) DO NOTHING",
        (tenant, now_ns),
    )
    connection.execute(
        "INSERT INTO api_keys (tenant_id, digest, scopes, created_at_ns)"
        " SELECT id, ?, ?, ? FROM tenants WHERE name = ?",
        (digest, ",".join(sorted(scopes)), now_ns, tenant),
    )
    created = find_key(connection, digest)
    if created is None:
        raise StoreError("the key was not stored")
    return created


def find_key(connection: sqlite3.Connection, digest: bytes) -> ApiKey | None:
    """The live key with this digest."""
    row = connection.execute(SELECT_KEYS + " WHERE k.digest = ? AND k.revoked_at_ns IS NULL", (digest,)).fetchone()
    return parse_key(row) if row else None


def list_keys(connection: sqlite3.Connection) -> list[ApiKey]:
    """Every key, oldest first."""
    return [parse_key(row) for row in connection.execute(SELECT_KEYS + " ORDER BY k.id")]


def revoke_key(connection: sqlite3.Connection, key_id: int, now_ns: int) -> bool:
    """Revoke a key; one that is revoked keeps its time. False when there is none."""
    changed = connection.execute(
        "UPDATE api_keys SET revoked_at_ns = coalesce(revoked_at_ns, ?) WHERE id = ?", (now_ns, key_id)
    )
    return changed.rowcount > 0


def note_use(connection: sqlite3.Connection, key_id: int, now_ns: int) -> None:
    """Remember when the key was last used."""
    connection.execute("UPDATE api_keys SET last_used_at_ns = ? WHERE id = ?", (now_ns, key_id))

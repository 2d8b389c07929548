"""Keys and tenants, as askings. A key is found by its digest; its text never comes here."""

from km_server.errors import StoreError
from km_server.store.asking import Asking, Question, Row
from km_server.store.values import ApiKey, Scope, Tenant

TENANT_COLUMNS = "t.id, t.name, t.usd_per_kb, t.retention_days"
SELECT_KEYS = (
    f"SELECT {TENANT_COLUMNS}, k.id, k.digest, k.scopes, k.created_at_ns, k.expires_at_ns, k.last_used_at_ns,"
    " k.revoked_at_ns FROM api_keys k JOIN tenants t ON t.id = k.tenant_id"
)
LIVE = " AND k.revoked_at_ns IS NULL AND (k.expires_at_ns IS NULL OR k.expires_at_ns > $2)"
NS_PER_S = 10**9


def parse_key(row: Row) -> ApiKey:
    """A row of SELECT_KEYS. A scope that this version does not know gives nothing."""
    key_id, digest, scopes, *times = row[4:]
    known = frozenset(scope for scope in Scope if scope in scopes.split(","))
    return ApiKey(key_id, Tenant(*row[:4]), bytes(digest), known, *times)


def create_key(
    tenant: str, digest: bytes, scopes: frozenset[Scope], expires_at_ns: int | None, now_ns: int
) -> Asking[ApiKey]:
    """Store a key, and its tenant when that is new."""
    yield Question(
        "INSERT INTO tenants (name, created_at_ns) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING", (tenant, now_ns)
    )
    yield Question(
        "INSERT INTO api_keys (tenant_id, digest, scopes, created_at_ns, expires_at_ns)"
        " SELECT id, $2, $3, $4, $5 FROM tenants WHERE name = $1",
        (tenant, digest, ",".join(sorted(scopes)), now_ns, expires_at_ns),
    )
    created = yield Question(SELECT_KEYS + " WHERE k.digest = $1", (digest,))
    if not created:
        raise StoreError("the key was not stored")
    return parse_key(created[0])


def rotate_key(key_id: int, digest: bytes, overlap_s: int, now_ns: int) -> Asking[ApiKey | None]:
    """Make a key like *key_id*, whose own time ends after *overlap_s* at the latest."""
    rows = yield Question(SELECT_KEYS + " WHERE k.id = $1" + LIVE, (key_id, now_ns))
    if not rows:
        return None
    old = parse_key(rows[0])
    made = yield from create_key(old.tenant.name, digest, old.scopes, old.expires_at_ns, now_ns)
    ends_at_ns = now_ns + overlap_s * NS_PER_S
    if old.expires_at_ns is None or old.expires_at_ns > ends_at_ns:
        yield Question("UPDATE api_keys SET expires_at_ns = $2 WHERE id = $1", (key_id, ends_at_ns))
    return made


def find_key(digest: bytes, now_ns: int) -> Asking[ApiKey | None]:
    """The live key with this digest."""
    rows = yield Question(SELECT_KEYS + " WHERE k.digest = $1" + LIVE, (digest, now_ns))
    return parse_key(rows[0]) if rows else None


def list_keys() -> Asking[list[ApiKey]]:
    """Every key, oldest first."""
    rows = yield Question(SELECT_KEYS + " ORDER BY k.id")
    return [parse_key(row) for row in rows]


def revoke_key(key_id: int, now_ns: int) -> Asking[bool]:
    """Revoke a key; one that is revoked keeps its time. False when there is none."""
    rows = yield Question(
        "UPDATE api_keys SET revoked_at_ns = coalesce(revoked_at_ns, $2) WHERE id = $1 RETURNING id", (key_id, now_ns)
    )
    return bool(rows)


def note_use(key_id: int, now_ns: int) -> Asking[None]:
    """Remember when the key was last used."""
    yield Question("UPDATE api_keys SET last_used_at_ns = $2 WHERE id = $1", (key_id, now_ns))


def list_tenants() -> Asking[list[Tenant]]:
    """Every tenant, by name."""
    rows = yield Question(f"SELECT {TENANT_COLUMNS} FROM tenants t ORDER BY t.name")
    return [Tenant(*row) for row in rows]


def set_tenant(name: str, usd_per_kb: float, retention_days: int | None) -> Asking[Tenant | None]:
    """Change a tenant's settings."""
    yield Question(
        "UPDATE tenants SET usd_per_kb = $2, retention_days = $3 WHERE name = $1", (name, usd_per_kb, retention_days)
    )
    rows = yield Question(f"SELECT {TENANT_COLUMNS} FROM tenants t WHERE t.name = $1", (name,))
    return Tenant(*rows[0]) if rows else None

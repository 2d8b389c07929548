-- Tenants own everything. The rate is applied when cost is read.
CREATE TABLE tenants (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    usd_per_kb REAL NOT NULL DEFAULT 0.001,
    created_at_ns INTEGER NOT NULL
) STRICT;

-- A key is known by the SHA-256 of its text; the text itself is nowhere.
CREATE TABLE api_keys (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id INTEGER NOT NULL REFERENCES tenants (id),
    digest BLOB NOT NULL UNIQUE,
    scopes TEXT NOT NULL,
    created_at_ns INTEGER NOT NULL,
    last_used_at_ns INTEGER,
    revoked_at_ns INTEGER
) STRICT;

-- first_at_ns and last_at_ns are the times of its earliest and latest stored event.
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    tenant_id INTEGER NOT NULL REFERENCES tenants (id),
    session TEXT NOT NULL,
    name TEXT NOT NULL,
    command TEXT NOT NULL,
    host TEXT NOT NULL,
    started_at_ns INTEGER NOT NULL,
    ended_at_ns INTEGER,
    first_at_ns INTEGER,
    last_at_ns INTEGER,
    events INTEGER NOT NULL DEFAULT 0,
    UNIQUE (tenant_id, session)
) STRICT;

-- (session_id, stream, position, member) is the event's identity; position is its offset, member its index.
-- AUTOINCREMENT: an id never comes back, so "the rows above this id" are the new ones. The payload stays
-- last: a reader that does not ask for it never touches its pages.
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id INTEGER NOT NULL,
    session_id INTEGER NOT NULL REFERENCES sessions (id),
    stream INTEGER NOT NULL,
    position INTEGER NOT NULL,
    member INTEGER NOT NULL,
    at_ns INTEGER NOT NULL,
    kind TEXT NOT NULL,
    method TEXT,
    target TEXT,
    rpc_id TEXT,
    size_bytes INTEGER NOT NULL,
    took_ns INTEGER,
    outcome TEXT,
    error_code INTEGER,
    truncated INTEGER NOT NULL,
    sha256 TEXT,
    payload BLOB,
    UNIQUE (session_id, stream, position, member)
) STRICT;

CREATE INDEX events_by_time ON events (tenant_id, at_ns, id);

-- One row per thing that is counted; '' stands for no method and for no target.
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    tenant_id INTEGER NOT NULL,
    server TEXT NOT NULL,
    method TEXT NOT NULL,
    target TEXT NOT NULL,
    UNIQUE (tenant_id, server, method, target)
) STRICT;

CREATE TABLE rollups (
    tenant_id INTEGER NOT NULL,
    minute INTEGER NOT NULL,
    series_id INTEGER NOT NULL,
    events INTEGER NOT NULL,
    messages INTEGER NOT NULL,
    calls INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    tool_errors INTEGER NOT NULL,
    bytes_to_server INTEGER NOT NULL,
    bytes_to_client INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, minute, series_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE latencies (
    tenant_id INTEGER NOT NULL,
    minute INTEGER NOT NULL,
    series_id INTEGER NOT NULL,
    bucket INTEGER NOT NULL,
    answers INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, minute, series_id, bucket)
) STRICT, WITHOUT ROWID;

-- Texts sort by their bytes (COLLATE "C"), as in SQLite. Tables of a tenant's data show a connection only the rows of
-- the tenant that its transaction has named (km.tenant_id); without one they show none. The server's own upkeep, which
-- moves and drops whole partitions, says km.upkeep = on instead.

-- Tenants own everything. The rate is applied when cost is read. Days to keep; none is: all.
CREATE TABLE tenants (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    usd_per_kb double precision NOT NULL DEFAULT 0.001,
    retention_days integer,
    created_at_ns bigint NOT NULL
);

-- A key is known by the SHA-256 of its text; the text itself is nowhere.
CREATE TABLE api_keys (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id bigint NOT NULL REFERENCES tenants (id),
    digest bytea NOT NULL UNIQUE,
    scopes text NOT NULL,
    created_at_ns bigint NOT NULL,
    expires_at_ns bigint,
    last_used_at_ns bigint,
    revoked_at_ns bigint
);

-- What the store refused, by reason.
CREATE TABLE refusals (
    tenant_id bigint NOT NULL,
    reason text COLLATE "C" NOT NULL,
    events bigint NOT NULL,
    PRIMARY KEY (tenant_id, reason)
);

-- day: when it began, in days since 1970, fixed when the session is made: it says in which partition its events are.
-- first_at_ns and last_at_ns are the times of its earliest and latest stored event.
CREATE TABLE sessions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id bigint NOT NULL,
    session text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    command text NOT NULL,
    host text NOT NULL,
    started_at_ns bigint NOT NULL,
    ended_at_ns bigint,
    closed_first text NOT NULL DEFAULT '',
    day integer NOT NULL,
    first_at_ns bigint,
    last_at_ns bigint,
    events bigint NOT NULL DEFAULT 0,
    messages bigint NOT NULL DEFAULT 0,
    calls bigint NOT NULL DEFAULT 0,
    errors bigint NOT NULL DEFAULT 0,
    tool_errors bigint NOT NULL DEFAULT 0,
    bytes_to_server bigint NOT NULL DEFAULT 0,
    bytes_to_client bigint NOT NULL DEFAULT 0,
    UNIQUE (tenant_id, session)
) WITH (fillfactor = 70);  -- each batch updates its sessions, and no column of an index: in place
CREATE INDEX sessions_by_start ON sessions (tenant_id, started_at_ns, id);
CREATE INDEX sessions_by_time ON sessions (tenant_id, first_at_ns);
CREATE INDEX sessions_by_day ON sessions (day);

-- Each transaction takes a block of event ids: id = block * 1024 + place, or several blocks.
CREATE SEQUENCE event_blocks AS integer;
SELECT nextval('event_blocks');  -- from now on its last_value is a number that was taken

-- (session_id, stream, position, member) is the event's identity; position is its offset, member its index. day is its
-- session's, in the key because a unique key must hold the partition's, and last in it because questions do not know it.
-- series_id: what it is counted under. bucket: the latency bucket of took_ns. extra: unknown fields, a JSON object. packed: payload is a zstd frame.
CREATE TABLE events (
    id bigint NOT NULL,
    tenant_id bigint NOT NULL,
    session_id bigint NOT NULL,
    position bigint NOT NULL,
    member bigint NOT NULL,
    series_id bigint NOT NULL,
    at_ns bigint NOT NULL,
    size_bytes bigint NOT NULL,
    took_ns bigint,
    error_code bigint,
    day integer NOT NULL,
    stream smallint NOT NULL,
    bucket smallint,
    risk smallint,
    truncated smallint NOT NULL,
    packed smallint NOT NULL,
    kind text COLLATE "C" NOT NULL,
    method text COLLATE "C",
    target text COLLATE "C",
    rpc_id text COLLATE "C",
    outcome text COLLATE "C",
    sha256 text COLLATE "C",
    extra bytea,
    payload bytea,
    PRIMARY KEY (session_id, stream, position, member, day)
) PARTITION BY RANGE (day);
ALTER TABLE events ALTER COLUMN payload SET STORAGE EXTERNAL;  -- compressed already
CREATE INDEX events_by_time ON events (tenant_id, at_ns, id);
CREATE INDEX events_by_id ON events (id);
CREATE TABLE events_ancient PARTITION OF events FOR VALUES FROM (MINVALUE) TO (1);
CREATE TABLE events_misfiled PARTITION OF events DEFAULT;

-- One row per thing that is counted; '' stands for no method and for no target. key: a hash of the three texts, which
-- together may be longer than what an index takes.
CREATE TABLE series (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id bigint NOT NULL,
    key bytea NOT NULL,
    server text COLLATE "C" NOT NULL,
    method text COLLATE "C" NOT NULL,
    target text COLLATE "C" NOT NULL,
    UNIQUE (tenant_id, key)
);

-- Rollups of minutes, hours and days: width in minutes, start in minutes since 1970.
CREATE TABLE rollups (
    tenant_id bigint NOT NULL,
    width integer NOT NULL,
    start bigint NOT NULL,
    series_id bigint NOT NULL,
    events bigint NOT NULL,
    messages bigint NOT NULL,
    calls bigint NOT NULL,
    errors bigint NOT NULL,
    tool_errors bigint NOT NULL,
    bytes_to_server bigint NOT NULL,
    bytes_to_client bigint NOT NULL,
    PRIMARY KEY (tenant_id, width, start, series_id)
) WITH (fillfactor = 80);

CREATE TABLE latencies (
    tenant_id bigint NOT NULL,
    width integer NOT NULL,
    start bigint NOT NULL,
    series_id bigint NOT NULL,
    bucket smallint NOT NULL,
    answers bigint NOT NULL,
    PRIMARY KEY (tenant_id, width, start, series_id, bucket)
) WITH (fillfactor = 80);

-- FORCE: the owner of the tables, as whom km-server connects, is bound by the policies too. (A superuser is not.)
CREATE FUNCTION km_guard(guarded regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', guarded);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', guarded);
    EXECUTE format(
        'CREATE POLICY own_tenant ON %s USING ('
        'tenant_id = (SELECT nullif(current_setting(''km.tenant_id'', true), '''')::bigint)'
        ' OR (SELECT coalesce(current_setting(''km.upkeep'', true), '''') = ''on''))',
        guarded
    );
END
$$;
SELECT km_guard(name::regclass) FROM unnest(ARRAY[
    'sessions', 'events', 'events_ancient', 'events_misfiled', 'series', 'rollups', 'latencies', 'refusals'
]) AS name;

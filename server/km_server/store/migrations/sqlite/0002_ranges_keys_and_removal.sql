-- Days to keep; none is: all.
ALTER TABLE tenants ADD COLUMN retention_days INTEGER;
ALTER TABLE api_keys ADD COLUMN expires_at_ns INTEGER;

-- What the store refused, by reason.
CREATE TABLE refusals (
    tenant_id INTEGER NOT NULL,
    reason TEXT NOT NULL,
    events INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, reason)
) STRICT, WITHOUT ROWID;

-- bucket: the latency bucket of took_ns; series_id: what the event is counted under; so counting is SQL alone. extra:
-- unknown fields, a JSON object. packed: the payload is a zstd frame. Made anew, because the payload must stay last (see 0001).
ALTER TABLE events RENAME TO old_events;
DROP INDEX events_by_time;
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id INTEGER NOT NULL,
    session_id INTEGER NOT NULL REFERENCES sessions (id),
    stream INTEGER NOT NULL,
    position INTEGER NOT NULL,
    member INTEGER NOT NULL,
    series_id INTEGER NOT NULL,
    at_ns INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    took_ns INTEGER,
    bucket INTEGER,
    risk INTEGER,
    error_code INTEGER,
    truncated INTEGER NOT NULL,
    packed INTEGER NOT NULL,
    kind TEXT NOT NULL,
    method TEXT,
    target TEXT,
    rpc_id TEXT,
    outcome TEXT,
    sha256 TEXT,
    extra BLOB,
    payload BLOB,
    UNIQUE (session_id, stream, position, member)
) STRICT;
INSERT INTO events
SELECT e.id, e.tenant_id, e.session_id, e.stream, e.position, e.member, n.id, e.at_ns, e.size_bytes, e.took_ns,
    km_bucket(e.took_ns), NULL, e.error_code, e.truncated, 0, e.kind, e.method, e.target, e.rpc_id, e.outcome, e.sha256,
    NULL, e.payload
FROM old_events e
JOIN sessions s ON s.id = e.session_id
JOIN series n ON n.tenant_id = e.tenant_id AND n.server = s.name
    AND n.method = coalesce(e.method, '') AND n.target = coalesce(e.target, '');
DROP TABLE old_events;
CREATE INDEX events_by_time ON events (tenant_id, at_ns, id);

ALTER TABLE sessions ADD COLUMN closed_first TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN messages INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN calls INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN errors INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN tool_errors INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN bytes_to_server INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN bytes_to_client INTEGER NOT NULL DEFAULT 0;
CREATE INDEX sessions_by_start ON sessions (tenant_id, started_at_ns, id);
CREATE INDEX sessions_by_time ON sessions (tenant_id, first_at_ns, last_at_ns);

UPDATE sessions SET
    messages = c.messages, calls = c.calls, errors = c.errors, tool_errors = c.tool_errors,
    bytes_to_server = c.bytes_to_server, bytes_to_client = c.bytes_to_client
FROM (
    SELECT session_id,
        count(*) FILTER (WHERE kind <> 'batch' AND stream <> 2) AS messages,
        count(*) FILTER (WHERE kind = 'request') AS calls,
        count(*) FILTER (WHERE outcome = 'rpc_error') AS errors,
        count(*) FILTER (WHERE outcome = 'tool_error') AS tool_errors,
        CAST(total(CASE WHEN stream = 0 AND member = 0 THEN size_bytes ELSE 0 END) AS INTEGER) AS bytes_to_server,
        CAST(total(CASE WHEN stream = 1 AND member = 0 THEN size_bytes ELSE 0 END) AS INTEGER) AS bytes_to_client
    FROM events GROUP BY session_id
) AS c
WHERE c.session_id = sessions.id;

-- Rollups of minutes, hours and days: width in minutes, start in minutes since 1970.
ALTER TABLE rollups RENAME TO minute_rollups;
ALTER TABLE latencies RENAME TO minute_latencies;

CREATE TABLE rollups (
    tenant_id INTEGER NOT NULL,
    width INTEGER NOT NULL,
    start INTEGER NOT NULL,
    series_id INTEGER NOT NULL,
    events INTEGER NOT NULL,
    messages INTEGER NOT NULL,
    calls INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    tool_errors INTEGER NOT NULL,
    bytes_to_server INTEGER NOT NULL,
    bytes_to_client INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, width, start, series_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE latencies (
    tenant_id INTEGER NOT NULL,
    width INTEGER NOT NULL,
    start INTEGER NOT NULL,
    series_id INTEGER NOT NULL,
    bucket INTEGER NOT NULL,
    answers INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, width, start, series_id, bucket)
) STRICT, WITHOUT ROWID;

WITH widths (width) AS (VALUES (1), (60), (1440))
INSERT INTO rollups
SELECT tenant_id, width, minute / width * width, series_id, sum(events), sum(messages), sum(calls), sum(errors),
    sum(tool_errors), CAST(total(bytes_to_server) AS INTEGER), CAST(total(bytes_to_client) AS INTEGER)
FROM minute_rollups, widths GROUP BY 1, 2, 3, 4;

WITH widths (width) AS (VALUES (1), (60), (1440))
INSERT INTO latencies
SELECT tenant_id, width, minute / width * width, series_id, bucket, sum(answers)
FROM minute_latencies, widths GROUP BY 1, 2, 3, 4, 5;

DROP TABLE minute_rollups;
DROP TABLE minute_latencies;

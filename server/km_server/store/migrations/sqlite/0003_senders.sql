-- How many events a sender has had to give up before they were delivered; they never come.
CREATE TABLE senders (
    tenant_id INTEGER NOT NULL REFERENCES tenants (id),
    sender TEXT NOT NULL,
    lost_events INTEGER NOT NULL,
    noted_at_ns INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, sender)
) STRICT, WITHOUT ROWID;

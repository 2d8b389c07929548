-- How many events a sender has had to give up before they were delivered; they never come.
CREATE TABLE senders (
    tenant_id bigint NOT NULL REFERENCES tenants (id),
    sender text COLLATE "C" NOT NULL,
    lost_events bigint NOT NULL,
    noted_at_ns bigint NOT NULL,
    PRIMARY KEY (tenant_id, sender)
);
ALTER TABLE senders ENABLE ROW LEVEL SECURITY;
ALTER TABLE senders FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON senders
    USING (tenant_id = (SELECT nullif(current_setting('km.tenant_id', true), '')::bigint));

-- How many events a sender has had to give up before they were delivered; they never come.
CREATE TABLE senders (
    tenant_id bigint NOT NULL REFERENCES tenants (id),
    sender text COLLATE "C" NOT NULL,
    lost_events bigint NOT NULL,
    noted_at_ns bigint NOT NULL,
    PRIMARY KEY (tenant_id, sender)
);
SELECT km_guard('senders');

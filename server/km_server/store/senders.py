"""What senders say about themselves, as askings: how many events each has had to give up."""

from km_server.store.asking import Asking, Question
from km_server.store.values import Sender

SENDERS_MAX = 10_000
"""Of one tenant: names are the senders' to choose, so there must be an end."""


def note_sender(tenant_id: int, name: str, lost_events: int, now_ns: int) -> Asking[None]:
    """Remember a sender's count. It only grows: batches may come out of order."""
    yield Question(
        "INSERT INTO senders (tenant_id, sender, lost_events, noted_at_ns)"
        " SELECT id, $2, $3, $4 FROM tenants WHERE id = $1 AND ("
        f"(SELECT count(*) FROM senders WHERE tenant_id = $1) < {SENDERS_MAX}"
        " OR EXISTS (SELECT 1 FROM senders WHERE tenant_id = $1 AND sender = $2))"
        " ON CONFLICT (tenant_id, sender) DO UPDATE SET"
        " lost_events = excluded.lost_events, noted_at_ns = excluded.noted_at_ns"
        " WHERE excluded.lost_events > senders.lost_events",
        (tenant_id, name, lost_events, now_ns),
    )


def list_senders(tenant_id: int) -> Asking[list[Sender]]:
    """Those that have lost something, most first."""
    rows = yield Question(
        "SELECT sender, lost_events, noted_at_ns FROM senders WHERE tenant_id = $1 ORDER BY lost_events DESC, sender",
        (tenant_id,),
    )
    return [Sender(*row) for row in rows]

"""What senders say they have lost: written when it has grown, not with every batch."""

from dataclasses import dataclass, field

from aiohttp import web

from km_server.store.protocol import TenantStore

NOTED_MAX = 10_000
"""Counts that this process remembers having written; without one, the next batch writes it again."""


@dataclass(slots=True)
class NotedSenders:
    """The counts that are known to be in the store."""

    lost: dict[tuple[int, str], int] = field(default_factory=dict)

    async def note(self, store: TenantStore, sender: str, lost_events: int) -> None:
        """Keep a sender's count. Raises StoreBusy."""
        key = (store.tenant.id, sender)
        if lost_events <= self.lost.get(key, 0):
            return
        await store.note_sender(sender, lost_events)
        if len(self.lost) >= NOTED_MAX:
            self.lost.clear()
        self.lost[key] = lost_events


SENDERS = web.AppKey("senders", NotedSenders)

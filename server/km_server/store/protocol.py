"""
What the server asks of a store. Two implementations: SQLite (embedded) and PostgreSQL.

Everything that belongs to a tenant is reached through a `TenantStore`, which is bound to one: no question can
be put without a tenant. A method that writes returns after the commit. Every method may raise StoreBusy.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from km_server.store.values import (
    EVERYTHING,
    ActivityPage,
    ActivityQuery,
    ApiKey,
    Arrival,
    Filter,
    Maintained,
    News,
    Progress,
    Removed,
    Scope,
    Sender,
    SessionPage,
    SessionQuery,
    Stats,
    StatsQuery,
    StoredEvent,
    StoredSession,
    StoreFacts,
    Tenant,
)
from kmd.wire import Session, Verdict


class TenantStore(Protocol):
    """One tenant's part of the store."""

    @property
    def tenant(self) -> Tenant: ...

    async def ingest(self, sessions: Sequence[Session], arrivals: Sequence[Arrival]) -> list[Verdict]:
        """
        Store what is new, count it, and commit.

        Returns: one verdict per arrival, in their order. Rejected are events whose session is neither in *sessions*
            nor known (UNKNOWN_SESSION), whose session's own clock is far ahead (AHEAD), and those older than what the
            tenant keeps (EXPIRED): see km_server.store.fate. The last two are counted, see read_refusals.
        """

    async def read_refusals(self) -> Mapping[str, int]:
        """How many events were rejected by the store so far, by reason code (`ahead`, `expired`)."""

    async def note_sender(self, name: str, lost_events: int) -> None:
        """Remember how many events a sender says it has had to give up."""

    async def list_senders(self) -> Sequence[Sender]:
        """The senders that had to give up events, most first."""

    async def read_activity(self, query: ActivityQuery) -> ActivityPage:
        """One page of the feed."""

    async def find_event(self, event_id: int) -> StoredEvent | None:
        """One event with its payload."""

    def export(
        self, where: Filter = EVERYTHING, *, payloads: bool = True, limit: int | None = None
    ) -> AsyncIterator[Sequence[StoredEvent]]:
        """
        Every event that matches, oldest first, in portions that bound the memory.

        Each portion is a snapshot of its own: an event that comes in with a time that was already passed is not in it.
        """

    async def read_stats(self, query: StatsQuery) -> Stats:
        """The figures of a span, from the rollups."""

    async def list_sessions(self, query: SessionQuery) -> SessionPage:
        """One page of the sessions. (A session's timeline is its activity, oldest first.)"""

    async def find_session(self, session: str) -> StoredSession | None:
        """The session of this name."""

    async def delete_session(self, session: str) -> Removed:
        """Remove a session and all its events, and take them out of the figures."""

    async def delete_span(self, from_ns: int | None, to_ns: int | None) -> Removed:
        """
        Remove the events of a time range, and take them out of the figures; sessions left without events go too.

        Many events are removed in several transactions; each leaves figures that equal a recount.
        """

    async def read_news(self, mark: int | None, where: Filter = EVERYTHING, limit: int = 500) -> News:
        """What was committed after *mark*, with payloads left out; None: nothing, but the mark of now."""

    async def wait_news(self, timeout_s: float) -> None:
        """Return when there may be news, at the latest after *timeout_s*."""

    def rebuild_rollups(self) -> AsyncIterator[Progress]:
        """Make the figures anew from the events, day by day; ingestion may go on meanwhile."""


class Store(Protocol):
    """The whole store: keys, tenants, and the door to one tenant's part."""

    def bind(self, tenant: Tenant) -> TenantStore:
        """The part of the store that belongs to *tenant*."""

    async def check(self) -> None:
        """Read and write nothing. Raises StoreError when either way is shut."""

    async def facts(self) -> StoreFacts:
        """How the store is."""

    async def maintain(self) -> Maintained:
        """One round of upkeep: partitions ahead of time, retention. Safe from several processes at once."""

    async def create_key(
        self, tenant: str, digest: bytes, scopes: frozenset[Scope], expires_at_ns: int | None = None
    ) -> ApiKey:
        """Store a key's digest; the tenant is made when it is new."""

    async def list_keys(self) -> Sequence[ApiKey]:
        """Every key, revoked and expired ones too, oldest first."""

    async def revoke_key(self, key_id: int) -> bool:
        """Revoke a key for good. False when there is no such key."""

    async def rotate_key(self, key_id: int, digest: bytes, overlap_s: int) -> ApiKey | None:
        """
        Make a key with the tenant, the scopes and the expiry of *key_id*, which goes on for *overlap_s* and then
        expires. None when there is no such live key.
        """

    async def find_key(self, digest: bytes) -> ApiKey | None:
        """The live key with this digest: neither revoked nor expired; notes, now and then, that it was used."""

    async def list_tenants(self) -> Sequence[Tenant]:
        """Every tenant, by name."""

    async def set_tenant(self, name: str, usd_per_kb: float, retention_days: int | None) -> Tenant | None:
        """Change a tenant's settings. None when there is no such tenant."""

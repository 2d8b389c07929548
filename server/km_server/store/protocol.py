"""
What the server asks of a store. Two implementations are meant: SQLite (embedded) and PostgreSQL.

Everything that belongs to a tenant is reached through a `TenantStore`, which is bound to one: no question can
be put without a tenant. A method that writes returns after the commit. Every method may raise StoreBusy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import msgspec

from km_server.store.rollup import Figures, Series
from kmd.wire import Event, Session, Verdict


class Scope(StrEnum):
    """What a key may do. One does not imply another."""

    INGEST = "ingest"
    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose data it is, and what a KB costs them in US dollars."""

    id: int
    name: str
    usd_per_kb: float


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A stored key: its digest (SHA-256 of its text), never the text."""

    id: int
    tenant: Tenant
    digest: bytes = field(repr=False)
    scopes: frozenset[Scope]
    created_at_ns: int
    last_used_at_ns: int | None
    revoked_at_ns: int | None


class Arrival(msgspec.Struct, frozen=True):
    """An event that passed every check that needs no store, with its payload's exact bytes."""

    event: Event
    payload: bytes | None


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the feed: newest first by time, then by id."""

    at_ns: int
    id: int


@dataclass(frozen=True, slots=True)
class ActivityQuery:
    """
    One page of the feed.

    after: continue below this place. from_ns is included, to_ns is not. The other filters compare exactly.
    """

    limit: int
    after: Position | None = None
    payloads: bool = False
    from_ns: int | None = None
    to_ns: int | None = None
    session: str | None = None
    server: str | None = None
    method: str | None = None
    kind: str | None = None
    outcome: str | None = None


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as stored: its row id, its server's name, and its payload when asked for (not in `event`)."""

    id: int
    server: str
    event: Event
    payload: bytes | None = field(repr=False)

    @property
    def position(self) -> Position:
        return Position(self.event.at_ns, self.id)


@dataclass(frozen=True, slots=True)
class ActivityPage:
    """Events in the feed's order; `next` is None at its end. A page may be short, or empty, before the end."""

    events: Sequence[StoredEvent]
    next: Position | None


@dataclass(frozen=True, slots=True)
class Span:
    """Whole minutes (Unix time // 60 s): first included, end not. None is open."""

    first_minute: int | None = None
    end_minute: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The figures of one series over a span, with its answers per latency bucket."""

    series: Series
    figures: Figures
    latencies: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Stats:
    """Totals over every series, and the busiest series; `omitted` counts those left out of `groups`."""

    sessions: int
    totals: Figures
    latencies: Mapping[int, int]
    groups: Sequence[Group]
    omitted: int


class TenantStore(Protocol):
    """One tenant's part of the store."""

    @property
    def tenant(self) -> Tenant: ...

    async def ingest(self, sessions: Sequence[Session], arrivals: Sequence[Arrival]) -> list[Verdict]:
        """
        Store what is new, count it, and commit.

        Returns: one verdict per arrival, in their order. An event whose session is neither in *sessions* nor
            known is rejected.
        """

    async def read_activity(self, query: ActivityQuery) -> ActivityPage:
        """One page of the feed."""

    async def read_stats(self, span: Span) -> Stats:
        """The figures of a span, from the rollups."""


class Store(Protocol):
    """The whole store: keys, tenants, and the door to one tenant's part."""

    def bind(self, tenant: Tenant) -> TenantStore:
        """The part of the store that belongs to *tenant*."""

    async def check(self) -> None:
        """Read and write nothing. Raises StoreError when either way is shut."""

    async def create_key(self, tenant: str, digest: bytes, scopes: frozenset[Scope]) -> ApiKey:
        """Store a key's digest; the tenant is made when it is new."""

    async def list_keys(self) -> Sequence[ApiKey]:
        """Every key, revoked ones too, oldest first."""

    async def revoke_key(self, key_id: int) -> bool:
        """Revoke a key for good. False when there is no such key."""

    async def find_key(self, digest: bytes) -> ApiKey | None:
        """The live key with this digest; notes, now and then, that it was used."""

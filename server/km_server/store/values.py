"""
What goes into a store and comes out of it, as values. No store is needed to make one.

A *position* is a place in the feed. A *filter* says which events are meant. A *span* is a range of whole minutes,
for statistics. A *mark* says up to where a follower of the live feed has heard.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import msgspec

from km_server.store.rollup import Figures
from kmd.wire import Event, Session


class Scope(StrEnum):
    """What a key may do. One does not imply another."""

    INGEST = "ingest"
    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose data it is, what a KB costs them in US dollars, how many days are kept (None: all)."""

    id: int
    name: str
    usd_per_kb: float
    retention_days: int | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A stored key: its digest (SHA-256 of its text), never the text. `expires_at_ns` None: it does not expire."""

    id: int
    tenant: Tenant
    digest: bytes = field(repr=False)
    scopes: frozenset[Scope]
    created_at_ns: int
    expires_at_ns: int | None
    last_used_at_ns: int | None
    revoked_at_ns: int | None


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """
    An event that passed every check that needs no store, with its payload's exact bytes.

    risk: 0 to 100 where the sender said one. extra: fields that this version does not know, as the text of a JSON
    object; kept, and handed back as they came.
    """

    event: Event
    payload: bytes | None
    risk: int | None = None
    extra: bytes | None = None


class Position(NamedTuple):
    """A place in the feed: by time, then by id."""

    at_ns: int
    id: int


@dataclass(frozen=True, slots=True)
class Filter:
    """
    Which events are meant; None does not narrow. All given parts must hold.

    from_ns is included, to_ns is not. risk_at_least leaves out events without a risk. text: found, whatever the
    case of ASCII letters, in the method, the target, the server's name or the payload. The rest compare exactly.
    """

    from_ns: int | None = None
    to_ns: int | None = None
    session: str | None = None
    server: str | None = None
    method: str | None = None
    target: str | None = None
    stream: str | None = None
    kind: str | None = None
    outcome: str | None = None
    risk_at_least: int | None = None
    text: str | None = None


EVERYTHING = Filter()


class Order(StrEnum):
    """Which way the feed is read."""

    NEWEST_FIRST = "newest_first"
    OLDEST_FIRST = "oldest_first"


@dataclass(frozen=True, slots=True)
class ActivityQuery:
    """One page of the feed; after: continue behind this place, in the given order."""

    limit: int
    after: Position | None = None
    payloads: bool = False
    where: Filter = EVERYTHING
    order: Order = Order.NEWEST_FIRST


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as stored: its row id, its server's name, and its payload when asked for (not in `event`)."""

    id: int
    server: str
    event: Event
    payload: bytes | None = field(repr=False)
    risk: int | None = None
    extra: bytes | None = field(default=None, repr=False)

    @property
    def position(self) -> Position:
        return Position(self.event.at_ns, self.id)


@dataclass(frozen=True, slots=True)
class ActivityPage:
    """Events in the order asked for; `next` is None at the end. A page may be short, or empty, before the end."""

    events: Sequence[StoredEvent]
    next: Position | None


@dataclass(frozen=True, slots=True)
class Span:
    """Whole minutes (Unix time // 60 s): first included, end not. None is open."""

    first_minute: int | None = None
    end_minute: int | None = None


class Dimension(StrEnum):
    """What statistics can be grouped by."""

    SERVER = "server"
    METHOD = "method"
    TARGET = "target"


ALL_DIMENSIONS = tuple(Dimension)


@dataclass(frozen=True, slots=True)
class StatsQuery:
    """
    The figures of a span.

    group_by: the groups' dimensions, none for totals alone. server, method, target: only these, compared exactly
    ('' is none). bucket_minutes: also a time series, of buckets this wide that begin at multiples of it since 1970.
    """

    span: Span = Span()
    group_by: tuple[Dimension, ...] = ALL_DIMENSIONS
    server: str | None = None
    method: str | None = None
    target: str | None = None
    bucket_minutes: int | None = None


class Series(NamedTuple):
    """What a group stands for; '' is none, None a dimension that was not grouped by."""

    server: str | None
    method: str | None
    target: str | None


@dataclass(frozen=True, slots=True)
class Group:
    """The figures of one group over a span, with its answers per latency bucket."""

    series: Series
    figures: Figures
    latencies: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Bucket:
    """The figures of one stretch of time, which begins at *first_minute*. Buckets without events are left out."""

    first_minute: int
    figures: Figures
    latencies: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Stats:
    """
    Totals, the busiest groups, and the time series (empty unless asked for), oldest first.

    sessions: those with events whose first and last enclose some of the span; of one server where the query names
    it; methods and targets do not narrow it. omitted: groups left out of `groups`; the totals have them.
    """

    sessions: int
    totals: Figures
    latencies: Mapping[int, int]
    groups: Sequence[Group]
    omitted: int
    buckets: Sequence[Bucket] = ()


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A session and what its stored events come to. first and last are None while it has none."""

    id: int
    session: Session
    first_at_ns: int | None
    last_at_ns: int | None
    figures: Figures

    @property
    def position(self) -> Position:
        """The session's place in the list of sessions, which is sorted by their starts."""
        return Position(self.session.started_at_ns, self.id)


@dataclass(frozen=True, slots=True)
class SessionQuery:
    """One page of the sessions, newest start first. from_ns, to_ns: with events that enclose some of this range."""

    limit: int
    after: Position | None = None
    server: str | None = None
    from_ns: int | None = None
    to_ns: int | None = None


@dataclass(frozen=True, slots=True)
class SessionPage:
    """Sessions, newest start first; `next` is None at the end."""

    sessions: Sequence[StoredSession]
    next: Position | None


@dataclass(frozen=True, slots=True)
class Sender:
    """A sender, and how many events it has had to give up since it was installed."""

    name: str
    lost_events: int
    noted_at_ns: int


@dataclass(frozen=True, slots=True)
class Removed:
    """What a deletion took away."""

    events: int
    sessions: int


@dataclass(frozen=True, slots=True)
class News:
    """
    Events that were committed after a mark, in the order of their ids, and the mark to go on from.

    has_more: there may be others after the mark already, even where none of these matched.
    """

    events: Sequence[StoredEvent]
    mark: int
    has_more: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long piece of work is, in events."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Maintained:
    """What one round of upkeep did."""

    partitions_made: int = 0
    partitions_dropped: int = 0
    events_refiled: int = 0
    events_expired: int = 0


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """
    How the store is, for status, logs and metrics.

    waiting: requests that wait to be written. misfiled: events in the default partition, whose own is missing; anything
    but 0 for longer than one upkeep is an alarm. partitions_ahead: of weeks that have not begun. SQLite has none of
    either. problem: what an operator should look at, in one sentence; empty when all is well.
    """

    kind: str
    version: str
    schema: int
    waiting: int = 0
    misfiled: int = 0
    partitions: int = 0
    partitions_ahead: int = 0
    problem: str = ""

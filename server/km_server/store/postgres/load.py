"""
One transaction of the bulk load: batches of one tenant, from rows to commit.

The rows go by COPY into a table of the connection's own, and from there into the events with ON CONFLICT DO NOTHING;
what comes back are the ids of the really new ones, and only those are counted. No two transactions wait for each
other crosswise: all of them lock in the same order (the tenant's lock, known sessions by id, new sessions by name,
events by key, rollups by key).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain, islice
from typing import Any

from km_server.store.asking import Cell
from km_server.store.counting import CREATE_FRESH, STREAM_CODES, count_fresh
from km_server.store.fate import UNKNOWN_SESSION
from km_server.store.histogram import bucket_of
from km_server.store.judge import ACCEPTED, DUPLICATE, Offer, merge
from km_server.store.payload import open_packer, pack
from km_server.store.postgres.driver import STATEMENT_MS, Terms, answer, transaction
from km_server.store.postgres.migrate import LOCK_CLASS
from km_server.store.removal import count_refusals
from km_server.store.values import Arrival
from kmd.wire import Session

BLOCK = 1024
"""Event ids that one number of the sequence stands for."""

NEWS_CLASS = 0x4B4E
"""The first key of the locks that say from which block on events are being written (see store.newest_id)."""

COLUMNS = (
    "id, session_id, series_id, day, position, member, at_ns, size_bytes, took_ns, error_code, stream, bucket, risk,"
    " truncated, packed, kind, method, target, rpc_id, outcome, sha256, extra, payload"
)
COLUMN_NAMES = tuple(COLUMNS.split(", "))
INCOMING = "incoming_v1"
CREATE_INCOMING = f"""
CREATE TEMP TABLE IF NOT EXISTS {INCOMING} (
    id bigint, session_id bigint, series_id bigint, day integer, position bigint, member bigint, at_ns bigint,
    size_bytes bigint, took_ns bigint, error_code bigint, stream smallint, bucket smallint, risk smallint,
    truncated smallint, packed smallint, kind text, method text, target text, rpc_id text, outcome text, sha256 text,
    extra bytea, payload bytea
) ON COMMIT DELETE ROWS
"""
INSERT_NEW = (
    f"INSERT INTO events (tenant_id, {COLUMNS}) SELECT $1::bigint, {COLUMNS} FROM {INCOMING}"
    " ORDER BY session_id, stream, position, member, id ON CONFLICT DO NOTHING RETURNING id"
)
SESSION_COLUMNS = "id, session, name, command, host, started_at_ns, ended_at_ns, closed_first, day"
Row = tuple[Cell, ...]
SeriesIds = dict[tuple[int, str, str, str], int]
"""The id of each tenant's server, method and target; '' is none."""

SERIES_KEPT = 50_000


@dataclass(slots=True)
class Parcel:
    """
    A batch on its way. For each event that may be stored: the cells that need no database, and which of the batch's
    series (method and target) it is counted under. The other events' places hold nothing.
    """

    offer: Offer
    series: list[tuple[str, str]]
    rows: list[Row]
    series_of: list[int]


def prepare(offer: Offer) -> Parcel:
    """Prepare the rows of a batch: the work that needs no database, while that is busy with others."""
    rows: list[Row] = [()] * len(offer.arrivals)
    series_of = [0] * len(offer.arrivals)
    numbers: dict[tuple[str, str], int] = {}
    compress = open_packer()
    for places in offer.places.values():
        for place in places:
            arrival = offer.arrivals[place]
            series = (arrival.event.method or "", arrival.event.target or "")
            series_of[place] = numbers.setdefault(series, len(numbers))
            rows[place] = prepare_row(arrival, compress)
    return Parcel(offer, list(numbers), rows, series_of)


def prepare_row(arrival: Arrival, compress: Callable[[bytes], bytes]) -> Row:
    """The event's own cells, in the order of COLUMNS. (`_value_`: a StrEnum's own text, without a call.)"""
    event = arrival.event
    took_ns = event.took_ns
    packed, payload = pack(arrival.payload, compress)
    return (
        event.offset,
        event.index,
        event.at_ns,
        event.size_bytes,
        took_ns,
        event.error_code,
        STREAM_CODES[event.stream],
        None if took_ns is None else bucket_of(took_ns),
        arrival.risk,
        int(event.truncated),
        packed,
        event.kind._value_,
        event.method,
        event.target,
        event.rpc_id,
        None if event.outcome is None else event.outcome._value_,
        event.sha256,
        arrival.extra,
        payload,
    )


@dataclass(frozen=True, slots=True)
class Known:
    """A stored session: its row, the day that says its partition, and what is known of it."""

    id: int
    day: int
    session: Session


@dataclass(frozen=True, slots=True)
class Stretch:
    """Events of one session in one batch: their places in it."""

    parcel: Parcel
    known: Known
    places: Sequence[int]

    def series(self) -> list[tuple[str, str]]:
        """The method and target of each series among them."""
        return [self.parcel.series[number] for number in {self.parcel.series_of[place] for place in self.places}]


@dataclass(slots=True)
class Load:
    """The batches of one transaction, and the connections and ids that it works with."""

    pool: Any
    tenant_id: int
    parcels: Sequence[Parcel]
    series: SeriesIds
    made: SeriesIds = field(default_factory=dict)
    known: dict[str, Known] = field(default_factory=dict)

    @property
    def terms(self) -> Terms:
        """
        The tenant's lock is shared: only what needs the tenant's data for itself has to wait (see store.change).

        The second lock is taken before any id: no event of this transaction has an id of the block in it, or before.
        """
        more = (
            f" SELECT set_config('client_min_messages', 'warning', true),"
            f" pg_advisory_xact_lock_shared({LOCK_CLASS}, {self.tenant_id}),"
            f" pg_advisory_xact_lock_shared({NEWS_CLASS}, (SELECT last_value FROM event_blocks)::integer);"
            f" {CREATE_INCOMING}; {CREATE_FRESH} ON COMMIT DELETE ROWS;"
        )
        return Terms(tenant_id=self.tenant_id, statement_ms=3 * STATEMENT_MS, more=more)

    async def run(self) -> None:
        """Store the batches and commit; their verdicts are filled in."""
        async with transaction(self.pool, self.terms) as connection:
            await self.find_sessions(connection)
            if stretches := self.place_events():
                await self.insert(connection, stretches)
            for parcel in self.parcels:
                if refused := parcel.offer.refused():
                    await answer(connection, count_refusals(self.tenant_id, refused))

    async def find_sessions(self, connection: Any) -> None:
        """Find the sessions of all batches, make the new ones, fill in what was not known."""
        described: dict[str, tuple[Session, int]] = {}
        for parcel in self.parcels:
            for name, (session, day) in parcel.offer.sessions.items():
                before = described.get(name)
                described[name] = (merge(before[0], session), before[1]) if before else (session, day)
        wanted = {*described, *(name for parcel in self.parcels for name in parcel.offer.places)}
        await self.read_sessions(connection, wanted)
        missing = sorted(described.keys() - self.known.keys())
        if missing:
            await self.make_sessions(connection, [described[name] for name in missing])
        for name in sorted(described):
            known, (session, _) = self.known[name], described[name]
            merged = merge(known.session, session)
            if merged != known.session:
                await connection.execute(
                    "UPDATE sessions SET command = $2, host = $3, started_at_ns = $4, ended_at_ns = $5,"
                    " closed_first = $6 WHERE id = $1",
                    known.id,
                    *(merged.command, merged.host, merged.started_at_ns, merged.ended_at_ns, merged.closed_first),
                )

    async def read_sessions(self, connection: Any, names: set[str]) -> None:
        """Read sessions, and keep others from changing them until the commit."""
        rows = await connection.fetch(
            f"SELECT {SESSION_COLUMNS} FROM sessions WHERE tenant_id = $1 AND session = ANY($2::text[])"
            " ORDER BY id FOR NO KEY UPDATE",
            self.tenant_id,
            list(names),
        )
        for row in rows:
            session = Session(
                session=row[1],
                name=row[2],
                command=row[3],
                host=row[4],
                started_at_ns=row[5],
                ended_at_ns=row[6],
                closed_first=row[7],
            )
            self.known[row[1]] = Known(row[0], row[8], session)

    async def make_sessions(self, connection: Any, new: Sequence[tuple[Session, int]]) -> None:
        """Make sessions, in the order of their names; another process may make some of them first."""
        sessions = [session for session, _ in new]
        await connection.execute(
            f"INSERT INTO sessions (tenant_id, {SESSION_COLUMNS.removeprefix('id, ')})"
            " SELECT $1::bigint, u.* FROM unnest("
            "$2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::text[], $9::integer[]"
            ") AS u ORDER BY 2 ON CONFLICT (tenant_id, session) DO NOTHING",
            self.tenant_id,
            [session.session for session in sessions],
            [session.name for session in sessions],
            [session.command for session in sessions],
            [session.host for session in sessions],
            [session.started_at_ns for session in sessions],
            [session.ended_at_ns for session in sessions],
            [session.closed_first for session in sessions],
            [day for _, day in new],
        )
        await self.read_sessions(connection, {session.session for session in sessions})

    def place_events(self) -> list[Stretch]:
        """The events that can be stored; those of unknown sessions get their verdict."""
        stretches = []
        for parcel in self.parcels:
            for name, places in parcel.offer.places.items():
                if name not in self.known:
                    parcel.offer.answer(name, UNKNOWN_SESSION)
                elif places:
                    stretches.append(Stretch(parcel, self.known[name], places))
        return stretches

    async def insert(self, connection: Any, stretches: Sequence[Stretch]) -> None:
        """Insert events and count the new ones; each gets its verdict."""
        count = sum(len(stretch.places) for stretch in stretches)
        blocks = await connection.fetch(
            "SELECT nextval('event_blocks') FROM generate_series(1, $1)", -(-count // BLOCK)
        )
        ids = list(islice(chain.from_iterable(range(row[0] * BLOCK, (row[0] + 1) * BLOCK) for row in blocks), count))
        series = await self.find_series(connection, stretches)
        rows = render(stretches, series, self.tenant_id, ids)
        await connection.copy_records_to_table(INCOMING, records=rows, columns=COLUMN_NAMES)
        new = {row[0] for row in await connection.fetch(INSERT_NEW, self.tenant_id)}
        if len(new) < count:
            await connection.execute(f"DELETE FROM {INCOMING} WHERE id <> ALL($1::bigint[])", list(new))
        if new:
            await answer(connection, count_fresh(self.tenant_id, f"{INCOMING} e"))
        following = iter(ids)
        for stretch in stretches:
            verdicts = stretch.parcel.offer.verdicts
            for place, event_id in zip(stretch.places, following, strict=False):
                verdicts[place] = ACCEPTED if event_id in new else DUPLICATE

    async def find_series(self, connection: Any, stretches: Sequence[Stretch]) -> SeriesIds:
        """The ids of all series of these events; new ones are made."""
        wanted = {
            (self.tenant_id, stretch.known.session.name, method, target)
            for stretch in stretches
            for method, target in stretch.series()
        }
        if missing := sorted(wanted - self.series.keys()):
            await self.make_series(connection, missing)
        return {series: self.series.get(series) or self.made[series] for series in wanted}

    async def make_series(self, connection: Any, missing: Sequence[tuple[int, str, str, str]]) -> None:
        """Make series, in the order of their keys; another process may make some of them first."""
        keys = [series_key(*series[1:]) for series in missing]
        await connection.execute(
            "INSERT INTO series (tenant_id, key, server, method, target)"
            " SELECT $1::bigint, u.* FROM unnest($2::bytea[], $3::text[], $4::text[], $5::text[]) AS u ORDER BY 1, 2"
            " ON CONFLICT (tenant_id, key) DO NOTHING",
            self.tenant_id,
            keys,
            *([series[part] for series in missing] for part in (1, 2, 3)),
        )
        rows = await connection.fetch(
            "SELECT server, method, target, id FROM series WHERE tenant_id = $1 AND key = ANY($2::bytea[])",
            self.tenant_id,
            keys,
        )
        for row in rows:
            self.made[(self.tenant_id, row[0], row[1], row[2])] = row[3]


def render(stretches: Sequence[Stretch], series: SeriesIds, tenant_id: int, ids: Sequence[int]) -> list[Row]:
    """The rows of events, in the order of COLUMNS and of *ids*."""
    rows: list[Row] = []
    following = iter(ids)
    for stretch in stretches:
        parcel, known = stretch.parcel, stretch.known
        own = [series.get((tenant_id, known.session.name, *names), 0) for names in parcel.series]
        rows += [
            (event_id, known.id, own[parcel.series_of[place]], known.day, *parcel.rows[place])
            for place, event_id in zip(stretch.places, following, strict=False)
        ]
    return rows


def series_key(server: str, method: str, target: str) -> bytes:
    """The hash of a series' three texts (none of which holds a NUL)."""
    return sha256("\0".join((server, method, target)).encode()).digest()

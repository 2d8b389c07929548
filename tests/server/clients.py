"""What the server's tests send and how: batches, a client with a key, the application in a thread, stores."""

import asyncio
import json
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
from km_server import app
from km_server.config import ServerConfig
from km_server.key_text import KEY_BYTES, digest_key, make_key
from km_server.store.opening import open_store
from km_server.store.protocol import Store, TenantStore
from km_server.store.sqlite.connection import open_reader
from km_server.store.sqlite.driver import sqlite3
from km_server.store.values import Arrival, Scope, Tenant

from kmd.mcp.names import Kind, Outcome, Stream
from kmd.wire import Batch, Event, Receipt, Session, payload_bytes

WAIT_S = 30.0
NOW_NS = time.time_ns()
"""One moment for a whole run, so that every test's events lie in the past."""


Database = Path | str
"""A SQLite file, or the URL of any store."""


def database_url(database: Database) -> str:
    return f"sqlite:///{database}" if isinstance(database, Path) else database


def make_session(session: str = "s1", name: str = "files", ended_at_ns: int | None = None) -> Session:
    return Session(session=session, name=name, command="server", started_at_ns=NOW_NS, ended_at_ns=ended_at_ns)


def make_event(number: int, session: str = "s1", **changes: Any) -> Event:  # noqa: ANN401 - any field
    """The *number*-th request of a session; *changes* are laid over it."""
    payload = json.dumps({"jsonrpc": "2.0", "id": number, "method": "tools/call"})
    fields: dict[str, Any] = {
        "session": session,
        "stream": Stream.TO_SERVER,
        "offset": number * 100,
        "at_ns": NOW_NS + number * 1000,
        "kind": Kind.REQUEST,
        "method": "tools/call",
        "target": "read",
        "rpc_id": str(number),
        "size_bytes": len(payload),
        "payload": payload,
    }
    return Event(**{**fields, **changes})


def make_answer(number: int, took_ns: int, outcome: Outcome = Outcome.OK, session: str = "s1") -> Event:
    """The answer to the *number*-th request."""
    kind = Kind.ERROR if outcome in (Outcome.RPC_ERROR, Outcome.PROBE) else Kind.RESPONSE
    return make_event(
        number, session, stream=Stream.TO_CLIENT, kind=kind, took_ns=took_ns, outcome=outcome, at_ns=NOW_NS + number
    )


def make_batch(events: Sequence[Event], sessions: Sequence[Session] | None = None, batch_id: str = "b") -> Batch:
    """A batch that describes each session of its events, unless *sessions* says otherwise."""
    if sessions is None:
        sessions = [make_session(name) for name in dict.fromkeys(event.session for event in events)]
    return Batch(batch_id=batch_id, sessions=tuple(sessions), events=tuple(events))


class Api:
    """A client of a running server with one key."""

    def __init__(self, url: str, key: str) -> None:
        self.key = key
        self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=WAIT_S)

    def post(self, body: bytes, path: str = "/api/v1/events/batch", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(path, content=body, headers={"Content-Type": "application/json", **named})

    def send(self, batch: Batch) -> list[str]:
        """Post a batch that must be judged; returns `status` or `status: reason` per event."""
        answer = self.post(msgspec.json.encode(batch))
        assert answer.status_code in (200, 422), answer.text
        receipt = msgspec.json.decode(answer.content, type=Receipt)
        assert receipt.batch_id == batch.batch_id
        return [": ".join(filter(None, (verdict.status, verdict.reason))) for verdict in receipt.verdicts]

    def get(self, path: str, **parameters: str | int) -> dict[str, Any]:
        answer = self.http.get(path, params=parameters)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def activity(self, **parameters: str | int) -> dict[str, Any]:
        return self.get("/api/v1/activity", **parameters)

    def feed(self, **parameters: str | int) -> list[dict[str, Any]]:
        """Every item of the feed, page by page."""
        page = self.activity(**parameters)
        items = list(page["items"])
        while page["next_cursor"] is not None:
            page = self.activity(**parameters, cursor=page["next_cursor"])
            items += page["items"]
        return items

    def stats(self, **parameters: str | int) -> dict[str, Any]:
        return self.get("/api/v1/stats", **parameters)


def new_key(database: Database, tenant: str, *scopes: Scope) -> str:
    """A key, made in the store itself: quicker than the command, which has tests of its own."""
    key = make_key(secrets.token_urlsafe(KEY_BYTES))

    async def create() -> None:
        async with open_store(database_url(database)) as store:
            await store.create_key(tenant, digest_key(key), frozenset(scopes or (Scope.INGEST, Scope.READ)))

    asyncio.run(create())
    return key


@contextmanager
def open_api(url: str, database: Database, tenant: str, *scopes: Scope) -> Iterator[Api]:
    """A client with a new key of *tenant*."""
    api = Api(url, new_key(database, tenant, *scopes))
    with api.http:
        yield api


@contextmanager
def app_in_thread(config: ServerConfig) -> Iterator[str]:
    """The real application on a real socket in this process; yields its URL."""
    started = threading.Event()
    urls: list[str] = []
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def run() -> None:
        stop = asyncio.Event()
        loops.append((asyncio.get_running_loop(), stop))
        listening = app.bind(config)
        try:
            async with app.serving(app.create_app(config), listening):
                urls.append(app.describe_url(config, listening))
                started.set()
                await stop.wait()
        finally:
            started.set()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert started.wait(WAIT_S)
        yield urls[0]
    finally:
        loop, stop = loops[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(WAIT_S)
        assert not thread.is_alive()


@asynccontextmanager
async def open_tenant(database: Database, name: str = "acme") -> AsyncIterator[TenantStore]:
    """A tenant's part of a store of its own."""
    async with open_store(database_url(database)) as store:
        yield store.bind(await make_tenant(store, name))


async def make_tenant(store: Store, name: str) -> Tenant:
    key = await store.create_key(name, digest_key(f"km_{name}"), frozenset({Scope.READ}))
    return key.tenant


def arrive(events: Sequence[Event]) -> list[Arrival]:
    return [Arrival(event, payload_bytes(event)) for event in events]


def ask_file(database: Path, question: str) -> list[tuple[Any, ...]]:
    """Read the file beside a running server."""
    connection = open_reader(database)
    try:
        return connection.execute(question).fetchall()
    finally:
        connection.close()


def open_file(database: Path) -> sqlite3.Connection:
    """A plain connection, to hold locks and to make old files with."""
    return sqlite3.connect(database, isolation_level=None)

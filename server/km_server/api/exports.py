"""
Everything at once, as JSON lines, CSV or HAR. Pure: portions of events in, pieces of bytes out, memory bounded.

JSON lines are the exact form: one event per line, as the feed shows it. CSV is for spreadsheets: a cell that one
would take for a formula gets an apostrophe before it. HAR 1.2 is for viewers of HTTP traffic: one entry per
exchange and per notification, with what has no place in HTTP in fields that begin with `_`.
"""

import base64
import csv
import io
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol
from urllib.parse import quote

import msgspec

from km_server.api.answers import NS_PER_MS, Item, render_item
from km_server.api.times import render_time
from km_server.store.values import StoredEvent
from kmd.mcp.names import Kind, Outcome, Stream

OPEN_MAX = 5_000
"""Requests whose answers a HAR export waits for."""

OPEN_MAX_BYTES = 32 * 2**20
"""And their payloads; beyond either bound the oldest is written without an answer."""

OVERTAKEN_NS = 10**9
"""The two directions are observed apart: an answer may be stamped before its request, by far less than this."""

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""What spreadsheets run. Source: OWASP, "CSV Injection"."""


class Format(StrEnum):
    """How an export is written."""

    JSONL = "jsonl"
    CSV = "csv"
    HAR = "har"


MEDIA_TYPES = {Format.JSONL: "application/jsonl", Format.CSV: "text/csv", Format.HAR: "application/json"}
ENDINGS = {Format.JSONL: "jsonl", Format.CSV: "csv", Format.HAR: "har"}


class Exporter(Protocol):
    """Writes a format. `begin`, then `add` for each portion, then `end`."""

    def begin(self) -> bytes: ...

    def add(self, portion: Sequence[StoredEvent]) -> bytes: ...

    def end(self) -> bytes: ...


def make_exporter(kind: Format, usd_per_kb: float, version: str, *, payloads: bool) -> Exporter:
    """What writes events in the format *kind*."""
    match kind:
        case Format.JSONL:
            return JsonLines(usd_per_kb, payloads)
        case Format.CSV:
            return CsvTable(usd_per_kb, payloads)
        case Format.HAR:
            return Har(version, payloads)


@dataclass(frozen=True, slots=True)
class JsonLines:
    """One event per line."""

    usd_per_kb: float
    payloads: bool

    def begin(self) -> bytes:
        return b""

    def add(self, portion: Sequence[StoredEvent]) -> bytes:
        items = [render_item(stored, self.usd_per_kb, payloads=self.payloads) for stored in portion]
        return b"".join(msgspec.json.encode(item) + b"\n" for item in items)

    def end(self) -> bytes:
        return b""


@dataclass(frozen=True, slots=True)
class CsvTable:
    """A table with a head, RFC 4180."""

    usd_per_kb: float
    payloads: bool

    def columns(self) -> list[str]:
        """The fields of an event that are in the table."""
        left_out = {"extra"} if self.payloads else {"extra", "payload", "payload_base64"}
        return [name for name in Item.__struct_fields__ if name not in left_out]

    def begin(self) -> bytes:
        return self._write([self.columns()])

    def add(self, portion: Sequence[StoredEvent]) -> bytes:
        items = [render_item(stored, self.usd_per_kb, payloads=self.payloads) for stored in portion]
        return self._write([[make_cell(getattr(item, name)) for name in self.columns()] for item in items])

    def end(self) -> bytes:
        return b""

    def _write(self, rows: Sequence[Sequence[object]]) -> bytes:
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        return text.getvalue().encode("utf-8")


def make_cell(value: object) -> object:
    """A value as a cell: nothing that a spreadsheet would run."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.startswith(FORMULA_STARTS):
        return "'" + value
    return value


Correlation = tuple[str, Stream, str]
Pair = tuple[StoredEvent | None, StoredEvent | None]


@dataclass(slots=True)
class Har:
    """HAR 1.2: requests wait, within bounds, for their answers."""

    version: str
    payloads: bool
    _open: "OrderedDict[Correlation, StoredEvent]" = field(default_factory=OrderedDict)
    _open_bytes: int = 0
    _written: bool = False

    def begin(self) -> bytes:
        creator = msgspec.json.encode({"name": "kilometers", "version": self.version})
        return b'{"log":{"version":"1.2","creator":' + creator + b',"entries":['

    def add(self, portion: Sequence[StoredEvent]) -> bytes:
        return b"".join(self._entry(*pair) for stored in portion for pair in self._pairs(stored))

    def end(self) -> bytes:
        rest = b"".join(self._entry(*as_pair(stored)) for stored in self._open.values())
        self._open.clear()
        return rest + b"]}}"

    def _pairs(self, stored: StoredEvent) -> Iterator[Pair]:
        """The exchanges that are complete with this event: request and answer, either may be missing."""
        event = stored.event
        match event.kind:
            case Kind.REQUEST if event.rpc_id is not None:
                yield from self._meet((event.session, event.stream, event.rpc_id), stored)
            case Kind.RESPONSE | Kind.ERROR:
                sender = Stream.TO_CLIENT if event.stream is Stream.TO_SERVER else Stream.TO_SERVER
                yield from self._meet((event.session, sender, event.rpc_id or ""), stored)
            case Kind.REQUEST | Kind.NOTIFICATION:
                yield stored, None
            case _:
                return  # lines that are no message: JSON lines have them

    def _meet(self, key: Correlation, stored: StoredEvent) -> Iterator[Pair]:
        """Pair with what waits under the same id; else wait. What the bounds push out goes alone."""
        former = self._take(key)
        if former is not None and belong_together(former, stored):
            yield as_pair(former, stored)
            return
        if former is not None:
            yield as_pair(former)
        self._open[key] = stored
        self._open_bytes += len(stored.payload or b"")
        while len(self._open) > OPEN_MAX or (self._open_bytes > OPEN_MAX_BYTES and len(self._open) > 1):
            oldest = self._take(next(iter(self._open)))
            if oldest is not None:
                yield as_pair(oldest)

    def _take(self, key: Correlation) -> StoredEvent | None:
        """What waits under an id, no longer waiting."""
        former = self._open.pop(key, None)
        self._open_bytes -= len(former.payload or b"") if former else 0
        return former

    def _entry(self, request: StoredEvent | None, answer: StoredEvent | None) -> bytes:
        comma = b"," if self._written else b""
        self._written = True
        return comma + msgspec.json.encode(render_entry(request, answer, payloads=self.payloads))


def is_answer(stored: StoredEvent) -> bool:
    """Whether the event is an answer: a result or an error."""
    return stored.event.kind in (Kind.RESPONSE, Kind.ERROR)


def belong_together(former: StoredEvent, later: StoredEvent) -> bool:
    """Whether two events with the same id are a request and its answer; the answer may seem a little earlier."""
    if is_answer(former) == is_answer(later):
        return False
    return is_answer(later) or later.event.at_ns - former.event.at_ns <= OVERTAKEN_NS


def as_pair(one: StoredEvent, other: StoredEvent | None = None) -> Pair:
    """The two sorted as (request, answer); one of them is None when the other stands alone."""
    return (other, one) if is_answer(one) else (one, other)


def render_entry(request: StoredEvent | None, answer: StoredEvent | None, *, payloads: bool) -> dict[str, Any]:
    """
    One entry of a HAR. At least one side is there.

    Source: HAR 1.2, "entries"; times are milliseconds, -1 stands for unknown.
    """
    known = request or answer
    if known is None:
        raise ValueError("an entry needs a request or an answer")
    event = known.event
    took_ns = answer.event.took_ns if answer else None
    began_ns = request.event.at_ns if request else max(0, event.at_ns - (took_ns or 0))
    wait_ms = -1 if took_ns is None else took_ns / NS_PER_MS
    return {
        "startedDateTime": render_time(began_ns),
        "time": max(wait_ms, 0),
        "request": render_request(known, request, payloads=payloads),
        "response": render_response(answer, payloads=payloads),
        "cache": {},
        "timings": {"send": 0, "wait": wait_ms, "receive": 0},
        "_session": event.session,
        "_rpcId": event.rpc_id,
        "_stream": request.event.stream if request else None,
    }


def render_request(known: StoredEvent, request: StoredEvent | None, *, payloads: bool) -> dict[str, Any]:
    """The request's side. *known* is the answer where the request itself is not in the export."""
    event = known.event
    path = "/".join(quote(part, safe="") for part in (event.method or "unknown", event.target) if part)
    return {
        "method": "POST",
        "url": f"mcp://{quote(known.server, safe='')}/{path}",
        "httpVersion": "JSON-RPC/2.0",
        "cookies": [],
        "headers": [],
        "queryString": [],
        "headersSize": -1,
        "bodySize": request.event.size_bytes if request else -1,
        "postData": {"mimeType": "application/json", "params": [], **content(request, payloads=payloads)},
    }


def render_response(answer: StoredEvent | None, *, payloads: bool) -> dict[str, Any]:
    """The answer's side; status 0 where there is none, 200 for a result and 500 for an error."""
    failed = answer is not None and answer.event.outcome in (Outcome.RPC_ERROR, Outcome.TOOL_ERROR)
    status = 0 if answer is None else 500 if failed else 200
    return {
        "status": status,
        "statusText": "" if answer is None else answer.event.outcome or "",
        "httpVersion": "JSON-RPC/2.0",
        "cookies": [],
        "headers": [],
        "redirectURL": "",
        "headersSize": -1,
        "bodySize": answer.event.size_bytes if answer else -1,
        "content": {
            "size": answer.event.size_bytes if answer else 0,
            "mimeType": "application/json",
            **content(answer, payloads=payloads),
        },
    }


def content(stored: StoredEvent | None, *, payloads: bool) -> dict[str, str]:
    """A payload as HAR has it: text, or base64 that says so."""
    if stored is None or stored.payload is None or not payloads:
        return {"text": ""}
    try:
        return {"text": stored.payload.decode("utf-8")}
    except UnicodeDecodeError:
        return {"text": base64.b64encode(stored.payload).decode("ascii"), "encoding": "base64"}

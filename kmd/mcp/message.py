"""
Lines to messages: what JSON-RPC kind a line is, its method, target and id. Bodies are skimmed, never rebuilt.

A batch array gives one message for the line (index 0, kind `batch`) and one for each member (index 1, 2, …),
whose payload is the member's own bytes; the messages with index 0 are thus exactly the lines that crossed.
Source: JSON-RPC 2.0; MCP revisions 2024-11-05 to 2026-07-28, section "Transports", for methods and targets.
"""

import re
from typing import Any

import msgspec

from kmd.mcp.line import Line
from kmd.mcp.names import Kind, Outcome, Stream

NAME_MAX_CHARS = 512
"""Method, target and id are names, not payloads: longer ones are cut, so no index grows with them."""
BATCH_MAX_MEMBERS = 1000
"""Members of one array that become messages; the line itself is always kept whole."""

BY_NAME = frozenset({"tools/call", "prompts/get"})
BY_URI = frozenset({"resources/read", "resources/subscribe", "resources/unsubscribe"})


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """
    One JSON-RPC message as observed, or a line that is none. Identity: (session, stream, offset, index).

    rpc_id: the id's raw JSON text. took_ns, outcome, error_code: on answers; method and target on an answer
    are those of its request. sha256: set when payload is only a prefix of the size_bytes that crossed.
    """

    stream: Stream
    offset: int
    index: int = 0
    at_ns: int
    kind: Kind
    method: str | None = None
    target: str | None = None
    rpc_id: str | None = None
    size_bytes: int
    took_ns: int | None = None
    outcome: Outcome | None = None
    error_code: int | None = None
    sha256: str | None = None
    payload: bytes | None


_ABSENT = msgspec.Raw()
"""Compared by identity: looking into a Raw copies it, and a result can be large."""


class _Envelope(msgspec.Struct):
    """The members that tell the kinds apart; each stays raw until it is needed."""

    id: msgspec.Raw = _ABSENT
    method: msgspec.Raw = _ABSENT
    params: msgspec.Raw = _ABSENT
    result: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT


class _Target(msgspec.Struct):
    name: Any = None
    uri: Any = None
    ref: Any = None


class _Result(msgspec.Struct):
    is_error: Any = msgspec.field(name="isError", default=None)
    result_type: Any = msgspec.field(name="resultType", default=None)


class _Failure(msgspec.Struct):
    code: Any = None


_ENVELOPE = msgspec.json.Decoder(_Envelope)
_MEMBERS = msgspec.json.Decoder(list[msgspec.Raw])
_TEXT = msgspec.json.Decoder(str)
_TARGET = msgspec.json.Decoder(_Target)
_RESULT = msgspec.json.Decoder(_Result)
_FAILURE = msgspec.json.Decoder(_Failure)
_HEAD_MEMBERS = frozenset({b"id", b"method", b"result", b"error"})
_HEAD_START = re.compile(rb"[ \t\r]*\{")
_HEAD_PAIR = re.compile(rb'\s*"(\w{1,16})"\s*:\s*("(?:[^"\\]|\\.){0,512}"|-?[0-9.eE+-]{1,64}|null|true|false)\s*,')
_HEAD_KEY = re.compile(rb'\s*"(result|error)"\s*:')
_BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def parse_line(stream: Stream, line: Line) -> list[Message]:
    """
    The messages of one line: one, or for a batch array the line's own and its members'. Raises nothing.

    A line of stderr is text whatever it looks like: no request is answered there.
    """
    payload = line.payload
    if stream is Stream.STDERR:
        return [render_plain(stream, line, Kind.NOT_JSON)]
    if line.sha256 is not None:
        return [parse_head(stream, line)]
    if payload.lstrip(b" \t\r")[:1] == b"[":
        return parse_batch(stream, line)
    return [parse_one(stream, line, payload)]


def parse_batch(stream: Stream, line: Line) -> list[Message]:
    """A line that begins like an array: kind `batch` and its members if it is one, else `not_json`."""
    try:
        members = _MEMBERS.decode(line.payload)
    except _BAD_JSON:
        return [render_plain(stream, line, Kind.NOT_JSON)]
    whole = render_plain(stream, line, Kind.BATCH if members else Kind.INVALID)
    listed = enumerate(members[:BATCH_MAX_MEMBERS], 1)
    return [whole, *(parse_one(stream, line, bytes(member), index) for index, member in listed)]


def parse_one(stream: Stream, line: Line, payload: bytes, index: int = 0) -> Message:
    """One object to one message, with what its own text says; pairing adds the rest to answers."""
    try:
        envelope = _ENVELOPE.decode(payload)
        kind, method = classify(envelope)
    except msgspec.ValidationError:
        return render_plain(stream, line, Kind.INVALID, payload, index)
    except _BAD_JSON:
        return render_plain(stream, line, Kind.NOT_JSON, payload, index)
    outcome, error_code = judge(kind, envelope)
    return Message(
        stream=stream,
        offset=line.offset,
        index=index,
        at_ns=line.at_ns,
        kind=kind,
        method=cut(method),
        target=cut(find_target(method, envelope.params)),
        rpc_id=None if envelope.id is _ABSENT else cut(bytes(envelope.id).decode("utf-8", "replace")),
        size_bytes=line.size_bytes if index == 0 else len(payload),
        outcome=outcome,
        error_code=error_code,
        sha256=line.sha256,
        payload=payload,
    )


def parse_head(stream: Stream, line: Line) -> Message:
    """
    A line of which only the prefix is kept: what its first members say, up to the first long value.

    Enough to pair most answers; their outcome stays unknown, as it may stand in the part that is not kept.
    """
    members: dict[bytes, bytes] = {}
    position = start.end() if (start := _HEAD_START.match(line.payload)) else len(line.payload)
    while pair := _HEAD_PAIR.match(line.payload, position):
        members[pair[1]] = pair[2]
        position = pair.end()
    if last := _HEAD_KEY.match(line.payload, position):
        members.setdefault(last[1], b"{}")
    envelope = _Envelope(**{key.decode(): msgspec.Raw(members[key]) for key in _HEAD_MEMBERS & members.keys()})
    try:
        kind, method = classify(envelope)
    except _BAD_JSON:
        kind, method = Kind.INVALID, None
    if not start:
        kind = Kind.NOT_JSON
    rpc_id = cut(members[b"id"].decode("utf-8", "replace")) if b"id" in members else None
    plain = render_plain(stream, line, kind)
    return msgspec.structs.replace(plain, method=cut(method), rpc_id=rpc_id)


def render_plain(stream: Stream, line: Line, kind: Kind, payload: bytes | None = None, index: int = 0) -> Message:
    """A message of which only position, size and bytes are known."""
    return Message(
        stream=stream,
        offset=line.offset,
        index=index,
        at_ns=line.at_ns,
        kind=kind,
        size_bytes=line.size_bytes if index == 0 else len(payload or b""),
        sha256=line.sha256,
        payload=line.payload if payload is None else payload,
    )


def classify(envelope: _Envelope) -> tuple[Kind, str | None]:
    """Kind and method of an object. Raises msgspec.DecodeError when `method` is no text."""
    if envelope.method is not _ABSENT:
        method = _TEXT.decode(envelope.method)
        return (Kind.NOTIFICATION if envelope.id is _ABSENT else Kind.REQUEST), method
    has_result = envelope.result is not _ABSENT
    if envelope.error is not _ABSENT and not (has_result and bytes(envelope.error) == b"null"):
        return Kind.ERROR, None  # JSON-RPC 1.0 says `"error": null` beside a result
    return (Kind.RESPONSE if has_result else Kind.INVALID), None


def judge(kind: Kind, envelope: _Envelope) -> tuple[Outcome | None, int | None]:
    """How an answer ended, from its own text: outcome and, for an error, its code."""
    try:
        if kind is Kind.ERROR:
            code = _FAILURE.decode(envelope.error).code
            fits = type(code) is int and -(2**31) <= code < 2**31
            return Outcome.RPC_ERROR, code if fits else None
        if kind is Kind.RESPONSE:
            result = _RESULT.decode(envelope.result)
            if result.is_error is True:
                return Outcome.TOOL_ERROR, None
            return (Outcome.INPUT_REQUIRED if result.result_type == "input_required" else Outcome.OK), None
    except _BAD_JSON:
        return (Outcome.RPC_ERROR if kind is Kind.ERROR else Outcome.OK), None
    return None, None


def find_target(method: str | None, params: msgspec.Raw) -> str | None:
    """The tool, prompt or resource that a request is about."""
    if params is _ABSENT or method is None:
        return None
    try:
        if method in BY_NAME:
            found = _TARGET.decode(params).name
        elif method in BY_URI:
            found = _TARGET.decode(params).uri
        elif method == "completion/complete":
            ref = _TARGET.decode(params).ref
            found = ref.get("name", ref.get("uri")) if isinstance(ref, dict) else None
        else:
            return None
    except _BAD_JSON:
        return None
    return found if isinstance(found, str) else None


def cut(text: str | None) -> str | None:
    """At most NAME_MAX_CHARS of *text*, and nothing that UTF-8 or a database's text cannot carry."""
    if text is None or (text.isascii() and len(text) <= NAME_MAX_CHARS and "\0" not in text):
        return text
    if len(text) > NAME_MAX_CHARS:
        text = text[: NAME_MAX_CHARS - 1] + "…"
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")

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


class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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


class _Envelope(msgspec.Struct, gc=False):
    """The members that tell the kinds apart; each stays raw until it is needed."""

    id: msgspec.Raw = _ABSENT
    method: msgspec.Raw = _ABSENT
    params: msgspec.Raw = _ABSENT
    result: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT


class _Params(msgspec.Struct, gc=False):
    name: msgspec.Raw = _ABSENT
    uri: msgspec.Raw = _ABSENT
    ref: msgspec.Raw = _ABSENT


class _Answer(msgspec.Struct, gc=False):
    is_error: msgspec.Raw = msgspec.field(name="isError", default=_ABSENT)
    result_type: msgspec.Raw = msgspec.field(name="resultType", default=_ABSENT)


class _Usual(msgspec.Struct, gc=False):
    """What nearly every message is: one look at it gives everything. What does not fit is an _Envelope."""

    id: msgspec.Raw = _ABSENT
    method: str | msgspec.UnsetType = msgspec.UNSET
    params: _Params | msgspec.UnsetType = msgspec.UNSET
    result: _Answer | msgspec.UnsetType = msgspec.UNSET
    error: msgspec.Raw = _ABSENT


class _Failure(msgspec.Struct):
    code: Any = None


_USUAL = msgspec.json.Decoder(_Usual)
_ENVELOPE = msgspec.json.Decoder(_Envelope)
_MEMBERS = msgspec.json.Decoder(list[msgspec.Raw])
_TEXT = msgspec.json.Decoder(str)
_PARAMS = msgspec.json.Decoder(_Params)
_ANSWER = msgspec.json.Decoder(_Answer)
_REFERENCE = msgspec.json.Decoder(dict[str, msgspec.Raw])
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
        usual = _USUAL.decode(payload)
    except _BAD_JSON:
        return parse_unusual(stream, line, payload, index)
    outcome = None
    if usual.method is not msgspec.UNSET:
        kind, method = (Kind.NOTIFICATION if usual.id is _ABSENT else Kind.REQUEST), usual.method
        target = None if usual.params is msgspec.UNSET else find_target(method, usual.params)
    elif usual.error is _ABSENT and usual.result is not msgspec.UNSET:
        kind, method, target = Kind.RESPONSE, None, None
        outcome = judge_result(usual.result)
    else:
        return parse_unusual(stream, line, payload, index)
    return Message(
        stream=stream,
        offset=line.offset,
        index=index,
        at_ns=line.at_ns,
        kind=kind,
        method=cut(method),
        target=cut(target),
        rpc_id=None if usual.id is _ABSENT else cut(bytes(usual.id).decode("utf-8", "replace")),
        size_bytes=line.size_bytes if index == 0 else len(payload),
        outcome=outcome,
        sha256=line.sha256,
        payload=payload,
    )


def parse_unusual(stream: Stream, line: Line, payload: bytes, index: int) -> Message:
    """Errors, answers and parameters of unusual types, and everything that is no message: step by step."""
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
        target=cut(parse_target(method, envelope.params)),
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
            return judge_result(_ANSWER.decode(envelope.result)), None
    except _BAD_JSON:
        return (Outcome.RPC_ERROR if kind is Kind.ERROR else Outcome.OK), None
    return None, None


def judge_result(result: _Answer) -> Outcome:
    """How an exchange ended whose answer has *result*."""
    if result.is_error is not _ABSENT and bytes(result.is_error) == b"true":
        return Outcome.TOOL_ERROR
    if result.result_type is not _ABSENT and parse_text(result.result_type) == "input_required":
        return Outcome.INPUT_REQUIRED
    return Outcome.OK


def parse_target(method: str | None, params: msgspec.Raw) -> str | None:
    """The tool, prompt or resource that a request with *params* of any type is about."""
    if params is _ABSENT or method is None:
        return None
    try:
        return find_target(method, _PARAMS.decode(params))
    except _BAD_JSON:
        return None


def find_target(method: str, params: _Params) -> str | None:
    """The tool, prompt or resource that a request is about. Raises nothing."""
    if method in BY_NAME:
        return parse_text(params.name)
    if method in BY_URI:
        return parse_text(params.uri)
    if method == "completion/complete" and params.ref is not _ABSENT:
        try:
            ref = _REFERENCE.decode(params.ref)
        except _BAD_JSON:
            return None
        return parse_text(ref.get("name", ref.get("uri", _ABSENT)))
    return None


def parse_text(value: msgspec.Raw) -> str | None:
    """A JSON text; None for any other value and for none."""
    if value is _ABSENT:
        return None
    try:
        return _TEXT.decode(value)
    except _BAD_JSON:
        return None


def cut(text: str | None) -> str | None:
    """At most NAME_MAX_CHARS of *text*, and nothing that UTF-8 or a database's text cannot carry."""
    if text is None or (text.isascii() and len(text) <= NAME_MAX_CHARS and "\0" not in text):
        return text
    if len(text) > NAME_MAX_CHARS:
        text = text[: NAME_MAX_CHARS - 1] + "…"
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")

"""Messages: what each line is called, whatever stands in it, and that its bytes stay what they were."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmd.mcp.line import Line
from kmd.mcp.message import BATCH_MAX_MEMBERS, NAME_MAX_CHARS, Message, parse_line, parse_one, parse_unusual
from kmd.mcp.names import Kind, Outcome, Stream

HUGE = b"1" + b"0" * 400
DEEP = b"[" * 100_000 + b"]" * 100_000


def parse(payload: bytes, stream: Stream = Stream.TO_SERVER) -> list[Message]:
    return parse_line(stream, Line(offset=7, payload=payload, size_bytes=len(payload), at_ns=9))


def parse_single(payload: bytes) -> Message:
    (message,) = parse(payload)
    return message


@pytest.mark.parametrize(
    ("payload", "kind", "method", "rpc_id"),
    [
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"}', Kind.REQUEST, "ping", "1"),
        (b'{"jsonrpc":"2.0","id":0,"method":"ping"}', Kind.REQUEST, "ping", "0"),
        (b'{"jsonrpc":"2.0","id":"","method":"ping"}', Kind.REQUEST, "ping", '""'),
        (b'{"jsonrpc":"2.0","id":"1","method":"ping"}', Kind.REQUEST, "ping", '"1"'),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', Kind.REQUEST, "ping", "null"),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', Kind.REQUEST, "ping", "1.5"),
        (b'{"id":9007199254740993,"method":"ping"}', Kind.REQUEST, "ping", "9007199254740993"),
        (b'{"id":1e400,"method":"ping"}', Kind.REQUEST, "ping", "1e400"),
        (b'{"id":' + HUGE + b',"method":"ping"}', Kind.REQUEST, "ping", HUGE.decode()),
        (b'{"id":1,"id":2,"method":"a","method":"b"}', Kind.REQUEST, "b", "2"),
        (b'{"id" : 1 , "method" : "ping"}', Kind.REQUEST, "ping", "1"),
        (b' \t{"id":1,"method":"ping"}\r', Kind.REQUEST, "ping", "1"),
        (b'{"\\u006dethod":"p\\u0069ng","\\u0069d":1}', Kind.REQUEST, "ping", "1"),
        (b'{"id":1,"method":"ping","params":{"x":"\xff\xfe"}}', Kind.REQUEST, "ping", "1"),
        (b'{"id":"\xff","method":"ping"}', Kind.REQUEST, "ping", '"\ufffd"'),
        (b'{"id":1,"method":"ping","result":{}}', Kind.REQUEST, "ping", "1"),
        (b'{"id":1,"method":""}', Kind.REQUEST, "", "1"),
        (b'{"method":"notifications/progress"}', Kind.NOTIFICATION, "notifications/progress", None),
        (b'{"id":1,"result":{}}', Kind.RESPONSE, None, "1"),
        (b'{"id":1,"result":null}', Kind.RESPONSE, None, "1"),
        (b'{"id":1,"result":0}', Kind.RESPONSE, None, "1"),
        (b'{"id":1,"result":{},"error":null}', Kind.RESPONSE, None, "1"),
        (b'{"id":1,"error":{"code":-32601}}', Kind.ERROR, None, "1"),
        (b'{"id":1,"error":null}', Kind.ERROR, None, "1"),
        (b'{"id":1,"result":null,"error":{"code":1}}', Kind.ERROR, None, "1"),
        (b'{"error":{"code":-32700}}', Kind.ERROR, None, None),
        (b'{"id":null,"error":{"code":-32700}}', Kind.ERROR, None, "null"),
        (b"{}", Kind.INVALID, None, None),
        (b'{"id":1}', Kind.INVALID, None, "1"),
        (b'{"id":1,"method":7}', Kind.INVALID, None, None),
        (b'{"id":1,"method":null}', Kind.INVALID, None, None),
        (b"[]", Kind.INVALID, None, None),
        (b"5", Kind.INVALID, None, None),
        (b"null", Kind.INVALID, None, None),
        (b'"text"', Kind.INVALID, None, None),
        (b"", Kind.NOT_JSON, None, None),
        (b"\r", Kind.NOT_JSON, None, None),
        (b"   ", Kind.NOT_JSON, None, None),
        (b"Server listening", Kind.NOT_JSON, None, None),
        (b"\x00", Kind.NOT_JSON, None, None),
        (b"NaN", Kind.NOT_JSON, None, None),
        (b'{"id":NaN,"method":"ping"}', Kind.NOT_JSON, None, None),
        (b'{"id":1,"method":"ping"}\x00', Kind.NOT_JSON, None, None),
        (b'{"id":1,"method":"ping"}{}', Kind.NOT_JSON, None, None),
        (b'{"id":01,"method":"ping"}', Kind.NOT_JSON, None, None),
        (b'{"id":1,"method":"ping"', Kind.NOT_JSON, None, None),
        (b'\xef\xbb\xbf{"id":1,"method":"ping"}', Kind.NOT_JSON, None, None),
        (b'{"id":1,"method":"\\ud800"}', Kind.NOT_JSON, None, None),
        (b'{"id":1,"method":"\xff"}', Kind.NOT_JSON, None, None),
        (b"[1,", Kind.NOT_JSON, None, None),
        (DEEP, Kind.NOT_JSON, None, None),
        (b'{"id":1,"method":"ping","params":' + DEEP + b"}", Kind.NOT_JSON, None, None),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, Kind.NOT_JSON, None, None),
    ],
)
def test_a_line_is_called_what_it_is(payload: bytes, kind: Kind, method: str | None, rpc_id: str | None) -> None:
    message = parse_single(payload)
    assert (message.kind, message.method, message.rpc_id) == (kind, method, rpc_id)
    assert (message.payload, message.size_bytes, message.offset, message.index) == (payload, len(payload), 7, 0)


def test_ids_of_another_type_are_other_ids() -> None:
    ids = [parse_single(b'{"method":"a","id":%b}' % text).rpc_id for text in (b"1", b'"1"', b"1.0", b"true", b"null")]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("method", "params", "target"),
    [
        ("tools/call", {"name": "search", "arguments": {"name": "x"}}, "search"),
        ("tools/call", {"name": 7}, None),
        ("tools/call", {}, None),
        ("tools/call", [], None),
        ("tools/call", "search", None),
        ("tools/list", {"name": "search"}, None),
        ("prompts/get", {"name": "greet"}, "greet"),
        ("resources/read", {"uri": "file:///a", "name": "b"}, "file:///a"),
        ("resources/subscribe", {"uri": "file:///a"}, "file:///a"),
        ("resources/unsubscribe", {"uri": "file:///a"}, "file:///a"),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "greet"}}, "greet"),
        ("completion/complete", {"ref": {"type": "ref/resource", "uri": "file:///{x}"}}, "file:///{x}"),
        ("completion/complete", {"ref": ["greet"]}, None),
        ("completion/complete", {"ref": {"name": {"a": 1}}}, None),
        ("tools/call", {"name": "n\u00e4me \U0001f600"}, "n\u00e4me \U0001f600"),
    ],
)
def test_the_target_is_the_tool_prompt_or_resource(method: str, params: object, target: str | None) -> None:
    line = json.dumps({"id": 1, "method": method, "params": params}).encode()
    assert parse_single(line).target == target


@pytest.mark.parametrize(
    ("answer", "outcome", "code"),
    [
        ({"result": {}}, Outcome.OK, None),
        ({"result": {"isError": False}}, Outcome.OK, None),
        ({"result": {"isError": True, "content": []}}, Outcome.TOOL_ERROR, None),
        ({"result": {"isError": 1}}, Outcome.OK, None),
        ({"result": {"isError": "true"}}, Outcome.OK, None),
        ({"result": [{"isError": True}]}, Outcome.OK, None),
        ({"result": {"content": {"isError": True}}}, Outcome.OK, None),
        ({"result": {"resultType": "complete"}}, Outcome.OK, None),
        ({"result": {"resultType": "input_required"}}, Outcome.INPUT_REQUIRED, None),
        ({"result": {"isError": True, "resultType": "input_required"}}, Outcome.TOOL_ERROR, None),
        ({"error": {"code": -32602, "message": "x"}}, Outcome.RPC_ERROR, -32602),
        ({"error": {"code": 2**31 - 1}}, Outcome.RPC_ERROR, 2**31 - 1),
        ({"error": {"code": -(2**31)}}, Outcome.RPC_ERROR, -(2**31)),
        ({"error": {"code": 2**31}}, Outcome.RPC_ERROR, None),
        ({"error": {"code": -(2**31) - 1}}, Outcome.RPC_ERROR, None),
        ({"error": {"code": 10**400}}, Outcome.RPC_ERROR, None),
        ({"error": {"code": 1.5}}, Outcome.RPC_ERROR, None),
        ({"error": {"code": True}}, Outcome.RPC_ERROR, None),
        ({"error": {"code": "-32602"}}, Outcome.RPC_ERROR, None),
        ({"error": {}}, Outcome.RPC_ERROR, None),
        ({"error": "broken"}, Outcome.RPC_ERROR, None),
        ({"error": []}, Outcome.RPC_ERROR, None),
        ({"method": "ping"}, None, None),
    ],
)
def test_an_answer_says_how_its_exchange_ended(answer: Any, outcome: Outcome | None, code: int | None) -> None:  # noqa: ANN401
    message = parse_single(json.dumps({"id": 1, **answer}).encode())
    assert (message.outcome, message.error_code) == (outcome, code)


def test_bytes_that_are_no_utf8_hide_no_tool_error() -> None:
    assert parse_single(b'{"id":1,"result":{"isError":true,"x":"\xff"}}').outcome is Outcome.TOOL_ERROR


def test_a_batch_is_its_line_and_then_each_member_with_its_own_bytes() -> None:
    members = [b'{"id":1,"method":"a"}', b'{"method": "b"}', b'{"id":1,"result":{}}', b"[ ]", b"7", b'{"id":2}']
    line = b" [" + b" , ".join(members) + b"]\r"
    whole, *found = parse(line)
    assert (whole.kind, whole.index, whole.payload, whole.size_bytes) == (Kind.BATCH, 0, line, len(line))
    assert [message.payload for message in found] == members
    assert [message.size_bytes for message in found] == [len(member) for member in members]
    assert [message.index for message in found] == [1, 2, 3, 4, 5, 6]
    assert {message.offset for message in found} == {7}
    kinds = [Kind.REQUEST, Kind.NOTIFICATION, Kind.RESPONSE, Kind.INVALID, Kind.INVALID, Kind.INVALID]
    assert [message.kind for message in found] == kinds


def test_a_batch_of_very_many_members_is_kept_whole_and_followed_by_the_first_of_them() -> None:
    line = b"[" + b",".join([b'{"method":"a"}'] * (BATCH_MAX_MEMBERS + 5)) + b"]"
    whole, *found = parse(line)
    assert whole.payload == line
    assert len(found) == BATCH_MAX_MEMBERS


@given(st.binary(max_size=60))
def test_stderr_is_text_whatever_it_looks_like(payload: bytes) -> None:
    for text in (payload, b'{"id":1,"result":{}}', b'[{"id":1,"method":"a"}]'):
        (message,) = parse(text, Stream.STDERR)
        assert (message.kind, message.payload, message.rpc_id) == (Kind.NOT_JSON, text, None)


def test_names_are_cut_and_payloads_are_not() -> None:
    name = "n" * 5000
    payload = json.dumps({"id": name, "method": "tools/call", "params": {"name": name}}).encode()
    message = parse_single(payload)
    assert message.payload == payload
    for text in (message.rpc_id, message.target):
        assert text is not None
        assert len(text) == NAME_MAX_CHARS
    assert parse_single(json.dumps({"id": 1, "method": name}).encode()).method == "n" * (NAME_MAX_CHARS - 1) + "…"


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from(["tools/call", "input_required", 10**400]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["id", "method", "params", "result", "error", "name", "uri", "ref", "code", "isError"]),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=12,
)


def shape(value: Any) -> bytes:  # noqa: ANN401
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


@given(st.one_of(st.binary(max_size=80), JSON.map(shape), st.tuples(JSON.map(shape), st.binary()).map(b"".join)))
def test_any_bytes_are_one_line_with_exactly_those_bytes_and_nothing_is_raised(payload: bytes) -> None:
    whole, *members = parse(payload)
    assert (whole.payload, whole.size_bytes, whole.index) == (payload, len(payload), 0)
    at = 0
    for number, member in enumerate(members, 1):
        assert member.index == number
        assert member.payload is not None
        at = payload.index(member.payload, at) + len(member.payload)
    for message in (whole, *members):
        for text in (message.method, message.target, message.rpc_id):
            assert text is None or text.encode("utf-8").decode("utf-8") == text


def truncated(whole: bytes, keep: int) -> Message:
    line = Line(7, whole[:keep], len(whole), 9, hashlib.sha256(whole).hexdigest())
    (message,) = parse_line(Stream.TO_CLIENT, line)
    return message


@pytest.mark.parametrize(
    ("head", "kind", "method", "rpc_id"),
    [
        (b'{"jsonrpc":"2.0","id":4,"result":{"content":"', Kind.RESPONSE, None, "4"),
        (b'{"jsonrpc" : "2.0" , "id" : "a\\"b" , "result" : {"', Kind.RESPONSE, None, '"a\\"b"'),
        (b'{"jsonrpc":"2.0","id":4,"error":{"message":"', Kind.ERROR, None, "4"),
        (b'{"jsonrpc":"2.0","id":4,"method":"tools/call","params":{"', Kind.REQUEST, "tools/call", "4"),
        (b'{"jsonrpc":"2.0","method":"n/a","params":{"', Kind.NOTIFICATION, "n/a", None),
        (b'{"result":{"content":"', Kind.RESPONSE, None, None),
        (b'{"params":{"x":"', Kind.INVALID, None, None),
        (b'[{"id":1,"method":"a","params":"', Kind.NOT_JSON, None, None),
        (b"plain text ", Kind.NOT_JSON, None, None),
        (b"\xff\xfe", Kind.NOT_JSON, None, None),
    ],
)
def test_a_line_kept_as_its_prefix_is_told_by_its_first_members(
    head: bytes, kind: Kind, method: str | None, rpc_id: str | None
) -> None:
    whole = head + b"x" * 1000
    message = truncated(whole, 300)
    assert (message.kind, message.method, message.rpc_id, message.outcome) == (kind, method, rpc_id, None)
    assert (message.payload, message.size_bytes) == (whole[:300], len(whole))
    assert message.sha256 == hashlib.sha256(whole).hexdigest()


@given(st.binary(max_size=80), JSON.map(shape), st.integers(0, 60))
def test_any_prefix_raises_nothing_and_is_kept_as_it_is(garbage: bytes, text: bytes, keep: int) -> None:
    for whole in (garbage, text):
        assert truncated(whole, keep).payload == whole[:keep]


METHODS = ["tools/call", "prompts/get", "resources/read", "completion/complete", "ping", "", 7, None, "x" * 600]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["input_required", "a\0b"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "uri", "ref", "isError", "resultType", "code", "x"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={"id": JSON, "method": st.sampled_from(METHODS) | JSON, "params": JSON, "result": JSON, "error": JSON},
)


@settings(max_examples=500)
@given(MESSAGES, st.sampled_from([{}, {"ensure_ascii": False}, {"indent": 1}]))
def test_one_look_and_step_by_step_say_the_same(value: dict[str, Any], style: dict[str, Any]) -> None:
    payload = json.dumps(value, **style).replace("\n", "\t").encode()
    line = Line(offset=7, payload=payload, size_bytes=len(payload), at_ns=9)
    assert parse_one(Stream.TO_CLIENT, line, payload) == parse_unusual(Stream.TO_CLIENT, line, payload, 0)

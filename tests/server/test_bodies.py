"""Bodies that are packed, damaged, too large, too slow, or plain junk: an answer in the 200s or 400s, always."""

import gzip
import json
import random
import socket
import time
import tracemalloc
import zlib
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from km_server.config import ServerConfig
from km_server.errors import ApiError
from km_server.ingest.body import RATIO_FREE_BYTES, Encoding, InflationLimit, inflate

from tests.server.clients import WAIT_S, Api, app_in_thread, database_url, make_batch, make_event, open_api

EMPTY = b'{"batch_id": "b"}'
MIB = 2**20
LIMIT = InflationLimit(64 * MIB, 100)


def pack(encoding: str, body: bytes) -> bytes:
    match encoding:
        case "gzip":
            return gzip.compress(body)
        case "zstd":
            return zstandard.compress(body)
        case _:
            return body


@pytest.mark.parametrize("encoding", ["identity", "gzip", "zstd", "GZIP", ""])
def test_encodings(api: Api, encoding: str) -> None:
    body = pack(encoding.lower(), msgspec.json.encode(make_batch([make_event(1)])))
    answer = api.post(body, Content_Encoding=encoding)
    assert answer.json()["verdicts"] == [{"status": "accepted"}]


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_body_may_come_in_several_frames(encoding: str) -> None:
    packed = pack(encoding, EMPTY[:7]) + pack(encoding, EMPTY[7:])
    assert inflate(Encoding(encoding), packed, LIMIT) == EMPTY


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, zstd", "x", "\xe9"])
def test_unknown_encodings(api: Api, encoding: str) -> None:
    answer = api.http.post(
        "/api/v1/events/batch",
        content=EMPTY,
        headers={b"Content-Type": b"application/json", b"Content-Encoding": encoding.encode()},
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unknown_encoding")
    assert "zstd" in answer.headers["Accept-Encoding"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-ndjson", "multipart/form-data", "junk", ""])
def test_unknown_types(api: Api, content_type: str) -> None:
    answer = api.post(EMPTY, Content_Type=content_type)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unknown_type")


def test_a_charset_beside_the_type_is_fine(api: Api) -> None:
    assert api.post(EMPTY, Content_Type="application/json; charset=utf-8").status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_bombs_are_refused(api: Api, encoding: str) -> None:
    bomb = pack(encoding, b" " * (300 * MIB))
    assert len(bomb) < MIB
    answer = api.post(bomb, Content_Encoding=encoding)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_dense")


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_how_dense_a_body_may_be(encoding: str) -> None:
    """Any density up to what one event may need; beyond it only what is no bomb."""
    one_event = b"A" * RATIO_FREE_BYTES
    assert inflate(Encoding(encoding), pack(encoding, one_event), LIMIT) == one_event
    with pytest.raises(ApiError) as refusal:
        inflate(Encoding(encoding), pack(encoding, one_event + b"A"), LIMIT)
    assert refusal.value.code == "too_dense"
    noise = random.Random(1).randbytes(MIB)
    loose = pack(encoding, noise + one_event)
    assert len(inflate(Encoding(encoding), loose, LIMIT)) == len(noise) + len(one_event)


def test_a_body_of_countless_empty_members_is_refused_at_once() -> None:
    with pytest.raises(ApiError) as refusal:
        inflate(Encoding.GZIP, gzip.compress(b"") * 200_000, LIMIT)
    assert refusal.value.code == "damaged_body"


@pytest.mark.parametrize("encoding", list(Encoding))
def test_the_bound_itself_is_allowed(encoding: Encoding) -> None:
    body = b"x" * 1000
    assert inflate(encoding, pack(encoding, body), InflationLimit(1000, 1)) == body
    with pytest.raises(ApiError) as refusal:
        inflate(encoding, pack(encoding, body), InflationLimit(999, 1))
    assert refusal.value.status == 413


@pytest.mark.parametrize("encoding", [Encoding.GZIP, Encoding.ZSTD])
def test_a_bomb_is_not_unpacked_beyond_its_bound(encoding: Encoding) -> None:
    bomb = pack(encoding, b" " * (100 * MIB))
    tracemalloc.start()
    try:
        with pytest.raises(ApiError):
            inflate(encoding, bomb, InflationLimit(MIB, 1))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 20 * MIB


def test_a_zstd_frame_cannot_ask_for_any_memory() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = packer.compress(b"x" * MIB) + packer.flush()
    with pytest.raises(ApiError) as refusal:
        inflate(Encoding.ZSTD, packed, LIMIT)
    assert refusal.value.status == 400


def test_a_declared_length_over_the_bound_is_refused_unread(api: Api) -> None:
    answer = api.post(b"x" * (33 * MIB))
    assert answer.status_code == 413


def test_an_undeclared_length_over_the_bound_is_refused(api: Api) -> None:
    pieces = (b" " * MIB for _ in range(40))
    try:
        answer = api.http.post("/api/v1/events/batch", content=pieces, headers={"Content-Type": "application/json"})
    except httpx.NetworkError:
        return  # the server may hang up while we still send
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", EMPTY),
        ("gzip", gzip.compress(EMPTY)[:-3]),
        ("gzip", gzip.compress(EMPTY) + b"tail"),
        ("gzip", zlib.compress(EMPTY)),
        ("zstd", EMPTY),
        ("zstd", zstandard.compress(EMPTY)[:-3]),
        ("zstd", zstandard.compress(EMPTY) + b"tail"),
        ("identity", b""),
        ("identity", b"{"),
        ("identity", b"null"),
        ("identity", b"[]"),
        ("identity", b"{}"),
        ("identity", b'{"batch_id": 1}'),
        ("identity", b'{"batch_id": "b", "events": {}}'),
        ("identity", b'{"batch_id": "b", "events": null}'),
        ("identity", b'{"batch_id": "\xff"}'),
        ("identity", b'{"batch_id": "\\ud800"}'),
        ("identity", b'{"batch_id": "' + b"x" * 300 + b'"}'),
        ("identity", b"\xef\xbb\xbf" + EMPTY),
        ("identity", b"[" * 100_000),
        ("identity", b'{"batch_id": "b", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        ("identity", b'{"batch_id": "b", "schema": ' + b"9" * 5000 + b"}"),
        ("identity", EMPTY + EMPTY),
    ],
)
def test_bodies_that_are_no_batch(api: Api, encoding: str, body: bytes) -> None:
    answer = api.post(body, Content_Encoding=encoding)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "hint"}
    assert error["message"]


@pytest.mark.parametrize("schema", ["0", "2", "-1", "99999999999999999999", '"1"', "null", "[]"])
def test_another_schema_is_named(api: Api, schema: str) -> None:
    answer = api.post(f'{{"schema": {schema}, "packets": []}}'.encode())
    assert answer.status_code == 400
    if schema.lstrip("-").isdigit():
        assert answer.json()["error"]["code"] == "unknown_schema"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
FIELDS = ("session", "stream", "offset", "index", "at_ns", "kind", "size_bytes", "payload", "payload_base64", "rpc_id")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    top=st.dictionaries(st.sampled_from(["schema", "batch_id", "sessions", "events"]), JSON, max_size=2),
    event=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3),
    session=st.dictionaries(st.sampled_from(["session", "name", "started_at_ns"]), JSON, max_size=2),
)
def test_junk_in_any_field_is_no_fault_of_the_server(
    api: Api, top: dict[str, object], event: dict[str, object], session: dict[str, object]
) -> None:
    batch = msgspec.to_builtins(make_batch([make_event(1), make_event(2)]))
    batch["events"][0].update(event)
    batch["sessions"][0].update(session)
    batch.update(top)
    answer = api.post(json.dumps(batch).encode())
    assert answer.status_code in (200, 400, 422), answer.text


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(body=st.binary(max_size=200), encoding=st.sampled_from(list(Encoding)))
def test_junk_bytes_are_no_fault_of_the_server(api: Api, body: bytes, encoding: str) -> None:
    assert api.post(body, Content_Encoding=encoding).status_code == 400


def test_a_body_that_drips_is_cut_off(tmp_path: Path) -> None:
    database = tmp_path / "server.db"
    with (
        app_in_thread(ServerConfig(database_url(database), port=0, body_timeout_s=0.3)) as url,
        open_api(url, database, "acme") as api,
    ):
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        with socket.create_connection((parts.hostname, parts.port), timeout=WAIT_S) as slow:
            head = (
                "POST /api/v1/events/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"Authorization: Bearer {api.key}\r\nContent-Length: 1000\r\n\r\n"
            )
            started = time.monotonic()
            slow.sendall(head.encode() + b"{")
            answer = slow.recv(65536)
            assert answer.startswith(b"HTTP/1.1 408")
            assert time.monotonic() - started < WAIT_S

"""What crosses: any bytes, both ways, whole and at once."""

import random

from tests.transparency.client import Record, digest
from tests.transparency.stage import Stage, cases, scenario

EDGES: dict[str, bytes] = {
    "nothing": b"",
    "line": b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n',
    "crlf": b'{"id":1}\r\n{"id":2}\r\n',
    "lone_cr": b'{"id":1}\r{"id":2}\r',
    "no_final_newline": b'{"id":1}\n{"id":2}',
    "blank_lines": b"\n\n\r\n \n\n",
    "nul": b'{"a":"\0"}\n\0\0\n',
    "not_utf8": b'{"a":"\xff\xfe\xc3\x28"}\n\x80\n',
    "split_multibyte": b'{"a":"' + "€".encode()[:2],
    "utf16": '{"id":1}\n'.encode("utf-16"),
    "other_line_ends": '{"a":"\u2028\u2029\x85\x1c\x1d\x0b\x0c"}\n'.encode(),
    "not_json": b"Starting server v1.2 ...\nready\n",
    "json_spelling": b'{ "id" :12345678901234567890123, "a":1.0, "a":1e2, "\\u00e4": "\\/" }\n',
    "every_byte": bytes(range(256)) * 16,
    "pipe_sized": b"p" * 65536,
    "pipe_sized_and_one": b"p" * 65537,
    "line_of_1_mib": b'{"a":"' + b"x" * (1 << 20) + b'"}\n',
    "random_3_mib": random.Random(3).randbytes(3 << 20),  # noqa: S311 - a payload, no secret
    "line_of_20_mib": b'{"a":"' + b"y" * (20 << 20) + b'"}\n',
}


@cases(**EDGES)
def bytes_come_back(stage: Stage, payload: bytes) -> Record:
    return stage.probe("echo").finish(payload)


@scenario
def partial_line_is_not_held_back(stage: Stage) -> Record:
    client = stage.probe("echo")
    parts = []
    for part in (b'{"half', b'":', b"\xe2\x82", b"\xac", b"}\n"):
        client.send(part)
        parts.append(client.receive(len(part)))
    return {"parts": parts, **client.finish()}


@scenario
def single_bytes(stage: Stage) -> Record:
    client = stage.probe("echo")
    got = b""
    for number in range(300):
        client.send(bytes([number % 256]))
        got += client.receive(1)
    return {"got": digest(got), **client.finish()}


@scenario
def reads_are_cut_as_written(stage: Stage) -> Record:
    """Up to PIPE_BUF a write arrives in one piece; the next one is not glued to it."""
    client = stage.probe("sizes")
    seen = []
    for size in (1, 2, 100, 4095, 4096, 1):
        client.send(b"z" * size)
        seen.append(client.receive_line())
    return {"seen": seen, **client.finish()}


@scenario
def thousands_of_lines_each_way_at_once(stage: Stage) -> Record:
    lines = b"".join(b'{"id":%d,"from":"client"}\n' % number for number in range(20_000))
    return stage.probe("lines_both", 20_000).finish(lines)


@scenario
def both_write_before_either_reads(stage: Stage) -> Record:
    client = stage.probe("both_first", 60_000)
    client.send(b"c" * 60_000)
    return client.finish()


@scenario
def client_writes_before_the_server_reads(stage: Stage) -> Record:
    client = stage.probe("reluctant")
    client.send(b"early" * 1000)
    ready = client.receive_line()
    client.process.send_signal(10)
    return {"ready": ready, **client.finish(b"late")}


@scenario
def errors_stay_apart_from_output(stage: Stage) -> Record:
    return stage.probe("chatter").finish(b"one\ntwo two\nthree\n")


@scenario
def server_that_does_not_read_stops_the_client(stage: Stage) -> Record:
    client = stage.probe("reluctant")
    client.receive_line()
    sent = client.fill()
    client.process.send_signal(10)
    told = client.exchange(b"")
    return {"stopped": sent < 1 << 20, "all_arrived": told == b"%d\n" % sent, **client.finish()}


@scenario
def client_that_does_not_read_stops_the_server(stage: Stage) -> Record:
    """The server cannot say 'all out' before the client has begun to read."""
    client = stage.probe("heap", 8 << 20)
    first = client.receive(1)
    early = client.poll_errors(300)
    return {"first": first, "said_early": early, **client.finish()}


@scenario
def both_ways_are_full(stage: Stage) -> Record:
    """Neither reads, both write until they must wait; once the client reads, everything moves again."""
    client = stage.probe("both_first", 4 << 20)
    sent = client.fill()
    got = client.exchange(b"")
    told = client.receive_note()
    return {"got": digest(got), "all_arrived": told == b"read %d\n" % sent, **client.finish()}


@cases(status=(0,), code=(7,), killed=("KILL",), terminated=("TERM",))
def last_words_arrive_whole(stage: Stage, end: tuple[object, ...]) -> Record:
    """The server writes and is gone; the client looks at the output only after it has seen the exit."""
    client = stage.probe("emit", 60_000, *end)
    status = client.wait()
    return {"status_first": status, **client.finish()}

"""
A small real HTTP server that answers as it is told: properly, wrongly, slowly, or not at all.

A *script* is a function from a request to an *act*. The server remembers every request, and in `stored` what it
has committed, by identity, so that a test can compare both with what should have come.
"""

import contextlib
import gzip
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import zstandard

Identity = tuple[str, str, int, int]


@dataclass(frozen=True, slots=True)
class Request:
    """One POST as it came; header names in small letters."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def batch(self) -> dict[str, Any]:
        """The decoded batch."""
        match self.headers.get("content-encoding", "identity"):
            case "zstd":
                text = zstandard.ZstdDecompressor().decompressobj().decompress(self.body)
            case "gzip":
                text = gzip.decompress(self.body)
            case _:
                text = self.body
        batch: dict[str, Any] = json.loads(text)
        return batch

    @property
    def offsets(self) -> list[int]:
        return [event["offset"] for event in self.batch.get("events", [])]


@dataclass(frozen=True, slots=True)
class Act:
    """What to send, whether to close then, and how long to wait after each byte of a dripping answer."""

    data: bytes
    close: bool = False
    drip_s: float = 0.0


Script = Callable[[Request], Act]


def render_answer(status: int, body: bytes = b"", *, content_type: str = "application/json", **headers: str) -> bytes:
    """A whole HTTP answer; underscores in the names of *headers* stand for hyphens."""
    fields = {"Content-Type": content_type, "Content-Length": str(len(body)), **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([f"HTTP/1.1 {status} X", *lines, "", ""]).encode() + body


def say(status: int, body: bytes = b"", **more: str) -> Script:
    """A script that always gives the same answer."""
    return lambda request: Act(render_answer(status, body, **more))


@dataclass(slots=True)
class Misbehaving:
    """The running server. Set `script` at any time; `first` is used up, one act each, before it."""

    port: int
    script: Script
    first: list[Script] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    stored: dict[Identity, dict[str, Any]] = field(default_factory=dict)
    duplicates: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    tls: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def commit(self, request: Request) -> bytes:
        """Store the batch; returns the body of its receipt."""
        batch, verdicts = request.batch, []
        for event in batch.get("events", []):
            identity = (event["session"], event["stream"], event["offset"], event.get("index", 0))
            known = identity in self.stored
            self.duplicates += known
            self.stored.setdefault(identity, event)
            verdicts.append({"status": "duplicate" if known else "accepted"})
        return json.dumps({"schema": 1, "batch_id": batch["batch_id"], "verdicts": verdicts}).encode()

    def behave(self, request: Request) -> Act:
        """As a km-server would that takes batches and answers nothing else."""
        if not request.body:
            return Act(render_answer(404))
        return Act(render_answer(200, self.commit(request)))

    def act(self, request: Request) -> Act:
        with self.lock:
            self.requests.append(request)
            script = self.first.pop(0) if self.first else self.script
            return script(request)


@contextmanager
def misbehaving(
    script: Script | None = None, first: Iterable[Script] = (), tls: ssl.SSLContext | None = None
) -> Iterator[Misbehaving]:
    """A server on a free port for as long as the block runs; it behaves unless told otherwise. tls: it speaks that."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Misbehaving(listener.getsockname()[1], script or say(500), list(first), tls=tls)
        if script is None:
            server.script = server.behave
        stopping = threading.Event()
        open_sockets: set[socket.socket] = set()
        thread = threading.Thread(target=accept, args=(listener, server, stopping, open_sockets))
        thread.start()
        try:
            yield server
        finally:
            stopping.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def accept(
    listener: socket.socket, server: Misbehaving, stopping: threading.Event, open_sockets: set[socket.socket]
) -> None:
    """Serve each connection in a thread of its own; end them all at the end."""
    threads = []
    with contextlib.suppress(OSError):
        while not stopping.is_set():
            sock, _ = listener.accept()
            open_sockets.add(sock)
            thread = threading.Thread(target=serve, args=(sock, server, stopping))
            thread.start()
            threads.append(thread)
    for sock in open_sockets:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()


def serve(sock: socket.socket, server: Misbehaving, stopping: threading.Event) -> None:
    if server.tls is not None:
        try:
            sock = server.tls.wrap_socket(sock, server_side=True)
        except OSError:  # who does not trust it has gone away
            sock.close()
            return
    with sock, contextlib.suppress(OSError), sock.makefile("rb") as reader:
        while (request := read_request(reader)) is not None:
            act = server.act(request)
            if act.drip_s:
                for byte in act.data:
                    sock.sendall(bytes([byte]))
                    if stopping.wait(act.drip_s):
                        return
            else:
                sock.sendall(act.data)
            if act.close:
                return


def read_request(reader: Any) -> Request | None:  # noqa: ANN401
    """The next request of a connection, None at its end."""
    if not reader.peek(1)[:1].isupper():
        return None  # its end, or a TLS greeting
    line = reader.readline()
    headers = {}
    while (field_line := reader.readline()) not in (b"\r\n", b""):
        name, _, value = field_line.decode().partition(":")
        headers[name.lower()] = value.strip()
    return Request(line.split()[1].decode(), headers, reader.read(int(headers.get("content-length", "0"))))


def poison(server: Misbehaving, offsets: set[int], status: int) -> Script:
    """Answers *status* to any batch that holds one of *offsets*, and behaves otherwise."""

    def script(request: Request) -> Act:
        if offsets.isdisjoint(request.offsets):
            return server.behave(request)
        return Act(render_answer(status, b'{"error":"no"}'))

    return script

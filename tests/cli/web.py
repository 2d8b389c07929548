"""A small real HTTP server that gives every POST the same answer, right or wrong."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WAIT_S = 20.0


@contextmanager
def http_server(status: int, body: str, *, headers: dict[str, str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """A server that answers every POST alike (`ID` in the body: the batch's id): its URL, and the keys it saw."""
    keys: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            batch = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            keys.append(f"{self.path} {self.headers.get('Authorization')}")
            answer = body.replace("ID", batch["batch_id"]).encode()
            self.send_response(status)
            for name, text in (headers or {}).items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", keys
        finally:
            server.shutdown()
            thread.join(WAIT_S)


RECEIPT = '{"schema": 1, "batch_id": "ID", "verdicts": []}'

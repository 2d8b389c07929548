"""A person at a terminal. The server gets pipes there, so only what crosses is compared."""

import os
import pty
import tty
from contextlib import suppress

from tests.transparency.client import Client, Record, read_some
from tests.transparency.stage import Stage, scenario


@scenario
def echo_on_a_terminal(stage: Stage) -> Record:
    """Raw, so that every byte passes; half a line comes back at once."""
    client, ours = on_terminal(stage, "echo")
    seen = []
    for part in (b"half", b" a line\r\n", bytes(range(128, 256))):
        os.write(ours, part)
        data = b""
        while len(data) < len(part):
            data += read_some(ours, len(part) - len(data))
        seen.append(data)
    client.process.terminate()
    return {"seen": seen, "status": client.wait()}


@scenario
def end_of_file_on_a_terminal(stage: Stage) -> Record:
    """Control-D ends the server's input, not the terminal."""
    client, ours = on_terminal(stage, "after_eof", raw=False)
    os.write(ours, b"a line\n\x04")
    data = b""
    while not data.endswith(b"7\r\n"):
        data += read_some(ours, 1000)
    return {"seen": data, "status": client.wait()}


@scenario
def terminal_goes_away(stage: Stage) -> Record:
    """Its other side is closed while the server is idle: that ends it, bare by an error or a signal."""
    client, ours = on_terminal(stage, "echo")
    os.write(ours, b"x")
    read_some(ours, 1)
    client.close()
    with suppress(OSError):
        os.close(ours)
    client.wait()
    return {}


def on_terminal(stage: Stage, probe: str, *, raw: bool = True) -> tuple[Client, int]:
    """*probe* on a terminal of its own, and the side from which it is typed."""
    ours, theirs = pty.openpty()
    if raw:
        tty.setraw(theirs)
    client = stage.probe(probe, stdin=theirs, stdout=theirs)
    os.close(theirs)
    client.take_over(ours, os.dup(ours))
    return client, ours

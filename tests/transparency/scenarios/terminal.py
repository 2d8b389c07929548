"""A person at a terminal. The server gets pipes there, so only what crosses is compared."""

import os
import pty
import sys
import tty
from contextlib import suppress

from tests.transparency.client import Client, Record, read_some
from tests.transparency.stage import Stage, probe_words, scenario


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


SHELL = """
import fcntl, os, select, signal, subprocess, sys, time
os.setsid()
fcntl.ioctl(0, 0x540E, 0)  # TIOCSCTTY: like a login shell's, this is its terminal from now on
child = subprocess.Popen(sys.argv[1:], process_group=0)
os.write(1, b"job started\\n")
time.sleep(1)  # time enough for another to take what is typed
poll = select.poll()
poll.register(0, select.POLLIN)
os.write(1, b"the shell got " + (os.read(0, 100) if poll.poll(2000) else b"nothing") + b"\\n")
os.killpg(child.pid, signal.SIGKILL)
child.wait()
"""


@scenario
def what_is_typed_for_the_shell_is_the_shells(stage: Stage) -> Record:
    """The server is a job in the background; its relay must not read the terminal either."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    words = stage.wrap(stage.home, probe_words("echo"))
    client = stage.start_bare([sys.executable, "-I", "-S", "-c", SHELL, *words], stdin=theirs, stdout=theirs)
    os.close(theirs)
    client.take_over(ours, os.dup(ours))
    seen = [client.receive_line()]
    client.send(b"a command")
    seen.append(client.receive_line())
    return {"seen": seen, "status": client.wait()}


def on_terminal(stage: Stage, probe: str, *, raw: bool = True) -> tuple[Client, int]:
    """*probe* on a terminal of its own, and the side from which it is typed."""
    ours, theirs = pty.openpty()
    if raw:
        tty.setraw(theirs)
    client = stage.probe(probe, stdin=theirs, stdout=theirs)
    os.close(theirs)
    client.take_over(ours, os.dup(ours))
    return client, ours

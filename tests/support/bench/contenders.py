"""Who is measured: the bare server, the C relay, km in its two forms, and wrappers named on the command line."""

import os
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import LAUNCH, command

C_SOURCE = Path(__file__).parents[1] / "c_relay.c"
PROBES = Path(__file__).parents[2] / "transparency" / "probes.py"
STALL_S = 60.0
"""No contender may stand still for longer."""
PIPE_BYTES = 1 << 20
BARE, C_RELAY, KM, KM_SCRIPT = "bare", "C relay", "km", "km (script)"


@dataclass(frozen=True, slots=True)
class Contender:
    """A name and the words that go before the server's own."""

    name: str
    before: tuple[str, ...] = ()


def compile_c_relay(folder: Path) -> Path | None:
    """The C program, built; None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    program = folder / "c_relay"
    subprocess.run([compiler, "-O2", "-o", str(program), str(C_SOURCE)], check=True, timeout=60)
    return program


def list_contenders(home: Path, c_relay: Path | None, against: tuple[str, ...]) -> list[Contender]:
    """In the order in which they take turns."""
    found = [Contender(BARE)]
    if c_relay:
        found.append(Contender(C_RELAY, (str(c_relay),)))
    found.append(Contender(KM, (sys.executable, "-I", "-S", str(LAUNCH), *km_options(home))))
    return found + [parse_against(text) for text in against]


def km_script(home: Path) -> Contender:
    """km as a person types it; once it has started it is the same."""
    return Contender(KM_SCRIPT, (command("km"), *km_options(home)))


def km_options(home: Path) -> tuple[str, ...]:
    return "--home", str(home), "--name", "bench", "--"


def parse_against(text: str) -> Contender:
    """`COMMAND…` or `label=COMMAND…`."""
    label, equals, rest = text.partition("=")
    if equals and label.isidentifier():
        return Contender(label, tuple(shlex.split(rest)))
    words = shlex.split(text)
    return Contender(Path(words[0]).name, tuple(words))


def echo_words(c_relay: Path | None) -> list[str]:
    """The server: it gives back what it gets, as cheaply as this machine can."""
    return [str(c_relay)] if c_relay else [sys.executable, "-I", "-S", str(PROBES), "echo"]


class Peer:
    """One started contender, driven through non-blocking pipes."""

    def __init__(self, contender: Contender, server: list[str]) -> None:
        self.name = contender.name
        self.process = subprocess.Popen(
            [*contender.before, *server], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input, self._output = self.process.stdin, self.process.stdout
        self._in_fd, self._out_fd = self._input.fileno(), self._output.fileno()
        os.set_blocking(self._in_fd, False)
        self._buffers = (bytearray(PIPE_BYTES),)  # a new one for each read would cost more than a relay does
        self.reads_from = Path(f"/proc/self/fd/{self._in_fd}").readlink()

    def round_trip(self, message: bytes) -> float:
        """Seconds until all of *message*, which fits a pipe, has come back. The reads block: no poll is timed."""
        start = time.perf_counter()
        os.write(self._in_fd, message)
        left = len(message)
        while left:
            got = os.readv(self._out_fd, self._buffers)
            if not got:
                raise ConnectionError(f"{self.name} closed its output")
            left -= got
        return time.perf_counter() - start

    def stream(self, data: bytes, repeat: int = 1) -> float:
        """Seconds until *repeat* times *data* has come back, writing and reading at the same time."""
        start = time.perf_counter()
        left, view, rounds = len(data) * repeat, memoryview(data), repeat
        poll = select.poll()
        poll.register(self._out_fd, select.POLLIN)
        poll.register(self._in_fd, select.POLLOUT)
        while left:
            ready = poll.poll(STALL_S * 1000)
            if not ready:
                raise TimeoutError(f"{self.name} stands still")
            for fd, _ in ready:
                if fd == self._out_fd:
                    left -= os.readv(fd, self._buffers) or left
                elif rounds:
                    view = view[os.write(fd, view) :]
                    if not view:
                        view, rounds = memoryview(data), rounds - 1
                        if not rounds:
                            poll.unregister(fd)
        return time.perf_counter() - start

    def close(self) -> None:
        """Both ends; then the process, kindly if it ends by itself."""
        self._input.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._output.close()


@contextmanager
def started(contenders: list[Contender], server: list[str]) -> Iterator[list[Peer]]:
    """All of them running at once, idle but for the one whose turn it is."""
    peers: list[Peer] = []
    try:
        for contender in contenders:
            peers.append(Peer(contender, server))
            peers[-1].round_trip(b"warm up\n")
        yield peers
    finally:
        for peer in peers:
            peer.close()


def relay_pid(peer: Peer) -> int | None:
    """Who stands between: the process that has the other end of the server's stdin pipe. None for the bare server."""
    if peer.name == BARE:
        return None
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            holds = peer.reads_from in {link.readlink() for link in entry.joinpath("fd").iterdir()}
        except OSError:
            continue  # gone, or not ours to look at
        if holds and int(entry.name) != os.getpid():
            return int(entry.name)
    return None


def cpu_s(pid: int) -> float:
    """User and system time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_s(pid: int) -> float:
    """The same to the nanosecond, of its first thread."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def peak_rss_mib(pid: int) -> float:
    """The most that a process has had resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0

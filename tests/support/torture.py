"""
`make torture`: everything is killed again and again under traffic, and the books must balance afterwards.

Workers send numbered lines through km to an echoing server and read them back. Meanwhile kmd, km-server and
relays get SIGKILL at random moments. The oracle, per session whose relay was not killed: both streams are on
km-server once each, in order, byte-equal. For a killed relay: what is stored is a beginning of what crossed,
and nothing that kmd had committed is missing. Some batch must have been sent twice, or the replay was not tried.
"""

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.support.processes import (
    WAIT_S,
    Running,
    create_key,
    flush,
    quick_km,
    read_status,
    start_kmd,
    start_server,
    wait_for,
    write_config,
)

WORKERS = 3
PACE_S = 0.002
"""Between lines: the kills are the point, not the volume."""


@dataclass(slots=True)
class Session:
    """One run of a worker's echo: the lines that crossed, as the worker saw them."""

    name: str
    lines: list[bytes] = field(default_factory=list)
    relay_killed: bool = False


@dataclass(slots=True)
class Report:
    """What a run did and found; `faults` is empty when the promise held."""

    rounds: dict[str, int] = field(default_factory=dict)
    sessions: int = 0
    killed_sessions: int = 0
    messages: int = 0
    stored: int = 0
    sent_again: int = 0
    faults: list[str] = field(default_factory=list)


class Worker(threading.Thread):
    """Sessions one after the other, each some hundred lines of random sizes, until stopped."""

    def __init__(self, home: Path, number: int, seed: int) -> None:
        super().__init__(daemon=True)
        self._home = home
        self._number = number
        self._random = random.Random(seed * 100 + number)
        self._stopping = threading.Event()
        self.sessions: list[Session] = []
        self.failure: Exception | None = None

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._run_session()
        except Exception as exc:  # noqa: BLE001 - the main thread raises it
            self.failure = exc

    def _run_session(self) -> None:
        session = Session(f"w{self._number}-{len(self.sessions)}")
        self.sessions.append(session)
        words = quick_km(self._home, session.name, "cat")
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for number in range(self._random.randrange(20, 600)):
                if self._stopping.is_set():
                    break
                line = b"%s %06d " % (session.name.encode(), number) + b"x" * self._size()
                process.stdin.write(line + b"\n")
                if read_exactly(process.stdout.fileno(), len(line) + 1) != line + b"\n":
                    raise BrokenPipeError
                session.lines.append(line)
                time.sleep(PACE_S)
        except BrokenPipeError:
            if not session.relay_killed:
                raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
            process.wait(WAIT_S)

    def _size(self) -> int:
        return self._random.choice((5, 50, 500, 5000, 200_000 if self._random.random() < 0.02 else 1))


def read_exactly(descriptor: int, length: int) -> bytes:
    """*length* bytes, fewer at the end of the stream."""
    data = b""
    while len(data) < length and (chunk := os.read(descriptor, length - len(data))):
        data += chunk
    return data


def find_relay(name: str) -> int | None:
    """The relay of the session *name*: the km in a process group that somebody else has led."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"--name" in words and name.encode() in words:
                pid, pgid = int(folder.name), int((folder / "stat").read_text().rpartition(")")[2].split()[2])
                if b"launch.py" in b" ".join(words) and pgid not in (pid, os.getpgid(0)):
                    return pid
    return None


class Torture:
    """One run: the three programs, the workers, and the random hand that kills."""

    def __init__(self, root: Path, seed: int) -> None:
        self._home, self._database = root / "home", root / "server.db"
        self._random = random.Random(seed)
        self._server = start_server(self._database)
        self._port = int(self._server.url.rpartition(":")[2])
        self._key = create_key(self._database)
        write_config(self._home, ("team", self._server.url, self._key))
        self._kmd = start_kmd(self._home)
        self._workers = [Worker(self._home, number, seed) for number in range(WORKERS)]
        self._committed: set[tuple[str, str, int]] = set()
        self.report = Report()

    def run(self, rounds: int, show: Callable[[str], None] = lambda text: None) -> Report:
        """Kill *rounds* times, then let everything come to rest and look."""
        for worker in self._workers:
            worker.start()
        try:
            for number in range(rounds):
                time.sleep(self._random.uniform(0.02, 0.5))
                self._kill_something()
                if number % 25 == 24:
                    show(f"{number + 1} of {rounds} rounds")
            self._settle()
            self._check(self._read_all())
        finally:
            for running in (self._kmd, self._server):
                running.stop()
        return self.report

    def _kill_something(self) -> None:
        what = self._random.choices(("kmd", "server", "relay", "all"), (5, 3, 2, 1))[0]
        self.report.rounds[what] = self.report.rounds.get(what, 0) + 1
        if what in ("relay", "all"):
            self._kill_relay()
        if what in ("kmd", "all"):
            self._kmd.stop(signal.SIGKILL)
        if what in ("server", "all"):
            self._server.stop(signal.SIGKILL)
        time.sleep(self._random.uniform(0, 0.4))
        if what in ("server", "all"):
            self._server = self._start_server()
        if what in ("kmd", "all"):
            self._kmd = start_kmd(self._home)

    def _start_server(self) -> Running:
        return wait_for(lambda: try_start(self._database, self._port), "the port to be free")

    def _kill_relay(self) -> None:
        session = self._random.choice(self._workers).sessions[-1]
        relay = find_relay(session.name)
        if relay is not None:
            session.relay_killed = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(relay, signal.SIGKILL)

    def _settle(self) -> None:
        """No more faults: sessions end, spools are adopted, everything is delivered."""
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.join(WAIT_S)
            if worker.failure:
                raise worker.failure
        sure = sum(2 * len(session.lines) for session in self._sessions() if not session.relay_killed)

        def delivered() -> bool:
            if any(find_relay(session.name) for session in self._sessions()):
                return False  # between two connections it is in neither of the lists below
            done = flush(self._home)["done"]
            return bool(done and not read_status(self._home)["sessions"] and not list(self._home.glob("spool/*.spool")))

        wait_for(delivered, "everything to be delivered", 60)
        self.report.messages = sure
        events = read_status(self._home)["outbox"]
        if events["gap_bytes"] and not any(session.relay_killed for session in self._sessions()):
            self.report.faults.append(f"a gap of {events['gap_bytes']} bytes")

    def _sessions(self) -> list[Session]:
        return [session for worker in self._workers for session in worker.sessions]

    def _read_all(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        cursor = ""
        headers = {"Authorization": f"Bearer {self._key}"}
        with httpx.Client(base_url=self._server.url, headers=headers, timeout=60) as client:
            while True:
                query = {"limit": "1000", "include": "payload", **({"cursor": cursor} if cursor else {})}
                page = client.get("/api/v1/activity", params=query).raise_for_status().json()
                items += page["items"]
                cursor = page["next_cursor"] or ""
                if not cursor:
                    return items

    def _check(self, items: list[dict[str, Any]]) -> None:
        report = self.report
        report.stored = len(items)
        report.sent_again = self._kmd.log.read_text().count("had some events already")
        identities = {(i["session"], i["stream"], i["offset"], i["index"]) for i in items}
        if len(identities) != len(items):
            report.faults.append("an event is stored twice")
        committed = int(read_status(self._home)["outbox"]["events"])
        if committed != len(items):
            report.faults.append(f"{committed} events are committed, {len(items)} stored")
        streams: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for item in items:
            streams.setdefault((item["server"], item["stream"]), []).append(item)
        for session in self._sessions():
            report.sessions += 1
            report.killed_sessions += session.relay_killed
            for stream in ("to_server", "to_client"):
                stored = sorted(streams.get((session.name, stream), []), key=lambda item: item["offset"])
                self._check_stream(session, stream, [item["payload"].encode() for item in stored])

    def _check_stream(self, session: Session, stream: str, stored: list[bytes]) -> None:
        if not session.relay_killed:
            if stored != session.lines:
                found = f"{len(stored)} of {len(session.lines)} lines"
                self.report.faults.append(f"{session.name} {stream}: {found}, or not equal")
            return
        whole = min(len(stored), len(session.lines))
        if stored[:whole] != session.lines[:whole]:
            self.report.faults.append(f"{session.name} {stream}: not what crossed")


def try_start(database: Path, port: int) -> Running | None:
    """km-server on a fixed port; None while the kernel still holds it."""
    try:
        return start_server(database, port)
    except RuntimeError:
        return None

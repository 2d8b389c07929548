"""
A soak: the same day again and again, and kmd must not be larger in the evening than in the morning.

A *wave* is a little of everything that happens to a kmd: sessions that come, talk and leave, one with a large
message, one that breaks off, questions of kmctl, a server that is away for a moment. After each wave, when all is
quiet, kmd is *sampled*: its own memory, open files, threads. Growth from the first quarter of the samples after the
warm-up to the last is a fault.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kmd.outbox.housekeeping import GATHER_S, QUIET_S
from tests.support.processes import (
    Running,
    ask,
    create_key,
    flush,
    read_status,
    running_kmd,
    running_server,
    start_server,
    wait_for,
    write_config,
)
from tests.support.raw_relay import RawRelay, session_name

WARM_UP = 12
"""Waves before which caches and allocators have not settled."""
GROWTH_MAX_MIB = 6.0
REST_S = GATHER_S + QUIET_S + 1.0
"""After a wave, until kmd has kept house and given its free memory back."""
SESSIONS = 8
LARGE_BYTES = 2 << 20
CALL = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"echo","arguments":{"n":%d}}}\n'
RESULT = b'{"jsonrpc":"2.0","id":%d,"result":{"content":[]}}\n'


@dataclass(frozen=True, slots=True)
class Sample:
    """kmd at rest after a wave."""

    anonymous_mib: float
    descriptors: int
    threads: int


@dataclass(slots=True)
class SoakReport:
    samples: list[Sample] = field(default_factory=list)
    events: int = 0

    def quarters(self, read: Callable[[Sample], float]) -> tuple[float, float]:
        """
        The least of the first and of the last quarter of the samples after the warm-up.

        The least, because memory that is free again goes back to the system only now and then.
        """
        values = [read(sample) for sample in self.samples[WARM_UP:]]
        size = max(1, len(values) // 4)
        return min(values[:size]), min(values[-size:])

    def faults(self) -> list[str]:
        """What grew. Raises ValueError when there are too few waves to say."""
        if len(self.samples) < WARM_UP + 8:
            raise ValueError(f"{len(self.samples)} waves are too few to say anything")
        found = []
        first, last = self.quarters(lambda sample: sample.anonymous_mib)
        if last > first + GROWTH_MAX_MIB:
            found.append(f"memory grew from {first:.1f} to {last:.1f} MiB")
        for name in ("descriptors", "threads"):
            first, last = self.quarters(lambda sample, name=name: float(getattr(sample, name)))  # type: ignore[misc]
            if last > first + 1:
                found.append(f"{name} grew from {first:.0f} to {last:.0f}")
        return found


def read_sample(pid: int) -> Sample:
    process = Path(f"/proc/{pid}")
    fields = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    kib = int(fields["RssAnon"].split()[0])
    return Sample(kib / 1024, len(list((process / "fd").iterdir())), int(fields["Threads"]))


def soak(folder: Path, duration_s: float, show: Callable[[str], None] = lambda text: None) -> SoakReport:
    """Waves for *duration_s* seconds, at least enough of them to judge."""
    report, database, home = SoakReport(), folder / "server.db", folder / "home"
    with running_server(database) as server:
        port = int(server.url.rpartition(":")[2])
        write_config(home, ("team", server.url, create_key(database)), extra="[outbox]\nmax_bytes = 16777216\n")
    with running_kmd(home) as kmd:
        until = time.monotonic() + duration_s
        while time.monotonic() < until or len(report.samples) < WARM_UP + 8:
            number = len(report.samples)
            run_wave(home, number * SESSIONS, database, port)
            report.samples.append(sample_at_rest(home, kmd))
            show(f"wave {number + 1}: {report.samples[-1]}")
        report.events = int(read_status(home)["outbox"]["last_seq"])
    return report


def run_wave(home: Path, first: int, database: Path, port: int) -> None:
    """A little of everything; the server comes only when the sessions have already begun."""
    failures: list[BaseException] = []

    def guard(number: int) -> None:
        try:
            run_session(home, number, is_large=number == first, breaks_off=number == first + 1)
        except BaseException as exc:  # noqa: BLE001 - raised again below
            failures.append(exc)

    threads = [threading.Thread(target=guard, args=(first + n,)) for n in range(SESSIONS)]
    for thread in threads:
        thread.start()
    server = wait_for(lambda: start_when_free(database, port), "the port to be free")
    try:
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        for request in ({"op": "status"}, {"op": "tail", "limit": 50}, {"op": "reload"}, {"op": "quarantine"}):
            ask(home, dict(request))
        wait_for(lambda: flush(home)["done"], "the delivery")
    finally:
        server.stop()


def start_when_free(database: Path, port: int) -> Running | None:
    try:
        return start_server(database, port)
    except RuntimeError:
        return None


def run_session(home: Path, number: int, *, is_large: bool, breaks_off: bool) -> None:
    with RawRelay(home) as relay:
        relay.hello(session_name(number), started_at_ns=b"%d" % time.time_ns())
        offsets = [0, 0]
        for n in range(50):
            at_ns = time.time_ns()
            ids = range(n * 20, n * 20 + 20)
            parts = [b"".join(CALL % (k, k) for k in ids), b"".join(RESULT % k for k in ids)]
            if is_large and n == 25:
                parts[1] += b"x" * LARGE_BYTES + b"\n"
            for stream, part in enumerate(parts):
                for start in range(0, len(part), 65536):
                    piece = part[start : start + 65536]
                    relay.data(stream, offsets[stream], piece, at_ns)
                    offsets[stream] += len(piece)
        if breaks_off:
            relay.data(0, offsets[0], b'{"half":')
            relay.wait_acked(*offsets)
            return
        relay.bye(closed_first=b"client")
        relay.wait_bye()


def sample_at_rest(home: Path, kmd: Running) -> Sample:
    """Once nobody is connected and two samples in a row agree on the open files."""
    wait_for(lambda: not read_status(home)["sessions"], "the sessions to end")
    time.sleep(REST_S)

    def at_rest() -> Sample | None:
        before = read_sample(kmd.process.pid)
        time.sleep(1.0)
        after = read_sample(kmd.process.pid)
        return after if before.descriptors == after.descriptors else None

    return wait_for(at_rest, "kmd to come to rest")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="km-soak-") as folder:
        report = soak(Path(folder), options.minutes * 60, lambda text: print(text, flush=True))
    faults = report.faults()
    first, last = report.quarters(lambda sample: sample.anonymous_mib)
    print(f"{len(report.samples)} waves, {report.events:,} events, memory {first:.1f} -> {last:.1f} MiB")
    print("\n".join(faults) or "nothing grew")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""
The daemon: commits against bare `executemany` of the same rows, acknowledgement latency, memory, wake-ups, sync.

Eight relays' connections are played from ready-made records by one process, so that what is measured is kmd and
not the making of traffic. The bare loop writes the very rows that kmd wrote, with the same pragmas and schema.
"""

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kmd.outbox.database import open_database, transaction
from kmd.outbox.outbox import INSERT_NEW
from kmd.record import DATA, render_head
from tests.support.bench.contenders import peak_rss_mib
from tests.support.bench.report import Budget, Options, Section, Sheet
from tests.support.bench.side_by_side import SPREAD, median_ratio, spread, time_together
from tests.support.processes import (
    Running,
    ask,
    create_key,
    flush,
    read_status,
    running_kmd,
    running_server,
    wait_for,
    write_config,
)
from tests.support.raw_relay import RawRelay, session_name

SESSIONS = 8
CHUNK_BYTES = 64 << 10
PAYLOAD_CHARS = 600
ROWS_PER_COMMIT = 2000
"""Of the bare loop: about what kmd's group commit brings together from eight connections."""
ROW_COLUMNS = (
    "session_id, stream, offset, idx, at_ns, kind, method, target, rpc_id, size_bytes, took_ns, outcome,"
    " error_code, sha256, payload"
)


@dataclass(frozen=True, slots=True)
class Effort:
    rounds: int = 5
    events: int = 160_000
    memory_events: int = 1_000_000
    acks: int = 300
    idle_s: float = 60.0


QUICK = Effort(rounds=2, events=40_000, memory_events=100_000, acks=50, idle_s=15.0)


def measure_kmd(options: Options) -> Section:
    section, effort = Section("kmd"), QUICK if options.quick else Effort()
    with tempfile.TemporaryDirectory(prefix="km-bench-") as folder:
        measure_commits(section, effort, Path(folder))
        measure_sync(section, effort, Path(folder))
        with running_kmd(Path(folder, "rest")) as kmd:
            measure_acks(section, effort, Path(folder, "rest"))
            measure_memory(section, effort, Path(folder, "rest"), kmd)
            measure_idle(section, effort, kmd)
    return section


def records_of(exchanges: int) -> list[bytes]:
    """One session's DATA records: chunks of about 64 KiB of requests, each followed by the chunk of their answers."""
    text = "x" * PAYLOAD_CHARS
    call: dict[str, Any] = {"method": "tools/call", "params": {"name": "echo", "arguments": {"text": text}}}
    result: dict[str, Any] = {"result": {"content": [{"type": "text", "text": text}]}}
    together = CHUNK_BYTES // (len(dump({"id": exchanges, **call})) + 1)
    records, offsets = [], [0, 0]
    for first in range(0, exchanges, together):
        for stream, body in enumerate((call, result)):
            chunk = b"".join(dump({"id": n, **body}) + b"\n" for n in range(first, min(exchanges, first + together)))
            at_ns = 1_800_000_000_000_000_000 + 2 * first + stream
            records.append(render_head(DATA, stream, offsets[stream], at_ns, chunk) + chunk)
            offsets[stream] += len(chunk)
    return records


def dump(message: dict[str, Any]) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **message}).encode()


def play(home: Path, first_session: int, records: list[bytes]) -> float:
    """Eight connections at once, each sending *records*; seconds until kmd has committed all of it."""

    def session(number: int) -> None:
        with RawRelay(home) as relay:
            relay.hello(session_name(number))
            for record in records:
                relay.send(record)
            relay.bye()
            relay.wait_bye()

    return time_together(partial(session, first_session + n) for n in range(SESSIONS))


def measure_commits(section: Section, effort: Effort, folder: Path) -> None:
    """kmd and the bare loop in turn, each on a new file."""
    records = records_of(effort.events // SESSIONS // 2)
    kmd_rates, bare_rates = [], []
    for number in range(effort.rounds):
        home = folder / f"commits{number}"
        with running_kmd(home):
            kmd_rates.append(effort.events / play(home, 1, records))
        bare_rates.append(effort.events / insert_bare(home / "outbox.db", folder / f"bare{number}.db"))
    rows = [spread("kmd", kmd_rates), spread("executemany", bare_rates)]
    section.sheets.append(Sheet("events committed per second, 8 sessions", SPREAD, rows))
    ratio = median_ratio(kmd_rates, bare_rates)
    section.budgets.append(Budget("committed events against executemany", ratio, 0.5, at_least=True))


def insert_bare(source: Path, target: Path) -> float:
    """Seconds that the same rows take with nothing but executemany and COMMIT."""
    reading, other = open_database(source)
    rows = reading.execute(f"SELECT {ROW_COLUMNS} FROM events ORDER BY seq").fetchall()  # noqa: S608
    sessions = reading.execute("SELECT id, session, name FROM sessions").fetchall()
    reading.close()
    other.close()
    writing, other = open_database(target)
    insert = "INSERT INTO sessions (id, session, name, command, pid, started_at_ns) VALUES (?, ?, ?, '', 1, 1)"
    writing.executemany(insert, sessions)
    began = time.perf_counter()
    for start in range(0, len(rows), ROWS_PER_COMMIT):
        with transaction(writing):
            writing.executemany(INSERT_NEW, rows[start : start + ROWS_PER_COMMIT])
    took_s = time.perf_counter() - began
    writing.close()
    other.close()
    return took_s


def measure_acks(section: Section, effort: Effort, home: Path) -> None:
    """One message at a time: from the record's send to the acknowledgement of its commit."""
    line = dump({"id": 1, "method": "ping"}) + b"\n"
    took_ms = []
    with RawRelay(home) as relay:
        relay.hello(session_name(999_999))
        for number in range(effort.acks):
            began = time.perf_counter()
            relay.data(0, number * len(line), line)
            relay.wait_acked((number + 1) * len(line))
            took_ms.append((time.perf_counter() - began) * 1000)
        relay.bye()
        relay.wait_bye()
    cuts = statistics.quantiles(took_ms, n=100)
    row = ("kmd", statistics.median(took_ms), cuts[98])
    section.sheets.append(Sheet("acknowledgement of one message, ms", ("", "p50", "p99"), [row]))


def measure_memory(section: Section, effort: Effort, home: Path, kmd: Running) -> None:
    """The peak of kmd's resident memory over many events, in several waves of sessions."""
    records = records_of(effort.events // SESSIONS // 2)
    played, first_session = 0, 1000
    while played < effort.memory_events:
        play(home, first_session, records)
        first_session += SESSIONS
        played += effort.events
    peak = peak_rss_mib(kmd.process.pid)
    section.budgets.append(Budget(f"kmd's peak memory over {played:,} events", peak, 80, "MiB"))


def measure_idle(section: Section, effort: Effort, kmd: Running) -> None:
    """How often an idle kmd is given a processor, all its threads together."""
    settled = wait_for(lambda: count_when_quiet(kmd), "kmd to come to rest", 30)
    time.sleep(effort.idle_s)
    per_minute = woken_since(settled, count_switches(kmd)) * 60 / effort.idle_s
    section.budgets.append(Budget("idle wake-ups of kmd per minute", per_minute, 6, "a minute"))


def count_when_quiet(kmd: Running) -> dict[str, int] | None:
    """The switch counts once two seconds have passed without more than one; None while kmd still works."""
    before = count_switches(kmd)
    time.sleep(2.0)
    after = count_switches(kmd)
    return after if woken_since(before, after) <= 1 else None


def count_switches(kmd: Running) -> dict[str, int]:
    """Voluntary context switches so far, by thread: each wake-up ends in one."""
    counts = {}
    for task in Path(f"/proc/{kmd.process.pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        counts[task.name] = next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))
    return counts


def woken_since(before: dict[str, int], after: dict[str, int]) -> int:
    """Switches between two counts; a thread that has ended meanwhile is left out."""
    return sum(count - before.get(thread, 0) for thread, count in after.items())


def measure_sync(section: Section, effort: Effort, folder: Path) -> None:
    """Events per second from the outbox into a km-server on this machine."""
    home, database = folder / "sync", folder / "server.db"
    records = records_of(effort.events // SESSIONS // 4)
    with running_kmd(home), running_server(database) as server:
        play(home, 1, records)
        events = read_status(home)["outbox"]["events"]
        write_config(home, ("team", server.url, create_key(database)))
        began = time.perf_counter()
        assert ask(home, {"op": "reload"}) == [{"done": True}]
        assert flush(home, 300)["done"]
        rate = events / (time.perf_counter() - began)
    section.sheets.append(Sheet("sync to a local km-server, events per second", ("", "rate"), [("kmd", rate)]))

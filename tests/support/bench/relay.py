"""
The relay's section: what standing between client and server costs, next to the least that it can cost.

The server echoes. Every contender runs at the same time and they take turns in short blocks, so that whatever
else the machine does hits all alike. kmd runs and takes in what crosses km. A turn begins when it has done so: else the
C relay, whose turn is next, would be measured beside work that km has caused. (It gains by that, since programs that
talk wake each other sooner while the other processor is busy.)
"""

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.bench.contenders import (
    BARE,
    C_RELAY,
    KM,
    KM_SCRIPT,
    STALL_S,
    Contender,
    Peer,
    compile_c_relay,
    cpu_s,
    echo_words,
    km_script,
    list_contenders,
    peak_rss_mib,
    relay_pid,
    run_s,
    started,
)
from tests.support.bench.report import Budget, Options, Section, Sheet
from tests.support.processes import running_kmd

SMALL_BYTES = (300, 4 << 10, 40 << 10)
LARGE_BYTES = (1 << 20, 16 << 20)
ROUND_TRIP_LIMIT, LARGE_LIMIT, P99_LIMIT, START_LIMIT_UNITS = 1.25, 1.5, 2.0, 2.0
INTERPRETER = "bare interpreter"
REST_S, REST_SHARE = 0.05, 0.02
"""kmd rests when it runs for less than that share of that time."""
ROUND_TRIP_COLUMNS = ("message", "p50 µs", "p99 µs", "p50 / C relay", "p99 / C relay")


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    starts_anew: int = 10
    blocks: int = 6
    trips: int = 100
    large_rounds: int = 15
    pipelined: int = 20_000
    pipelined_rounds: int = 7
    starts: int = 40


QUICK = Effort(starts_anew=4, blocks=3, trips=60, large_rounds=4, pipelined=5_000, pipelined_rounds=3, starts=12)
Samples = dict[str, list[float]]


@dataclass(slots=True)
class Usage:
    """A relay's processor time over a stretch of work, and its peak memory."""

    cpu_s: dict[str, float] = field(default_factory=dict)
    rss_mib: dict[str, float] = field(default_factory=dict)


def measure_relay(options: Options) -> Section:
    section, effort = Section("relay"), QUICK if options.quick else Effort()
    with tempfile.TemporaryDirectory(prefix="km-bench-") as folder:
        home = Path(folder, "home")
        c_relay = compile_c_relay(Path(folder))
        if c_relay is None:
            section.remarks.append("SKIPPED: no C compiler (cc, gcc, clang), so no C relay and no ratios against it")
        contenders, server = list_contenders(home, c_relay, options.against), echo_words(c_relay)
        with running_kmd(home) as kmd:
            measure_small(section, effort, contenders, server, kmd.process.pid)
            measure_large(section, effort, contenders, server, kmd.process.pid)
            measure_load(section, effort, contenders, server)
            measure_start(section, effort, [*contenders, km_script(home)], server, kmd.process.pid)
            measure_in_a_row(section, effort, contenders, server)
    return section


def message_of(size_bytes: int) -> bytes:
    """A JSON-RPC line of exactly so many bytes."""
    head, tail = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","arguments":{"a":"', b'"}}}\n'
    return head + b"x" * (size_bytes - len(head) - len(tail)) + tail


def measure_small(
    section: Section, effort: Effort, contenders: list[Contender], server: list[str], kmd_pid: int
) -> None:
    """One message at a time, with budgets."""
    rows: list[tuple[str | float, ...]] = []
    for size in SMALL_BYTES:
        samples = round_trips(effort, effort.starts_anew, contenders, server, size, kmd_pid)
        p50, p99 = summarize(samples)
        rows += round_trip_rows(size, p50, p99)
        if C_RELAY in p50:
            section.budgets += [
                Budget(f"round trip p50, {size} B, against the C relay", p50[KM] / p50[C_RELAY], ROUND_TRIP_LIMIT),
                Budget(f"round trip p99, {size} B, against the C relay", p99[KM] / p99[C_RELAY], P99_LIMIT),
            ]
    section.sheets.append(Sheet("lock-step round trips", ROUND_TRIP_COLUMNS, rows))


def measure_in_a_row(section: Section, effort: Effort, contenders: list[Contender], server: list[str]) -> None:
    """The same without a rest, for comparison: kmd takes in what km has shown it while the next one has its turn."""
    rows: list[tuple[str | float, ...]] = []
    for size in SMALL_BYTES:
        p50, p99 = summarize(round_trips(effort, effort.starts_anew // 2, contenders, server, size, None))
        rows += round_trip_rows(size, p50, p99)
    section.sheets.append(Sheet("round trips, one turn after the other", ROUND_TRIP_COLUMNS, rows))


def round_trips(
    effort: Effort, starts: int, contenders: list[Contender], server: list[str], size: int, kmd_pid: int | None
) -> Samples:
    """Seconds by contender. All start anew again and again: where the scheduler puts them differs each time."""
    samples: Samples = {contender.name: [] for contender in contenders}
    message = message_of(size)
    for _ in range(starts):
        with started(contenders, server) as peers:
            for _ in range(effort.blocks):
                for peer in peers:
                    if kmd_pid is not None:
                        wait_for_rest(kmd_pid)
                    samples[peer.name] += [peer.round_trip(message) for _ in range(effort.trips)]
    return samples


def wait_for_rest(pid: int) -> None:
    """Until the process has hardly run for a moment."""
    deadline_s = time.monotonic() + STALL_S
    while time.monotonic() < deadline_s:
        before_s = run_s(pid)
        time.sleep(REST_S)
        if run_s(pid) - before_s < REST_S * REST_SHARE:
            return
    raise TimeoutError("kmd does not come to rest")


def summarize(samples: Samples) -> tuple[dict[str, float], dict[str, float]]:
    """p50 and p99 by contender, in µs."""
    p50 = {name: statistics.median(values) * 1e6 for name, values in samples.items()}
    p99 = {name: statistics.quantiles(values, n=100)[98] * 1e6 for name, values in samples.items()}
    return p50, p99


def round_trip_rows(size: int, p50: dict[str, float], p99: dict[str, float]) -> list[tuple[str | float, ...]]:
    return [(f"{size} B  {name}", p50[name], p99[name], ratio_text(p50, name), ratio_text(p99, name)) for name in p50]


def measure_large(
    section: Section, effort: Effort, contenders: list[Contender], server: list[str], kmd_pid: int
) -> None:
    rows: list[tuple[str | float, ...]] = []
    for size in LARGE_BYTES:
        samples: Samples = {contender.name: [] for contender in contenders}
        message = message_of(size)
        with started(contenders, server) as peers:
            for _ in range(effort.large_rounds):
                for peer in peers:
                    wait_for_rest(kmd_pid)
                    samples[peer.name].append(peer.stream(message))
        p50 = {name: statistics.median(values) * 1e3 for name, values in samples.items()}
        rate = {name: size / (1 << 20) / (value / 1e3) for name, value in p50.items()}
        rows += [(f"{size >> 20} MiB  {name}", p50[name], rate[name], ratio_text(p50, name)) for name in samples]
        if C_RELAY in p50:
            name = f"{size >> 20} MiB message, against the C relay"
            section.budgets.append(Budget(name, p50[KM] / p50[C_RELAY], LARGE_LIMIT))
    section.sheets.append(Sheet("large messages there and back", ("message", "p50 ms", "MiB/s", "/ C relay"), rows))


def measure_load(section: Section, effort: Effort, contenders: list[Contender], server: list[str]) -> None:
    """Messages of 300 B written without waiting for answers; processor time and memory of the relay alone."""
    rows: list[tuple[str | float, ...]] = []
    samples: Samples = {contender.name: [] for contender in contenders}
    message = message_of(SMALL_BYTES[0])
    usage = Usage()
    with started(contenders, server) as peers:
        relays = {peer.name: relay_pid(peer) for peer in peers}
        for _ in range(effort.pipelined_rounds):
            for peer in peers:
                load_once(peer, relays[peer.name], message, effort.pipelined, samples, usage)
    for name, values in samples.items():
        rate = effort.pipelined / statistics.median(values)
        sent = effort.pipelined * effort.pipelined_rounds
        cpu = f"{usage.cpu_s[name] / sent * 1e6:.2f}" if name in usage.cpu_s else "-"
        rss = f"{usage.rss_mib[name]:.1f}" if name in usage.rss_mib else "-"
        rows.append((name, rate, cpu, rss))
    columns = ("300 B, pipelined", "messages/s", "relay CPU µs/message", "relay peak MiB")
    section.sheets.append(Sheet("load", columns, rows))


def load_once(peer: Peer, relay: int | None, message: bytes, count: int, samples: Samples, usage: Usage) -> None:
    before = cpu_s(relay) if relay else 0.0
    samples[peer.name].append(peer.stream(message, count))
    if relay:
        usage.cpu_s[peer.name] = usage.cpu_s.get(peer.name, 0.0) + cpu_s(relay) - before
        usage.rss_mib[peer.name] = peak_rss_mib(relay)


def measure_start(
    section: Section, effort: Effort, contenders: list[Contender], server: list[str], kmd_pid: int
) -> None:
    """From the spawn to the first reply; the unit is what a bare interpreter needs to start and end."""
    samples: Samples = {name: [] for name in [*(contender.name for contender in contenders), INTERPRETER]}
    wait_for_rest(kmd_pid)
    for _ in range(effort.starts):
        for contender in contenders:
            start = time.perf_counter()
            peer = Peer(contender, server)
            peer.round_trip(b"first\n")
            samples[contender.name].append(time.perf_counter() - start)
            peer.close()
        start = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True, timeout=10)
        samples[INTERPRETER].append(time.perf_counter() - start)
    p50 = {name: statistics.median(values) * 1e3 for name, values in samples.items()}
    unit = p50[INTERPRETER]
    rows: list[tuple[str | float, ...]] = [
        (name, value, f"{(value - p50[BARE]) / unit:.2f}" if name != INTERPRETER else "1 unit")
        for name, value in p50.items()
    ]
    section.sheets.append(Sheet("start-up", ("first reply", "p50 ms", "over bare, in interpreter starts"), rows))
    for name in (KM, KM_SCRIPT):
        added = (p50[name] - p50[BARE]) / unit
        budget = Budget(f"first reply through {name}, over bare", added, START_LIMIT_UNITS, "interpreter starts")
        section.budgets.append(budget)


def ratio_text(p50: dict[str, float], name: str) -> str:
    return f"{p50[name] / p50[C_RELAY]:.2f}" if C_RELAY in p50 else "-"

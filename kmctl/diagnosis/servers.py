"""Are the clients' servers wrapped, and do they work? Each wrapped server is started once, as its client would."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kmctl.clients.entries import ENV_KEYS, Entry
from kmctl.clients.sources import Machine, find_sources
from kmctl.clients.survey import Found, survey
from kmctl.clients.tree import Node, to_value
from kmctl.clients.undo import Undo
from kmctl.clients.undo_store import load_undos
from kmctl.diagnosis.finding import Check, Finding, bad, note, ok
from kmctl.diagnosis.handshake import Outcome, render_status, try_server
from kmctl.text import format_count
from kmd.paths import Places

AT_ONCE = 4
"""Servers started at the same time: npx and uvx each keep a core busy."""
FILLED_IN_BY_CLIENT = "${"
SAID = "what goes to stdout must be messages only: have the server log to stderr"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that km stands in front of. words: its own, without km's. environ: what its client would add."""

    client: str
    file: Path
    name: str
    km: tuple[str, ...]
    words: tuple[str, ...]
    environ: Mapping[str, str]
    cwd: str | None

    @property
    def label(self) -> str:
        return f"{self.client}: {self.name}"


def check_clients(machine: Machine, places: Places) -> tuple[list[Server], list[Finding]]:
    """The wrapped servers in the clients' files, and what is wrong with the files and the wrapping."""
    found, problems = survey(find_sources(machine))
    findings = [bad(Check.CLIENT, problem.reason, problem.hint) for problem in problems]
    records = load_undos([places.state_dir])
    servers: list[Server] = []
    for one in found:
        for entry in one.entries:
            if entry.slot is None or entry.problem:
                continue
            if entry.wrapped is None:
                findings.append(judge_bare(one, entry, records))
            else:
                servers.append(read_server(one, entry))
    findings += [finding for server in servers if (finding := judge_km(server))]
    if servers and len(servers) > sum(one.check is Check.WRAP for one in findings):
        findings.append(ok(Check.WRAP, summarize(servers)))
    return servers, findings


def summarize(servers: Sequence[Server]) -> str:
    """For the one line of a healthy set-up."""
    clients = len({server.client for server in servers})
    return f"km is in front of {format_count(len(servers), 'server')} in {format_count(clients, 'client')}"


def judge_bare(one: Found, entry: Entry, records: Sequence[Undo]) -> Finding:
    """A server without km: it may be meant so, or its client has written the file anew. Pure."""
    label = f"{one.source.client}: {entry.name}"
    lost = any(undo.client == one.source.client and undo.name == entry.name for undo in records)
    fix = f"kmctl install --client {one.source.client} --server '{entry.name}'"
    if lost:
        return bad(Check.WRAP, f"{label} is no longer behind km: its client has rewritten {one.source.file}", fix)
    return note(Check.WRAP, f"{label} is not behind km", fix)


def read_server(one: Found, entry: Entry) -> Server:
    """A wrapped entry as it is started."""
    assert entry.wrapped is not None  # noqa: S101 - the caller has looked
    return Server(
        client=one.source.client,
        file=one.source.file,
        name=entry.name,
        km=entry.wrapped.start,
        words=entry.words[entry.wrapped.own :],
        environ=read_environ(entry.node),
        cwd=read_text(entry.node, "cwd"),
    )


def read_environ(node: Node) -> dict[str, str]:
    """The variables that an entry sets. They may be secrets, and are shown nowhere."""
    for key in ENV_KEYS:
        member = node.find(key)
        table = to_value(member.value) if member else None
        if isinstance(table, dict):
            return {str(name): value for name, value in table.items() if isinstance(value, str)}
    return {}


def read_text(node: Node, key: str) -> str | None:
    """A member's text, None when there is none."""
    member = node.find(key)
    value = to_value(member.value) if member else None
    return value if isinstance(value, str) else None


def judge_km(server: Server) -> Finding | None:
    """Whether the words that start km still lead to it."""
    for word in (server.km[0], server.km[-1]):
        if shutil.which(word) is None and not os.path.exists(word):  # noqa: PTH110 - False, not an error
            what = f"{server.label} cannot start: km is not at {word} any more"
            return bad(Check.WRAP, what, f"kmctl install --client {server.client}")
    return None


def check_servers(servers: Sequence[Server], environ: Mapping[str, str], tell: Callable[[str], None]) -> list[Finding]:
    """Start each server once and see whether it answers. tell: gets each server's label when it is done."""

    def check(server: Server) -> list[Finding]:
        findings = list(check_server(server, environ))
        tell(server.label)
        return findings

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [finding for findings in pool.map(check, servers) for finding in findings]


def check_server(server: Server, environ: Mapping[str, str]) -> Iterator[Finding]:
    """One server."""
    if any(FILLED_IN_BY_CLIENT in text for text in (*server.words, *server.environ.values(), server.cwd or "")):
        yield note(Check.HANDSHAKE, f"{server.label}: only its client can start it (it fills in variables)")
        return
    yield from judge_outcome(server, try_server(server.words, {**environ, **server.environ}, server.cwd))


def judge_outcome(server: Server, outcome: Outcome) -> Iterator[Finding]:
    """What became of a server that was started. Pure."""
    if outcome.missing:
        what = f"{server.label}: {server.words[0]} cannot be started ({outcome.missing})"
        yield bad(Check.COMMAND, what, f"install it, or correct the command in {server.file}")
        return
    yield ok(Check.COMMAND, f"{server.label}: its command is there")
    if outcome.strange:
        count = format_count(len(outcome.strange), "line")
        yield bad(Check.STDOUT, f"{server.label}: {count} on stdout that are no message", SAID, outcome.strange[:3])
    if outcome.answered:
        yield ok(Check.HANDSHAKE, f"{server.label}: answers")
    elif outcome.refusal:
        what = f"{server.label}: refuses to start a session ({outcome.refusal})"
        yield bad(Check.HANDSHAKE, what, "update the server", outcome.stderr)
    elif outcome.status is not None:
        what = f"{server.label}: ended before it answered, {render_status(outcome.status)}"
        fix = f"its last lines on stderr say why; run it by hand: {server.words[0]}"
        yield bad(Check.HANDSHAKE, what, fix, outcome.stderr)
    else:
        what = f"{server.label}: does not answer"
        yield bad(Check.HANDSHAKE, what, f"run it by hand to see what it waits for: {server.words[0]}", outcome.stderr)

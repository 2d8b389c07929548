"""Are the clients' servers wrapped, and do they work? Each wrapped server is started once, as its client would."""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kmctl.clients.entries import ENV_KEYS, Entry
from kmctl.clients.mask import find_secrets, hide_secrets
from kmctl.clients.sources import Machine, find_sources
from kmctl.clients.survey import Found, survey
from kmctl.clients.tree import Node, to_value
from kmctl.clients.undo import Undo
from kmctl.clients.undo_store import load_undos
from kmctl.diagnosis.finding import Check, Finding, bad, note, ok
from kmctl.diagnosis.handshake import Outcome, Running, render_status, try_server
from kmctl.options import quote
from kmctl.text import format_count
from kmd.paths import Places

AT_ONCE = 4
"""Servers started at the same time: npx and uvx each keep a core busy."""
FILLED_IN = re.compile(r"\$\{|\{(?:env|file):|^\$\w+$")
"""`${…}` nearly everywhere, `{env:…}` and `{file:…}` in opencode, `$NAME` in Gemini CLI and Crush."""
MORE_ENV_KEYS = ("envFile", "env_file", "env_keys", "env_vars")
"""More variables than stand in the entry: VS Code's and Cursor's file, Goose's keyring, Codex's own environment."""
TAKEN_OUT = "if you took km out yourself, say so: uninstall with the same options"
OFF = {"disabled": "true", "enabled": "false"}
"""Keys with which clients keep a server and do not start it."""
SAID = "what goes to stdout must be messages only: have the server log to stderr"


@dataclass(frozen=True, slots=True)
class Server:
    """
    A server that km stands in front of. km: the words that start it; quick: whether `kmctl install` writes them so.
    words: its own. environ: what its client would add. asleep: why only its client can start it, empty when we can.
    """

    client: str
    file: Path
    name: str
    km: tuple[str, ...]
    quick: bool
    words: tuple[str, ...]
    environ: Mapping[str, str]
    cwd: str | None
    asleep: str

    @property
    def label(self) -> str:
        return f"{self.client}: {self.name}"


def check_clients(machine: Machine, places: Places) -> tuple[list[Server], list[Finding]]:
    """The wrapped servers in the clients' files, and what is wrong with the files and the wrapping."""
    found, problems = survey(find_sources(machine))
    findings = [bad(Check.CLIENT, problem.reason, problem.hint) for problem in problems]
    records = load_undos([places.state_dir], retired=False)
    servers: list[Server] = []
    for one in found:
        for entry in one.entries:
            if entry.slot is None or entry.reason:
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
    chosen = choose(one.source.client, entry.name)
    fix = f"kmctl install {chosen}"
    if lost:
        what = f"{label} is no longer behind km: its client has rewritten {one.source.file}"
        return bad(Check.WRAP, what, fix, [TAKEN_OUT])
    return note(Check.WRAP, f"{label} is not behind km", fix)


def choose(client: str, server: str) -> str:
    """The options that name one server to `kmctl install` and `kmctl uninstall`."""
    return f"--client {client} --server {quote(server)}"


def read_server(one: Found, entry: Entry) -> Server:
    """A wrapped entry as it is started."""
    assert entry.wrapped is not None  # noqa: S101 - the caller has looked
    words, environ = entry.words[entry.wrapped.own :], read_environ(entry.node)
    cwd = read_text(entry.node, "cwd") or None
    return Server(
        client=one.source.client,
        file=one.source.file,
        name=entry.name,
        km=entry.wrapped.start,
        quick=entry.wrapped.quick,
        words=words,
        environ=environ,
        cwd=cwd,
        asleep=find_reason(entry.node, [*words, *environ.values(), cwd or ""]),
    )


def find_reason(node: Node, texts: Sequence[str]) -> str:
    """Why only its client can start a server, empty when we can. texts: what it is started with."""
    if any(str(value_of(node, key)).lower() == value for key, value in OFF.items()):
        return "is switched off in its client"
    if any(FILLED_IN.search(text) for text in texts) or any(value_of(node, key) for key in MORE_ENV_KEYS):
        return "only its client can start it (it fills in variables)"
    return ""


def value_of(node: Node, key: str) -> object:
    """What a member means; None when there is none."""
    member = node.find(key)
    return to_value(member.value) if member else None


def read_environ(node: Node) -> dict[str, str]:
    """The variables that an entry sets. They may be secrets, and are shown nowhere."""
    for key in ENV_KEYS:
        member = node.find(key)
        table = to_value(member.value) if member else None
        if isinstance(table, dict):
            return {str(name): str(value) for name, value in table.items() if isinstance(value, str)}
    return {}


def read_text(node: Node, key: str) -> str | None:
    """A member's text, None when there is none."""
    value = value_of(node, key)
    return value if isinstance(value, str) else None


def judge_km(server: Server) -> Finding | None:
    """Whether the words that start km still lead to it."""
    for word in (server.km[0], server.km[-1]):
        if shutil.which(word) is None and not os.path.exists(word):  # noqa: PTH110 - False, not an error
            what = f"{server.label} cannot start: km is not at {word} any more"
            chosen = choose(server.client, server.name)  # install leaves the words alone that a person has written
            return bad(Check.WRAP, what, f"kmctl install {chosen}" if server.quick else wrap_anew(server))
    return None


def wrap_anew(server: Server) -> str:
    """What takes km out of a server and puts it in again, with commands looked up afresh."""
    chosen = choose(server.client, server.name)
    return f"kmctl uninstall {chosen} && kmctl install {chosen}"


def fix_missing(server: Server, environ: Mapping[str, str]) -> str:
    """What to do about a command that cannot be started. A version manager moves programs: npx may be elsewhere now."""
    command = Path(server.words[0])
    moved = command.is_absolute() and not command.exists() and shutil.which(command.name, path=environ.get("PATH"))
    return wrap_anew(server) if moved else f"install it, or correct the command in {server.file}"


def check_servers(servers: Sequence[Server], environ: Mapping[str, str], tell: Callable[[str], None]) -> list[Finding]:
    """Start each server once and see whether it answers. tell: gets each server's label when it is done."""

    running = Running()

    def check(server: Server) -> list[Finding]:
        findings = list(check_server(server, environ, running))
        tell(server.label)
        return findings

    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        return [finding for findings in pool.map(check, servers) for finding in findings]
    except KeyboardInterrupt:
        running.end_all()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def check_server(server: Server, environ: Mapping[str, str], running: Running) -> Iterator[Finding]:
    """One server."""
    if server.asleep:
        yield note(Check.HANDSHAKE, f"{server.label}: {server.asleep}")
        return
    outcome = try_server(server.words, {**environ, **server.environ}, server.cwd, running)
    hide(outcome, find_secrets(server.words, server.environ))
    if outcome.missing:
        what = f"{server.label}: {server.words[0]} cannot be started ({outcome.missing})"
        yield bad(Check.COMMAND, what, fix_missing(server, environ))
    else:
        yield from judge_outcome(server, outcome)


def hide(outcome: Outcome, secrets: frozenset[str]) -> None:
    """Mask what a server was given in all that it has said: many repeat their key when it is refused."""
    outcome.refusal = hide_secrets(outcome.refusal, secrets)
    outcome.strange = [hide_secrets(line, secrets) for line in outcome.strange]
    outcome.stderr = [hide_secrets(line, secrets) for line in outcome.stderr]


def judge_outcome(server: Server, outcome: Outcome) -> Iterator[Finding]:
    """What became of a server that was started. Pure."""
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

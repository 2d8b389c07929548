"""
`make demo`: the whole product once, on real traffic, in a temporary home.

km-server and kmd are started, two third-party MCP servers are driven through km by the official client,
km-server is stopped in the middle and started again, and at the end three independent counts must agree:
messages that the client saw, events that kmd committed, events that km-server stored. Exits 1 if they do not.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from tests.support.processes import (
    command,
    create_key,
    read_status,
    running_kmd,
    start_server,
    wait_for,
    write_config,
)
from tests.support.sessions import Seen, drive_both

console = Console(highlight=False, width=max(130, Console().width))


def main() -> int:
    """Run the demonstration; returns the exit status."""
    os.environ["PYTHONWARNINGS"] = "ignore"
    with tempfile.TemporaryDirectory(prefix="km-demo-") as folder:
        return run_demo(Path(folder))


def run_demo(root: Path) -> int:
    home, database, repository, seen = root / "home", root / "server.db", root / "repository", Seen()
    make_repository(repository)
    say("1", "start km-server, make a key, start kmd")
    server = start_server(database)
    port = int(server.url.rpartition(":")[2])
    key = create_key(database)
    write_config(home, ("team", server.url, key))
    try:
        with running_kmd(home), feed(home):
            say("2", "two real MCP servers through km, driven by the official client")
            drive(home, repository, seen)
            say("3", "stop km-server; the same again: nothing is lost offline")
            server.stop()
            drive(home, repository, seen)
            wait_for(lambda: read_status(home)["outbox"]["events"] >= seen.total, "the outbox to have it all")
            show_status(home)
            say("4", "start km-server again and flush")
            server = start_server(database, port)
            kmctl(home, "flush", "--timeout", "30")
            committed = int(read_status(home)["outbox"]["events"])
        stats = read_stats(server.url, key)
    finally:
        server.stop()
    say("5", "what the server says")
    show_stats(stats)
    return compare(seen.total, committed, int(stats["totals"]["events"]))


def say(step: str, text: str) -> None:
    console.print(f"\n[bold cyan]{step}[/] [bold]{text}[/]")


def make_repository(folder: Path) -> None:
    """A Git repository with one commit and one change that is not staged."""
    folder.mkdir()
    note = folder / "note.txt"
    note.write_text("first line\n")
    identity = ["-c", "user.name=Demo", "-c", "user.email=demo@example.com"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "A first note"]):
        subprocess.run(["git", *words], cwd=folder, check=True, timeout=30)
    note.write_text("first line\nsecond line\n")


def drive(home: Path, repository: Path, seen: Seen) -> None:
    """One session with each server."""
    asyncio.run(drive_both(home, repository, seen))
    console.print(f"[dim]the client has now seen {seen.total} messages[/]")


@contextmanager
def feed(home: Path) -> Iterator[None]:
    """Print `kmctl tail -f` as it comes."""
    words = [command("kmctl"), "--home", str(home), "tail", "-f", "-n", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = process.stdout

    def show() -> None:
        for line in lines:
            console.print("  " + line.rstrip(), markup=False, style="dim", soft_wrap=True)

    reader = threading.Thread(target=show, daemon=True)
    reader.start()
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)
        reader.join(10)
        lines.close()


def kmctl(home: Path, *words: str) -> None:
    """Run kmctl as a user would, its output on ours."""
    done = subprocess.run([command("kmctl"), "--home", str(home), *words], check=False, timeout=60)
    if done.returncode not in (0, 4):
        raise SystemExit(f"kmctl {words[0]} ended with {done.returncode}")


def show_status(home: Path) -> None:
    status = read_status(home)
    (team,) = status["destinations"]
    console.print(f"[dim]outbox: {status['outbox']['events']} events · {team['pending']} pending · {team['state']}[/]")


def read_stats(url: str, key: str) -> dict[str, Any]:
    answer = httpx.get(f"{url}/api/v1/stats", headers={"Authorization": f"Bearer {key}"}, timeout=10)
    answer.raise_for_status()
    stats: dict[str, Any] = answer.json()
    return stats


def show_stats(stats: dict[str, Any]) -> None:
    """Per server and tool: calls, errors, latency, bytes, cost."""
    table = Table(box=None, pad_edge=False)
    for title in ("server", "method", "target"):
        table.add_column(title, no_wrap=True)
    for title in ("calls", "errors", "tool errors", "p50 ms", "p95 ms", "bytes in", "bytes out", "cost $"):
        table.add_column(title, justify="right", no_wrap=True)
    for group in [*stats["groups"], {"server": "all", "method": "", "target": "", **stats["totals"]}]:
        p50, p95 = (f"{group[p]:.1f}" if group[p] is not None else "" for p in ("p50_ms", "p95_ms"))
        numbers = [group["calls"], group["errors"], group["tool_errors"], p50, p95]
        numbers += [group["bytes_to_server"], group["bytes_to_client"], f"{group['cost_usd']:.6f}"]
        table.add_row(group["server"], group["method"] or "", group["target"] or "", *map(str, numbers))
    console.print(table)


def compare(seen: int, committed: int, stored: int) -> int:
    """The three counts, and 0 only when they are the same and not nothing."""
    agree = seen == committed == stored and seen > 0
    say("6", "the counts")
    console.print(f"  messages seen by the client  {seen}\n  events committed by kmd      {committed}")
    console.print(f"  events stored by km-server   {stored}")
    console.print("  [bold green]they agree[/]" if agree else "  [bold red]they do not agree[/]")
    if not agree:
        console.print(json.dumps({"seen": seen, "committed": committed, "stored": stored}))
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())

"""The main job on real processes: km in front of a server, kmd, km-server, and what the server then says."""

import asyncio
import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.demo import make_repository
from tests.support.processes import (
    ask,
    create_key,
    flush,
    quick_km,
    read_status,
    running_kmd,
    running_server,
    start_kmd,
    start_server,
    wait_for,
    write_config,
)
from tests.support.sessions import Seen, drive_both


def read_all(url: str, key: str, **parameters: str) -> list[dict[str, Any]]:
    """Every item of the activity feed, oldest first, page by page."""
    items: list[dict[str, Any]] = []
    cursor = ""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=20) as client:
        while True:
            query = {"limit": "1000", **parameters, **({"cursor": cursor} if cursor else {})}
            answer = client.get("/api/v1/activity", params=query)
            answer.raise_for_status()
            page = answer.json()
            items += page["items"]
            cursor = page["next_cursor"]
            if not cursor:
                return items[::-1]


def read_stats(url: str, key: str) -> dict[str, Any]:
    answer = httpx.get(f"{url}/api/v1/stats", headers={"Authorization": f"Bearer {key}"}, timeout=20)
    answer.raise_for_status()
    stats: dict[str, Any] = answer.json()
    return stats


def payload(item: dict[str, Any]) -> bytes:
    if item["payload"] is not None:
        return str(item["payload"]).encode()
    return base64.b64decode(item["payload_base64"])


def odd_lines(count: int) -> list[bytes]:
    """Lines of many kinds and sizes, each different, a few of them no JSON and a few no UTF-8."""
    lines = []
    for number in range(count):
        match number % 10:
            case 7:
                lines.append(b"\xff\xfe not utf-8 %d" % number)
            case 8:
                lines.append(b'{"jsonrpc" : "2.0" , "method":"n\xc3\xa4","params":[%d]}\r' % number)
            case 9:
                lines.append(b"plain %d " % number + b"x" * (number % 3000))
            case _:
                request = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {"name": f"t{number % 3}"}}
                lines.append(json.dumps(request).encode())
    return lines


def echo(home: Path, name: str, lines: list[bytes]) -> None:
    """Send *lines* through km to `cat` and check that they come back as they went."""
    sent = b"".join(line + b"\n" for line in lines)
    done = subprocess.run(quick_km(home, name, "cat"), input=sent, stdout=subprocess.PIPE, timeout=60, check=True)
    assert done.stdout == sent


def test_ten_thousand_messages_while_the_server_is_away_are_stored_once_and_byte_equal(tmp_path: Path) -> None:
    home, database, lines = tmp_path / "home", tmp_path / "server.db", odd_lines(5000)
    server = start_server(database)
    key, port = create_key(database), int(server.url.rpartition(":")[2])
    write_config(home, ("team", server.url, key))
    server.stop()
    with running_kmd(home):
        echo(home, "echo", lines)
        wait_for(lambda: read_status(home)["outbox"]["events"] == 10_000, "10,000 commits")
        assert flush(home, 1)["done"] is False
        assert read_status(home)["destinations"][0]["pending"] == 10_000
        with running_server(database, port) as server:
            assert flush(home, 30) == {"done": True}
            items = read_all(server.url, key, include="payload")
            stats = read_stats(server.url, key)
    for stream in ("to_server", "to_client"):
        assert [payload(item) for item in items if item["stream"] == stream] == lines
    assert len({(i["session"], i["stream"], i["offset"], i["index"]) for i in items}) == len(items) == 10_000
    assert stats["totals"]["events"] == 10_000
    assert stats["totals"]["bytes_to_server"] == sum(map(len, lines))


def test_real_servers_and_the_official_client_count_the_same_as_the_server(tmp_path: Path) -> None:
    home, database, seen = tmp_path / "home", tmp_path / "server.db", Seen()
    make_repository(tmp_path / "repository")
    with running_server(database) as server:
        key = create_key(database)
        write_config(home, ("team", server.url, key))
        with running_kmd(home):
            asyncio.run(drive_both(home, tmp_path / "repository", seen))
            wait_for(lambda: read_status(home)["outbox"]["events"] >= seen.total, "the commits")
            assert flush(home) == {"done": True}
        stats, items = read_stats(server.url, key), read_all(server.url, key)
    assert stats["totals"]["events"] == len(items) == seen.total > 20
    for name in ("time", "git"):
        sent = [item for item in items if item["server"] == name and item["stream"] == "to_server"]
        received = [item for item in items if item["server"] == name and item["stream"] == "to_client"]
        assert (len(sent), len(received)) == (seen.sent[name], seen.received[name])
    groups = {(group["server"], group["method"], group["target"]): group for group in stats["groups"]}
    assert groups["time", "tools/call", "get_current_time"]["calls"] == 2
    assert groups["time", "tools/call", "get_current_time"]["tool_errors"] == 1
    assert groups["git", "tools/call", "git_log"]["p50_ms"] > 0
    answers = [item for item in items if item["kind"] in ("response", "error")]
    assert all(item["duration_ms"] is not None and item["outcome"] for item in answers)


def test_without_kmd_the_traffic_runs_and_the_next_kmd_takes_it_in(tmp_path: Path) -> None:
    home, lines = tmp_path / "home", odd_lines(2000)
    echo(home, "echo", lines)
    wait_for(lambda: list(home.glob("spool/*")), "the spool")
    (spool,) = home.glob("spool/*")
    assert spool.stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    with running_kmd(home):
        wait_for(lambda: read_status(home)["outbox"]["events"] == 4000, "the adoption")
        wait_for(lambda: not list(home.glob("spool/*")), "the spool to go")
        assert read_status(home)["outbox"]["gap_bytes"] == 0


@pytest.mark.timeout(180)
def test_kmd_killed_again_and_again_loses_and_doubles_nothing(tmp_path: Path) -> None:
    home, lines = tmp_path / "home", odd_lines(60_000)
    kmd = start_kmd(home)
    process = subprocess.Popen(quick_km(home, "echo", "cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    step = len(lines) // 6
    for part in range(6):
        sent = b"".join(line + b"\n" for line in lines[part * step : (part + 1) * step])
        for start in range(0, len(sent), 32768):
            piece = sent[start : start + 32768]
            process.stdin.write(piece)
            process.stdin.flush()
            got = b""
            while len(got) < len(piece):
                got += process.stdout.read(len(piece) - len(got))
            assert got == piece
        kmd.stop(9)
        kmd = start_kmd(home)
    process.stdin.close()
    assert process.wait(20) == 0
    process.stdout.close()

    def all_there() -> bool:
        ask(home, {"op": "flush", "timeout_s": 0})  # has spools adopted, should there be any
        return bool(read_status(home)["outbox"]["events"] >= 2 * len(lines))

    wait_for(all_there, "every message", 60)
    status = read_status(home)
    assert (status["outbox"]["events"], status["outbox"]["gap_bytes"]) == (2 * len(lines), 0)
    kmd.stop()


def test_two_destinations_have_cursors_of_their_own(tmp_path: Path) -> None:
    home, lines = tmp_path / "home", odd_lines(300)
    first, second = tmp_path / "first.db", tmp_path / "second.db"
    with running_server(first) as near:
        far = start_server(second)
        far_url, far_key = far.url, create_key(second)
        far.stop()
        write_config(home, ("near", near.url, create_key(first)), ("far", far_url, far_key))
        with running_kmd(home):
            echo(home, "echo", lines)
            wait_for(lambda: read_status(home)["destinations"][0]["settled"] == 600, "the near one")
            states = {row["name"]: row for row in read_status(home)["destinations"]}
            assert states["near"]["pending"] == 0
            assert states["far"]["pending"] == 600
            wait_for(lambda: read_status(home)["destinations"][1]["last_error"], "the far one's error")


def test_the_awkward_reaches_the_server_too(tmp_path: Path) -> None:
    home, database = tmp_path / "home", tmp_path / "server.db"
    lines = [
        b'{"jsonrpc":"2.0","id":"\\u0000","method":"a\\u0000b","params":{"name":"\\ud800"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"nul\\u0000"}}',
        b"\x00\x01 not json \xff",
        b"",
        b"\r",
        b'[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","method":"n"}]',
        b'{"jsonrpc":"2.0","id":' + b"9" * 400 + b',"method":"m"}',
        b'{"jsonrpc":"2.0","id":3,"method":"big","params":["' + b'\\"' * 6_000_000 + b'"]}',
        b'{"jsonrpc":"2.0","id":4,"method":"' + b"m" * 70_000 + b'"}',
        b"\x01" * 15_000_000,
        b'{"jsonrpc":"2.0","id":5,"result":{"content":"' + b"y" * 18_000_000 + b'"}}',
    ]
    with running_server(database) as server:
        key = create_key(database)
        write_config(home, ("team", server.url, key))
        with running_kmd(home):
            echo(home, "/", lines)
            wait_for(lambda: read_status(home)["outbox"]["events"] == 2 * (len(lines) + 2), "the commits")
            assert flush(home, 60) == {"done": True}
            assert read_status(home)["destinations"][0]["quarantined"] == 0
        items = read_all(server.url, key, include="payload")
    stored = [item for item in items if item["stream"] == "to_server" and item["index"] == 0]
    assert [item["size_bytes"] for item in stored] == [len(line) for line in lines]
    assert [payload(item) for item in stored[:-1]] == lines[:-1]
    assert payload(stored[-1]) == lines[-1][: 16 << 20]
    assert stored[-1]["truncated"]
    assert (stored[-1]["kind"], stored[-1]["rpc_id"]) == ("response", "5")

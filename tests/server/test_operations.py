"""What an operator does with a store: migrate, rotate keys, set retention, rebuild, copy it and bring it back."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import threading
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from km_server.store.opening import open_store
from km_server.store.sqlite.backup import back_up
from km_server.store.values import StatsQuery

from tests.server.clients import (
    WAIT_S,
    Api,
    arrive,
    database_url,
    make_answer,
    make_batch,
    make_event,
    new_key,
    open_file,
    open_tenant,
)
from tests.server.story import SESSIONS, conversation
from tests.server.test_commands import assert_one_line, run
from tests.support.postgres import OWNER, Cluster, find_binaries
from tests.support.processes import running_server, start_server

COPY_S = 120


def fill(store_url: str, exchanges: int = 60) -> None:
    """A store with events, duplicates, keys and a session that ended."""

    async def scenario() -> None:
        async with open_tenant(store_url) as tenant:
            await tenant.ingest(SESSIONS, arrive(conversation(exchanges)))
            await tenant.ingest(SESSIONS, arrive([make_event(8000), make_answer(7000, 5, session="s2")]))
            await tenant.note_sender("laptop", 3)

    asyncio.run(scenario())


def on(store_url: str) -> list[str]:
    return ["--database-url", store_url]


def read_checksums(store_url: str) -> dict[str, object]:
    done = run("checksum", "--json", *on(store_url))
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)["tables"]
    return found


def test_migrating(store_url: str) -> None:
    """Checked first, then done; a second time there is nothing to do."""
    pending = run("migrate", "--check", *on(store_url))
    assert_one_line(pending)
    assert "km-server migrate" in pending.stderr
    done = run("migrate", *on(store_url))
    assert (done.returncode, done.stdout.split()[:4]) == (0, ["migrated", "from", "schema", "0"])
    for words in (["migrate", "--check"], ["migrate"]):
        again = run(*words, *on(store_url))
        assert (again.returncode, again.stdout.endswith("is the newest\n")) == (0, True)


def test_a_key_is_rotated(tmp_path: Path) -> None:
    store_url = database_url(tmp_path / "server.db")
    with running_server(tmp_path / "server.db") as running:
        made = run("keys", "create", "--tenant", "a", "--scope", "ingest,read", "--expires-days", "5", *on(store_url))
        old = made.stdout.strip()
        listed = json.loads(run("keys", "list", "--json", *on(store_url)).stdout)
        rotated = run("keys", "rotate", str(listed[0]["id"]), *on(store_url))
        for key in (old, rotated.stdout.strip()):
            api = Api(running.url, key)
            with api.http:
                assert api.send(make_batch([make_event(1)]))[0] in ("accepted", "duplicate")
        first, second = json.loads(run("keys", "list", "--json", *on(store_url)).stdout)
        assert (second["tenant"], second["scopes"], second["revoked"]) == ("a", "ingest,read", None)
        assert first["expires"] < second["expires"]
        assert f"key 2 (expires {second['expires']}) is in place of 1, which ends in 24 h" in rotated.stderr
        longer = run("keys", "rotate", "2", "--overlap-hours", "400", *on(store_url))
        assert "which ends then, too, before the 400 h are over" in longer.stderr
        assert run("keys", "rotate", str(second["id"]), "--overlap-hours", "0", *on(store_url)).returncode == 0
        api = Api(running.url, rotated.stdout.strip())
        with api.http:
            assert api.http.get("/api/v1/stats").status_code == 401
        assert_one_line(run("keys", "rotate", "99", *on(store_url)))


def test_a_tenants_settings(tmp_path: Path) -> None:
    store_url = database_url(tmp_path / "server.db")
    fill(store_url, 1)
    assert run("tenants", "set", "acme", "--retention-days", "30", *on(store_url)).returncode == 0
    assert run("tenants", "set", "acme", "--usd-per-kb", "0.5", *on(store_url)).returncode == 0
    (row,) = json.loads(run("tenants", "list", "--json", *on(store_url)).stdout)
    assert (row["name"], row["usd_per_kb"], row["retention_days"]) == ("acme", 0.5, 30)
    assert "30" in run("tenants", "list", *on(store_url)).stdout
    assert run("tenants", "set", "acme", "--keep-all", *on(store_url)).returncode == 0
    (row,) = json.loads(run("tenants", "list", "--json", *on(store_url)).stdout)
    assert (row["usd_per_kb"], row["retention_days"]) == (0.5, None)
    assert_one_line(run("tenants", "set", "nobody", "--keep-all", *on(store_url)))
    for words in (["acme"], ["acme", "--retention-days", "0"], ["acme", "--keep-all", "--retention-days", "3"]):
        assert run("tenants", "set", *words, *on(store_url)).returncode == 2


def spoil_rollups(store_url: str, cluster: Cluster) -> None:
    """Damage that only a recount can find."""
    statements = [
        "DELETE FROM rollups WHERE width = 60",
        "UPDATE rollups SET start = start - 3 * 1440 WHERE width = 1440",  # of a day on which nothing happened
        "UPDATE latencies SET answers = answers + 1",
    ]
    for statement in statements:
        if store_url.startswith("sqlite"):
            open_file(Path(store_url.removeprefix("sqlite:///"))).execute(statement)
        else:
            cluster.ask(statement, cluster.as_superuser(store_url))


def test_rollups_are_rebuilt(store_url: str, postgres: Cluster) -> None:
    fill(store_url)
    before = read_checksums(store_url)
    spoil_rollups(store_url, postgres)
    assert read_checksums(store_url) != before
    done = run("rebuild-rollups", *on(store_url))
    assert (done.returncode, "122" in done.stderr) == (0, True), done.stderr
    assert read_checksums(store_url) == before
    assert_one_line(run("rebuild-rollups", "--tenant", "nobody", *on(store_url)))


def test_a_backup_says_how_far_it_is(tmp_path: Path) -> None:
    fill(database_url(tmp_path / "server.db"), 300)
    steps = list[tuple[str, int, int]]()
    back_up(tmp_path / "server.db", tmp_path / "copy.db", lambda *step: steps.append(step))
    phases = [(what, [step[1:] for step in found]) for what, found in groupby(steps, key=itemgetter(0))]
    assert [what for what, _ in phases] == ["checking", "copying", "checking"]
    for _, found in phases:
        done = [one for one, _ in found]
        assert done == sorted(done)
        assert done[-1] == found[-1][1] > 0


def test_a_backup_while_the_server_writes(tmp_path: Path) -> None:
    database, copy = tmp_path / "server.db", tmp_path / "copy.db"
    fill(database_url(database))
    key = new_key(database, "writer")
    stop = threading.Event()

    def write(url: str) -> None:
        api = Api(url, key)
        with api.http:
            number = 0
            while not stop.is_set():
                api.send(make_batch([make_event(number + n) for n in range(50)]))
                number += 50

    with running_server(database) as running:
        writer = threading.Thread(target=write, args=(running.url,))
        writer.start()
        try:
            done = run("backup", str(copy), *on(database_url(database)))
            in_use = run("restore", "--replace", str(copy), *on(database_url(database)))
        finally:
            stop.set()
            writer.join(WAIT_S)
    assert done.returncode == 0, done.stderr
    assert_one_line(in_use)
    assert "in use" in in_use.stderr
    assert copy.stat().st_mode & 0o777 == 0o600
    assert_one_line(run("backup", str(copy), *on(database_url(database))))

    target = database_url(tmp_path / "restored.db")
    assert run("restore", str(copy), *on(target)).returncode == 0
    assert read_checksums(target) == read_checksums(database_url(copy)) != read_checksums(database_url(database))
    assert_one_line(run("restore", str(copy), *on(target)))
    assert run("restore", "--replace", str(copy), *on(database_url(database))).returncode == 0
    assert read_checksums(database_url(database)) == read_checksums(target)
    with running_server(tmp_path / "restored.db") as running:
        api = Api(running.url, key)
        with api.http:
            assert api.stats()["totals"]["events"] == len(api.feed(limit=1000))


def test_backups_that_are_not_what_they_were(tmp_path: Path) -> None:
    database, copy = tmp_path / "server.db", tmp_path / "copy.db"
    fill(database_url(database))
    assert run("backup", str(copy), *on(database_url(database))).returncode == 0
    target = on(database_url(tmp_path / "restored.db"))
    manifest = tmp_path / "copy.db.manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"rows": 122', '"rows": 121'))
    assert_one_line(run("restore", str(copy), *target))
    manifest.write_text("{")
    assert_one_line(run("restore", str(copy), *target))
    manifest.write_text(whole)
    data = bytearray(copy.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 8000] = os.urandom(8000)
    copy.write_bytes(data)
    assert_one_line(run("restore", str(copy), *target))
    assert not (tmp_path / "restored.db").exists()
    for file in (tmp_path / "none.db", manifest):
        assert_one_line(run("restore", str(file), *target))
    assert "there is no such file" in run("restore", str(tmp_path / "none.db"), *on(database_url(database))).stderr


def test_sqlite_commands_say_what_to_use_with_postgresql(postgres: Cluster, tmp_path: Path) -> None:
    url = postgres.new_database()
    for words in (["backup", str(tmp_path / "x")], ["restore", str(tmp_path / "x")]):
        done = run(*words, *on(url))
        assert_one_line(done)
        assert "pg_dump" in done.stderr


def test_a_dump_of_postgresql_comes_back_the_same(postgres: Cluster, tmp_path: Path) -> None:
    """As docs/store.md says: pg_dump and pg_restore as the tables' owner; counts and checksums are equal."""
    binaries = find_binaries()
    pg_dump = shutil.which("pg_dump") or (binaries and str(binaries / "pg_dump"))
    if not pg_dump:
        pytest.skip("no pg_dump here")
    source, target = postgres.new_database(), postgres.new_database()
    fill(source)
    dump = tmp_path / "kilometers.dump"
    environ = {**os.environ, "PGPASSWORD": OWNER, "PGOPTIONS": "-c km.upkeep=on"}

    def tool(name: str, *words: str) -> None:
        path = Path(pg_dump).with_name(name)
        done = subprocess.run([path, *words], capture_output=True, text=True, timeout=COPY_S, env=environ, check=False)
        assert done.returncode == 0, done.stderr

    tool("pg_dump", "--format=custom", "--enable-row-security", f"--file={dump}", source)
    tool("pg_restore", "--no-owner", "--enable-row-security", f"--dbname={target}", str(dump))
    before = read_checksums(source)
    assert read_checksums(target) == before
    assert before["events"]["rows"] == 122  # type: ignore[index]
    assert before["senders"]["rows"] == 1  # type: ignore[index]

    async def go_on() -> int:
        async with open_store(target) as store:
            tenant = next(tenant for tenant in await store.list_tenants() if tenant.name == "acme")
            bound = store.bind(tenant)
            await bound.ingest(SESSIONS, arrive([*conversation(60), make_event(9000)]))
            return (await bound.read_stats(StatsQuery())).totals.events

    assert asyncio.run(go_on()) == 123
    assert urlsplit(source).path != urlsplit(target).path


def test_a_server_that_is_killed_leaves_a_store_that_can_be_copied(tmp_path: Path) -> None:
    database = tmp_path / "server.db"
    key = new_key(database, "acme")
    running = start_server(database)
    api = Api(running.url, key)
    with api.http:
        api.send(make_batch([make_event(n) for n in range(100)]))
    running.stop(signal.SIGKILL)
    assert run("backup", str(tmp_path / "copy.db"), *on(database_url(database))).returncode == 0
    assert read_checksums(database_url(tmp_path / "copy.db"))["events"]["rows"] == 100  # type: ignore[index]

"""
Servers that show a bad certificate: nothing is sent, nothing is lost, and a person is told what to do.

The real kmd with five destinations, which it trusts or not by the documented setting (SSL_CERT_FILE); the real kmctl.
"""

import json
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support.misbehaving import Misbehaving, misbehaving
from tests.support.processes import WAIT_S, command, flush, quick_km, read_status, start_kmd, wait_for, write_config

KEY = "km_secret_key"
MESSAGES = 5
TOLD = {
    "expired": ("it has expired", "clock"),
    "self-signed": ("it is self-signed", "SSL_CERT_FILE"),
    "unknown": ("an authority that nobody here knows has signed it", "SSL_CERT_FILE"),
    "misnamed": ("it is for another", "give the URL with a name"),
}


@dataclass(frozen=True, slots=True)
class World:
    """Destinations by name, the authority that is trusted, one that is not, the file that says so, and kmd's home."""

    servers: dict[str, Misbehaving]
    authority: trustme.CA
    stranger: trustme.CA
    trusted: Path
    home: Path

    def kmctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """kmctl as a person runs it, who trusts what kmd trusts."""
        environ = {"PATH": "/usr/bin:/bin", "HOME": str(self.home), "SSL_CERT_FILE": str(self.trusted)}
        return subprocess.run(
            [command("kmctl"), *words, "--home", str(self.home)],
            capture_output=True,
            text=True,
            timeout=3 * WAIT_S,
            env={**environ, "COLUMNS": "200"},
            check=False,
        )

    def destinations(self) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in read_status(self.home)["destinations"]}


def present(certificate: trustme.LeafCert | trustme.CA, folder: Path) -> ssl.SSLContext:
    """A server's context that shows this certificate; an authority's own is a self-signed one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if isinstance(certificate, trustme.LeafCert):
        certificate.configure_cert(context)
    else:
        both = folder / "own.pem"
        both.write_bytes(certificate.private_key_pem.bytes() + certificate.cert_pem.bytes())
        context.load_cert_chain(both)
    return context


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """kmd runs and has messages for all of them; the authority is trusted."""
    authority, stranger = trustme.CA(), trustme.CA()
    past = datetime.now(UTC) - timedelta(days=1)
    shown: dict[str, trustme.LeafCert | trustme.CA] = {
        "expired": authority.issue_cert("127.0.0.1", not_before=past - timedelta(days=9), not_after=past),
        "self-signed": stranger,
        "unknown": stranger.issue_cert("127.0.0.1"),
        "misnamed": authority.issue_cert("km.example.com", "127.0.0.2"),
        "good": authority.issue_cert("127.0.0.1"),
    }
    trusted, home = tmp_path / "trusted.pem", tmp_path / "home"
    authority.cert_pem.write_to_path(trusted)
    with ExitStack() as ending:
        servers = {
            name: ending.enter_context(misbehaving(tls=present(certificate, tmp_path)))
            for name, certificate in shown.items()
        }
        write_config(home, *((name, server.url, KEY) for name, server in servers.items()))
        kmd = start_kmd(home, {"SSL_CERT_FILE": str(trusted)})
        ending.callback(kmd.stop)
        text = "".join(json.dumps({"jsonrpc": "2.0", "id": n, "method": "ping"}) + "\n" for n in range(MESSAGES))
        words = quick_km(home, "echo", "cat")
        subprocess.run(words, input=text, text=True, stdout=subprocess.DEVNULL, check=True, timeout=WAIT_S)
        yield World(servers, authority, stranger, trusted, home)


def test_bad_certificates(world: World) -> None:
    """Each is named with what to do; the good one gets all of it meanwhile, and the others once they are mended."""
    good = world.servers["good"]
    wait_for(lambda: len(good.stored) == 2 * MESSAGES, "the good one to have all")
    wait_for(lambda: all(one["last_error"] for name, one in world.destinations().items() if name != "good"), "errors")
    found = world.destinations()
    status, doctor = world.kmctl("status"), world.kmctl("doctor")
    for name, (problem, hint) in TOLD.items():
        assert found[name]["state"] in ("retrying", "sending")
        assert found[name]["pending"] == 2 * MESSAGES
        assert "certificate is refused: " + problem in found[name]["last_error"]
        assert hint in found[name]["hint"]
        assert world.servers[name].requests == []
        for told in (status, doctor):
            assert problem in told.stdout
            assert hint in told.stdout
    assert (status.returncode, doctor.returncode) == (4, 4)
    assert KEY not in status.stdout + doctor.stdout
    mended = present(world.authority.issue_cert("127.0.0.1"), world.home)
    for server in world.servers.values():
        server.tls = mended

    def all_have_all() -> bool:
        flush(world.home, 1)
        return all(len(server.stored) == 2 * MESSAGES for server in world.servers.values())

    wait_for(all_have_all, "all of it")
    assert sum(server.duplicates for server in world.servers.values()) == 0


def test_an_authority_that_is_trusted_later_is_known_at_the_next_try(world: World) -> None:
    """Without a restart, and after the file has been spoiled."""
    unknown = world.servers["unknown"]
    wait_for(lambda: world.destinations()["unknown"]["last_error"], "the refusal")
    world.trusted.write_text("spoiled")

    def says_so() -> bool:
        flush(world.home, 0.1)
        return "SSL_CERT_FILE" in world.destinations()["unknown"]["last_error"]

    wait_for(says_so, "the file to be read")
    assert "SSL_CERT_FILE names cannot be used" in world.kmctl("doctor").stdout
    assert unknown.requests == []
    world.trusted.write_bytes(world.stranger.cert_pem.bytes())

    def has_all() -> bool:
        flush(world.home, 0.1)
        return len(unknown.stored) == 2 * MESSAGES

    wait_for(has_all, "all of it")
    assert unknown.duplicates == 0


def test_a_ca_file_is_for_its_destination_alone(world: World) -> None:
    """kmctl proves it and writes it down; kmd then delivers there; the others are judged as before."""
    unknown = world.servers["unknown"]
    wait_for(lambda: all(one["last_error"] for name, one in world.destinations().items() if name != "good"), "errors")
    own = world.home / "own authority.pem"
    words = ("init", "--name", "unknown", "--url", unknown.url, "--key", KEY, "--ca-file", str(own))
    missing = world.kmctl(*words)
    assert (missing.returncode, "there is no such file" in missing.stderr) == (1, True)
    world.authority.cert_pem.write_to_path(str(own))
    assert world.kmctl(*words).returncode == 1
    assert unknown.requests == []
    own.write_bytes(world.stranger.cert_pem.bytes())
    assert world.kmctl(*words).returncode == 0
    assert f"certificates of {own}" in world.kmctl("config", "list").stdout
    wait_for(lambda: len(unknown.stored) == 2 * MESSAGES, "what was kept")
    doctor = world.kmctl("doctor").stdout
    assert "self-signed: " in doctor
    assert f"unknown: {unknown.url}: there is no km-server (404)" in doctor  # this server knows no keys
    own.write_text("spoiled")
    assert f"the ca_file {own} cannot be used" in world.kmctl("doctor").stdout
    assert world.servers["self-signed"].requests == []

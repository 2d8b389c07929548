"""Behind a proxy, and with a certificate of our own."""

import datetime
import ipaddress
import json
import ssl
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from km_server.proxies import HOPS_MAX, Client, Proxies

from tests.server.clients import WAIT_S
from tests.server.conftest import Served
from tests.support.processes import start_server

PROXIES = Proxies.parse("10.0.0.0/8, ::1, 192.0.2.1")


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),
        ("10.1.2.3", "198.51.100.1", "198.51.100.1"),
        ("10.1.2.3", "6.6.6.6, 198.51.100.1", "198.51.100.1"),
        ("10.1.2.3", "6.6.6.6, 198.51.100.1, 10.9.9.9", "198.51.100.1"),
        ("::ffff:10.1.2.3", "198.51.100.1", "198.51.100.1"),
        ("::1", " 2001:db8::1 ", "2001:db8::1"),
        ("10.1.2.3", "", "10.1.2.3"),
        ("10.1.2.3", "junk", "10.1.2.3"),
        ("10.1.2.3", "junk\n6, " + "x" * 9000, "10.1.2.3"),
        ("10.1.2.3", "10.0.0.1, 10.0.0.2", "10.0.0.1"),
        ("10.1.2.3", "6.6.6.6, " * (HOPS_MAX + 1) + "198.51.100.1", "198.51.100.1"),
        ("unix", "198.51.100.1", "unix"),
        ("", "198.51.100.1", ""),
    ],
)
def test_only_a_proxy_of_ours_is_believed(peer: str, forwarded: str, address: str) -> None:
    client = PROXIES.identify(peer, "http", {"X-Forwarded-For": forwarded, "X-Forwarded-Proto": "https"})
    assert client.address == address
    assert client.scheme == ("https" if client.trusted else "http")


def test_a_scheme_that_is_none_is_ignored() -> None:
    assert PROXIES.identify("10.0.0.1", "http", {"X-Forwarded-Proto": "gopher"}) == Client("10.0.0.1", "http", True)  # noqa: FBT003


def last_request(log: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads([line for line in log.read_text().splitlines() if '"request"' in line][-1])
    return found


def test_the_log_names_the_client_and_the_request(served: Served, tmp_path: Path) -> None:
    headers = {
        "X-Forwarded-For": "198.51.100.7",
        "X-Forwarded-Proto": "https",
        "X-Request-Id": "from-the-proxy",
    }
    answer = httpx.get(served.url + "/nowhere", headers=headers, timeout=WAIT_S)
    line = last_request(served.log)
    assert (line["client"], line["scheme"]) == ("127.0.0.1", "http")  # nobody is trusted here
    assert line["request_id"] == answer.headers["X-Request-Id"] != "from-the-proxy"
    running = start_server(tmp_path / "server.db", extra=("--trusted-proxies", "127.0.0.0/8"))
    try:
        answer = httpx.get(running.url + "/nowhere", headers=headers, timeout=WAIT_S)
        line = last_request(running.log)
        assert (line["client"], line["scheme"], line["request_id"]) == ("198.51.100.7", "https", "from-the-proxy")
        assert answer.headers["X-Request-Id"] == "from-the-proxy"
        answer = httpx.get(running.url + "/nowhere", headers={"X-Request-Id": "a b\tc"}, timeout=WAIT_S)
        assert answer.headers["X-Request-Id"].isalnum()
    finally:
        running.stop()


def write_certificate(folder: Path) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "km-server")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def test_it_serves_https(tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path)
    running = start_server(tmp_path / "server.db", extra=("--tls-cert", str(certificate)))
    try:
        assert running.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(certificate))
        answer = httpx.get(running.url + "/health/ready", verify=context, timeout=WAIT_S)
        assert answer.json()["status"] == "ok"
    finally:
        assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()

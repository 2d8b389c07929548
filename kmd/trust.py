"""
Whom the TLS of a destination trusts: the authorities in its `ca_file`, else those of SSL_CERT_FILE or SSL_CERT_DIR,
else the public ones. And why a client could not even be opened. For kmd and kmctl alike; nothing is connected here.
"""

import ssl
from pathlib import Path

from kmd.errors import ServerUnreachable

CERT_FILE = "what SSL_CERT_FILE names cannot be used"
CERT_FILE_HINT = "have it name a PEM file of certificates, or leave it out to trust the public authorities"
CA_FILE_HINT = "have it name a PEM file of certificates that you can read, or leave it out"
PROXY = "what HTTPS_PROXY, HTTP_PROXY, ALL_PROXY or NO_PROXY says cannot be used"
PROXY_HINT = "have them name an http:// or https:// proxy (SOCKS is not spoken), or leave them out"
UNUSABLE = (OSError, ValueError, ImportError)
"""What opening a client raises when the environment or a file says what it cannot do; ssl's errors are OSErrors."""


def open_trust(ca_file: str) -> ssl.SSLContext | bool:
    """What httpx takes as `verify`: a context for *ca_file*, True for what it chooses by itself. Raises OSError."""
    if not ca_file:
        return True
    if not Path(ca_file).is_file():  # a FIFO would have us wait for ever
        raise FileNotFoundError(ca_file)
    return ssl.create_default_context(cafile=ca_file)


def explain_opening(exc: Exception, ca_file: str) -> ServerUnreachable:
    """One sentence for an error of UNUSABLE or httpx's InvalidURL. Their own texts may quote a proxy's password."""
    if not isinstance(exc, OSError):
        return ServerUnreachable(PROXY, hint=PROXY_HINT)
    if ca_file:
        return ServerUnreachable(f"the ca_file {ca_file} cannot be used", hint=CA_FILE_HINT)
    return ServerUnreachable(CERT_FILE, hint=CERT_FILE_HINT)

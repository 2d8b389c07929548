"""
The text of an API key: `km_` and 256 random bits. Pure.

Stored is its SHA-256: a fast hash is enough for a secret that nobody can guess.
"""

import hashlib

KEY_PREFIX = "km_"
KEY_BYTES = 32
KEY_MAX_CHARS = 256
"""Nothing longer is worth hashing."""


def make_key(secret: str) -> str:
    """The text of a key. Takes `secrets.token_urlsafe(KEY_BYTES)`."""
    return KEY_PREFIX + secret


def digest_key(key: str) -> bytes:
    """The SHA-256 of a key, which is all that the store keeps of it."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

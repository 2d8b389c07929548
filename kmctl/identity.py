"""Whose an API key is: what km-server says to `GET /api/v1/whoami`, judged."""

from dataclasses import dataclass

import msgspec

from kmctl.check import WRONG_URL, Reply, ask_server, judge_answer
from kmd.errors import DeliveryError

PATH = "/api/v1/whoami"
SEND = "ingest"
"""The scope without which a key is of no use here."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """The tenant of a key, what it may do, when it expires (None: never), and the server's version."""

    tenant: str
    scopes: tuple[str, ...]
    expires_at_ns: int | None = None
    version: str = ""


@dataclass(frozen=True, slots=True)
class Introduction:
    """The identity, and the server's time as it came with it (RFC 9110 section 6.6.1)."""

    identity: Identity
    date: str


def ask_identity(url: str, key: str, ca_file: str = "") -> Introduction:
    """Whose *key* is at *url* (ca_file: kmd.trust). Raises DeliveryError (refused, no km-server), ServerUnreachable."""
    reply = ask_server(url, PATH, key, ca_file=ca_file)
    return Introduction(judge_identity(reply, url), reply.date)


def judge_identity(reply: Reply, url: str) -> Identity:
    """The identity in an answer. Raises DeliveryError with what to do. Pure."""
    if 200 <= reply.status < 300:
        try:
            return msgspec.json.decode(reply.body, type=Identity)
        except (ValueError, RecursionError) as exc:
            message = f"{url}: something answers there, but it is no km-server"
            raise DeliveryError(message, hint=WRONG_URL) from exc
    if problem := judge_answer(reply, "", url):
        raise problem
    raise DeliveryError(f"{url}: an answer that cannot be understood ({reply.status})", hint=WRONG_URL)


def check_may_send(identity: Identity, url: str) -> None:
    """Raises DeliveryError: the key may not send events."""
    if SEND not in identity.scopes:
        hint = f"ask for a key with the scope '{SEND}': km-server keys create --tenant {identity.tenant} --scope {SEND}"
        raise DeliveryError(f"{url}: the key may not send events", hint=hint)

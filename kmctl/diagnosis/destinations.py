"""Do events get to where they should? Each destination is asked, with its key, whose the key is."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from kmctl.answers import ILL_STATES, Status
from kmctl.diagnosis.finding import Check, Finding, bad, note, ok
from kmctl.identity import SEND, Introduction, ask_identity
from kmctl.options import quote
from kmctl.text import format_age
from kmd.config import Config, Destination
from kmd.errors import DeliveryError, KilometersError, ServerUnreachable
from kmd.keys import read_key

SKEW_MAX_S = 60.0
"""Times are shown and ordered by the minute; certificates and logs of two machines must agree that far."""
EXPIRES_SOON_S = 14 * 86400.0
AT_ONCE = 4
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Asked:
    """A destination's answer: an introduction, or why there is none. keyed: a key was shown. at: when it came."""

    destination: Destination
    keyed: bool
    told: Introduction | KilometersError
    at: datetime


def check_destinations(config: Config, config_file: Path, status: Status | None) -> list[Finding]:
    """Ask each destination of *config*; what kmd says of it counts where the question finds nothing."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = list(pool.map(lambda one: ask_one(one, config_file), config.destinations))
    findings = [finding for one in asked for finding in judge(one)]
    found = {one.destination.name for one in asked if not isinstance(one.told, Introduction)}
    findings += judge_states(status, found) if status else []
    if asked and all(isinstance(one.told, Introduction) for one in asked):
        findings.append(ok(Check.DESTINATION, summarize(asked)))
    return findings


def summarize(asked: Sequence[Asked]) -> str:
    """For the one line of a healthy set-up."""
    return f"{', '.join(one.destination.name for one in asked)} {'takes' if len(asked) == 1 else 'take'} events"


def ask_one(one: Destination, config_file: Path) -> Asked:
    """Ask a destination whose the key is, and note its answer, or what went wrong, with the time."""
    key = ""
    try:
        key = read_key(one, config_file)
        told: Introduction | KilometersError = ask_identity(one.url, key, one.ca_file)
    except KilometersError as exc:
        told = exc
    return Asked(one, bool(key), told, datetime.now(UTC))


def judge(asked: Asked) -> Iterator[Finding]:
    """The findings that a destination's answer leads to. Pure."""
    one, told = asked.destination, asked.told
    match told:
        case Introduction():
            yield from judge_identity(asked, told)
        case ServerUnreachable():
            check = Check.TLS if ": TLS" in str(told) else Check.DESTINATION
            yield bad(check, f"{one.name}: {told}", told.hint)
        case DeliveryError() if " key " in str(told):
            yield judge_refusal(asked, told)
        case DeliveryError():
            yield bad(Check.DESTINATION, f"{one.name}: {told}", told.hint or log_in(one))
        case _:
            yield bad(Check.KEY, str(told), told.hint or log_in(one))
    if urlsplit(one.url).scheme == "http" and urlsplit(one.url).hostname not in LOOPBACK:
        yield note(
            Check.TLS, f"{one.name}: the key and all events travel unencrypted", "give the server's https:// URL"
        )


def log_in(one: Destination) -> str:
    """The command that gives a destination another key."""
    return f"kmctl login --name {quote(one.name)}"


def judge_refusal(asked: Asked, told: DeliveryError) -> Finding:
    """A key that is refused, or was never there. Pure."""
    one = asked.destination
    if not asked.keyed:
        return bad(Check.KEY, f"{one.name}: {one.url} wants a key, and there is none", log_in(one))
    return bad(Check.KEY, f"{one.name}: {told}", f"{told.hint}; then: {log_in(one)}")


def judge_identity(asked: Asked, told: Introduction) -> Iterator[Finding]:
    """A key that was accepted: may it send, for how long, and do the clocks agree? Pure."""
    one, identity = asked.destination, told.identity
    if SEND not in identity.scopes:
        fix = f"make one: km-server keys create --tenant {identity.tenant} --scope {SEND}; then: {log_in(one)}"
        yield bad(Check.KEY, f"{one.name}: the key may not send events", fix)
    else:
        yield ok(Check.KEY, f"{one.name}: the key is accepted (tenant {identity.tenant})")
    if identity.expires_at_ns is not None:
        left_s = identity.expires_at_ns / 1e9 - asked.at.timestamp()
        if left_s < EXPIRES_SOON_S:
            yield note(
                Check.KEY, f"{one.name}: the key expires in {format_age(left_s)}", f"ask for a new one: {log_in(one)}"
            )
    yield judge_clock(one.name, told.date, asked.at)


def judge_clock(name: str, date: str, now: datetime) -> Finding:
    """Whether the server's `Date` is near *now*. Pure."""
    try:
        theirs = parsedate_to_datetime(date)
        skew_s = (now - (theirs if theirs.tzinfo else theirs.replace(tzinfo=UTC))).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):
        return note(Check.CLOCK, f"{name}: the server does not say what time it is")
    if abs(skew_s) <= SKEW_MAX_S:
        return ok(Check.CLOCK, f"{name}: the clocks agree")
    side = "ahead of" if skew_s > 0 else "behind"
    what = f"{name}: this machine's clock is {format_age(abs(skew_s))} {side} the server's"
    return bad(Check.CLOCK, what, "set the clock by the network (Linux: timedatectl set-ntp true), here or there")


def judge_states(status: Status, found: set[str]) -> Iterator[Finding]:
    """Destinations that kmd has trouble with though they answer here. Pure."""
    for one in status.destinations:
        if one.state in ILL_STATES and one.name not in found:
            what = f"{one.name} is {one.state}" + (f": {one.last_error}" if one.last_error else "")
            yield bad(Check.DESTINATION, what, one.hint or "kmctl flush tries again at once")

"""
What an answer to a batch means: one table, total over every status code. Pure.

Only a receipt that names this batch and judges every event settles anything; whatever else calls itself a
success came from something that is no km-server, and the batch is tried again.
Source: RFC 9110 section 15; docs/architecture.md, "What kmd does when …".
"""

from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum

import msgspec

from kmd.wire import Receipt, Verdict


class Action(StrEnum):
    """What the sync loop does next."""

    SETTLE = "settle"
    RETRY = "retry"
    PAUSE = "pause"
    SPLIT = "split"
    RECODE = "recode"


@dataclass(frozen=True, slots=True)
class Answer:
    """error and hint are for a person; verdicts belong to SETTLE; retry_after_s is what the server asked for."""

    action: Action
    error: str = ""
    hint: str = ""
    retry_after_s: float = 0.0
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: status, the Retry-After header, at most the first MiB of the body."""

    status: int
    retry_after: str
    body: bytes


PAUSES = {
    401: ("the key was refused", "check the key, then 'kmctl init --url … --key …'"),
    403: ("the key may not send events", "ask for a key with the scope 'ingest'"),
    404: ("there is no km-server at this URL", "check the URL, then 'kmctl init --url … --key …'"),
    405: ("there is no km-server at this URL", "check the URL, then 'kmctl init --url … --key …'"),
    501: ("the server does not take events", "check the URL, then 'kmctl init --url … --key …'"),
}
"""Statuses that only a person can mend: everything is kept until then."""
RETRIES = frozenset({408, 409, 425, 429})
SPLITS = frozenset({400, 413, 422})
WITH_RECEIPT = frozenset({409, 422})
"""Refusals that may come with a receipt all the same: what it says of each event then counts."""
SERVER_ERROR_SPLIT_AFTER = 5
"""The same batch failing with 500 this often in a row holds an event that the server cannot digest."""

_RECEIPT = msgspec.json.Decoder(Receipt)


def judge_answer(reply: Reply, batch_id: str, events: int, failures: int, now_s: float) -> Answer:
    """
    Decide about a batch of *events* events named *batch_id*.

    failures: how often this very batch has got a 500 before. now_s: Unix seconds, for a dated Retry-After.
    """
    status = reply.status
    if 200 <= status < 300 or status in WITH_RECEIPT:
        answer = judge_receipt(reply, batch_id, events)
        if status not in WITH_RECEIPT or answer.action is Action.SETTLE:
            return answer
    error = f"the server answered {status}"
    if status in PAUSES:
        problem, hint = PAUSES[status]
        return Answer(Action.PAUSE, f"{problem} ({status})", hint)
    if status in SPLITS:
        return Answer(Action.SPLIT, error)
    if status == 415:
        return Answer(Action.RECODE, error, "the server takes no encoding that kmd knows; upgrade it")
    if 300 <= status < 400:
        return Answer(Action.PAUSE, f"{error}, a redirect, which is never followed", "give the final URL")
    if status == 500 and failures + 1 >= SERVER_ERROR_SPLIT_AFTER:
        return Answer(Action.SPLIT, error)
    if status in RETRIES or status >= 500:
        return Answer(Action.RETRY, error, retry_after_s=parse_retry_after(reply.retry_after, now_s))
    if status >= 400:
        return Answer(Action.PAUSE, error, "check the URL; something between here and the server refuses")
    return Answer(Action.RETRY, error)


def judge_receipt(reply: Reply, batch_id: str, events: int) -> Answer:
    """A success counts only with a receipt for exactly this batch."""
    hint = "is the URL that of a km-server? a proxy or a login page may answer instead"
    try:
        receipt = _RECEIPT.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Answer(Action.RETRY, "the answer is no receipt", hint)
    if receipt.batch_id != batch_id:
        return Answer(Action.RETRY, "the receipt is for another batch", hint)
    if len(receipt.verdicts) != events:
        return Answer(Action.RETRY, "the receipt does not judge every event", hint)
    return Answer(Action.SETTLE, verdicts=receipt.verdicts)


def parse_retry_after(text: str, now_s: float) -> float:
    """Seconds that a Retry-After header asks for; 0 for none, the past and nonsense. RFC 9110 section 10.2.3."""
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now_s)
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0.0

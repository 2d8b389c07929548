"""
A destination's course: what a restart must not forget of how it was doing. Pure; the outbox keeps it as JSON.

Without it a kmd that is restarted often would try again at once each time, whatever the server had asked for,
and would find out again what the server does not take.
"""

import hashlib

import msgspec

from kmd.sync.backoff import PAUSE_S, RETRY_AFTER_MAX_S
from kmd.sync.plan import Limit

WAIT_MAX_S = max(PAUSE_S, RETRY_AFTER_MAX_S)
"""No wait is longer, so one that seems to be comes from a clock that was set back."""
MARK_CHARS = 16


class Course(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    mark: which URL and key it is about; with others everything is open again. attempt: failures in a row.
    next_attempt_at_s: Unix time, 0 for at once. codec: the Content-Encoding that is taken. error, hint: the last
    trouble, in words.
    """

    mark: str = ""
    attempt: int = 0
    next_attempt_at_s: float = 0.0
    is_paused: bool = False
    codec: str = ""
    limit: Limit = Limit()
    error: str = ""
    hint: str = ""

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next try, as of Unix time *now_s*; at most WAIT_MAX_S whatever the clock has done."""
        return min(max(0.0, self.next_attempt_at_s - now_s), WAIT_MAX_S) if self.attempt else 0.0


_COURSE = msgspec.json.Decoder(Course)


def mark_of(url: str, key: str) -> str:
    """A short name for a URL and key that gives neither away."""
    return hashlib.sha256(f"{url}\0{key}".encode()).hexdigest()[:MARK_CHARS]


def parse_course(text: str, mark: str) -> Course:
    """The course in *text* if it is about *mark*, else a fresh one. Raises nothing."""
    try:
        course = _COURSE.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Course(mark)
    return course if course.mark == mark else Course(mark)


def render_course(course: Course) -> str:
    return msgspec.json.encode(course).decode()

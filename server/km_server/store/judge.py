"""
What of a batch is offered to a database, decided before it is asked. Pure.

Events are grouped by session, and what cannot be stored has its verdict already. The stores fill in the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from km_server.store.fate import AHEAD, EXPIRED, REFUSALS, Clock, filing_day
from km_server.store.values import Arrival
from kmd.wire import Session, Status, Verdict

ACCEPTED = Verdict(Status.ACCEPTED)
DUPLICATE = Verdict(Status.DUPLICATE)


@dataclass(slots=True)
class Offer:
    """
    One batch of one tenant on its way into a store.

    sessions: the described ones that may be stored, by name, with the day they are filed under if they are new.
    places: for each session that events name, where in the batch they are. verdicts: None until it is known.
    """

    arrivals: Sequence[Arrival]
    sessions: dict[str, tuple[Session, int]] = field(default_factory=dict)
    places: dict[str, list[int]] = field(default_factory=dict)
    verdicts: list[Verdict | None] = field(default_factory=list)

    def refused(self) -> dict[str, int]:
        """How many events were refused so far, by reason code."""
        counts = {code: self.verdicts.count(verdict) for code, verdict in REFUSALS.items()}
        return {code: count for code, count in counts.items() if count}

    def answer(self, session: str, verdict: Verdict) -> None:
        """Give every event of *session* the same verdict."""
        for place in self.places[session]:
            self.verdicts[place] = verdict

    def settled(self) -> list[Verdict]:
        """The verdicts, all of which are known now."""
        return [verdict for verdict in self.verdicts if verdict is not None]


def make_offer(sessions: Sequence[Session], arrivals: Sequence[Arrival], clock: Clock) -> Offer:
    """Sort a batch by what can become of it."""
    offer = Offer(arrivals, verdicts=[None] * len(arrivals))
    ahead: set[str] = set()
    for session in sessions:
        day = filing_day(session.session, session.started_at_ns, clock)
        if day is None:
            ahead.add(session.session)
        elif session.session in offer.sessions:
            first, day = offer.sessions[session.session]
            offer.sessions[session.session] = (merge(first, session), day)
        else:
            offer.sessions[session.session] = (session, day)
    oldest_ns = clock.oldest_ns
    places, verdicts = offer.places, offer.verdicts
    for place, arrival in enumerate(arrivals):
        event = arrival.event
        if event.at_ns < oldest_ns:
            verdicts[place] = EXPIRED
        elif event.session in places:
            places[event.session].append(place)
        elif event.session in ahead:
            verdicts[place] = AHEAD
        else:
            places[event.session] = [place]
    return offer


def merge(known: Session, other: Session) -> Session:
    """What two descriptions of one session say together: what is known stays, the end may move."""
    return Session(
        session=known.session,
        name=known.name,
        command=known.command or other.command,
        host=known.host or other.host,
        started_at_ns=known.started_at_ns or other.started_at_ns,
        ended_at_ns=known.ended_at_ns if other.ended_at_ns is None else other.ended_at_ns,
        closed_first=other.closed_first or known.closed_first,
    )

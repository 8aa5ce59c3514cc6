"""A session's part in the single flight: it leads, waits for who leads, or asks alone.

Lives here: getting on and off a flight, and the `Capture` that a leader, or who asks alone, takes along to the origin.
Not here: flights themselves (`cache.flight`, which calls `Session.land` or `Session.lead` where a wait is over),
whether there is anything to ask (`caching`).
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from pooler.unit import ALL, Capture, Unit

if TYPE_CHECKING:
    from pooler.service import Service
    from pooler.session import Session


class Wait:
    """Of `WAIT`."""


WAIT = Wait()


def leave(session: Session) -> None:
    """The session neither waits any more nor asks for others: it is gone, or what it asks is not for the cache."""
    flight, session.flight = session.flight, None
    if flight is not None and session.service.flights is not None:
        session.service.flights.leave(flight, session)


def board(session: Session, capture: Capture) -> Capture | Wait:
    """Lead the flight for a key that is not there, or wait for it."""
    flights = session.service.flights
    if flights is None or session.alone or session.origin is not None:
        session.alone = False
        return capture
    flight = session.flight
    if flight is None or flight.leader is not session or flight.key != capture.key:
        tables = tuple(capture.tables)
        flight = flights.join(capture.key, session, capture.sent_at, capture.database, tables)
    if flight.leader is session:
        session.flight = None
        capture.flight, capture.flights = flight, flights
        return capture
    session.flight = flight
    session.hold()
    return WAIT


def depart(service: Service, capture: Capture, now: float) -> None:
    """The query of `capture` goes out only now: its answer will have all writes up to here."""
    assert service.cache is not None
    capture.stamp, capture.sent_at = service.cache.begin(), now
    if capture.flight is not None and service.flights is not None:
        service.flights.departed(capture.flight)


def copy_answer(session: Session, unit: Unit, capture: Capture) -> None:
    """Copy the unit's answer for the cache."""
    unit.capture = capture
    unit.latency = session.service.stats.miss_latency
    unit.notable = ALL


def take_pending(session: Session) -> Capture | None:
    """The capture that waited for a connection together with the message at hand."""
    capture, session.pending = session.pending, None
    if capture is not None:
        depart(session.service, capture, perf_counter())
    return capture


def drop_pending(session: Session) -> None:
    """The message that waited for a connection will not be sent: whoever waits for its answer is told."""
    capture, session.pending = session.pending, None
    if capture is not None:
        capture.fail()

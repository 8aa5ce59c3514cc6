"""Simple Queries that come again and again: a connection keeps them prepared, so that they are neither parsed nor
planned again.

Lives here: which texts are worth that, what a connection is sent the first time (`learning`) and each time after that
(`Repeated.request`). Not here: when that may be (`express`), the answer, which is a Query's but for its BindComplete
(`Origin`), the same for messages of the extended protocol (`extended`).

A text has no parameters, so the plan that is kept is the very one that each Query would get, and everything else that
decides it is in its `Scope`. What a Query would do at each parse, or what a plan would keep that should be computed
anew, is left alone: notices about the text, functions that PostgreSQL may have computed while planning.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from pooler.sql.functions import READ_ONLY, SAFE
from pooler.sql.statement import Call, classify
from pooler.statements import MAX_PARSES, Prepared
from pooler.unit import Unit
from protocol import framing
from protocol.framing import SYNC_FRAME

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.session import Session

KEPT_AFTER: Final = 3
"""So many times a text has come the same way before a connection keeps it: to keep it costs a parse of its own."""

LONGEST: Final = 2048
"""Of a Query message, in bytes."""

_NOTICED = re.compile(rb"\\|\w{64}|/\*|--")
"""A text that may be worth a notice to the parser (escapes, names that are too long), or a word to a plan (hints)."""

_BUILT_IN = SAFE | READ_ONLY
"""Functions whose volatility is right. Somebody's own may say IMMUTABLE, and look into tables all the same."""

_NOTHING: Final = b"\0\0\0\0\0\0"
"""A Bind's format codes, values and result formats: none, none, all text, as a Query's answer is."""


class Repeated(NamedTuple):
    """A Query that is worth keeping: what it is prepared as, and the messages that then stand for it."""

    prepared: Prepared
    request: bytes


def repeated(session: Session, data: bytes) -> Repeated | None:
    """What stands for `data`, a whole Query message that has come before; None where it has not come often enough."""
    scope = session.scope
    known = scope.queries.get(data)
    if known is not None or len(data) > LONGEST:
        return known
    mark = hash(data)
    count = scope.asked.get(mark, 0) + 1
    if count > KEPT_AFTER:
        return None  # it is not worth it
    if len(scope.asked) >= MAX_PARSES:
        scope.asked.clear()
    scope.asked[mark] = count
    return _judge(session, data) if count == KEPT_AFTER else None


def _judge(session: Session, data: bytes) -> Repeated | None:
    text = data[5:-1]
    if _NOTICED.search(text) is not None:
        return None
    meaning = classify(text)
    if not meaning.selects or not meaning.plain or not all(map(_is_built_in, meaning.calls)):
        return None
    service, scope = session.service, session.scope
    prepared = service.prepared.intern(text, b"\0\0", service.classifier(text), scope)
    request = b"".join(
        (
            framing.frame(b"B", b"\0" + prepared.name + b"\0" + _NOTHING),
            framing.frame(b"D", b"P\0"),
            framing.frame(b"E", b"\0\0\0\0\0"),
            SYNC_FRAME,
        )
    )
    if len(scope.queries) >= session.pool.max_prepared:
        scope.queries.clear()
    known = scope.queries[data] = Repeated(prepared, request)
    return known


def _is_built_in(call: Call) -> bool:
    return call.name in _BUILT_IN and call.schema in (None, "pg_catalog")


def learning(origin: Origin, prepared: Prepared) -> bytes:
    """What `origin` is sent behind a Query so that it has `prepared` the next time; its client sees nothing of it."""

    def done(own: Unit) -> None:
        if own.error is not None:
            origin.prepared.pop(prepared, None)

    frames = [victim.close_frame() for victim in origin.make_room()]
    origin.prepared[prepared] = None
    origin.units.append(Unit.own(done))
    origin.pool.stats.statements_kept += 1
    return b"".join((*frames, prepared.parse_frame(prepared.name), SYNC_FRAME))

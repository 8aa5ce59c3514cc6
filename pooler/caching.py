"""What the cache answers for a session, and what it learns from what the origin answers.

Lives here: whether a read may be cached (syntax, catalog, policy), its key, freshness and background refresh. Not here:
entries and their bounds (`cache.store`), what a statement reads (`cache.catalog`), what a write invalidates (`writes`),
who asks for all (`boarding`), the messages that an answer becomes (`simple`, `answers`).

A read's way: `ask` gives an Entry (fresh, or stale with its refresh under way), a `Capture` (cacheable; the origin's
answer is copied on its way and handed to `keep`), `WAIT` (somebody else asks the origin the same already; the session
holds its input and asks again when that has landed), or None (not for the cache).
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from pooler.boarding import Wait, board, leave
from pooler.cache.catalog import Verdict
from pooler.cache.entry import Entry
from pooler.cache.eviction import MAX_USES
from pooler.cache.keys import in_formats, without_parameters
from pooler.cache.policy import Policy
from pooler.cache.ready import Ready, View
from pooler.origin import IDLE, IN_TRANSACTION
from pooler.sql.statement import Statement
from pooler.statements import Prepared
from pooler.unit import Capture, Unit
from pooler.writes import NOTHING, names_by
from protocol.framing import frame

if TYPE_CHECKING:
    from pooler.service import Service
    from pooler.session import Session

NO_PARAMETERS = b"\0\0"
_REFRESH_TAIL = frame(b"D", b"P\0") + frame(b"E", b"\0\0\0\0\0") + b"S\0\0\0\4"


def ask(
    session: Session, prepared: Prepared, tail: bytes, now: float, *, described: bool, stated: bool = False
) -> Entry | Capture | Wait | None:
    """What the cache has for a statement bound with `tail` (a Bind's formats, values and result formats).

    Args:
      now: seconds, as `perf_counter`. described: the client wants a RowDescription too.
      stated: it wants the statement's ParameterDescription.
    """
    service = session.service
    cache = service.cache
    landed, session.landed = session.landed, None  # for this question or none: later it may be from before a write
    if cache is None or service.policies is None or not prepared.statement.cacheable or session.settings.cache_off:
        return None
    asked = prepared.asked  # the last answer to the same question; who asks is all that changes from call to call
    catalog, reports, user = session.pool.catalog, session.reports, session.user
    if asked is not None and asked[0] is catalog and asked[1] is reports and asked[2] == user:
        policy, tables = asked[3], asked[4]
    else:
        verdict = verdict_on(session, prepared)
        if verdict is None or not verdict.cacheable:
            leave(session)
            return None
        policy, tables = _policy(session, prepared), verdict.tables
        prepared.asked = (catalog, reports, user, policy, tables)
    if not policy.enabled:
        leave(session)
        return None
    key = (session.namespace, user, session.settings.label, prepared.text, prepared.types, tail)
    entry = cache.get(key, now, policy.namespace)
    if entry is None and landed is not None and landed.key == key:
        entry = landed
    if entry is None and not session.pool.breaker.closed:
        entry = _instead_of_an_error(session, key, policy, now)
    if (
        entry is None
        or (described and entry.row_description is None)
        or (stated and entry.parameter_description is None and not without_parameters(tail))
    ):
        return board(session, Capture(session.namespace, key, cache.begin(), now, policy, tables, prepared))
    if entry.expires <= now and cache.claim_refresh(entry, now) and not _refresh(session, prepared, entry, policy, now):
        cache.abandon_refresh(entry)
    return entry


def _instead_of_an_error(session: Session, key: tuple[Any, ...], policy: Policy, now: float) -> Entry | None:
    """An answer whose time is over, while the origin cannot be reached and `cache.stale_if_error` allows it."""
    service = session.service
    cache = service.cache
    if cache is None or not cache.stale_if_error:
        return None
    entry = cache.get_even_if_stale(key, now, policy.ttl + policy.stale_while_revalidate + cache.stale_if_error)
    if entry is not None:
        service.stats.stale_if_error_hits += 1
    return entry


def has_told(session: Session, view: View, request: bytes) -> bool:
    """Answer `request`, all that a client has sent, if that is ready; the client must have no connection."""
    ready = view.answers.get(request)
    if (
        ready is None
        or view.catalog is not session.pool.catalog
        or view.reports is not session.reports
        or view.settings is not session.state.settings
    ):
        return False
    entry = ready.entry
    started = perf_counter()
    if entry.expires <= started or entry.stamp < entry.epochs.barrier:
        return False  # stale, or to be looked at more closely
    if ready.prepares is not None:
        if b"" not in session.statements:
            return False
        session.statements[b""] = ready.prepares
    if entry.uses < MAX_USES:
        entry.uses += 1
    entry.hits += 1
    ready.namespace.hits += 1
    session.tell(ready.response if not session.deferred else ready.response[:-1] + b"T")
    session.service.stats.hit_latency.observe(perf_counter() - started)
    return True


def make_ready(
    session: Session, request: bytes, response: bytes, entry: Entry, prepared: Prepared, *, prepares: bool = False
) -> None:
    """`request` was answered by `entry` with `response`, without a connection: the next time it is found by its bytes.

    `prepares`: it has made `prepared` the unnamed statement.
    """
    store, catalog = session.service.cache, session.pool.catalog
    if store is None or catalog is None or prepared.asked is None or entry.queue is None:
        return
    view = session.view
    if (
        view is None
        or view.catalog is not catalog
        or view.reports is not session.reports
        or view.settings is not session.state.settings
    ):
        view = session.view = store.shelf.view(
            session.namespace, session.user, session.state.settings, session.reports, catalog
        )
    if session.deferred:
        response = response[:-1] + b"I"  # what is told outside a transaction
    store.shelf.put(view, request, Ready(entry, prepared.asked[3].namespace, response, prepared if prepares else None))


def may_be_asked(session: Session) -> bool:
    """Whether the cache may answer now: outside a transaction, or in a block that has done nothing but read.

    In READ COMMITTED each statement sees what was committed before it, so an answer from the cache is as good in a
    block as outside, until the block writes or locks. Under REPEATABLE READ and SERIALIZABLE all must come from one
    snapshot.
    """
    origin = session.origin
    return origin is None or (session.only_reads and not origin.units and origin.status == IN_TRANSACTION)


def note_block(session: Session, statement: Statement) -> None:
    """What `statement`, now on its way, means for whether the cache may answer in this block."""
    if statement.isolation:
        default = session.pool.reads_committed and session.settings.get("default_transaction_isolation") is None
        wanted = statement.isolation == "read committed" or (statement.isolation == "default" and default)
        origin = session.origin
        session.only_reads = wanted and origin is not None and origin.status == IDLE and not session.away
    elif not statement.cacheable:
        session.only_reads = False


def verdict_on(session: Session, prepared: Prepared) -> Verdict | None:
    """What the catalog says of a read by this session; None while there is no catalog."""
    catalog = session.pool.catalog
    if catalog is None:
        return None
    path, user = names_by(session)
    return catalog.reads(prepared.statement, path, user)


def _policy(session: Session, prepared: Prepared) -> Policy:
    policies = session.service.policies
    assert policies is not None
    application = session.reports.values.get("application_name", "")
    fingerprint = prepared.fingerprint if policies.by_fingerprint else None
    return policies.choose(prepared.statement, session.user, session.database, application, prepared.text, fingerprint)


def keep(service: Service, capture: Capture) -> None:
    """Store a captured answer, unless its tables may have changed since its query was sent."""
    cache = service.cache
    if capture.tag is None or cache is None:
        capture.fail()
        return
    entry = cache.make(
        capture.key,
        capture.rows,
        capture.row_description,
        capture.tag,
        database=capture.database,
        stamp=capture.stamp,
        sent_at=capture.sent_at,
        policy=capture.policy,
        tables=tuple(capture.tables),
        fingerprint=capture.prepared.fingerprint,
    )
    if capture.parameter_description is not None:  # then the rows may have been described before they were bound
        entry.parameter_description = capture.parameter_description
        if entry.row_description is not None:
            entry.row_description = in_formats(entry.row_description, capture.key[-1])
    cache.put(entry)
    flight, capture.flight = capture.flight, None
    if flight is not None and service.flights is not None:
        service.flights.landed(flight, entry)


def _refresh(session: Session, prepared: Prepared, entry: Entry, policy: Policy, now: float) -> bool:
    """Ask the origin for a stale entry anew, behind the client's back; False where no connection can be spared."""
    service, pool, cache = session.service, session.pool, session.service.cache
    assert cache is not None
    origin = pool.acquire_spare(session.settings)
    if origin is None:
        return False
    origin.draining = True  # nobody's: the pool takes it back when its last answer is read
    frames = []
    if origin.settings is not session.settings:
        frames.append(origin.settings.difference_to(session.settings))
        origin.units.append(Unit.own())
        origin.settings = session.settings
        origin.traces |= session.settings.customs
    origin.unnamed = None
    capture = Capture(session.namespace, entry.key, cache.begin(), now, policy, entry.tables, prepared)

    def done(unit: Unit) -> None:
        if unit.capture is not None and unit.error is None and origin.status == IDLE:
            keep(service, unit.capture)
        cache.abandon_refresh(entry)  # if the answer was kept, this one is no longer there

    unit = Unit.own(done)
    unit.capture = capture
    origin.units.append(unit)
    frames += [prepared.parse_frame(b""), frame(b"B", b"\0\0" + entry.key[-1]), _REFRESH_TAIL]
    origin.send_or_lose(b"".join(frames))
    return True


# ---- advice ----------------------------------------------------------------------------------------------------------


def study(session: Session, unit: Unit, statement: Statement, text: bytes, tail: bytes) -> None:
    """Have the answer to `statement`, on its way to the origin, counted for SHOW CACHE ADVICE.

    Args:
      tail: the Bind's, as `keys.normal_tail` gives it.
    """
    advice = session.pool.advice
    if advice is None or unit.study is not None:
        return
    try:
        studied = advice.by_statement[statement]
    except KeyError:
        studied = advice.begin(statement, text, session.user)
    if studied is None:
        return
    studied.calls += 1
    if session.wrote is not NOTHING and statement.reads_only:
        studied.add_behind(session.wrote)
        session.wrote = NOTHING
    mark = hash((text, tail, session.user, session.state.settings))
    if mark & studied.mask != studied.sample:
        return
    unit.study = (studied, mark)
    origin = session.origin
    if origin is not None and origin.status != IDLE and not session.only_reads:
        studied.blocked += 1

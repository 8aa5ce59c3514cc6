"""A client cancels or terminates another one by SQL, with the process id which that was given at login.

Lives here: who may do so to whom, which worker the other client is at, and the doing. Not here: the statements and
their answers (`pooler.signals`), the way of the cancel to the origin (`cancel`).

Permission is PostgreSQL's, with the users that pgnear knows in the place of roles: one's own sessions, as long as one
is who has logged in; anybody's for a superuser; and for members of pg_signal_backend those that are no superuser's.
Source: PostgreSQL documentation, "Server Signaling Functions".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from pooler import ending
from pooler.ceremony.borrow import ask_origin, borrowed
from pooler.ceremony.cancel import cancel_work
from pooler.ceremony.connect import text_rows
from pooler.ceremony.greeting import worker_of
from pooler.logs import get_logger
from pooler.signals import Outcome, Rights, rights_of, rights_query
from pooler.sql.signals import CANCEL, Call
from pooler.workers.peers import answers
from protocol import errors
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.pool import Pool
    from pooler.service import Service
    from pooler.session import Session

log = get_logger(__name__)

LOOK_SECONDS = 0.01
ANSWER_SECONDS = 5.0
"""How long another worker may take to say whose a process id is."""


class Client(NamedTuple):
    """Whom a process id belongs to: its user, its role at the origin, and which origin that is."""

    user: str
    role: str
    place: str


def _who(session: Session) -> Client:
    target = session.pool.target
    return Client(session.user, target.user, target.place)


async def signal(service: Service, session: Session, call: Call, rights: Rights | None) -> None:
    """Do what `session` asks for, and let it go on with the outcome.

    `rights`: what its role may do, where that has been asked.
    """
    outcome: Outcome | PgError
    try:
        outcome = await _signal(service, session, call, rights)
    except PgError as error:
        outcome = error
    except Exception as error:
        log.exception("internal_error", where="signal", error=str(error))
        outcome = errors.internal_error()
    if not session.closed:
        session.signal = outcome
        session.release_hold()


async def _signal(service: Service, session: Session, call: Call, rights: Rights | None) -> Outcome | PgError:
    client = await _owner(service, call.pid)
    if client is None:
        return Outcome.OTHERS
    me = _who(session)
    if rights is None and not (me.user == client.user and session.settings.plain_user):
        rights = await _rights(service, session.pool, session)
    denied = judge(call, me, client, rights)
    if denied is not None:
        log.warning("signal_denied", function=call.function, user=me.user, target_user=client.user)
        return denied
    if call.pid == session.key[0] and call.function == CANCEL:
        return errors.query_canceled()
    return await _act(service, call, me.user)


async def _rights(service: Service, pool: Pool, session: Session) -> Rights:
    async with borrowed(pool, session.settings) as origin:
        with trio.fail_after(pool.limits.origin_connect_timeout):
            return rights_of(text_rows(await ask_origin(origin, rights_query(service.origin_roles)), 4))


def judge(call: Call, me: Client, client: Client, rights: Rights | None) -> PgError | None:
    """Why `me` may not do this to `client`, or None. `rights` is None where it is one's own, and one is oneself."""
    mine = me.user == client.user
    if rights is None or (mine and rights.role == me.role):
        return None if mine else errors.signal_denied(call.function, superuser=False)
    if me.place != client.place:
        return errors.signal_denied(call.function, superuser=False)
    if rights.roles.get(rights.role, (False, False))[0]:
        return None
    is_super, has = rights.roles.get(client.role, (False, False))
    if is_super:
        return errors.signal_denied(call.function, superuser=True)
    if (mine and has) or (client.role in rights.roles and rights.roles.get("pg_signal_backend", (False, False))[1]):
        return None
    return errors.signal_denied(call.function, superuser=False)


# ---- wherever the other client is ------------------------------------------------------------------------------------


def _other_worker(service: Service, pid: int) -> int | None:
    """The number of the worker that has given `pid` to a client, where that is not this one."""
    owner = worker_of(pid)
    return owner if service.peers is not None and owner != service.peers.index else None


async def _owner(service: Service, pid: int) -> Client | None:
    owner = _other_worker(service, pid)
    if owner is None or service.peers is None:
        session = service.session_by_pid(pid)
        return _who(session) if session is not None else None
    with trio.move_on_after(ANSWER_SECONDS):
        found = await service.peers.ask_one(owner, "client_of", {"pid": pid})
        return Client(*found) if found else None
    return None


@answers("client_of")
async def _client_of(service: Service, data: Any) -> list[str] | None:
    session = service.session_by_pid(data["pid"])
    return list(_who(session)) if session is not None else None


async def _act(service: Service, call: Call, user: str) -> Outcome:
    owner = _other_worker(service, call.pid)
    if owner is None or service.peers is None:
        return await _carry_out(service, call, user)
    data = {"function": call.function, "pid": call.pid, "timeout": call.timeout, "user": user}
    found = await service.peers.ask_one(owner, "signal", data)
    return Outcome[found] if found else Outcome.OTHERS


@answers("signal")
async def _signalled(service: Service, data: Any) -> str:
    return (await _carry_out(service, Call(data["function"], data["pid"], data["timeout"]), data["user"])).name


async def _carry_out(service: Service, call: Call, user: str) -> Outcome:
    """Cancel or terminate a client of this process, for `user`."""
    session = service.session_by_pid(call.pid)
    if session is None:
        return Outcome.OTHERS
    service.stats.signals[call.function] = service.stats.signals.get(call.function, 0) + 1
    if call.function == CANCEL:
        await cancel_work(service, session)
        return Outcome.DONE
    log.warning(
        "client_terminated", user=session.user, database=session.database, client=session.transport.peer, by=user
    )
    origin = session.origin
    ending.shutdown(session)
    if origin is None or not call.timeout:
        return Outcome.DONE
    with trio.move_on_after(call.timeout / 1000):
        while origin.draining and not origin.closed:  # noqa: ASYNC110 (nobody tells)
            await trio.sleep(LOOK_SECONDS)
        return Outcome.DONE
    return Outcome.LATE

"""`pgnear cache setup | teardown | status`: what the origins need for invalidation by a stream, made, removed, shown.

Lives here: what an operator is told, and the exit status. The SQL is in `ceremony.publication`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from config import Config, Target
from config.passwords import PasswordUnavailable, read_all
from pooler.ceremony import publication as publications
from pooler.ceremony.connect import ask
from pooler.ceremony.origins import connect
from pooler.ceremony.publication import Ask, Missing, Standing
from pooler.reactor import Reactor
from pooler.transport import TransportClosed
from protocol.responses import PgError

Say = Callable[[str], None]
_Work = Callable[[Ask, str, Say], Awaitable[bool]]

HAZARD = (
    "while it exists, UPDATE and DELETE are refused on a table without a primary key, unless it has another "
    "REPLICA IDENTITY"
)


def setup(config: Config, database: str | None, say: Say) -> int:
    """Make the publications that are missing; 0 where every origin is ready for a stream then, else 1."""
    return _each(config, database, say, _set_up, probe=True)


def teardown(config: Config, database: str | None, say: Say) -> int:
    """Drop publications, and slots that nobody uses; 0 where nothing of pgnear's is left."""
    if config.cache.invalidation == "stream":
        say('note: a running pgnear with cache.invalidation = "stream" makes its publication again')
    return _each(config, database, say, _tear_down, probe=False)


def status(config: Config, database: str | None, say: Say) -> int:
    """Show what there is; 0 where every origin is ready for a stream, else 1."""
    return _each(config, database, say, _show, probe=True)


def _each(config: Config, database: str | None, say: Say, work: _Work, *, probe: bool) -> int:
    async def all_of_them() -> bool:
        reactor = Reactor()  # only its name is needed: nothing is registered
        done = True
        for name, target in targets.items():
            if database is None or name == database:
                say(f"{name} ({target.dbname} at {target.place}):")
                try:
                    good = await _at(config, target, reactor, work, lambda line: say(f"  {line}"))
                    if probe and good:
                        good = await _probe(config, target, reactor, lambda line: say(f"  {line}"))
                except (PgError, TransportClosed, trio.TooSlowError) as error:
                    say(f"  failed: {str(error) or 'no answer in time'}")
                    good = False
                done &= good
        return done

    try:
        targets = config.targets(read_all(config.password_sources()))
    except PasswordUnavailable as error:
        say(f"failed: {error}")
        return 1
    return 0 if trio.run(all_of_them) else 1


async def _at(config: Config, target: Target, reactor: Reactor, work: _Work, say: Say) -> bool:
    connected = await connect(target, reactor, publications.PARAMETERS, timeout=config.origin_connect_timeout)

    async def asked(text: str) -> list[tuple[int, bytes]]:
        with trio.fail_after(config.origin_connect_timeout):
            return await ask(connected.transport, text)

    try:
        return await work(asked, config.cache.publication, say)
    finally:
        connected.transport.close()


async def _probe(config: Config, target: Target, reactor: Reactor, say: Say) -> bool:
    """Whether the origin lets a replication connection in now: pg_hba.conf and max_wal_senders have a say, too."""
    try:
        parameters = publications.PARAMETERS | {"replication": "database"}
        connected = await connect(target, reactor, parameters, timeout=config.origin_connect_timeout)
        connected.transport.close()
    except PgError as error:
        say(f"missing: a replication connection is refused: {error.message}")
        return False
    say("ok: a replication connection is let in; a stream is possible")
    return True


async def _set_up(ask: Ask, name: str, say: Say) -> bool:
    standing = await publications.look(ask, name)
    quoted = publications.identifier(name)
    lacks: list[Missing] = []
    if standing.publication is None:
        lacks = await publications.create(ask, name)
        if not lacks:
            say(f"made: publication {quoted} for all tables; {HAZARD}")
            standing = await publications.look(ask, name)
    else:
        say(f"ok: publication {quoted} was there already")
    others = publications.missing(standing, name)
    _say_missing([each for each in others if each.remedy != publications.SETUP] + lacks, say)
    return not others


async def _show(ask: Ask, name: str, say: Say) -> bool:
    standing = await publications.look(ask, name)
    _say_held(standing, name, say)
    lacks = publications.missing(standing, name)
    _say_missing(lacks, say)
    if standing.publication is not None:
        count = len(await publications.uncovered(ask, name))
        say(f"{'note' if count else 'ok'}: tables whose changes it does not tell: {count}")
        for table in await publications.without_identity(ask):
            say(f"warning: UPDATE and DELETE may be refused on {table}, which has no replica identity")
    for slot in await publications.slots(ask):
        use = f"in use by process {slot.pid}" if slot.pid else "not in use"
        kept = "unknown" if slot.kept_bytes is None else f"{slot.kept_bytes:,} bytes"
        say(f"slot: {slot.name}, {use}, WAL kept for it: {kept}")
    return not lacks


def _say_held(standing: Standing, name: str, say: Say) -> None:
    if standing.logical:
        say(f"ok: wal_level is {standing.wal_level}")
    if standing.may_replicate:
        say(f"ok: role {standing.role} may replicate")
    if standing.publication is not None:
        covers = "all tables" if standing.publication.all_tables else "some tables"
        say(f"ok: publication {publications.identifier(name)} is there, for {covers}")


def _say_missing(lacks: list[Missing], say: Say) -> None:
    for each in lacks:
        say(f"missing: {each.reason}")
        say(f"  do: {each.remedy}")


async def _tear_down(ask: Ask, name: str, say: Say) -> bool:
    standing = await publications.look(ask, name)
    quoted = publications.identifier(name)
    if standing.publication is None:
        say(f"ok: there is no publication {quoted}")
    else:
        await publications.drop(ask, name)
        say(f"dropped: publication {quoted}")
    clean = True
    for slot in await publications.slots(ask):
        if slot.pid:
            say(f"left: slot {slot.name} is in use by process {slot.pid}; it goes with the pgnear that uses it")
            clean &= slot.temporary
        else:
            await publications.drop_slot(ask, slot)
            say(f"dropped: slot {slot.name}")
    return clean

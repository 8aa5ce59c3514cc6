"""The console's commands that change what the service does: RELOAD, PAUSE and its kind.

Lives here: what each does, and how a worker that comes later learns what holds (`join_in`). Not here: how they are read
and answered (`commands`, `console`). Their names and meanings are PgBouncer's, where it has them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import trio

from pooler import ending, upkeep
from pooler.admin.everybody import ANSWER_SECONDS, ask_everybody
from pooler.ceremony.greeting import worker_of
from pooler.ceremony.reload import reload
from pooler.logs import get_logger
from pooler.workers.peers import answers
from protocol import errors

if TYPE_CHECKING:
    from pooler.pool import Pool
    from pooler.service import Service

log = get_logger(__name__)

LOOK_SECONDS = 0.01

Rows: TypeAlias = Iterable[tuple[str, ...]]


class Control(NamedTuple):
    """A command; `database` says whether it is given one (or what `of` says), `waits` whether it takes as long as
    clients or origins do."""

    help: str
    database: Literal["none", "optional", "required"]
    run: Callable[[Service, str | None], Awaitable[Rows]]
    columns: tuple[str, ...] = ()
    waits: bool = False
    of: str = "database"

    @property
    def argument(self) -> str:
        return {"none": "", "optional": f" [{self.of}]", "required": f" {self.of}"}[self.database]


def _pools(service: Service, database: str | None) -> list[Pool]:
    if database is None:
        return list(service.pools.values())
    pool = service.pools.get(database)
    if pool is None:
        raise errors.unknown_database(database)
    return [pool]


async def _reload(service: Service, database: str | None) -> Rows:
    return await reload(service)


async def _pause(service: Service, database: str | None) -> Rows:
    """Returns when nothing is connected to the origin any more, or somebody has let the clients go on."""
    pools = await _hold(service, database)
    for pool in pools:
        while pool.held_since is not None and (pool.origins or pool.connecting_count):  # noqa: ASYNC110 (no tasks)
            await trio.sleep(LOOK_SECONDS)
    return ()


async def _suspend(service: Service, database: str | None) -> Rows:
    await _hold(service, database)
    return ()


async def _hold(service: Service, database: str | None) -> list[Pool]:
    pools = _pools(service, database)
    for pool in pools:
        log.warning("pool_paused", pool=pool.name, busy=pool.busy_count, waiting=pool.waiting_count)
        upkeep.hold(pool)
    return pools


async def _resume(service: Service, database: str | None) -> Rows:
    for pool in _pools(service, database):
        if pool.held_since is not None:
            log.warning("pool_resumed", pool=pool.name, waiting=pool.waiting_count)
            upkeep.let_go(pool)
    return ()


async def _reconnect(service: Service, database: str | None) -> Rows:
    for pool in _pools(service, database):
        log.warning("pool_reconnects", pool=pool.name)
        upkeep.renew(pool)
    return ()


async def _wait_close(service: Service, database: str | None) -> Rows:
    """Returns when every connection from before the last RECONNECT, or the last change of what they are, is closed."""
    for pool in _pools(service, database):
        while upkeep.has_outdated(pool):  # noqa: ASYNC110 (no tasks)
            await trio.sleep(LOOK_SECONDS)
    return ()


async def _kill_client(service: Service, pid: str | None) -> Rows:
    session = next((each for each in service.sessions if str(each.key[0]) == pid), None)
    if (
        session is None
        and service.peers is not None
        and str(pid).isdigit()
        and worker_of(int(str(pid))) != service.peers.index
    ):
        return ()
    if session is None:
        raise errors.unknown_client(str(pid))
    log.warning("client_killed", user=session.user, database=session.database, client=session.transport.peer)
    ending.shutdown(session)
    return ()


async def _kill(service: Service, database: str | None) -> Rows:
    (pool,) = await _hold(service, database)
    for session in [session for session in service.sessions if session.pool is pool]:
        ending.shutdown(session)
    return ()


async def _disable(service: Service, database: str | None) -> Rows:
    for pool in _pools(service, database):
        log.warning("pool_disabled", pool=pool.name)
        pool.disabled = True
    return ()


async def _enable(service: Service, database: str | None) -> Rows:
    for pool in _pools(service, database):
        log.warning("pool_enabled", pool=pool.name)
        pool.disabled = False
    return ()


CONTROLS = {
    "RELOAD": Control("read the configuration again", "none", _reload, ("setting", "outcome"), waits=True),
    "PAUSE": Control(
        "let clients wait; done when their transactions are over and the origin's connections closed",
        "optional",
        _pause,
        waits=True,
    ),
    "SUSPEND": Control("the same, but done at once", "optional", _suspend),
    "RESUME": Control("let clients go on", "optional", _resume),
    "RECONNECT": Control("replace the origin's connections as they become idle", "optional", _reconnect),
    "WAIT_CLOSE": Control("wait until what RECONNECT replaces is closed", "optional", _wait_close, waits=True),
    "KILL_CLIENT": Control("disconnect one client, by its pid in SHOW CLIENTS", "required", _kill_client, of="pid"),
    "KILL": Control("disconnect a database's clients, and let those who come wait for RESUME", "required", _kill),
    "DISABLE": Control("turn new clients of a database away", "required", _disable),
    "ENABLE": Control("let them in again", "required", _enable),
}
"""By its first word."""


async def everywhere(service: Service, word: str, database: str | None) -> Rows:
    """Have every worker carry out a command; it is done when the last one is. The rows of all, each once.

    Raises:
      PgError: some have failed, or do not answer.
    """
    within = None if CONTROLS[word].waits else ANSWER_SECONDS
    replies = await ask_everybody(service, "command", {"word": word, "database": database}, within=within)
    replies.check()
    return list(dict.fromkeys(tuple(row) for rows in replies.answers.values() for row in rows))


@answers("command")
async def _carry_out(service: Service, data: Any) -> list[tuple[str, ...]]:
    return list(await CONTROLS[data["word"]].run(service, data["database"]))


async def join_in(service: Service) -> None:
    """This worker takes another one's place: what the others hold or have disabled, it does too."""
    if service.peers is None:
        return
    with trio.move_on_after(ANSWER_SECONDS):
        for held in await service.peers.ask_others("held"):
            for name in held["paused"] if held else ():
                if name in service.pools:
                    upkeep.hold(service.pools[name])
            for name in held["disabled"] if held else ():
                if name in service.pools:
                    service.pools[name].disabled = True


@answers("held")
async def _held(service: Service, data: Any) -> dict[str, list[str]]:
    pools = service.pools.values()
    return {
        "paused": [pool.name for pool in pools if pool.held_since is not None],
        "disabled": [pool.name for pool in pools if pool.disabled],
    }

"""`pgnear explain-cache`: asks the console of a running pgnear, and prints what it says.

Lives here: the connection and what an operator is told. The answer is made over there, in `explain`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import trio

from config import Target
from config.model import CONSOLE
from pooler.ceremony.connect import ask, connect_to, text_rows
from pooler.reactor import Reactor
from pooler.transport import TransportClosed
from protocol.responses import PgError

Say = Callable[[str], None]

ANSWER_SECONDS = 10.0
"""How long the console may take, for the login and for the answer each."""


def explain_cache(target: Target, database: str | None, statement: str, say: Say, complain: Say) -> int:
    """Print what the pgnear at `target` says of `statement`; 0, or 1 where it could not be asked.

    Args:
      database: None is the first one that it serves.
    """
    where = "" if database is None else ' ON "' + database.replace('"', '""') + '"'
    try:
        rows = trio.run(_asked, replace(target, dbname=CONSOLE), f"EXPLAIN CACHE{where} {statement}")
    except (PgError, TransportClosed, trio.TooSlowError) as error:
        complain(f"pgnear: {str(error) or 'no answer in time'}")
        return 1
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"{name + ':':{width + 1}} {value}".rstrip())
    return 0


async def _asked(target: Target, command: str) -> list[tuple[str, ...]]:
    with trio.fail_after(ANSWER_SECONDS):
        connected = await connect_to(target, Reactor())
    try:
        with trio.fail_after(ANSWER_SECONDS):
            return text_rows(await ask(connected.transport, command), 2)
    finally:
        connected.transport.close()

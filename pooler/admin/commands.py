"""The commands of the console: what each is called, which columns it answers with, and where they come from.

Lives here: reading a command, and what its answer is made of. Not here: SHOW's tables (`tables`), EXPLAIN CACHE
(`explain`), PURGE (`purge`), what changes the service (`control`), the protocol (`console`). Where there are several
workers, each command is for all of them (`everybody`).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from pooler.admin import control, purge
from pooler.admin.control import CONTROLS
from pooler.admin.explain import explain
from pooler.admin.purge import PART, identifier, read_purge
from pooler.admin.rows import Column, Row
from pooler.admin.tables import TABLES, show
from protocol import errors

if TYPE_CHECKING:
    from pooler.service import Service


class Asker(NamedTuple):
    """Who gives a command."""

    user: str
    application_name: str


class Answer(NamedTuple):
    """Rows and command tag; `silent` are the workers whose part is missing in the rows."""

    rows: list[Row]
    tag: str
    silent: list[int]


class Command(NamedTuple):
    """A command that was understood. `run` raises PgError."""

    columns: tuple[Column, ...]
    run: Callable[[], Awaitable[Answer]]


def read_command(service: Service, asker: Asker, text: str) -> Command | None:
    """What `text` commands; None where it is empty.

    Raises:
      PgError: 42601, it is no command.
    """
    text = text.strip().rstrip(";").rstrip()
    if not text:
        return None
    if found := _EXPLAIN.fullmatch(text):
        return _explain(service, asker, found["database"] and identifier(found["database"]), found["statement"])
    words = " ".join(text.split()).upper()
    if words.startswith("SHOW ") and (name := words.removeprefix("SHOW ")) in TABLES:
        return _show(service, name)
    if (found := _PURGE.fullmatch(text)) and read_purge(found[1]):
        return _purge(service, found[1])
    if found := _CONTROL.fullmatch(text):
        return _control(service, found["word"].upper(), found["database"] and identifier(found["database"]))
    beginning = " ".join(text[:60].split())
    raise errors.unknown_command(beginning if len(text) <= 60 else f"{beginning}...")


def _explain(service: Service, asker: Asker, database: str | None, statement: str) -> Command:
    async def run() -> Answer:
        lines, silent = await explain(service, *asker, database, statement)
        return Answer(list(lines), "EXPLAIN", silent)

    return Command((Column("property"), Column("value")), run)


def _show(service: Service, name: str) -> Command:
    async def run() -> Answer:
        rows, silent = await show(service, name)
        return Answer(rows, "SHOW", silent)

    return Command(TABLES[name].columns(service), run)


def _purge(service: Service, what: str) -> Command:
    async def run() -> Answer:
        return Answer([], f"PURGE {await purge.everywhere(service, what)}", [])

    return Command((), run)


def _control(service: Service, word: str, database: str | None) -> Command:
    needs = CONTROLS[word].database
    if needs != "optional" and (database is not None) != (needs == "required"):
        raise errors.unknown_command(f"{word} {database or ''}".strip())

    async def run() -> Answer:
        return Answer(list(await control.everywhere(service, word, database)), word, [])

    return Command(tuple(map(Column, CONTROLS[word].columns)), run)


_EXPLAIN = re.compile(
    rf"explain\s+cache(?:\s+on\s+(?P<database>{PART}))?(?:\s+|(?=/\*|--|\())(?P<statement>.+)",
    re.IGNORECASE | re.DOTALL,
)
_PURGE = re.compile(r"purge\s+(.+)", re.IGNORECASE)
_CONTROL = re.compile(
    rf"(?P<word>{'|'.join(sorted(CONTROLS, key=len, reverse=True))})(?:\s+(?P<database>{PART}))?", re.IGNORECASE
)

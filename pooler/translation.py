"""What a batch becomes on one origin connection: messages, and the steps that follow their answers.

Lives here: statement names become pgnear's own, a Parse that the connection has is not sent (its ParseComplete is made
up), one that it lacks is sent first (its ParseComplete is swallowed), and each message leaves a step that says what to
do with its answer, or to undo if it fails. Not here: reading the client's frames (`operations`), when a batch goes to
an origin at all (`extended`), following the steps (`unit`).
"""

from __future__ import annotations

from dataclasses import replace
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from pooler import views
from pooler.cache.keys import ALL_TEXT
from pooler.caching import NO_PARAMETERS
from pooler.consequences import mind
from pooler.origin import FAILED_TRANSACTION
from pooler.settings import DEFAULTS
from pooler.sql.effects import resolve
from pooler.sql.statement import Part, PinKind
from pooler.sql.traces import left_by
from pooler.statements import ORIGIN_PREFIX, Prepared
from pooler.unit import BIND, CLOSE, DESCRIBE, EXECUTE, FAIL, MADE_UP, PARSE, UNNAMED, Step, Unit
from protocol import errors, framing
from protocol.framing import CLOSE_COMPLETE, PARSE_COMPLETE

if TYPE_CHECKING:
    from pooler.operations import Operation
    from pooler.origin import Origin
    from pooler.session import Session

_PARSE, _BIND, _DESCRIBE, _EXECUTE = b"PBDE"
_STATEMENT = ord("S")
_header: Final = Struct("!ci").pack
_BOUND_TO_FAIL: Final = framing.frame(b"B", b"\0" + ORIGIN_PREFIX + b"none\0" + ALL_TEXT)


class Translation:
    """Messages for one origin connection, and the steps that follow their answers.

    Attributes:
      bound: (statement, Bind's tail) of each Bind.
      messages: what to send. changed: whether that differs from what the client sent.
      scripted: whether the answers must be followed one by one. hides_rows: rows among them are not the client's.
      discards_all: it executes a DISCARD ALL.
      keeps: the statement that it parses without a name and the connection keeps under pgnear's. request: the whole
        batch then.
    """

    __slots__ = (
        "bound", "changed", "data", "discards_all", "hides_rows", "keeps", "messages", "origin", "request", "scripted",
        "session", "steps", "unit",
    )  # fmt: skip

    def __init__(self, session: Session, origin: Origin, unit: Unit, data: bytes) -> None:
        self.session = session
        self.origin = origin
        self.unit = unit
        self.data = data
        self.bound: list[tuple[Prepared, bytes]] = []
        self.messages: list[bytes] = []
        self.steps: list[Step] = []
        self.changed = False
        self.scripted = False
        self.hides_rows = False
        self.discards_all = False
        self.keeps: Prepared | None = None
        self.request = b""

    def add(self, operation: Operation) -> None:
        kind = operation[0]
        if kind == _BIND:
            self._bind(operation)
        elif kind == _EXECUTE:
            if self.session.portals:
                self._execute(operation)
            else:
                self._pass(operation, EXECUTE)
        elif kind == _DESCRIBE:
            self._describe(operation)
        elif kind == _PARSE:
            self._parse(operation)
        else:
            self._close(operation)

    def _pass(self, operation: Operation, step: int, argument: Any = None) -> None:
        self.messages.append(self.data[operation[1] : operation[2]])
        self.steps.append((step, True, argument, None))

    def _parse(self, operation: Operation) -> None:
        name, prepared = operation[3], operation[4]
        session, origin = self.session, self.origin
        if not name:
            if self.steps:  # if the unit fails, it must be known whether this came to pass
                self.scripted = True
            undo = self._remember(name, prepared)
            if self.keeps is not None and prepared is self.keeps:
                self._keep(prepared)
                return
            origin.unnamed = prepared
            if prepared.said is None:
                self.messages.append(self.data[operation[1] : operation[2]])
            else:
                if prepared.needs is not None:
                    self._have_needed(prepared.needs)
                self.messages.append(prepared.parse_frame(b""))
                self.changed = self.scripted = True

            def undo_unnamed() -> None:
                if origin.unnamed is prepared:
                    origin.unnamed = None
                undo()

            self.steps.append((UNNAMED, True, prepared, undo_unnamed))
            return
        self.scripted = self.changed = True
        taken = name in session.statements or name in session.state.sql_statements
        if prepared.needs is not None:
            self._have_needed(prepared.needs)
        failed = self._may_have_failed
        if taken:  # what is wrong with the text is said first
            if failed or prepared.warns:
                self._parse_unnamed(prepared, None, forward=False)
            else:
                self._have_needed(prepared)
            self._fail(errors.duplicate_prepared_statement(name.decode(errors="replace")).response())
            return
        undo = self._remember(name, prepared)
        if (failed or prepared.warns) and prepared in origin.prepared:  # to fail as any other, or to warn
            self._parse_unnamed(prepared, undo, forward=True)
            return
        if prepared in origin.prepared:
            origin.prepared.move_to_end(prepared)
            self.steps.append((MADE_UP, True, PARSE_COMPLETE, undo))
            return

        def undo_named() -> None:
            origin.prepared.pop(prepared, None)
            undo()

        self._make_room()
        origin.prepared[prepared] = None
        self.messages.append(prepared.parse_frame(prepared.name))
        self.steps.append((PARSE, True, prepared, undo_named))
        if prepared.row_description is None:  # to be compared with after DDL
            self.messages.append(framing.frame(b"D", b"S" + prepared.name + b"\0"))
            self.steps.append((DESCRIBE, False, prepared, None))

    @property
    def _may_have_failed(self) -> bool:
        """Whether what comes now may find its transaction failed: it has, or the units before this one will tell."""
        origin = self.origin
        return origin.status == FAILED_TRANSACTION or any(
            not unit.swallow and unit is not self.unit for unit in origin.units
        )

    def _keep(self, prepared: Prepared) -> None:
        """The client parses without a name what the connection has, or will have, under pgnear's."""
        self.changed = True
        if prepared in self.origin.prepared:
            self.unit.prefix = PARSE_COMPLETE
            self.unit.again = prepared, self.request
            self._have_needed(prepared)
        else:
            self._have_needed(prepared)
            self.steps.append((MADE_UP, True, PARSE_COMPLETE, lambda: self.session.forget_unnamed(prepared)))
            self.session.service.stats.statements_kept += 1

    def _parse_unnamed(self, prepared: Prepared, undo: Any, *, forward: bool) -> None:
        """Ask the origin about `prepared` without leaving it there."""
        self.origin.unnamed = None
        self.messages.append(prepared.parse_frame(b""))
        self.steps.append((PARSE, forward, prepared, undo))

    def _remember(self, name: bytes, prepared: Prepared) -> Any:
        statements = self.session.statements
        before = statements.get(name)
        self.session.remember(name, prepared)

        def undo() -> None:
            if statements.get(name) is not prepared:
                return  # what was sent behind has taken its place
            if before is None:
                del statements[name]
            else:
                statements[name] = before

        return undo

    def _make_room(self) -> None:
        """Close the connection's least recently used statements where it has as many as it may, unseen."""
        prepared = self.origin.prepared
        for victim in self.origin.make_room():

            def undo(victim: Prepared = victim) -> None:
                prepared[victim] = None
                prepared.move_to_end(victim, last=False)

            self.messages.append(victim.close_frame())
            self.steps.append((CLOSE, False, None, undo))

    def _have(self, name: bytes) -> Prepared | None:
        """The client's statement `name`, present on the origin connection from here on; None if there is none."""
        session, origin = self.session, self.origin
        prepared = session.statements.get(name)
        if prepared is None:
            return None
        if prepared.said is not None:
            if prepared.needs is not None:
                self._have_needed(prepared.needs)
            elif prepared.statement.shows:
                prepared = views.showing(session, prepared.said, prepared.types, prepared.statement)
            session.rewritten = (self.unit, prepared.said or b"", prepared.edits)
        if not name:
            if origin.unnamed is not prepared:
                self._replay(prepared, b"")
                origin.unnamed = prepared
        else:
            self._have_needed(prepared)
        return prepared

    def _have_needed(self, prepared: Prepared) -> None:
        """`prepared`, present on the origin connection under pgnear's name from here on."""
        origin = self.origin
        if prepared in origin.prepared:
            origin.prepared.move_to_end(prepared)
        else:
            self._make_room()
            self._replay(prepared, prepared.name)
            origin.prepared[prepared] = None

    def _replay(self, prepared: Prepared, name: bytes) -> None:
        """A Parse that the client does not know of."""
        origin = self.origin

        def undo() -> None:
            if name:
                origin.prepared.pop(prepared, None)
            elif origin.unnamed is prepared:
                origin.unnamed = None

        self.messages.append(prepared.parse_frame(name))
        self.steps.append((PARSE, False, prepared, undo))
        self.scripted = self.changed = True
        self.session.service.stats.statements_replayed += 1

    def _bind(self, operation: Operation) -> None:
        _, start, end, portal, name, rest = operation
        session, origin = self.session, self.origin
        if origin.verified and self._is_outdated(name):
            return
        prepared = self.keeps if self.keeps is not None else self._have(name)
        if prepared is None:
            if name in session.state.sql_statements:
                self._pass(operation, BIND)
            else:
                self._missing(name)
            return
        if name or self.keeps is not None:
            body = portal + b"\0" + prepared.name + b"\0" + self.data[rest:end]
            self.messages.append(_header(b"B", len(body) + 4) + body)
            self.changed = True
        else:
            self.messages.append(self.data[start:end])
        self.steps.append((BIND, True, name, None))
        if name:
            session.bound = name
        statement = prepared.statement
        mind(session, statement, self.unit)
        self.bound.append((prepared, self.data[rest:end]))
        if statement.has_effects or (session.state.watching and statement.parts):
            session.state.watching = True
            part = statement.parts[0]
            session.portals[portal] = _with_parameters(part, self.data[rest:end]) if part.configs else part
        elif session.portals:
            session.portals.pop(portal, None)

    def _is_outdated(self, name: bytes, before: int = _BIND) -> bool:
        """Whether the statement's rows have changed since its client prepared it; then that is the answer."""
        known = self.session.statements.get(name)
        if known is None or self.origin.verified.get(known) is not False:
            return False
        del self.origin.verified[known]
        parameters = known.parameter_description if before == _DESCRIBE else None
        self._fail((parameters or b"") + errors.outdated_plan().response())
        return True

    def _execute(self, operation: Operation) -> None:
        part = self.session.portals.get(operation[3])
        self._pass(operation, EXECUTE, part)
        self.scripted = True
        if part is None:
            return
        startup = self.session.state.startup
        if part.resets and startup is not DEFAULTS:
            # A RESET goes back to what the session began with: that is set again behind it, unseen by the client.
            for sql in startup.restore([change.name for change in part.changes if change.apply_sql is None]):
                self.run_unseen(sql.encode())
        if part.discards == "all":
            self.discards_all = True

    def run_unseen(self, text: bytes) -> None:
        """Parse, Bind, Execute and Close that the client does not know of."""
        service = self.session.service
        prepared = service.prepared.intern(text, NO_PARAMETERS, service.classifier(text), self.session.scope)
        self._have_needed(prepared)
        portal = ORIGIN_PREFIX + b"unseen"
        body = portal + b"\0" + prepared.name + b"\0" + ALL_TEXT
        self.messages += [
            _header(b"B", len(body) + 4) + body,
            framing.frame(b"E", portal + b"\0\0\0\0\0"),
            framing.frame(b"C", b"P" + portal + b"\0"),
        ]
        self.steps += [(BIND, False, None, None), (EXECUTE, False, None, None), (CLOSE, False, None, None)]
        self.changed = self.scripted = self.hides_rows = True

    def _describe(self, operation: Operation) -> None:
        _, _, _, what, name = operation
        if what != _STATEMENT:
            self._pass(operation, DESCRIBE)
            return
        if self.origin.verified and self._is_outdated(name, _DESCRIBE):
            return
        prepared = self._have(name)
        if prepared is None:
            if name in self.session.state.sql_statements:
                self._pass(operation, DESCRIBE)
            else:
                self._missing(name)
            return
        self.scripted = True
        if name:
            self.messages.append(framing.frame(b"D", b"S" + prepared.name + b"\0"))
            self.changed = True
            self.steps.append((DESCRIBE, True, prepared, None))
        else:
            self._pass(operation, DESCRIBE, prepared)

    def _close(self, operation: Operation) -> None:
        _, _, _, what, name = operation
        if what != _STATEMENT or (name in self.session.state.sql_statements and name not in self.session.statements):
            self._pass(operation, CLOSE)
            return
        self.scripted = self.changed = True
        statements = self.session.statements
        prepared = statements.pop(name, None)

        def undo() -> None:
            if prepared is not None:
                statements[name] = prepared

        self.steps.append((MADE_UP, True, CLOSE_COMPLETE, undo))

    def _missing(self, name: bytes) -> None:
        self._fail(errors.undefined_prepared_statement(name.decode(errors="replace")).response())

    def _fail(self, response: bytes) -> None:
        """Make the origin fail here too, so that its transaction and its skipping to Sync are as they should be.

        What it is sent is a Bind of a statement that no connection has; its error is replaced by `response`.
        """
        self.messages.append(_BOUND_TO_FAIL)
        self.steps.append((FAIL, False, response, None))
        self.scripted = self.changed = True


def _with_parameters(part: Part, tail: bytes) -> Part:
    """`part` with the settings that its calls of set_config make with a Bind's values; a pin where they are unclear."""
    values = _parameters(tail)
    changes, pins = list(part.changes), set(part.pins)
    for config in part.configs:
        change = resolve(config, values)
        if change is not None:
            changes.append(change)
        elif config.local is not True:
            pins.add(PinKind.SETTING)
    bound = replace(part, changes=tuple(changes), configs=(), pins=frozenset(pins))
    return replace(bound, leaves=part.leaves | left_by(bound))


def _parameters(tail: bytes) -> list[bytes | None]:
    """The parameter values in the rest of a Bind, from its format codes on."""
    position = 2 + 2 * int.from_bytes(tail[:2], "big")
    count = int.from_bytes(tail[position : position + 2], "big")
    position += 2
    values: list[bytes | None] = []
    for _ in range(count):
        size = int.from_bytes(tail[position : position + 4], "big", signed=True)
        position += 4
        values.append(None if size < 0 else tail[position : position + size])
        position += max(size, 0)
    return values


def run_unseen_first(session: Session, origin: Origin, unit: Unit, text: bytes) -> None:
    """Have `text` run in the unfinished batch `unit`, before the Query or FunctionCall at hand, which will end it.

    Where that batch has executed something, not in the Query's own text: of several statements in one, version 18
    commits what the batch has begun, and of a single one it does not.
    """
    translation = Translation(session, origin, unit, b"")
    translation.run_unseen(text)
    unit.script(translation.steps, hides_rows=True)
    session.send_later(b"".join(translation.messages))


def fail_unit(session: Session, unit: Unit, response: bytes) -> None:
    """Have the origin fail in `unit`, which is new, with `response` in the place of its error; a Sync is to follow."""
    unit.script([(FAIL, False, response, None)])
    session.send_later(_BOUND_TO_FAIL)

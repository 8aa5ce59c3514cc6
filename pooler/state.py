"""What a session has done to itself: settings as transactions make and undo them, and the state that pins it.

Lives here: pure bookkeeping over completed statements, tested without sockets. Who calls it: `session`, with what
`unit` saw complete. Not here: reading statements (`pooler.sql`), sending the difference (`session`).

Settings follow PostgreSQL's rules (documentation, "SET" and "SAVEPOINT"):

    SET            holds from now; undone by ROLLBACK, by ROLLBACK TO an earlier savepoint, by a failed transaction
    SET LOCAL      ends with its transaction: nothing to remember
    COMMIT         what was set holds for good
    implicit       without BEGIN a whole simple Query, or everything up to a Sync, is one transaction

A pin is dropped when the origin itself says that the state is gone: whenever that may be so, `probe_due` is set, and
the session asks (`probe_query`).
"""

from __future__ import annotations

from time import monotonic

from pooler.settings import Settings
from pooler.sql.effects import set_config_sql
from pooler.sql.statement import Part, PinKind, SettingChange, Transact
from protocol import framing

IDLE = ord("I")

MOST_SAVEPOINTS = 1000
MOST_NAMES = 1000
"""What is remembered within one transaction that sets something; with more its connection stays with its client."""

ADOPTED = frozenset(
    """
    application_name client_encoding datestyle default_transaction_read_only intervalstyle scram_iterations search_path
    standard_conforming_strings timezone
    """.split()
)
"""Reported settings that are taken over when they change without a statement that says so (in a function, say)."""

_EXPLAINS = {"role": ("is_superuser", "search_path"), "session_authorization": ("is_superuser", "search_path", "role")}

_PROBES = {
    PinKind.TEMPORARY: """CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_depend WHERE refclassid OPERATOR(pg_catalog.=)
 'pg_catalog.pg_namespace'::pg_catalog.regclass AND refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema())
 THEN 1 WHEN pg_catalog.pg_my_temp_schema() OPERATOR(pg_catalog.<>) 0 THEN 2 ELSE 0 END""",
    PinKind.LISTEN: "EXISTS (SELECT FROM pg_catalog.pg_listening_channels())",
    PinKind.CURSOR: "EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable)",
    PinKind.ADVISORY: """EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory'
 AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid())""",
    PinKind.PREPARE: "EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE from_sql)",
}
"""For each kind of state that the origin can be asked about: whether this connection has any. Of temporary objects 2
says that they are gone and that their schema is left."""

_MAY_MAKE_SCHEMAS = frozenset({PinKind.TEMPORARY, PinKind.HIDDEN, PinKind.REACHED, PinKind.UNPARSABLE})

TAINTS = frozenset({PinKind.LASTING, PinKind.LOAD, PinKind.SEED, PinKind.REPLICATION})
"""What not even DISCARD ALL takes back: the connection is closed, not reused."""


def probe_query(kinds: list[PinKind]) -> bytes:
    """The Query frame that asks for the state of `kinds`: one row, a digit for each."""
    return framing.query("SELECT " + ",".join(f"({_PROBES[kind]})::pg_catalog.int4" for kind in kinds))


class SessionState:
    """One session's own state.

    Attributes:
      startup: the settings its startup packet asked for; RESET goes back to them.
      settings: what holds outside transactions, and what another connection must be given.
      current: what holds now, inside a transaction that may yet be undone.
      watching: a transaction with changes is under way, so that its control statements matter.
      pins: state that keeps the session on its connection, and since when (monotonic seconds).
      probe_due: some of that state may be gone.
      sql_statements: names that SQL's PREPARE made, which the origin knows as they are.
      max_bytes: how much its settings may take; a SET beyond that stays on its connection, and pins.
    """

    __slots__ = (
        "_failed", "_names", "_overflows", "_reported", "_savepoints", "current", "max_bytes", "pins", "probe_due",
        "settings", "sql_statements", "startup", "tainted", "watching",
    )  # fmt: skip

    def __init__(self, startup: Settings, max_bytes: int = 32768) -> None:
        self.startup = startup
        self.max_bytes = max_bytes
        self.settings = startup
        self.current = startup
        self.watching = False
        self.pins: dict[PinKind, float] = {}
        self.probe_due = False
        self.tainted = False
        self.sql_statements: set[bytes] = set()
        self._savepoints: list[tuple[str, Settings]] = []
        self._names: set[str] = set()  # what this transaction has set, "" for RESET ALL
        self._reported: dict[str, str] = {}
        self._failed = False
        self._overflows = False

    # ---- what completes ----------------------------------------------------------------------------------------------

    def complete(self, part: Part, tag: bytes) -> list[PinKind]:
        """`part` is complete with the command tag `tag` (b"" where it was only begun); the kinds that pin anew."""
        if part.transact is not None:
            self._transact(part.transact, part.savepoint, tag)
        for change in part.changes:
            self._note(change.name)
            if change.local:
                continue
            if self._has_room(change):
                self._become(self._changed(change))
            else:
                self._overflows = True
        if part.discards == "all":
            self._discarded_all(part)
        elif part.releases and not self.pins.keys().isdisjoint(part.releases):
            self._may_release(part)
        if part.prepares is not None:
            self.sql_statements.add(part.prepares)
        if part.deallocates is not None:
            self.sql_statements.discard(part.deallocates)
            if not part.deallocates:
                self.sql_statements.clear()
        pinned = [kind for kind in part.pins if self.pin(kind)]
        if self._overflows:
            self._overflows = False
            if self.pin(PinKind.TOO_MUCH):
                pinned.append(PinKind.TOO_MUCH)
        return pinned

    def _note(self, name: str) -> None:
        """This transaction has set `name`."""
        if len(self._names) < MOST_NAMES:
            self._names.add(name)
        else:
            self._overflows = True

    def _has_room(self, change: SettingChange) -> bool:
        """Whether `change` can be kept; who sets thousands of names is told no without the sum of them being made."""
        if change.apply_sql is None:
            return True
        size = self.current.size + len(change.name) + len(change.apply_sql)
        if size <= self.max_bytes:
            return True
        before = self.current.get(change.name)
        return before is not None and size - len(change.name) - len(before) <= self.max_bytes

    def _become(self, settings: Settings) -> None:
        """`settings` hold now; more than may be kept only the connection knows, and is not given back."""
        if settings.size <= self.max_bytes or settings.size <= self.current.size:
            self.current = settings
        else:
            self._overflows = True

    def _transact(self, control: Transact, savepoint: str, tag: bytes) -> None:
        if control is Transact.ROLLBACK or (control is Transact.COMMIT and tag == b"ROLLBACK"):
            self._roll_back()
        elif control is Transact.COMMIT:
            self._commit()
        elif control is Transact.SAVEPOINT:
            if len(self._savepoints) < MOST_SAVEPOINTS:
                self._savepoints.append((savepoint, self.current))
            else:
                self._overflows = True
        elif control is Transact.RELEASE:
            self._unwind(savepoint)
        else:
            # A savepoint from before the first change is not on the list: it goes back to what held before all.
            found = self._unwind(savepoint)
            self.current = found if found is not None else self.settings
            if found is not None:
                self._savepoints.append((savepoint, found))

    def _unwind(self, savepoint: str) -> Settings | None:
        """Forget `savepoint` and those after it; what held at `savepoint`, None for one that is not on the list."""
        while self._savepoints:
            name, at = self._savepoints.pop()
            if name == savepoint:
                return at
        return None

    def _commit(self) -> None:
        self.settings = self.current
        self._end_transaction()

    def _roll_back(self) -> None:
        self.current = self.settings
        self._end_transaction()

    def _end_transaction(self) -> None:
        self._savepoints.clear()
        self._failed = False

    def _changed(self, change: SettingChange) -> Settings:
        current, startup = self.current, self.startup
        if change.all:  # role and session user are no part of RESET ALL
            kept = {name: sql for name, sql in current.items if name in ("role", "session_authorization")}
            return Settings.of({**dict(startup.items), **kept})
        sql = change.apply_sql if change.apply_sql is not None else startup.get(change.name)
        changed = current.with_change(change.name, sql)
        if change.name == "session_authorization":  # its default comes with the role's, any other one with none
            changed = changed.with_change("role", startup.get("role") if change.apply_sql is None else None)
        return changed

    def _discarded_all(self, part: Part) -> None:
        self.current = self.settings = self.startup
        self._names.add("")
        makes_schemas = not self.pins.keys().isdisjoint(_MAY_MAKE_SCHEMAS)
        for kind in part.releases:
            self.pins.pop(kind, None)
        if makes_schemas:
            self.pin(PinKind.TEMPORARY)  # until the origin has said whether its schema is there
        self.sql_statements.clear()
        self._end_transaction()

    def keep(self, settings: dict[str, str]) -> None:
        """Begin with `settings` (names and statements), too, but for names that the startup packet has."""
        mine = {name: sql for name, sql in settings.items() if self.startup.get(name) is None}

        def with_them(held: Settings) -> Settings:
            return Settings.of({**mine, **dict(held.items)})

        self.startup, self.settings, self.current = map(with_them, (self.startup, self.settings, self.current))
        self._savepoints = [(name, with_them(held)) for name, held in self._savepoints]

    def has_startup_value(self, name: str) -> bool:
        """Whether nothing has changed the setting `name` since the startup packet."""
        return name not in self._names and self.current.get(name) == self.startup.get(name)

    # ---- errors, reports, the end of a transaction -------------------------------------------------------------------

    def error(self) -> None:
        """The origin said that something failed."""
        self._failed = True

    def reported(self, name: str, value: str) -> None:
        """The origin reported a setting while it worked for this session."""
        lowered = name.lower()
        if lowered in ADOPTED:
            self._reported[lowered] = value
            self.watching = True

    def ready(self, status: int, style: str = "") -> None:
        """ReadyForQuery with `status`; `style` is the DateStyle that the origin has reported last."""
        if status == IDLE:
            if self._failed:
                self._roll_back()
            else:
                self._adopt(style)
                if self._overflows:
                    self._overflows = False
                    self.pin(PinKind.TOO_MUCH)
                self._commit()
            self._reported.clear()
            self._names.clear()
            self.watching = False
        self._failed = False

    def _adopt(self, style: str) -> None:
        """Take over what changed without a statement that says so."""
        if "datestyle" in self._names and style and self.current.get("datestyle") is not None:
            # A SET of it may set only one of its two parts: what holds is what the origin reports.
            self._become(self.current.with_change("datestyle", set_config_sql("datestyle", style)))
        if not self._reported or "" in self._names:
            return
        explained = self._names.union(*(_EXPLAINS.get(name, ()) for name in self._names))
        for name, value in self._reported.items():
            if name not in explained:
                self._become(self.current.with_change(name, set_config_sql(name, value)))

    # ---- pins --------------------------------------------------------------------------------------------------------

    def pin(self, kind: PinKind) -> bool:
        """State of `kind` may be on the connection now; whether that is new."""
        self.probe_due = self.probe_due or kind in _PROBES
        self.tainted = self.tainted or kind in TAINTS
        if kind in self.pins:
            return False
        self.pins[kind] = monotonic()
        return True

    def _may_release(self, part: Part) -> None:
        for kind in part.releases:
            if kind not in self.pins:
                continue
            if kind in _PROBES:
                self.probe_due = True
            else:
                del self.pins[kind]

    def probed_kinds(self) -> list[PinKind]:
        """What to ask the origin about; it is asked once, until something may have changed again."""
        self.probe_due = False
        return [kind for kind in self.pins if kind in _PROBES]

    def probe_answered(self, present: dict[PinKind, bool]) -> list[PinKind]:
        """The origin's answer; the kinds that no longer pin. One that may have come back meanwhile stays."""
        if self.probe_due:
            return []
        return [kind for kind, there in present.items() if not there and self.pins.pop(kind, None) is not None]

    @property
    def dirty(self) -> bool:
        """Whether the connection must be reset before anybody else gets it."""
        return bool(self.pins) or self.current is not self.settings

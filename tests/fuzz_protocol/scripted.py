"""The two ends of the machine's transports: what a client may say, and an origin that answers as PostgreSQL would.

The origin knows no SQL: it knows which answers each message is owed, and the transaction's state by first words. A
statement may carry a mark (`mark-<n>`), which comes back as the only row: who gets it can be seen.
"""

from __future__ import annotations

import re
from struct import pack, unpack_from

from tests.support.hostile import MESSAGES
from tests.support.wire import FLUSH, SYNC, TERMINATE, bind, close, describe, execute, frame, parse, query

MARK = re.compile(rb"mark-(\d+)")

GOOD: tuple[bytes, ...] = tuple(
    message.replace(b"MARK", b"mark-0")
    for message in (
        query("select 'MARK'"),
        query("begin"),
        query("commit"),
        query("rollback"),
        query("select 'MARK'; select 'MARK'"),
        query("set application_name to 'x'"),
        query("set local timezone to 'UTC'"),
        query("reset all"),
        query("discard all"),
        query("listen channel"),
        query("create temporary table t (a int)"),
        query("insert into t values (1)"),
        query("select nextval('s')"),
        query("select currval('s')"),
        query("select error"),
        query("prepare p as select 1"),
        query("execute p"),
        query("deallocate all"),
        query("copy t from stdin"),
        query("copy t to stdout"),
        query(""),
        parse("select 'MARK'"),
        parse("select 'MARK'", "named"),
        parse("set timezone to 'UTC'", "set"),
        parse("select error", "bad"),
        bind(),
        bind("named"),
        bind("set", portal="p"),
        bind("bad"),
        bind("missing"),
        describe("S", "named"),
        describe("P"),
        execute(),
        execute("p"),
        execute(limit=1),
        close("S", "named"),
        close("P"),
        SYNC,
        FLUSH,
        frame("d", b"1\n"),
        frame("c"),
        frame("f", b"reason\0"),
        frame("F", pack("!IHHH", 1598, 0, 0, 0)),
        parse("select 'MARK'") + bind() + describe("P") + execute() + SYNC,
        parse("select 'MARK'", "named") + describe("S", "named") + SYNC,
        bind("named") + execute() + SYNC,
    )
)
"""Whole messages that drivers send; the mark's 0 stands for the client's number."""

LARGEST_MESSAGE = 65536

BAD: tuple[bytes, ...] = (
    *MESSAGES.values(),
    TERMINATE,
    parse("select '" + "x" * LARGEST_MESSAGE + "'"),  # too large, but whole: the session goes on behind the next Sync
    frame("B", bytes(LARGEST_MESSAGE)),
)

ANSWERS: tuple[bytes, ...] = (
    frame("Z", b"I"),
    frame("Z", b"T"),
    frame("Z", b"E"),
    frame("Z", b"?"),
    frame("Z"),
    frame("E", b"SERROR\0VERROR\0C42601\0Mno\0\0"),
    frame("E", b"SFATAL\0VFATAL\0C57P01\0Mbye\0\0"),
    frame("E"),
    frame("N", b"SNOTICE\0C00000\0Mhm\0\0"),
    frame("S", b"TimeZone\0UTC\0"),
    frame("S", b"DateStyle\0"),
    frame("S"),
    frame("A", pack("!I", 7) + b"channel\0payload\0"),
    frame("A"),
    frame("1"),
    frame("2"),
    frame("3"),
    frame("C", b"SELECT 1\0"),
    frame("C"),
    frame("D", pack("!Hi", 1, 1) + b"x"),
    frame("D"),
    frame("T", pack("!H", 0)),
    frame("t", pack("!H", 0)),
    frame("n"),
    frame("s"),
    frame("I"),
    frame("G", pack("!bH", 0, 0)),
    frame("H", pack("!bH", 0, 0)),
    frame("W", pack("!bH", 0, 0)),
    frame("d", b"row\n"),
    frame("c"),
    frame("V", pack("!i", -1)),
    frame("R", pack("!I", 0)),
    frame("K", b"12345678"),
    b"Z\0\0\0\0",
    b"D\x7f\xff\xff\xff",
    b"E\xff\xff\xff\xff",
    b"\0\0\0\0\4",
)
"""What an origin may say at any moment, wrong as it may be."""

_ROW_DESCRIPTION = frame("T", pack("!H", 1) + b"c\0" + pack("!IHIhih", 0, 0, 25, -1, -1, 0))
_ERROR = frame("E", b"SERROR\0VERROR\0C42601\0Mno\0\0")


class Honest:
    """An origin's side of one connection; `answer` takes bytes that were sent to it and gives what it says."""

    def __init__(self) -> None:
        self.status = b"I"
        self._buffer = b""
        self._skipping = False
        self._copying = False
        self._copy_simple = True
        self._statements: dict[bytes, bytes] = {}
        self._portals: dict[bytes, bytes] = {}

    def answer(self, data: bytes) -> bytes:
        self._buffer += data
        out = b""
        while len(self._buffer) >= 5:
            (length,) = unpack_from("!i", self._buffer, 1)
            if length < 4 or length > 1 << 24:
                return out + frame("E", b"SFATAL\0VFATAL\0C08P01\0Minvalid message length\0\0")
            if len(self._buffer) < 1 + length:
                break
            kind, body = chr(self._buffer[0]), self._buffer[5 : 1 + length]
            self._buffer = self._buffer[1 + length :]
            out += self._message(kind, body)
        return out

    def _message(self, kind: str, body: bytes) -> bytes:
        if self._copying:
            return self._copy(kind)
        if kind == "S":
            self._skipping = False
            return self._ready()
        if self._skipping:
            return b""
        if kind == "Q":
            return self._query(body.partition(b"\0")[0]) + (b"" if self._copying else self._ready())
        if kind == "F":
            return frame("V", pack("!i", -1)) + self._ready()
        answer = self._extended(kind, body)
        if answer is None:
            self._skipping = True
            self._failed()
            return _ERROR
        return answer

    def _ready(self) -> bytes:
        if self.status == b"I":
            self._portals.clear()
        return frame("Z", self.status)

    def _failed(self) -> None:
        if self.status == b"T":
            self.status = b"E"

    def _query(self, text: bytes) -> bytes:
        out = b""
        for statement in text.split(b";"):
            if not statement.strip():
                out += frame("I") if text.strip(b"; ") == b"" else b""
                continue
            answer = self._run(statement, described=True)
            if answer is None:
                self._failed()
                return out + _ERROR
            out += answer
            if self._copying:
                self._copy_simple = True
                break
        return out

    def _run(self, statement: bytes, *, described: bool) -> bytes | None:
        """The answer to one statement; None for an error."""
        word = (statement.split() or [b""])[0].lower()
        if word in (b"commit", b"rollback"):
            self.status = b"I"
            return frame("C", word.upper() + b"\0")
        if self.status == b"E" or b"error" in statement:
            return None
        if word == b"begin":
            self.status = b"T"
            return frame("C", b"BEGIN\0")
        if word == b"copy":
            if b"from" in statement:
                self._copying = True
                return frame("G", pack("!bH", 0, 0))
            return frame("H", pack("!bH", 0, 0)) + frame("d", b"1\n") + frame("c") + frame("C", b"COPY 1\0")
        if word in (b"select", b"execute"):
            mark = MARK.search(statement)
            probed = statement.count(b"::pg_catalog.int4")  # pgnear asks whether state is still there: none is
            values = [b"0"] * probed or [mark[0] if mark else b"f"]
            row = frame("D", pack("!H", len(values)) + b"".join(pack("!i", len(each)) + each for each in values))
            return (_ROW_DESCRIPTION if described else b"") + row + frame("C", b"SELECT 1\0")
        if statement.strip().lower() in (b"discard all", b"deallocate all"):
            self._statements.clear()
        return frame("C", word.upper() + b"\0")

    def _extended(self, kind: str, body: bytes) -> bytes | None:
        name, _, rest = body.partition(b"\0")
        if kind == "P":
            text = rest.partition(b"\0")[0]
            if b"error" in text or (name and name in self._statements):
                return None
            self._statements[name] = text
            return frame("1")
        if kind == "B":
            statement = rest.partition(b"\0")[0]
            if statement not in self._statements or (self.status == b"E"):
                return None
            self._portals[name] = self._statements[statement]
            return frame("2")
        if kind == "D":
            known = self._statements if body[:1] == b"S" else self._portals
            if body[1:].partition(b"\0")[0] not in known:
                return None
            described = frame("t", pack("!H", 0)) if body[:1] == b"S" else b""
            return described + (_ROW_DESCRIPTION if b"select" in known[body[1:].partition(b"\0")[0]] else frame("n"))
        if kind == "E":
            if name not in self._portals:
                return None
            answer = self._run(self._portals[name], described=False)
            self._copy_simple = False
            return answer
        if kind == "C":
            known = self._statements if body[:1] == b"S" else self._portals
            known.pop(body[1:].partition(b"\0")[0], None)
            return frame("3")
        return b""

    def _copy(self, kind: str) -> bytes:
        if kind in "dSH":
            return b""
        self._copying = False
        if kind == "c":
            return frame("C", b"COPY 1\0") + (self._ready() if self._copy_simple else b"")
        self._failed()
        if self._copy_simple:
            return _ERROR + self._ready()
        self._skipping = True
        return _ERROR

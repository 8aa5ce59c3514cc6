"""One client of a script on the wire: sends a step's messages and reads the answers that they are owed.

The protocol decides how many answers that is: none while messages are skipped up to a Sync, none yet for what no Flush
or Sync asks for. Answers are made comparable (`Answer`): what may legally differ on a pooled connection (process ids,
places in the server's source, numbers of temporary schemas and of relations) is taken out, and nothing else.

Source: PostgreSQL documentation, "Message Flow".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from struct import unpack_from

from tests.fuzz.script import Message, encode
from tests.support import wire
from tests.support.waiting import until
from tests.support.wire import Frame, Refused, WireClient

Answer = tuple[str, ...]
"""(the message's letter, what it says). ("closed",) for the connection's end, ("silence",) for an answer that is owed
and does not come."""

CLOSED: Answer = ("closed",)
SILENCE: Answer = ("silence",)

_AWAITED = {
    "Parse": "1",
    "Bind": "2",
    "Close": "3",
    "Describe": "Tn",
    "Execute": "CIsG",
    "end of COPY": "C",
}
_FIRST_USER_OID = 16384
_TEMPORARY_SCHEMA = re.compile(r"pg_(toast_)?temp_\d+")
_UNCOMPARED_FIELDS = "FLR"  # file, line and routine of the server's source


class Conversation:
    """One connection of client number `client`, logged in with `parameters`.

    Attributes:
      answers: of the step that runs, in order.
      status: the last ReadyForQuery's; "" while none is due (an unfinished batch, COPY).
      heard: what other clients have notified it of, in order.
      skipping: a batch failed; messages up to its Sync have no answers.
      copying: "simple" or "extended" while it is to send COPY data.
      unsynced: messages were sent whose Sync was not.
    """

    def __init__(
        self, client: int, port: int, parameters: dict[str, str], timeout: float, asleep: Callable[[], bool]
    ) -> None:
        self.client = client
        self._port = port
        self._asleep = asleep
        self.answers: list[Answer] = []
        self.heard: list[Answer] = []
        self.status = "I"
        self.owed: list[str] = []
        self.skipping = False
        self.copying = ""
        self.unsynced = False
        self.closed = False
        try:
            self._wire = WireClient.logged_in(port, timeout=timeout, **parameters)
        except Refused as refused:
            self.closed = True
            self.answers = [_spoken("E", refused.fields), CLOSED]
        else:
            self.answers = _in_any_order(
                [readable for frame in self._wire.greeting if frame[0] != "K" for readable in _readable(*frame)]
            )

    @property
    def pid(self) -> int:
        return self._wire.pid

    @property
    def state(self) -> tuple[object, ...]:
        """What decides which answers are due next."""
        return self.status, self.owed, self.skipping, self.copying, self.unsynced, self.closed

    def say(self, messages: tuple[Message, ...]) -> list[Answer]:
        """Send `messages` in one write; the answers that are due now.

        A "Cancel" among them is a cancel request, made when what was sent before it sleeps or has failed.
        """
        self.answers = []
        try:
            names = [message[0] for message in messages]
            if "Cancel" in names:
                self._cancel(messages[: names.index("Cancel")])
                messages = messages[names.index("Cancel") + 1 :]
            self._wire.send(*map(encode, messages))
            for message in messages:
                if not self.closed:
                    self._await_answers_to(message[0])
        except TimeoutError:
            self.answers.append(SILENCE)
            self.closed = True
        except (EOFError, ConnectionError):
            self.answers.append(CLOSED)
            self.closed = True
        return _in_any_order(self.answers)

    def _cancel(self, messages: tuple[Message, ...]) -> None:
        """Send `messages`, a cancel request while they are under way, and read their answers."""
        self._wire.send(*map(encode, messages))
        if messages and not self.skipping:  # else none of them is carried out
            until(lambda: self._asleep() or self._wire.has_failed(), what="neither asleep nor failed")
        with WireClient(self._port) as other:
            other.send(wire.cancel_request(self._wire.pid, self._wire.secret))
            other.receive_all()
        for message in messages:
            if not self.closed:
                self._await_answers_to(message[0])

    def close(self, how: str = "hang up") -> list[Answer]:
        """End the connection: "terminate", "hang up" or "reset"."""
        if self.closed:
            return []
        self.answers = []
        if how == "terminate":
            try:
                self._wire.send(wire.TERMINATE)
                while True:
                    self._next()
            except TimeoutError:
                self.answers.append(SILENCE)
            except (EOFError, ConnectionError):
                self.answers.append(CLOSED)
        self.closed = True
        if how == "reset":
            self._wire.reset()
        else:
            self._wire.hang_up()
        return _in_any_order(self.answers)

    # ---- what is owed ------------------------------------------------------------------------------------------------

    def _await_answers_to(self, kind: str) -> None:
        if kind in ("CopyDone", "CopyFail"):
            self._copy_ends()
        elif kind == "CopyData":
            return
        elif kind == "Sync":
            self._pay()
            if not self.copying:  # else the server ignores it
                self._until("Z")
                self.skipping = self.unsynced = False
        elif kind == "Flush":
            self._pay()
        elif self.skipping:
            return
        elif kind in ("Query", "FunctionCall"):
            self._pay()
            if not self.skipping:
                self._until_ready_or_copy()
        else:
            self.unsynced = True
            self.status = ""
            self.owed.append(kind)

    def _copy_ends(self) -> None:
        if self.copying == "simple":
            self.copying = ""
            self._until_ready_or_copy()
        elif self.copying:
            self.copying = ""
            self.owed.append("end of COPY")

    def _until_ready_or_copy(self) -> None:
        if self._until("ZG") == "G":
            self.copying = "simple"
            self.status = ""
        else:
            self.unsynced = False

    def _pay(self) -> None:
        """Read the answers to everything since the last Flush or Sync."""
        while self.owed and not self.skipping:
            kind = self._until(_AWAITED[self.owed.pop(0)] + "E")
            if kind == "E":
                self.skipping = True
            elif kind == "G":
                self.copying = "extended"
                return
        self.owed.clear()

    def _until(self, kinds: str) -> str:
        while True:
            kind, body = self._next()
            if kind == "Z":
                self.status = body.decode()
            if kind in kinds:
                return kind

    def _next(self) -> Frame:
        kind, body = self._wire.receive()
        if kind == "A":
            self._notified(body)
        else:
            self.answers += _readable(kind, body)
        return kind, body

    def _notified(self, body: bytes) -> None:
        """A payload begins with the number of the client that sent it; one's own comes at a certain place."""
        channel, payload = body[4:-1].decode().split("\0")
        if payload.startswith(f"{self.client}:"):
            self.answers.append(("A", channel, payload))
        else:
            self.heard.append(("A", channel, payload))


def _readable(kind: str, body: bytes) -> list[Answer]:
    """A frame, without what may legally differ."""
    if kind in "EN":
        fields = (field for field in body.split(b"\0") if field)
        return [_spoken(kind, {chr(field[0]): _text(field[1:]) for field in fields})]
    if kind == "D":
        columns = wire.rows([(kind, body)])[0]
        return [("D", *("NULL" if column is None else _masked(_text(column)) for column in columns))]
    if kind == "T":
        return [("T", *_columns(body))]
    if kind == "t":
        return [("t", *map(str, unpack_from(f"!{(len(body) - 2) // 4}I", body, 2)))]
    if kind in "GHW":
        return [(kind, body.hex())]
    return [(kind, _text(body.rstrip(b"\0").replace(b"\0", b"=")))]


def _columns(body: bytes) -> list[str]:
    """Each column of a RowDescription as name:table:column:type:modifier:format."""
    columns = []
    position = 2
    while position < len(body):
        end = body.index(b"\0", position)
        table, number, type_oid, _, modifier, form = unpack_from("!IhIhih", body, end + 1)
        # A system view that shows a session is a query of pgnear's, whose columns are no table's.
        origin = f"user table:{number}" if table >= _FIRST_USER_OID else "no user table"
        columns.append(f"{_text(body[position:end])}:{origin}:{type_oid}:{modifier}:{form}")
        position = end + 19
    return columns


def _spoken(kind: str, fields: dict[str, str]) -> Answer:
    words = (f"{letter}={_masked(text)}" for letter, text in fields.items() if letter not in _UNCOMPARED_FIELDS)
    return (kind, *sorted(words, key=lambda word: "SVCMDH".find(word[0]) % 100))


def _masked(text: str) -> str:
    return _TEMPORARY_SCHEMA.sub(r"pg_\1temp_N", text)


def _text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")


def _in_any_order(answers: list[Answer]) -> list[Answer]:
    """Neighbouring ParameterStatus reports in alphabetical order: the server's is that of its hash table."""
    ordered: list[Answer] = []
    run: list[Answer] = []
    for answer in answers:
        if answer[0] == "S":
            run.append(answer)
            continue
        ordered += sorted(run)
        run = []
        ordered.append(answer)
    return ordered + sorted(run)

"""Runs a script on private and on pooled connections, step by step, and says where they first differ.

A client without a connection of its own may not act while every connection of the pool is held by others (it would
wait, legally, for one of them): such a step is left out on both sides. Who holds one is what the protocol shows (a
transaction, an unfinished batch, COPY) and, because a pin does not show, what pgnear says of clients that did something
that may pin. It must not say so any more behind a DISCARD ALL.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from functools import partial

from tests.fuzz import look
from tests.fuzz.conversation import SILENCE, Answer, Conversation
from tests.fuzz.rig import Rig
from tests.fuzz.script import Message, Script, Step
from tests.support.process import Pgnear
from tests.support.waiting import until

ANSWERS_WITHIN = 8.0
"""Seconds; over pgnear's pool_wait_timeout."""

UNPINNED_WITHIN = 3.0
"""Seconds in which a client whose state is gone must have given its connection back."""

GONE_WITHIN = 3.0
"""Seconds in which what a closed connection had must be gone."""

PLAIN = frozenset(
    "set reset local custom data transaction error look statement connection startup chain script".split()
)
"""Groups of actions that pin nobody."""

SEEDS = frozenset({"seed", "setseed", "seeded", "load"})
"""Names of actions that pin until the client leaves: not even DISCARD ALL takes a seed or a library back."""

RECALLS = frozenset({"currval", "lastval", "shared currval", "lastval call"})
"""Names of actions that ask for a value of a sequence. Where others may have used the connection since it was drawn,
the answer is that value or 55000, and never another client's (docs/differences.md)."""

DRAWS = frozenset({"nextval", "shared nextval", "setval", "insert", "nextval then currval", "nextval call"})

_STRUCTURE = re.compile(r"\b(create|alter|drop|into)\b")

_WHILE_COPYING = frozenset({"CopyData", "CopyDone", "CopyFail", "Sync", "Flush"})


Known = tuple[str, frozenset[str]]
"""(a signature with * for anything, the groups of actions that it takes)."""


class Unfit(Exception):
    """The script waits for itself on private connections, or breaks their server: it proves nothing."""


class Stop(Exception):
    """A known difference has left the two sides in different states: what follows proves nothing."""


class Difference(AssertionError):
    """The two sides differ.

    Attributes:
      signature: the kind of difference, alike for scripts that fail in the same way.
      step: where. position: how many of the script's steps came before it.
    """

    def __init__(self, signature: str, step: Step | None, expected: list[Answer], got: list[Answer]) -> None:
        self.signature = signature
        self.step = step
        self.position = 0
        alike = first_difference(expected, got)
        super().__init__(
            f"{signature}\n  at       {step}\n  private  {_shown(expected, alike)}\n  pooled   {_shown(got, alike)}"
        )


class Referee:
    """One run of `script`. Call `run` once.

    `tolerated`: signatures that are known, each with the groups of actions without which it is
    another bug's; the script goes on behind such a difference where both sides are in the same state.
    """

    def __init__(self, rig: Rig, script: Script, counts: Counter[str], tolerated: Collection[Known]) -> None:
        self._rig = rig
        self._script = script
        self._counts = counts
        self._tolerated = tolerated
        self._pgnear: Pgnear = rig.pgnear(script.pool_size, script.cache, script.defer)
        self._private: dict[int, Conversation] = {}
        self._pooled: dict[int, Conversation] = {}
        self._position = 0
        self._pinned: set[int] = set()
        self._seeded: set[int] = set()
        self._drawing: set[int] = set()  # has drawn in the transaction that it is in
        self._recalling: set[int] = set()  # has asked, and keeps its connection for it

    def run(self) -> None:
        """Run it.

        Raises:
          Difference, Unfit.
        """
        logged = len(self._pgnear.log_lines)
        try:
            self._rig.refresh(self._pgnear)
            self._rig.structure_changed = any(_STRUCTURE.search(step.line()) for step in self._script.steps)
            for step in self._script.steps:
                self._take(step)
                self._position += 1
            self._clear_up()
        except Stop:
            self._counts["stopped"] += 1
        finally:
            for conversation in (*self._private.values(), *self._pooled.values()):
                conversation.close()
        self._counts["scripts"] += 1
        for line in self._pgnear.log_lines[logged:]:
            if line.get("event") == "internal_error" or "Traceback" in str(line):
                raise Difference("pgnear: internal error", None, [], [("log", str(line))])

    # ---- steps -------------------------------------------------------------------------------------------------------

    def _take(self, step: Step) -> None:
        client = step.client
        if not self._may(step):
            self._counts["left out"] += 1
            return
        self._counts["steps"] += 1
        self._counts[f"group {step.group}"] += 1
        if step.act == "connect":
            self._disconnect(client, "terminate", step)
            self._connect(client, step.messages[0][1], step)
        elif step.act:
            self._disconnect(client, step.act, step)
        else:
            if not self._connected(client):
                self._connect(client, {}, Step(client, "connection", "connect", (("connect", {}),)))
            if step.group not in PLAIN:
                self._pinned.add(client)
            answers = self._say(step)
            if step.name in SEEDS:
                self._seeded.add(client)
            if self._private[client].status == "I":
                self._drawing.discard(client)
            if {("C", "DISCARD ALL"), ("C", "DISCARD SEQUENCES")} & {*answers}:
                self._recalling.discard(client)
            if ("C", "DISCARD ALL") in answers[-2:] and client not in self._seeded:
                self._must_be_free(step)
        if self._script.watch:
            for other in sorted(self._private):
                self._look(other)

    def _may(self, step: Step) -> bool:
        """Whether the step can run now without waiting for another client, and makes sense."""
        client = step.client
        connected = self._connected(client)
        if step.act and step.act != "connect":
            return connected
        if connected and self._private[client].copying and not step.act:
            return all(message[0] in _WHILE_COPYING for message in step.messages)
        size = self._script.pool_size
        holders = self._holders()
        if (step.act == "connect" or client not in holders) and len(holders - {client}) >= size:
            return False
        return step.group in PLAIN or client in self._pinned or len(self._pinned) < max(1, size - 1)

    def _holders(self) -> set[int]:
        self._ask_who_is_pinned()
        return {client for client in self._private if self._connected(client) and self._holds(client)}

    def _holds(self, client: int) -> bool:
        private = self._private[client]
        return client in self._pinned or private.status != "I" or private.unsynced or bool(private.copying)

    def _ask_who_is_pinned(self) -> None:
        """Strike those that pgnear does not keep a connection for."""
        if not self._pinned:
            return
        linked = self._rig.linked(self._pgnear)
        for client in list(self._pinned):
            if not self._connected(client) or self._pooled[client].pid not in linked:
                self._pinned.discard(client)

    def _must_be_free(self, step: Step) -> None:
        """Nothing is left of what has pinned the client."""
        client = step.client
        if self._private[client].status != "I":
            return

        def free() -> bool:
            self._ask_who_is_pinned()
            return client not in self._pinned

        try:
            until(free, within=UNPINNED_WITHIN)
        except AssertionError:
            self._differ(Difference("still pinned", step, [], [("linked", str(client))]), client)

    def _connected(self, client: int) -> bool:
        return client in self._private and not self._private[client].closed

    def _connect(self, client: int, parameters: dict[str, str], step: Step) -> None:
        private, pooled = (
            Conversation(client, port, parameters, ANSWERS_WITHIN, partial(self._rig.asleep, pooled=pooled))
            for port, pooled in ((self._rig.private.port, False), (self._pgnear.port, True))
        )
        self._private[client], self._pooled[client] = private, pooled
        self._compare(step, private.answers, pooled.answers)

    def _disconnect(self, client: int, how: str, step: Step) -> None:
        if not self._connected(client):
            return
        private, pooled = self._private.pop(client), self._pooled.pop(client)
        self._pinned.discard(client)
        for clients in (self._seeded, self._drawing, self._recalling):
            clients.discard(client)
        expected, got = private.close(how), pooled.close(how)
        self._compare(step, expected, got)
        self._rig.until_backend_is_gone(private.pid)
        self._nothing_left_behind(step)

    def _say(self, step: Step) -> list[Answer]:
        private, pooled = self._private[step.client], self._pooled[step.client]
        expected = private.say(step.messages)
        if SILENCE in expected or any(_own_failure(answer) for answer in expected):
            raise Unfit(step)
        got = pooled.say(step.messages)
        if step.group == "sequence" and self._lost(step, expected, got):
            self._counts["sequence values lost"] += 1
            if private.state != pooled.state:
                raise Stop
        else:
            self._compare(step, expected, got)
        if private.status == "I":
            self._compare(step, private.heard, pooled.heard, "notifications")
        if private.closed:
            self._pinned.discard(step.client)
            self._rig.until_backend_is_gone(private.pid)
        return expected

    def _lost(self, step: Step, expected: list[Answer], got: list[Answer]) -> bool:
        """Follow what a client knows of sequences; whether it lost a value that it may lose."""
        client = step.client
        in_transaction = self._private[client].status != "I"
        if step.name in RECALLS:
            if expected == got:
                if "D" in {answer[0] for answer in got}:
                    self._recalling.add(client)
                return False
            return not {client} & (self._drawing | self._recalling) and "C=55000" in {
                word for answer in got if answer[0] == "E" for word in answer
            }
        if step.name in DRAWS and in_transaction:
            self._drawing.add(client)
        return False

    def _nothing_left_behind(self, step: Step) -> None:
        """What a closed connection had is gone on both sides."""
        seen: list[list[tuple[str, ...]]] = [[], []]
        # Of an unfinished batch pgnear may have sent nothing yet, nor of a block, and its transaction shows.
        unheard = self._script.defer or any(other.unsynced for other in self._private.values())
        uncompared = "open transaction" if unheard else ""

        # Version 18 keeps a transaction open that it said is over, where a Query or FunctionCall came before the Sync.
        # pgnear closes such a connection, but for a client that is pinned to it.
        confused = [one.pid for one in self._private.values() if not one.closed and one.status == "I"]

        def alike() -> bool:
            seen[:] = ([row for row in rows if row[0] != uncompared] for rows in self._rig.left_behind(confused))
            if seen[0] == seen[1]:
                return True
            everything, pooled = self._rig.left_behind(())
            return bool(confused) and everything == pooled

        try:
            until(alike, within=GONE_WITHIN)
        except AssertionError:
            kinds = {row[0] for row in {*seen[0]} ^ {*seen[1]}}
            self._differ(Difference(f"left behind: {', '.join(sorted(kinds))}", step, *seen), step.client)

    # ---- looking -----------------------------------------------------------------------------------------------------

    def _look(self, client: int, *, unnamed: bool = False) -> None:
        """Compare all that `client` can see, if it can look now; `unnamed`: its unnamed statement too."""
        private = self._private[client]
        blind = private.closed or private.unsynced or private.copying or private.status not in ("I", "T")
        if blind or (client not in self._holders() and len(self._holders()) >= self._script.pool_size):
            return
        seen = look.session()
        if private.status == "I":
            seen = [look.UNNAMED, *seen, look.statements()] if unnamed else [*seen, look.statements()]
        for name, messages in seen:
            self._say(Step(client, "look", name, messages))

    def _clear_up(self) -> None:
        """Every client finishes what it has begun, looks around and leaves; who holds a connection goes first."""
        for client in sorted(self._private, key=lambda client: (client not in self._holders(), client)):
            if not self._connected(client):
                continue
            private = self._private[client]
            if private.copying:
                self._finish(client, "end COPY", [("CopyFail", "enough"), ("Sync",)])
            if private.unsynced and not private.closed:
                self._finish(client, "end batch", [("Sync",)])
            self._look(client, unnamed=True)
            if private.status in ("T", "E") and not private.closed:
                self._finish(client, "end transaction", [("Query", "rollback")])
                self._look(client)
            self._disconnect(client, "terminate", Step(client, "connection", "terminate", (("terminate",),)))

    def _finish(self, client: int, name: str, messages: Sequence[Message]) -> None:
        self._say(Step(client, "clearing up", name, tuple(messages)))

    # ---- comparing ---------------------------------------------------------------------------------------------------

    def _compare(self, step: Step, expected: list[Answer], got: list[Answer], what: str = "") -> None:
        while expected != got:
            index = first_difference(expected, got)
            wanted = expected[index] if index < len(expected) else None
            given = got[index] if index < len(got) else None
            kind = what or f"{_kind(wanted)} -> {_kind(given)}"
            self._differ(Difference(f"{step.group}:{step.name}: {kind}", step, expected, got), step.client)
            if wanted is None or given is None or wanted[0] != "D" or given[0] != "D":
                return
            expected, got = expected[index + 1 :], got[index + 1 :]  # tolerated; another row may not be

    def _differ(self, difference: Difference, client: int) -> None:
        groups = {step.group for step in self._script.steps}
        if not any(fnmatchcase(difference.signature, known) and groups >= needs for known, needs in self._tolerated):
            difference.position = self._position
            raise difference
        self._counts["tolerated"] += 1
        private, pooled = self._private.get(client), self._pooled.get(client)
        if private is not None and pooled is not None and private.state != pooled.state:
            raise Stop


def first_difference(expected: Sequence[Answer], got: Sequence[Answer]) -> int:
    """The index of the first answer that differs or is missing on one side."""
    pairs = enumerate(zip(expected, got, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(expected), len(got)))


def _own_failure(answer: Answer) -> bool:
    """PostgreSQL itself loses its way (a Query before the Sync may do that to version 18): what follows is chance."""
    return answer[0] == "E" and "C=XX000" in answer and any("unexpected state" in word for word in answer)


def _kind(answer: Answer | None) -> str:
    """What sort of answer this is, for a signature."""
    if answer is None:
        return "nothing"
    if answer[0] in "EN" and len(answer) > 1:
        code = next((field[2:] for field in answer if field.startswith("C=")), "")
        return f"{answer[0]} {code}"
    if answer[0] == "S":
        return f"S {answer[1].split('=')[0]}"
    if answer[0] == "D" and len(answer) == 2 and "=" in answer[1]:
        name, _, value = answer[1].partition("=")
        return f"D {name}" + {"": " ''", "NULL": " NULL"}.get(value, "")
    return answer[0]


def _shown(answers: list[Answer], start: int) -> str:
    """Some answers from `start` on, as text."""
    shown = [" ".join(answer) for answer in answers[start : start + 4]]
    before = [f"({start} alike)"] if start else []
    return " | ".join([*before, *(shown or ["nothing"])])


def run(rig: Rig, script: Script, counts: Counter[str] | None = None, tolerated: Collection[Known] = ()) -> None:
    """Run `script` on both sides; differences whose signature is `tolerated` are passed over.

    Raises:
      Difference: they differ. Unfit: the script waits for itself.
    """
    Referee(rig, script, counts if counts is not None else Counter(), tolerated).run()

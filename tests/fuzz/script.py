"""Scripts: what each client sends, in one order over all clients. Read and written as lines of text.

A step is one client's messages, sent in one write, or one of the acts of a connection:

    ["connect", {"options": "-c timezone=UTC"}]   log in with these startup parameters, after a goodbye if needed
    ["terminate"]                                 say goodbye (Terminate) and wait for the end
    ["hang up"], ["reset"]                        close without a word, by FIN or by RST

A step of a client that is not connected connects it first, with no parameters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import wire

Message = tuple[Any, ...]
"""(its name in the specification, its fields): ("Parse", "s1", "select $1", (23,)), ("Sync",)."""

CONNECTION_ACTS = frozenset({"connect", "terminate", "hang up", "reset"})


@dataclass(frozen=True)
class Step:
    """`client` sends `messages`; `group` of actions and `name` say why they were chosen."""

    client: int
    group: str
    name: str
    messages: tuple[Message, ...]

    @property
    def act(self) -> str | None:
        """The act on the connection that this step is, or None for messages."""
        return self.messages[0][0] if self.messages[0][0] in CONNECTION_ACTS else None

    def line(self) -> str:
        return json.dumps([self.client, f"{self.group}:{self.name}", *self.messages])

    def __repr__(self) -> str:
        return self.line()


@dataclass(frozen=True)
class Script:
    """Steps, and what they run against: a pool of `pool_size` connections, `cache` and `defer` (defer_begin) on or off.

    `watch`: after every step every client that may is asked for all that it can see.
    """

    steps: tuple[Step, ...]
    pool_size: int = 1
    cache: bool = False
    watch: bool = False
    defer: bool = False

    def text(self) -> str:
        """One line for the circumstances, one for each step."""
        circumstances = {name: getattr(self, name) for name in ("pool_size", "cache", "watch", "defer")}
        head = json.dumps(circumstances)
        return "\n".join([head, *(step.line() for step in self.steps)]) + "\n"

    def save(self, path: Path) -> None:
        path.write_text(self.text())

    @classmethod
    def read(cls, text: str) -> Script:
        """The inverse of `text`; lines that begin with # are remarks."""
        lines = [json.loads(line) for line in text.splitlines() if line.strip() and not line.startswith("#")]
        steps = []
        for client, label, *messages in lines[1:]:
            group, _, name = label.partition(":")
            steps.append(Step(client, group, name, tuple(tuple(message) for message in messages)))
        return cls(tuple(steps), **lines[0])


def encode(message: Message) -> bytes:
    """A message's bytes."""
    return _ENCODERS[message[0]](*message[1:])


def _parse(name: str, text: str, types: Sequence[int] = ()) -> bytes:
    return wire.parse(text, name, types)


def _bind(portal: str, name: str, values: Sequence[str | None] = (), result_formats: Sequence[int] = ()) -> bytes:
    encoded = [None if value is None else value.encode() for value in values]
    return wire.bind(name, encoded, portal=portal, result_formats=result_formats)


def _function_call(oid: int, arguments: Sequence[str]) -> bytes:
    body = oid.to_bytes(4, "big") + b"\0\0" + len(arguments).to_bytes(2, "big")
    for argument in arguments:
        body += len(argument.encode()).to_bytes(4, "big") + argument.encode()
    return wire.frame("F", body + b"\0\0")


_ENCODERS = {
    "Query": wire.query,
    "Parse": _parse,
    "Bind": _bind,
    "Describe": wire.describe,
    "Execute": wire.execute,
    "Close": wire.close,
    "Sync": lambda: wire.SYNC,
    "Flush": lambda: wire.FLUSH,
    "FunctionCall": _function_call,
    "CopyData": lambda text: wire.frame("d", text.encode()),
    "CopyDone": lambda: wire.frame("c"),
    "CopyFail": lambda reason: wire.frame("f", reason.encode() + b"\0"),
    "Terminate": lambda: wire.TERMINATE,
}

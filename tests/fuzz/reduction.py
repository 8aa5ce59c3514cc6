"""Makes a script that fails small: leaves out what the difference does not need.

Hypothesis could do this; but each try is a run of some tens of milliseconds, and knowing what a script is (steps of
clients, of groups, of messages) finds a small one in a tenth of its tries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.fuzz.referee import Difference
from tests.fuzz.script import Script, Step

Try = Callable[[Script], Difference | None]
"""Runs a script; the difference that it makes."""


def reduce(script: Script, difference: Difference, attempt: Try, until: float) -> tuple[Script, Difference]:
    """The smallest script found `until` (monotonic) that makes a difference of the same signature."""
    again = True
    while again:
        again = False
        candidates = _smaller(script, difference.position)
        for candidate in candidates:
            if time.monotonic() > until:
                return script, difference
            found = attempt(candidate)
            if found is not None and found.signature == difference.signature:
                script, difference, again = candidate, found, True
                break
    return script, difference


def _smaller(script: Script, position: int) -> Iterator[Script]:
    """Scripts with less in them than `script`, which differs at step number `position`; the boldest first."""
    steps = script.steps
    if position + 1 < len(steps):
        yield replace(script, steps=steps[: position + 1])
    if script.watch:
        yield replace(script, watch=False)
    if script.defer:
        yield replace(script, defer=False)
    size = len(steps) // 2
    while size:
        for start in range(len(steps) - size, -1, -size):
            yield replace(script, steps=steps[:start] + steps[start + size :])
        size //= 2
    for index, step in enumerate(steps):
        for fewer in _fewer_messages(step):
            yield replace(script, steps=(*steps[:index], fewer, *steps[index + 1 :]))
    used = sorted({step.client for step in steps})
    if used != list(range(len(used))):
        yield replace(script, steps=tuple(replace(step, client=used.index(step.client)) for step in steps))
    if script.pool_size > 1:
        yield replace(script, pool_size=1, cache=False)


def _fewer_messages(step: Step) -> Iterator[Step]:
    messages = step.messages
    for size in (4, 3, 2, 1):
        for start in range(len(messages) - size + 1):
            left = messages[:start] + messages[start + size :]
            if left:
                yield replace(step, messages=left)

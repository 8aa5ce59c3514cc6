"""Which steps are worth trying: strategies by group, and scripts made of them.

An action is a function of (draw, client) that gives a name and messages. Its first choices are the simplest, which is
where hypothesis shrinks to. Actions never wait for another client: each client writes to tables and takes blocking
locks of its own; what clients share they only read, try or draw from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.rig import CLIENTS
from tests.fuzz.script import Message, Script, Step

POOLS = [(1, False), (3, True)]
"""(origin connections, cache?) of the pgnear processes that scripts run against; each takes some memory and time."""

Draw = Callable[[st.SearchStrategy[Any]], Any]
Action = tuple[str, list[Message]]
Group = Callable[[Draw, int], Action]

GROUPS: dict[str, tuple[Group, int]] = {}
"""By name: the actions, and how often they are chosen relative to others."""


def group(name: str, weight: int = 2) -> Callable[[Group], Group]:
    """Register a function as the actions of group `name`."""

    def register(function: Group) -> Group:
        GROUPS[name] = (function, weight)
        return function

    return register


def pick(draw: Draw, options: Sequence[Any]) -> Any:
    return draw(st.sampled_from(list(options)))


def carried(draw: Draw, sql: str) -> list[Message]:
    """`sql` as a simple Query or in one of the extended protocol's shapes."""
    how = pick(draw, ["simple", "simple", "extended", "described", "named"])
    if how == "simple":
        return [("Query", sql)]
    if how == "extended":
        return [("Parse", "", sql), ("Bind", "", ""), ("Execute", ""), ("Sync",)]
    if how == "described":
        return [
            ("Parse", "", sql), ("Describe", "S", ""), ("Bind", "", ""), ("Describe", "P", ""), ("Execute", ""),
            ("Sync",),
        ]  # fmt: skip
    return [
        ("Close", "S", "once"), ("Parse", "once", sql), ("Bind", "", "once"), ("Describe", "P", ""), ("Execute", ""),
        ("Sync",),
    ]  # fmt: skip


def executed(sql: str) -> list[Message]:
    """`sql` by the extended protocol, without a Sync."""
    return [("Parse", "", sql), ("Bind", "", ""), ("Execute", "")]


def scripts(groups: Sequence[str], *, max_steps: int = 30, clients: int = 3) -> st.SearchStrategy[Script]:
    """Scripts of actions of these groups; each of a few of them, since too many hide one another's effects."""
    assert clients <= CLIENTS

    @st.composite
    def step(draw: Draw, chosen: list[str]) -> Step:
        client = draw(st.integers(0, clients - 1))
        name = pick(draw, chosen)
        action, messages = GROUPS[name][0](draw, client)
        return Step(client, name, action, tuple(messages))

    @st.composite
    def script(draw: Draw) -> Script:
        pool_size, cache = draw(st.sampled_from(POOLS))
        some = draw(st.lists(st.sampled_from(list(groups)), min_size=1, max_size=6, unique=True))
        chosen = [name for name in some for _ in range(GROUPS[name][1])]
        if draw(st.booleans()):  # most of what can go wrong does so around transactions
            chosen += [name for name in ("transaction", "data", "look") if name in groups for _ in range(3)]
        rounds = draw(st.lists(st.lists(step(chosen), min_size=1, max_size=8), min_size=2, max_size=8))
        steps = [each for some in rounds for each in some][:max_steps]  # in rounds, because a list alone stays short
        watch, defer = draw(st.sampled_from([False, False, False, True])), draw(st.booleans())
        return Script(tuple(steps), pool_size, cache, watch, defer)

    return script()


def all_groups(*, without: Sequence[str] = (), only: Sequence[str] = ()) -> list[str]:
    """The names of the groups that are on.

    Raises:
      ValueError: there is no group of such a name.
    """
    from tests.fuzz import hidden_actions, protocol_actions, setting_actions, state_actions  # noqa: F401  (they register groups)

    unknown = {*without, *only} - GROUPS.keys()
    if unknown:
        raise ValueError(f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(sorted(GROUPS))}")
    return [name for name in GROUPS if name not in without and (not only or name in only)]

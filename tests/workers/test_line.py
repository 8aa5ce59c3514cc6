"""Two ends of a line, in one process."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from pooler.workers.line import Handle, Line, LineLost
from protocol.responses import PgError


async def nothing(what: str, data: Any) -> Any:
    return None


@asynccontextmanager
async def lines(handle: Handle) -> AsyncIterator[tuple[Line, Line]]:
    """Who asks, and who answers by `handle`."""
    one, other = socket.socketpair()
    asks, answers = Line(one, nothing), Line(other, handle)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asks.run)
        nursery.start_soon(answers.run)
        yield asks, answers
        nursery.cancel_scope.cancel()


async def test_each_gets_its_own_answer_however_late_it_comes() -> None:
    first_may_go = trio.Event()

    async def handle(what: str, data: Any) -> Any:
        if data == 1:
            await first_may_go.wait()
        else:
            first_may_go.set()
        return [what, data]

    async with lines(handle) as (line, _), trio.open_nursery() as nursery:
        found: list[Any] = []

        async def ask(data: int) -> None:
            found.append(await line.ask("echo", data))

        nursery.start_soon(ask, 1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, 2)
    assert sorted(found) == [["echo", 1], ["echo", 2]]


async def test_what_is_told_is_heard_in_order() -> None:
    heard: list[int] = []

    async def handle(what: str, data: Any) -> Any:
        for _ in range(data % 3):  # the later ones are quicker
            await trio.lowlevel.checkpoint()
        heard.append(data)

    async with lines(handle) as (line, _):
        for number in range(100):
            line.tell("number", number)
        await line.ask("number", 100)
        with trio.fail_after(10):
            while len(heard) < 101:
                await trio.lowlevel.checkpoint()
    assert [number for number in heard if number < 100] == list(range(100))


async def test_an_error_is_raised_where_it_was_asked_for_with_all_its_fields() -> None:
    async def handle(what: str, data: Any) -> Any:
        raise PgError("42P01", "no such thing", detail="It is not there.", hint="Make it.")

    async with lines(handle) as (line, _):
        with pytest.raises(PgError) as caught:
            await line.ask("thing")
    error = caught.value
    assert (error.sqlstate, error.message, error.detail, error.hint) == (
        "42P01", "no such thing", "It is not there.", "Make it.",
    )  # fmt: skip


async def test_a_bug_costs_one_answer_and_not_the_line() -> None:
    async def handle(what: str, data: Any) -> Any:
        return {"no": {"JSON"}} if data == "bug" else data

    async with lines(handle) as (line, _):
        assert await line.ask("echo", "bug") is None
        assert await line.ask("echo", "fine") == "fine"


async def test_who_waits_hears_that_the_other_end_is_gone() -> None:
    async def handle(what: str, data: Any) -> Any:
        await answers.lost.wait()

    async with trio.open_nursery() as nursery:
        one, other = socket.socketpair()
        asks, answers = Line(one, nothing), Line(other, handle)
        nursery.start_soon(asks.run)
        scope = await nursery.start(_in_a_scope, answers)
        asked = trio.Event()

        async def ask() -> None:
            asked.set()
            with pytest.raises(LineLost):
                await asks.ask("anything")

        nursery.start_soon(ask)
        await asked.wait()
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        with trio.fail_after(10):
            await asks.lost.wait()
        with pytest.raises(LineLost):
            await asks.ask("anything more")


async def _in_a_scope(line: Line, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await line.run()


async def test_what_is_large_comes_whole() -> None:
    async def handle(what: str, data: Any) -> Any:
        return data

    async with lines(handle) as (line, _):
        text = "x" * 3_000_000
        assert await line.ask("echo", text) == text

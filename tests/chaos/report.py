"""The faults and what came of them, as lines and as docs/chaos.md."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.matrix import Outcome

_HEAD = """# What breaks, and what clients notice

Written by `make chaos`. {tellers} clients of a bank transfer money through pgnear (4 origin connections, transaction
pooling, the cache on, `query_timeout` and `cancel_wait_timeout` 2 s) while one thing breaks. Each transfer has an id,
inserted in the transaction that moves the money; a client that gets an error connects again after 50 ms, and one that
waits for more than 3 s hangs up.

Where a standby takes over, replication is synchronous (`synchronous_standby_names = '*'`): without that a primary that
is lost takes its latest commits with it, acknowledged ones included, whoever sits in front of it. pgnear has both
servers in its origin URL, with `target_session_attrs=read-write`.

Where the books are right, the balances' sum holds and each balance is what its transfers make it; no acknowledged
transfer is lost, none happened twice, none that was refused happened; nobody was given somebody else's answer.

Recovery is the time from the end of the fault until **every** client has had another transfer acknowledged; the pause
is the longest that any client had between two of them. Unknown are transfers whose COMMIT was sent and not answered:
each was made once or not at all. It is one machine, and a busy one: times are of the order only.

| fault | transfers | unknown | errors by SQLSTATE | recovery | longest pause | books |
|---|---|---|---|---|---|---|
"""


def line(outcome: Outcome) -> str:
    return (
        f"{outcome.name}: recovery {outcome.recovery:.2f} s, {outcome.acknowledged} transfers, {_errors(outcome)}; "
        + ("; ".join(outcome.wrong) or "books are right")
    )


def _errors(outcome: Outcome) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(outcome.errors.items())) or "none"


def write(path: str, outcomes: list[Outcome], tellers: int) -> None:
    rows = [
        f"| {each.what} | {each.acknowledged} | {each.unknown} | {_errors(each)} | {each.recovery:.2f} s "
        f"| {each.pause:.2f} s | {'; '.join(each.wrong) or 'right'} |\n"
        for each in outcomes
    ]
    Path(path).write_text(_HEAD.format(tellers=tellers) + "".join(rows))

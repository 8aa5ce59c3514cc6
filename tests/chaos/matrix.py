"""One fault under load, and what came of it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from tests.chaos.bank import Bank, audit
from tests.chaos.failover import FAILOVERS
from tests.chaos.faults import FAULTS as FAULTS_OF_ONE
from tests.chaos.faults import LOGS, WORKERS
from tests.chaos.rig import bank_standby, rig
from tests.support.postgres import Server

FAULTS = FAULTS_OF_ONE | FAILOVERS

RECOVERS_WITHIN = 40.0
"""Seconds. A fault that takes longer to get over is a failure."""


@dataclass
class Outcome:
    """What came of one fault. `recovery`: seconds from its end until each teller's next acknowledged transfer."""

    name: str
    what: str
    acknowledged: int
    unknown: int
    errors: dict[str, int]
    recovery: float
    pause: float
    wrong: list[str]


def run_fault(server: Server, name: str, tellers: int) -> Outcome:
    """Break `name` under load; the books are audited when all is over."""
    fault = FAULTS[name]
    recovery, wrong = RECOVERS_WITHIN, []
    with ExitStack() as stack:
        standby = stack.enter_context(bank_standby(server)) if name in FAILOVERS else None
        made = stack.enter_context(rig(server, log=LOGS.get(name), standby=standby, workers=WORKERS.get(name, 1)))
        with Bank(made.connect, tellers) as bank:
            bank.wait_until_all_work(RECOVERS_WITHIN)
            fault(made)
            try:
                recovery = bank.wait_until_all_work(RECOVERS_WITHIN)
            except AssertionError as error:
                wrong.append(str(error))
            else:
                bank.wait_until_all_work(RECOVERS_WITHIN)
        wrong += audit(bank, made.ask)
    return Outcome(
        name,
        (fault.__doc__ or "").strip(),
        bank.acknowledged,
        sum(len(teller.books.unknown) for teller in bank.tellers),
        bank.errors,
        recovery,
        max(teller.books.longest_pause for teller in bank.tellers),
        wrong,
    )

"""No client of a pgnear gets an answer from before a completed write: what every run of the tests sees of the checker.

The long run is `make cache-check`.
"""

from __future__ import annotations

import pytest

from tests.consistency.__main__ import Plan, perform, report

SHORT = (
    Plan("with the stream, which is cut", True, 3.0, ("walsender", "backend"), 0.7, writers=4, readers=4, measures=2),
    Plan("without a stream", False, 2.5, writers=4, readers=4, measures=2),
)


@pytest.mark.parametrize("plan", SHORT, ids=lambda plan: plan.name)
def test_no_answer_is_older_than_it_may_be(plan: Plan) -> None:
    seen, happened = perform(plan, seed=1)
    print(report(plan, seen, happened))
    assert not seen.violations, seen.violations[:10]
    assert seen.writes > 50
    assert seen.hits > 50

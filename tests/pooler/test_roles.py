"""What target_session_attrs means, as libpq has it."""

from __future__ import annotations

import pytest

from config import Target
from pooler.ceremony.origins import AVOID_SECONDS, Failures
from pooler.roles import fits

PRIMARY = {"in_hot_standby": "off", "default_transaction_read_only": "off"}
READ_ONLY_PRIMARY = {**PRIMARY, "default_transaction_read_only": "on"}
STANDBY = {**PRIMARY, "in_hot_standby": "on"}


@pytest.mark.parametrize(
    ("wish", "primary", "read_only_primary", "standby"),
    [
        ("any", True, True, True),
        ("read-write", True, False, False),
        ("read-only", False, True, True),
        ("primary", True, True, False),
        ("standby", False, False, True),
        ("prefer-standby", True, True, True),
    ],
)
def test_a_server_is_what_it_reports(wish: str, primary: bool, read_only_primary: bool, standby: bool) -> None:
    answers = [fits(reported, wish) for reported in (PRIMARY, READ_ONLY_PRIMARY, STANDBY)]
    assert answers == [primary, read_only_primary, standby]


def test_a_server_before_14_does_not_say() -> None:
    assert fits({"server_version": "13.2"}, "primary") is None
    assert fits({"server_version": "13.2"}, "any") is True


def test_hosts_that_failed_lately_are_tried_behind_the_others() -> None:
    hosts = [Target("shop", host, 5432, "app", "", "shop", "disable") for host in "abc"]
    failures = Failures()
    failures.note(hosts[0], 100.0)
    assert [each.host for each in failures.order(hosts, 101.0)] == ["b", "c", "a"]
    assert [each.host for each in failures.order(hosts, 101.0 + AVOID_SECONDS)] == ["a", "b", "c"]
    failures.note(hosts[1], 100.0)
    failures.forget(hosts[0])
    assert [each.host for each in failures.order(hosts, 101.0)] == ["a", "c", "b"]

"""Which policy a statement has, and what its own comment may say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies
from pydantic import ValidationError

from config.cache import Cache
from pooler.cache.policy import Policies, Policy, overridden
from pooler.cache.store import Namespace, Store
from pooler.sql.statement import Statement, classify


def policies(*rules: dict[str, Any], **settings: Any) -> Policies:
    return Policies(Cache.model_validate({"policy": rules, **settings}), Store(1 << 20, 1 << 16))


def chosen(
    which: Policies, text: bytes, user: str = "ann", database: str = "shop", application: str = "", **facts: Any
) -> Policy:
    return which.choose(classify(text), user, database, application, text, **facts)


def test_without_policies_and_comments_the_default_holds_and_nothing_is_remembered() -> None:
    which = policies(ttl="20s", stale_while_revalidate="3s", negative_ttl="1s")
    policy = chosen(which, b"select * from orders")
    assert policy is which.default
    assert (policy.ttl, policy.stale_while_revalidate, policy.negative_ttl) == (20.0, 3.0, 1.0)
    assert which._chosen == {}


def test_the_first_policy_whose_every_condition_holds_counts() -> None:
    which = policies(
        {"name": "a", "tables": "orders", "user": ["bob", "carl"], "ttl": "1s"},
        {"name": "b", "tables": "orders", "ttl": "2s"},
        {"name": "c", "database": "shop", "ttl": "3s"},
    )
    assert chosen(which, b"select * from orders", "bob").ttl == 1.0
    assert chosen(which, b"select * from orders").ttl == 2.0
    assert chosen(which, b"select * from items").ttl == 3.0
    assert chosen(which, b"select * from items", database="crm") is which.default


@pytest.mark.parametrize(
    ("condition", "text", "holds"),
    [
        ({"tables": ["orders"]}, b"select * from items join orders using (id)", True),
        ({"tables": ["orders"]}, b"select * from sales.orders", True),
        ({"tables": ["sales.orders"]}, b"select * from orders", True),
        ({"tables": ["sales.orders"]}, b"select * from sales.orders", True),
        ({"tables": ["sales.orders"]}, b"select * from archive.orders", False),
        ({"tables": ["orders"]}, b"select 1", False),
        ({"text": r"(?i)FROM\s+orders\b"}, b"select * from  orders", True),
        ({"text": "^insert"}, b"select 'insert'", False),
        ({"application_name": "dashboard"}, b"select 1", True),
        ({"application_name": "other"}, b"select 1", False),
        ({"fingerprint": ["f0", "f1"]}, b"select 1", True),
        ({"fingerprint": ["f0"]}, b"select 1", False),
    ],
)
def test_conditions(condition: dict[str, Any], text: bytes, holds: bool) -> None:
    which = policies({"name": "one", **condition})
    assert (chosen(which, text, application="dashboard", fingerprint="f1").source == "one") is holds


def test_a_choice_is_made_once_for_a_statement_and_its_client() -> None:
    which = policies({"name": "one", "tables": "orders", "application_name": "dashboard"})
    looked: list[None] = []

    class Facts:
        @property
        def relations(self) -> list[tuple[None, str]]:
            looked.append(None)
            return [(None, "orders")]

    facts = Facts()
    for _ in range(3):
        assert which.choose(facts, "ann", "shop", "dashboard", b"select").source == "one"
        assert which.choose(facts, "ann", "shop", "other", b"select") is which.default
    assert len(looked) == 1


def test_texts_that_share_a_statement_may_differ_where_a_policy_or_a_comment_looks_at_the_text() -> None:
    facts = Statement()
    which = policies({"name": "one", "text": "42"})
    assert which.choose(facts, "ann", "shop", "", b"select 42").source == "one"
    assert which.choose(facts, "ann", "shop", "", b"select 43") is which.default
    which = policies()
    assert which.choose(facts, "ann", "shop", "", b"/* pgnear: ttl=1 */ select 42").ttl == 1.0
    assert which.choose(facts, "ann", "shop", "", b"/* pgnear: ttl=2 */ select 42").ttl == 2.0
    assert which.choose(facts, "ann", "shop", "", b"select 42") is which.default


def test_a_policy_is_a_namespace_with_a_budget() -> None:
    store = Store(1 << 24, 1 << 16)
    which = Policies(Cache.model_validate({"policy": [{"name": "one", "max_bytes": "1MB"}]}), store)
    assert chosen(which, b"select 1").namespace is store.namespace("one")
    assert store.namespace("one").max_bytes == 1 << 20


def test_what_a_policy_leaves_open_is_as_in_the_default() -> None:
    which = policies({"name": "one", "negative_ttl": 0}, ttl=33, stale_while_revalidate=4)
    policy = chosen(which, b"select 1")
    assert (policy.ttl, policy.stale_while_revalidate, policy.negative_ttl) == (33.0, 4.0, 0.0)


# ---- comments --------------------------------------------------------------------------------------------------------

DEFAULT = Policy(Store(1 << 20, 1 << 16).default)


@pytest.mark.parametrize(
    ("text", "ttl", "stale", "negative"),
    [
        (b"/* pgnear: ttl=300 */ select 1", 300.0, 15.0, 5.0),
        (b"/*pgnear:ttl=5min,swr=0*/select 1", 300.0, 0.0, 5.0),
        (b" \n\t/* pgnear: negative_ttl=500ms  swr=1s ttl=2 */ select 1", 2.0, 1.0, 0.5),
        (b"-- the shop's front page\n/* another */ /* pgnear: ttl=7 */ select 1", 7.0, 15.0, 5.0),
        (b"select 1 /* pgnear: ttl=300 */", 60.0, 15.0, 5.0),
        (b"select '/* pgnear: ttl=300 */'", 60.0, 15.0, 5.0),
        (b"/* it says /* pgnear: ttl=300 */ */ select 1", 60.0, 15.0, 5.0),
        (b"-- /* pgnear: ttl=300 */\nselect 1", 60.0, 15.0, 5.0),
        (b"/* pgnear: ttl=300", 60.0, 15.0, 5.0),
    ],
)
def test_a_leading_comment_overrides(text: bytes, ttl: float, stale: float, negative: float) -> None:
    policy = overridden(DEFAULT, text)
    assert (policy.ttl, policy.stale_while_revalidate, policy.negative_ttl) == (ttl, stale, negative)
    assert policy.enabled
    assert not policy.ignored


def test_a_comment_may_switch_off() -> None:
    policy = overridden(DEFAULT, b"/* pgnear: off */ select 1")
    assert not policy.enabled
    assert policy.source == "default, comment"


def test_what_the_operator_has_switched_off_a_comment_cannot_switch_on() -> None:
    which = policies({"name": "never", "tables": "accounts", "enabled": False})
    policy = chosen(which, b"/* pgnear: ttl=300 */ select * from accounts")
    assert not policy.enabled
    assert policy.ignored == "the pgnear comment is ignored: never is switched off"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"on", "'on' is none of"),
        (b"ttl", "'ttl' is none of"),
        (b"ttl=", "ttl='' is no duration"),
        (b"ttl=soon", "ttl='soon' is no duration"),
        (b"ttl=-1", "ttl='-1' is no duration"),
        (b"ttl=0", "ttl='0' is out of range"),
        (b"ttl=" + b"9" * 400, "is out of range"),
        (b"ttl=inf", "is no duration"),
        (b"ttl=1 ttl=2", "ttl is given twice"),
        (b"ttl=1, off", "'off' is none of"),
        (b"ttl=1; swr=2", "is no duration"),
        (b"max_bytes=1", "'max_bytes=1' is none of"),
        (b"ttl=\xff", "codec"),
    ],
)
def test_a_comment_that_is_not_understood_changes_nothing_and_says_why(content: bytes, reason: str) -> None:
    policy = overridden(DEFAULT, b"/* pgnear: " + content + b" */ select 1")
    assert reason in policy.ignored
    assert (policy.ttl, policy.enabled, policy.source) == (60.0, True, "default")


@given(strategies.binary(max_size=200))
def test_no_text_can_break_the_reading_of_comments(noise: bytes) -> None:
    for text in (noise, b"/* pgnear:" + noise, b"/*" + noise + b"*/ /* pgnear: ttl=1 */", b"/* pgnear: ttl=" + noise):
        policy = overridden(DEFAULT, text)
        assert policy.ttl > 0


@pytest.mark.parametrize("piece", [b" ", b"/*", b"*/", b"/**/", b"--\n", b"/* pgnear", b"*"])
def test_reading_a_comment_takes_no_longer_than_its_text(piece: bytes) -> None:
    """Patterns with nested repetition take for ever over texts that almost match."""
    assert overridden(DEFAULT, piece * 100_000) is DEFAULT


# ---- the configuration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ([{"name": "a"}, {"name": "a"}], "two policies are called a"),
        ([{"name": "default"}], "what holds without a policy"),
        ([{"name": "a b"}], "pattern"),
        ([{"name": "a", "text": "("}], "no regular expression"),
        ([{"name": "a", "ttl": "soon"}], "write a duration"),
        ([{"name": "a", "ttl": 0}], "greater than 0"),
        ([{"name": "a", "swr": 0}], "not permitted"),
        ([{"name": "a", "max_bytes": "1GB"}], "more memory"),
        ([{}], "required"),
    ],
)
def test_policies_that_make_no_sense_are_refused(rules: list[dict[str, Any]], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Cache.model_validate({"policy": rules})


def test_a_namespace_says_what_it_is() -> None:
    namespace = policies().default.namespace
    assert isinstance(namespace, Namespace)
    assert repr(namespace) == "<Namespace default: 0 entries, 0 bytes>"

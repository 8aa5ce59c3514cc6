"""How long an answer may be served, and for whom: policies from the configuration and from statements' own comments.

Lives here: `Policy`, which one a statement has (`Policies.choose`), and reading `/* pgnear: ... */`. Not here: what a
TTL does (`store`), what a policy looks like in a file (`config.cache.CachePolicy`).

The first policy of the configuration whose every condition holds is the statement's; without one, the default. A
leading comment overrides numbers, and may switch off; what the operator has switched off it cannot switch on. A comment
that is not understood is ignored as a whole, and says why (`Policy.ignored`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isfinite
from typing import Protocol

from config.cache import Cache, CachePolicy
from config.values import duration
from pooler.cache.entry import Namespace
from pooler.cache.store import Store

MAX_REMEMBERED = 50000
"""Choices remembered; then all are forgotten at once."""

_LEADING = b"/ \t\n\r\f\v-"
_COMMENT = re.compile(
    rb"(?:\s|--[^\n]*(?:\n|\Z)|/\*(?!\s*pgnear\s*:)(?:[^*/]|\*(?!/)|/(?!\*))*\*/)*"  # what may stand before it
    rb"/\*\s*pgnear\s*:(.*?)\*/",
    re.DOTALL,
)
_LIMIT = 4096
"""Bytes of a text in which its comment must end."""


class Statement(Protocol):
    """The facts that conditions look at. `pooler.sql.statement.Statement` has them."""

    @property
    def relations(self) -> Iterable[tuple[str | None, str]]: ...


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for the answers of a statement. Durations are seconds.

    Attributes:
      enabled: whether they may be cached at all.
      source: what decided: the policy's name, and "comment" where a comment changed it.
      ignored: why a comment was not followed; "" where there is none, or it was.
    """

    namespace: Namespace
    enabled: bool = True
    ttl: float = 60.0
    stale_while_revalidate: float = 15.0
    negative_ttl: float = 5.0
    source: str = "default"
    ignored: str = ""


class Policies:
    """All policies of the process; the namespaces they need are made in `store`."""

    def __init__(self, cache: Cache, store: Store) -> None:
        self.default = Policy(
            store.default,
            ttl=cache.ttl,
            stale_while_revalidate=cache.stale_while_revalidate,
            negative_ttl=cache.negative_ttl,
        )
        self._rules = [_Rule(rule, self.default, store) for rule in cache.policy]
        self._by_text = any(rule.text is not None for rule in self._rules)
        self._by_application = any(rule.applications for rule in self._rules)
        self.by_fingerprint = any(rule.fingerprints for rule in self._rules)
        self._chosen: dict[object, Policy] = {}

    def choose(
        self,
        statement: Statement,
        user: str,
        database: str,
        application_name: str,
        text: bytes,
        fingerprint: str | None = None,
    ) -> Policy:
        """The policy of a statement, from memory where it was asked before.

        Args:
          statement: compared by identity. text: the one it was classified from.
          fingerprint: its own; the same for the same statement, or text.
        """
        commented = text[:1] in _LEADING
        if not self._rules and not commented:
            return self.default
        place = (
            text if commented or self._by_text else statement,
            statement,
            user,
            database,
            application_name if self._by_application else None,
        )
        policy = self._chosen.get(place)
        if policy is None:
            if len(self._chosen) >= MAX_REMEMBERED:
                self._chosen.clear()
            policy = self._match(statement, user, database, application_name, text, fingerprint)
            if commented:
                policy = overridden(policy, text)
            self._chosen[place] = policy
        return policy

    def _match(
        self, statement: Statement, user: str, database: str, application: str, text: bytes, fingerprint: str | None
    ) -> Policy:
        for rule in self._rules:
            if (
                (not rule.users or user in rule.users)
                and (not rule.databases or database in rule.databases)
                and (not rule.applications or application in rule.applications)
                and (not rule.fingerprints or fingerprint in rule.fingerprints)
                and (not rule.tables or any(rule.concerns(*name) for name in statement.relations))
                and (rule.text is None or rule.text.search(text.decode(errors="replace")))
            ):
                return rule.policy
        return self.default


class _Rule:
    """One policy of the configuration, ready to be matched."""

    def __init__(self, rule: CachePolicy, default: Policy, store: Store) -> None:
        self.users = frozenset(rule.user)
        self.databases = frozenset(rule.database)
        self.applications = frozenset(rule.application_name)
        self.fingerprints = frozenset(rule.fingerprint)
        self.tables = frozenset(rule.tables)
        self._names = frozenset(table.rpartition(".")[2] for table in rule.tables)
        self.text = re.compile(rule.text) if rule.text is not None else None
        self.policy = Policy(
            store.namespace(rule.name, rule.max_bytes),
            enabled=rule.enabled,
            ttl=default.ttl if rule.ttl is None else rule.ttl,
            stale_while_revalidate=(
                default.stale_while_revalidate if rule.stale_while_revalidate is None else rule.stale_while_revalidate
            ),
            negative_ttl=default.negative_ttl if rule.negative_ttl is None else rule.negative_ttl,
            source=rule.name,
        )

    def concerns(self, schema: str | None, name: str) -> bool:
        """Whether a relation is among the tables; one without a schema may be in any."""
        if schema is None:
            return name in self._names
        return name in self.tables or f"{schema}.{name}" in self.tables


# ---- comments --------------------------------------------------------------------------------------------------------


def overridden(policy: Policy, text: bytes) -> Policy:
    """`policy` as the leading comment of `text` wants it: `/* pgnear: ttl=300, swr=1min */` or `/* pgnear: off */`."""
    found = _COMMENT.match(text, 0, _LIMIT)
    if found is None:
        return policy
    try:
        changes = _read(found[1].decode())
    except ValueError as error:
        return replace(policy, ignored=f"the pgnear comment is ignored: {error}")
    if not policy.enabled:
        return replace(policy, ignored=f"the pgnear comment is ignored: {policy.source} is switched off")
    source = f"{policy.source}, comment"
    if changes is None:
        return replace(policy, enabled=False, source=source)
    return replace(
        policy,
        ttl=changes.get("ttl", policy.ttl),
        stale_while_revalidate=changes.get("swr", policy.stale_while_revalidate),
        negative_ttl=changes.get("negative_ttl", policy.negative_ttl),
        source=source,
    )


def _read(content: str) -> dict[str, float] | None:
    """A comment's settings in seconds; None for off.

    Raises:
      ValueError: it is not understood.
    """
    words = content.replace(",", " ").split()
    if words == ["off"]:
        return None
    changes: dict[str, float] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in ("ttl", "swr", "negative_ttl"):
            raise ValueError(f"{word[:40]!r} is none of ttl=, swr=, negative_ttl= and off")
        if name in changes:
            raise ValueError(f"{name} is given twice")
        try:
            seconds = float(duration(value))
        except (ValueError, OverflowError):
            raise ValueError(f"{name}={value[:40]!r} is no duration") from None
        if not isfinite(seconds) or (name == "ttl" and seconds <= 0):
            raise ValueError(f"{name}={value[:40]!r} is out of range")
        changes[name] = seconds
    if not changes:
        raise ValueError("it is empty")
    return changes

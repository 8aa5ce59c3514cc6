"""Who may log in to pgnear, and for a while with which former password too.

SCRAM tells a client the salt before it proves anything, so a new password can stand beside the old one only under the
same salt: that is what it gets here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from config import User
from protocol.auth import ScramVerifier


class _Former(NamedTuple):
    verifier: ScramVerifier
    until: float


class Verifiers:
    """The verifier of each user; times are of the monotonic clock."""

    def __init__(self, users: Mapping[str, User]) -> None:
        self._users: dict[str, User] = {}
        self._current: dict[str, ScramVerifier] = {}
        self._former: dict[str, list[_Former]] = {}
        self.adopt(users)

    def adopt(self, users: Mapping[str, User], former_until: float | None = None) -> None:
        """`users` may log in from now on; with what no longer holds, until `former_until` where that is given."""
        before, verifiers = self._users, self._current
        if former_until is not None:
            for name, verifier in verifiers.items():
                if users.get(name) != before[name]:
                    self._former.setdefault(name, []).append(_Former(verifier, former_until))
        self._current = {}
        for name, user in users.items():
            known = verifiers.get(name)
            if known is not None and before[name] == user:
                self._current[name] = known
            else:
                self._current[name] = _verifier(user, known.salt if known is not None else None)
        self._users = dict(users)

    def of(self, user: str, now: float) -> list[ScramVerifier]:
        """The user's verifier, and its former ones that still do; empty for one who may not log in."""
        current = self._current.get(user)
        if user not in self._former:
            return [current] if current is not None else []
        former = [each for each in self._former[user] if now < each.until]
        if len(former) != len(self._former[user]):
            self._former[user] = former
        return ([current] if current is not None else []) + [each.verifier for each in reversed(former)]


def _verifier(user: User, salt: bytes | None) -> ScramVerifier:
    if user.verifier is not None:
        return ScramVerifier.parse(user.verifier.get_secret_value())
    assert user.password is not None
    return ScramVerifier.from_password(user.password.get_secret_value(), salt=salt)

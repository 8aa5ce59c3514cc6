"""What the fuzz leaves out or passes over, each with the open bug that is the reason.

An entry goes when its bug is fixed: `python -m tests.fuzz --all --only GROUP` must then find nothing.
"""

from __future__ import annotations

from tests.fuzz.referee import Known

OFF: dict[str, str] = {}
"""Groups of actions that are off."""

TOLERATED: dict[str, str] = {}
"""Differences that are passed over, by the beginning of their signature."""


def tolerated() -> list[Known]:
    """`TOLERATED` as the referee takes it."""
    return [(signature, frozenset()) for signature in TOLERATED]

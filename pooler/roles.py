"""What libpq's target_session_attrs means for what a server reports of itself.

Pure. Source: PostgreSQL documentation, "Parameter Key Words".
"""

from __future__ import annotations

from collections.abc import Mapping

READ_ONLY = "default_transaction_read_only"
REPORTED = frozenset({"in_hot_standby", READ_ONLY})
"""What a server (14 and newer) reports of its role, in ParameterStatus messages."""


def fits(reported: Mapping[str, str], wish: str) -> bool | None:
    """Whether a server that reports this is one of `wish`; None where it does not say (before PostgreSQL 14).

    Of prefer-standby every server is one.
    """
    if wish in ("any", "prefer-standby"):
        return True
    if not reported.keys() >= REPORTED:
        return None
    standby = reported["in_hot_standby"] == "on"
    read_only = standby or reported["default_transaction_read_only"] == "on"
    return {"read-write": not read_only, "read-only": read_only, "primary": not standby, "standby": standby}[wish]

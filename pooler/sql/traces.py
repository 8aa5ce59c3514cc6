"""What a statement leaves on a connection that nothing takes back, not even DISCARD ALL, and which statements see it.

A custom setting (`app.tenant`) that was ever set stays known, as ''; a temporary schema stays in the path, empty. Lives
here: reading both off a text. Not here: who gets a connection with which traces (`pooler.pool`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pooler.sql.statement import Part, PinKind

TEMPORARY_SCHEMA = "pg_temp"
UNKNOWN = "?"
"""Some custom setting, whose name did not show."""

MOST_TRACES = 1000
"""More are not told apart."""

NO_TRACES: frozenset[str] = frozenset()

looks = re.compile(
    rb"\b(?:current_setting|current_schemas?|pg_my_temp_schema|pg_temp\"?\s*\.|show\s+\"?\w+\"?\s*\.)", re.IGNORECASE
).search
"""Whether a text, or one of the same shape, may look at traces."""

looks_closely = re.compile(
    rb"""\bcurrent_setting\s*\(\s*+(?!'[^'.]*') | \b(?:current_schemas|pg_my_temp_schema)\b | \bshow\s+"?\w+"?\s*\.""",
    re.IGNORECASE | re.VERBOSE,
).search
"""The same of one text, whose literals are there: settings without a dot are no custom ones. What is said of a name in
pg_temp differs with and without that schema, too, but in its SQLSTATE only: no reason to give up a connection."""


def left_by(part: Part, configured: Iterable[str | None] = ()) -> frozenset[str]:
    """The traces that one statement may leave.

    Args:
      configured: what its calls of set_config name, None for each name that does not show.
    """
    traces = {UNKNOWN if name is None else name for name in configured if name is None or "." in name}
    traces.update(change.name for change in part.changes if "." in change.name)
    if PinKind.TEMPORARY in part.pins:
        traces.add(TEMPORARY_SCHEMA)
    if not part.pins.isdisjoint({PinKind.SETTING, PinKind.HIDDEN, PinKind.REACHED, PinKind.UNPARSABLE}):
        traces.add(UNKNOWN)
    return frozenset(traces)


def with_traces(traces: frozenset[str], more: frozenset[str]) -> frozenset[str]:
    """`traces` and `more`, as far as they are told apart."""
    if len(traces) > MOST_TRACES or more <= traces:
        return traces
    both = traces | more
    if len(both) <= MOST_TRACES:
        return both
    return traces | {UNKNOWN}


def shows_others(traces: frozenset[str], own: frozenset[str]) -> bool:
    """Whether `traces` of a connection may be others' than those of the client that has left its `own`."""
    return UNKNOWN in traces or not traces <= own  # two settings whose names nobody knows may be two


def is_full(traces: frozenset[str]) -> bool:
    """Whether a connection has had so many custom settings that it should be closed: it keeps each of them, too."""
    return len(traces) >= MOST_TRACES

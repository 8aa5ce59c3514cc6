"""PostgreSQL's own parser, as far as a stranger's text may be given to it.

Lives here: the only calls of postgast, behind what keeps a text from ending or stopping the process. libpg_query walks
the finished tree without minding its stack: some 20,000 operators in a row end the process, which no `except` catches;
and it takes time that grows with the square of some texts, in the one thread that serves everybody.
"""

from __future__ import annotations

import re
from typing import Any

import postgast

LONGEST = 32 * 1024
"""Bytes of a text that is parsed: a fraction of a second of work, whatever it is."""

LONGEST_UNCOUNTED = 16 * 1024
MOST_OPERATORS = LONGEST_UNCOUNTED // 2
"""How deep a tree may be: an operator and an operand, two bytes, are a level. It takes half of the 8 MB of stack that a
process has. What nests by brackets or prefixes ends at 10,000 in the parser itself."""

_OPERATOR = re.compile(
    rb"""[-+*/<>=~!@\#%^&|`?:]+
       | \b (?: at | between | collate | except | ilike | in | intersect | is | isnull | join | like | notnull
               | operator | similar | union ) \b""",
    re.IGNORECASE | re.VERBOSE,
)
"""All that the grammar lets follow an expression, a table or a query, so that the next is a level above."""

_LONG_OPERATOR = re.compile(rb"[-+*/<>=~!@#%^&|`?]{1000}")
"""Takes the scanner a time that grows with its square."""


class TooLong(Exception):
    """A text that is not given to the parser."""

    def __init__(self) -> None:
        super().__init__("it is too long or too deep to be examined")


def statements(text: bytes) -> list[Any]:
    """The statements of `text`, as libpg_query's nodes.

    Raises:
      TooLong. UnicodeDecodeError, postgast.PgQueryError and what protobuf raises: the parser does not understand it.
    """
    return list(postgast.parse(_checked(text)).stmts)


def fingerprint(text: bytes) -> str:
    """PostgreSQL's own fingerprint of a statement, the same for texts that differ only in constants; "" if unparsable.

    For people and policies to name statements by. Too coarse to reason from: names that differ in digits share it.
    """
    try:
        return str(postgast.fingerprint(_checked(text)).hex)
    except Exception:
        return ""


def normalized(text: bytes) -> str:
    """`text` with numbers ($1) in place of its literals; "" where they cannot be taken out."""
    try:
        return str(postgast.normalize(_checked(text)))
    except Exception:
        return ""


def _checked(text: bytes) -> str:
    if len(text) > LONGEST or (len(text) > LONGEST_UNCOUNTED and _is_deep(text)) or _LONG_OPERATOR.search(text):
        raise TooLong
    return text.decode()


def _is_deep(text: bytes) -> bool:
    return sum(1 for _ in _OPERATOR.finditer(text)) > MOST_OPERATORS

"""The shape of a text: what is left when its literals are set aside, so that one parse serves all texts of a shape.

Lives here: `shape`, which never guesses (a text that it cannot take apart for sure has none), and `separates`, which
tells the shapes whose literals do not matter. Not here: who remembers what a shape means (`classifier`).

Two texts of one shape have the same meaning (`Statement`): they differ only in the digits of whole numbers of the same
kind and in the contents of plain strings, none of which names the current time.
"""

from __future__ import annotations

import re

from pooler.sql.purity import TEMPORAL_WORD

# Text in which strings and numbers can be told apart by sight: no backslashes (their meaning depends on
# standard_conforming_strings), no dollar quotes, no comments, no strings with a prefix (E, U&, B, X, N), and no quoted
# names but of word characters. What follows a minus or a slash shows that no comment begins.
_PLAIN = re.compile(
    rb"""(?> [^'"$\\/\-]+
           | (?<! [\w&$\x80-\xff] ) ' [^'\\]* ' (?: ' [^'\\]* ' )*+
           | " [\w\x80-\xff]+ "
           | \$ [0-9]+ (?! [\w$\x80-\xff] )
           | - (?! - )
           | / (?! \* )
         )*+""",
    re.VERBOSE,
)
_STRING = re.compile(rb"'[^']*(?:''[^']*)*'")

# A whole number becomes "0", one of ten or more digits "00" (it is no int4), the fraction of "1.5" is a number too.
# Digits of names and parameters stay, and so does all that continues with a letter. Beginning with a digit, not with
# what must stand before it, lets the search jump from digit to digit.
_NUMBER = re.compile(
    rb"""[0-9] (?: (?<! [\w.$"\x80-\xff] [0-9] )
                   (?: [0-9]{0,8} (?! [\w\x80-\xff] ) | [0-9]{8} (?= [0-9]++ (?! [\w\x80-\xff] ) ) )
                 | (?<= [^\w.$"\x80-\xff] [0-9]{10} ) [0-9]*+ (?! [\w\x80-\xff] )
                 | (?<= [0-9] \. [0-9] ) [0-9]*+ (?! [\w.\x80-\xff] ) )
    """,
    re.VERBOSE,
)
_COMMENT = rb"/\*(?:[^*/]|/(?!\*)|\*(?!/))*+\*/"  # that holds no other
_LEADING_COMMENT = re.compile(rb"\s*" + _COMMENT)
_TRAILING_COMMENT = re.compile(_COMMENT + rb"\s*;?\s*")
_DIGIT = re.compile(rb"[0-9]")
_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_SUSPICIOUS = re.compile(rb"[nNtTyYpP](?:[oO][wWdDmM]|[eE][sS]|[gG]_)")  # begins what `_literal_matters` looks for
_TEMPORAL = re.compile(TEMPORAL_WORD.encode(), re.IGNORECASE)

# In these places the grammar, or the meaning, asks more of a number than to be one.
_PARTICULAR = re.compile(
    rb"""\b (?: float | char | character | varying | time | timestamp | interval | zone | bit | second ) \s* \( \s* 0
       | \[ \s* 00""",
    re.IGNORECASE | re.VERBOSE,
)


def shape(text: bytes) -> bytes | None:
    """`text` with its literals replaced; None where that is not surely possible or a literal could matter."""
    if b"*/" in text:
        bare = _without_comments(text)
        if bare is None:
            return None
        text = bare
    if _PLAIN.fullmatch(text) is None:
        return None
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError:
            return None  # what the parser cannot read has a meaning of its own
    if b"'" in text:
        if _SUSPICIOUS.search(text) is not None and _literal_matters(text.lower()):
            return None
        text = _STRING.sub(b"''", text)
    return _NUMBER.sub(b"0", text)


def template(text: bytes) -> bytes:
    """`text` with each digit as a zero: cheaper than its shape, and as good where `counts_only` says so."""
    return text.translate(_ZEROS)


def counts_only(text: bytes) -> bool:
    """Whether all digits of `text`, which has a shape, are numbers' and it has no strings: then every text of the same
    template has the same shape.
    """
    return b"'" not in text and _DIGIT.search(_NUMBER.sub(b"", text)) is None


def _without_comments(text: bytes) -> bytes | None:
    """`text` without the comments that it begins and ends with, which drivers and tracers add; None if unsure."""
    leading = _LEADING_COMMENT.match(text)
    if leading is not None:
        text = text[leading.end() :]
    if text.rstrip(b"; \n").endswith(b"*/"):
        start = text.rfind(b"/*")
        if start < 0 or _TRAILING_COMMENT.fullmatch(text, start) is None:
            return None
        text = text[:start]
    return text


def _literal_matters(folded: bytes) -> bool:
    return any(_TEMPORAL.search(literal) or b"pg_temp" in literal for literal in _STRING.findall(folded))


_PARAMETER = re.compile(rb"(?<![\w$\x80-\xff])\$[0-9]+")
_LITERAL = rb"(?:-?0+(?:\.0+)?|''|\$1|null|true|false|default)(?![\w.\"])"
_MORE_LITERALS = rb"(?:\s*+,\s*+" + _LITERAL + rb")"
_LITERALS = re.compile(rb"(?<![\w.$\"\x80-\xff])(" + _LITERAL + rb")" + _MORE_LITERALS + rb"++", re.IGNORECASE)
_SAME = re.compile(rb"(?<=[(,])(\s*+[^\s(),]{1,64})(?:,\1(?=[\s,)]))++")
_ROW = rb"\(\s*+" + _LITERAL + _MORE_LITERALS + rb"*+\s*+\)"
_ROWS = re.compile(rb"(" + _ROW + rb")(?:\s*+,\s*+" + _ROW + rb")++", re.IGNORECASE)
_SAME_ROWS = re.compile(rb"(\([^()]{1,4096}\))(?:\s*+,\s*+\1)++")
MOST_ARGUMENTS = 100
"""That a function may have: the length of a longer list means nothing to anybody."""


def shortened(shape: bytes) -> bytes:
    """`shape` with one element in place of each long list of literals and parameters, or of rows of such."""

    def one(found: re.Match[bytes]) -> bytes:
        return found[1] if found[0].count(b",") > MOST_ARGUMENTS else found[0]

    def one_row(found: re.Match[bytes]) -> bytes:
        return found[1] if found[0].count(b")") > MOST_ARGUMENTS else found[0]

    shape = _PARAMETER.sub(b"$1", shape)
    for lists, shorter in ((_LITERALS, one), (_ROWS, one_row), (_SAME, one), (_SAME_ROWS, one_row)):
        shape = lists.sub(shorter, shape)
    return shape


def separates(shape: bytes) -> bool:
    """Whether the numbers set aside in `shape` stand where any number would mean the same. Asked once per shape."""
    return _PARTICULAR.search(shape) is None

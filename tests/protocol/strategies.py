"""Hypothesis strategies for every message, made from the declarations: one per data type of the specification."""

from __future__ import annotations

from typing import Any

from construct import ExprAdapter, ExprValidator, FocusedSeq, FormatField, Struct
from hypothesis import settings
from hypothesis import strategies as st

from protocol import fields, messages
from protocol.fields import Message

EACH = settings(max_examples=40, deadline=None)
"""For a test that runs once for each message."""

STRINGS = st.binary(max_size=12).map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
"""Any bytes that a String can hold, as it shows them."""

_LIMITS = {"b": 8, "h": 16, "H": 16, "i": 32, "l": 32, "L": 32, "q": 64, "Q": 64}


def values(kind: Any) -> st.SearchStrategy[Any]:
    """What a field of this type can hold."""
    kind = fields.unnamed(kind)
    if kind is fields.String:
        return STRINGS
    if kind is fields.ByteN:
        return st.binary(max_size=40)
    if kind is fields.Value:
        return st.none() | st.binary(max_size=20)
    if isinstance(kind, FormatField):
        letter = kind.fmtstr[-1]
        bits = _LIMITS[letter]
        return st.integers(0, 2**bits - 1) if letter.isupper() else st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if isinstance(kind, Struct):
        return st.fixed_dictionaries({each.name: values(each) for each in kind.subcons if each.name})
    if isinstance(kind, FocusedSeq):  # fields.counted
        return st.lists(values(kind.element), max_size=5)
    special = _special(kind)
    assert special is not None, f"no strategy for {kind!r}"
    return special


def _special(kind: Any) -> st.SearchStrategy[Any] | None:
    if kind is messages.ErrorResponse.fields["fields"] or kind is messages.NoticeResponse.fields["fields"]:
        letters = st.characters(min_codepoint=1, max_codepoint=255)
        return st.lists(st.fixed_dictionaries({"type": letters, "value": STRINGS}), max_size=5)
    if kind is messages.StartupMessage.fields["parameters"]:
        return st.lists(st.fixed_dictionaries({"name": STRINGS.filter(bool), "value": STRINGS}), max_size=5)
    if kind is messages.AuthenticationSASL.fields["auth_mechanisms"]:
        return st.lists(STRINGS.filter(bool), max_size=4)
    if kind is messages.BackendKeyData.fields["secret_key"]:
        return st.binary(min_size=4, max_size=256)
    if kind is messages.AuthenticationMD5Password.fields["salt"]:
        return st.binary(min_size=4, max_size=4)
    if isinstance(kind, ExprValidator) and isinstance(kind.subcon, FormatField):
        return st.sampled_from([0, 1])  # fields.one_of: formats and booleans
    if isinstance(kind, ExprValidator) and isinstance(kind.subcon, ExprAdapter):
        return st.sampled_from("SP" if kind is not messages.ReadyForQuery.fields["tx_status"] else "ITE")
    return None


def any_fields(message: Message) -> st.SearchStrategy[dict[str, Any]]:
    """Fields that `message` can have."""
    fixed = {name: values(kind) for name, kind in message.fields.items()}
    if message is messages.StartupMessage:
        fixed["major_version"] = st.just(3)
    return st.fixed_dictionaries(fixed)

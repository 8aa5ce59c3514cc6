"""Errors as frames, and the list of those that pgnear raises: complete, well-formed, documented."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg.errors
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import errors, reference, responses
from protocol import messages as m
from protocol.examples import EXAMPLES
from protocol.responses import PgError

QUIET = settings(deadline=None)
ROOT = Path(__file__).parent.parent.parent
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
CALLS = [
    pytest.param(function, arguments, id=f"{function.__name__}-{number}")
    for function, examples in EXAMPLES.items()
    for number, arguments in enumerate(examples)
]


def fields(frame: bytes) -> dict[str, str]:
    """The fields of an ErrorResponse or NoticeResponse, by the catalogue."""
    decoded = m.decode(frame[:1], frame[5:], from_frontend=False)
    return {field["type"]: field["value"] for field in decoded.fields["fields"]}


# ---- frames ----------------------------------------------------------------------------------------------------------


def test_an_error_response_has_the_fields_that_clients_look_for() -> None:
    error = PgError("42601", "syntax error", detail="Here.", hint="Look.")
    assert fields(error.response()) == {
        "S": "ERROR", "V": "ERROR", "C": "42601", "M": "syntax error", "D": "Here.", "H": "Look.",
    }  # fmt: skip
    assert fields(error.fatal().response())["S"] == fields(error.fatal().response())["V"] == "FATAL"
    assert error.severity == "ERROR"


def test_a_notice_is_the_same_under_another_type() -> None:
    frame = responses.notice_response("00000", "hello", hint="there")
    assert (frame[:1], fields(frame)) == (
        b"N",
        {"S": "NOTICE", "V": "NOTICE", "C": "00000", "M": "hello", "H": "there"},
    )


@QUIET
@given(message=TEXT, detail=st.none() | TEXT, hint=st.none() | TEXT)
def test_any_words_survive_but_their_nuls(message: str, detail: str | None, hint: str | None) -> None:
    """A NUL would end the field, and what is behind it would be read as another one."""
    frame = responses.error_response("XX000", message, detail=detail, hint=hint)
    expected = {"S": "ERROR", "V": "ERROR", "C": "XX000", "M": message, "D": detail, "H": hint}
    expected = {code: text.replace("\0", "") for code, text in expected.items() if text is not None}
    assert fields(frame) == responses.parse_fields(frame[5:]) == expected
    again = PgError.from_payload(frame[5:])
    assert (again.message, again.detail, again.hint) == (expected["M"], expected.get("D"), expected.get("H"))


def test_words_that_are_no_unicode_do_not_break_the_frame() -> None:
    assert fields(responses.error_response("XX000", "a\udc80b"))["M"] == "a?b"


@QUIET
@given(payload=st.binary(max_size=60))
def test_any_payload_is_an_error(payload: bytes) -> None:
    error = PgError.from_payload(payload)
    assert len(error.sqlstate) == 5
    assert str(error) == error.message


def test_severity_is_taken_untranslated() -> None:
    payload = b"SFEHLER\0VERROR\0C42601\0Mnein\0DWeil.\0HTu was.\0Ff.c\0\0"
    error = PgError.from_payload(payload)
    assert (error.severity, error.sqlstate, error.message) == ("ERROR", "42601", "nein")
    assert (error.detail, error.hint) == ("Weil.", "Tu was.")


def test_a_payload_without_fields_is_an_internal_error() -> None:
    assert PgError.from_payload(b"\0").sqlstate == "XX000"


# ---- the list --------------------------------------------------------------------------------------------------------


def test_every_function_that_makes_an_error_has_an_example() -> None:
    kinds = ("PgError", "FrameError", "MalformedMessage", "NotAStartup")
    makers = {
        function
        for name, function in inspect.getmembers(errors, inspect.isfunction)
        if not name.startswith("_") and function.__annotations__.get("return") in kinds
    }
    assert len(makers) > 20
    assert makers == set(EXAMPLES)


@pytest.mark.parametrize(("function", "arguments"), CALLS)
def test_an_error_of_pgnears_reads_like_one_of_postgresqls(function: Any, arguments: dict[str, Any]) -> None:
    error = function(**arguments)
    assert psycopg.errors.lookup(error.sqlstate)
    assert "\n" not in error.message
    assert not error.message.endswith(".") or "SCRAM failed" in error.message
    assert error.message[0].islower() or error.message.startswith(("SSLRequest", "SCRAM", "-c"))
    for sentence in filter(None, (error.detail, error.hint)):
        assert not sentence[0].islower() or sentence.startswith("pgnear")
        assert sentence.endswith(".")
    assert fields(error.response())["M"] == error.message


@pytest.mark.parametrize("function", EXAMPLES, ids=lambda function: function.__name__)
def test_an_error_says_when_it_is_raised(function: Any) -> None:
    assert (inspect.getdoc(function) or "").endswith(".")


def test_sqlstates_are_named_as_postgresql_names_them() -> None:
    for sqlstate, condition in reference.CONDITIONS.items():
        assert psycopg.errors.lookup(sqlstate).__name__.strip("_").lower() == condition.replace("_", "")


def test_the_reference_is_current() -> None:
    assert (ROOT / "docs" / "errors.md").read_text() == reference.render(), "run python -m protocol.reference"


def sources() -> Iterator[tuple[str, ast.AST]]:
    for folder in ("protocol", "pooler"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a function or class of this name."""
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called == name:
                    yield path, node


def test_nothing_else_makes_up_an_error() -> None:
    makers = {path for name in ("PgError", "FrameError", "MalformedMessage") for path, _ in calls(name)}
    assert "protocol/errors.py" in makers
    # responses.py makes one the last that a client hears, origin.py adds to what the origin said, line.py says again
    # what another worker has said
    assert makers <= {"protocol/errors.py", "protocol/responses.py", "pooler/origin.py", "pooler/workers/line.py"}


@pytest.mark.parametrize(
    ("name", "function"),
    [("protocol_violation", errors.protocol_violation), ("origin_unreachable", errors.origin_unreachable)],
)
def test_every_reason_in_the_source_is_among_the_examples(name: str, function: Any) -> None:
    """These two take their words from the caller; the reference lists them all."""
    listed = [text for example in EXAMPLES[function] for text in example.values()]
    patterns = []
    for path, call in calls(name):
        (argument,) = call.args
        if isinstance(argument, ast.Constant):
            patterns.append((path, re.escape(argument.value)))
        elif isinstance(argument, ast.JoinedStr):
            parts = [re.escape(each.value) if isinstance(each, ast.Constant) else ".+" for each in argument.values]
            patterns.append((path, "".join(parts)))
    assert len(patterns) > 5
    missing = [each for each in patterns if not any(re.fullmatch(each[1], text) for text in listed)]
    assert missing == [], "add an example in protocol/errors.py, then run python -m protocol.reference"

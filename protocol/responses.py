"""ErrorResponse and NoticeResponse: an error as an exception, as a frame, and back.

Lives here: what an error consists of, and its form on the wire. Not here: which errors pgnear raises (`errors`).
Source: PostgreSQL documentation, "Error and Notice Message Fields".
"""

from __future__ import annotations


class PgError(Exception):
    """An error that a client can be told.

    Args:
      sqlstate: five characters.
      message: one line, lower case first, as PostgreSQL writes them.
      severity: ERROR, FATAL or PANIC.
      detail, hint: whole sentences, or None.
      routine: of an error that stands for one of PostgreSQL's: the name by which drivers recognise it.
    """

    def __init__(
        self,
        sqlstate: str,
        message: str,
        *,
        severity: str = "ERROR",
        detail: str | None = None,
        hint: str | None = None,
        routine: str | None = None,
    ) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message
        self.severity = severity
        self.detail = detail
        self.hint = hint
        self.routine = routine

    @classmethod
    def from_payload(cls, payload: bytes) -> PgError:
        """The error that an ErrorResponse's body tells of."""
        fields = parse_fields(payload)
        sqlstate = fields.get("C", "")
        return cls(
            sqlstate if len(sqlstate) == 5 else "XX000",
            fields.get("M", "no message"),
            severity=fields.get("V", fields.get("S", "ERROR")),
            detail=fields.get("D"),
            hint=fields.get("H"),
        )

    def response(self) -> bytes:
        """The whole ErrorResponse frame."""
        return _response(b"E", self.severity, self.sqlstate, self.message, self.detail, self.hint, self.routine)

    def fatal(self) -> PgError:
        """The same error as the last thing a client hears."""
        return PgError(self.sqlstate, self.message, severity="FATAL", detail=self.detail, hint=self.hint)

    def __str__(self) -> str:
        return self.message


class FrameError(PgError):
    """A length that cannot be: under 4, or over the limit that the reader was given."""


class NotAStartup(PgError):
    """What a client began with is no startup packet. As PostgreSQL does, it is logged, and the client hears nothing.

    Drivers that leave before their login has begun say Terminate there, and would report an answer as an error.
    """


class MalformedMessage(PgError):
    """Bytes that are no message of the protocol, or not the message that they say they are."""


def error_response(
    sqlstate: str,
    message: str,
    *,
    severity: str = "ERROR",
    detail: str | None = None,
    hint: str | None = None,
) -> bytes:
    """A whole ErrorResponse frame."""
    return _response(b"E", severity, sqlstate, message, detail, hint)


def notice_response(
    sqlstate: str,
    message: str,
    *,
    severity: str = "NOTICE",
    detail: str | None = None,
    hint: str | None = None,
) -> bytes:
    """A whole NoticeResponse frame."""
    return _response(b"N", severity, sqlstate, message, detail, hint)


def _response(
    kind: bytes,
    severity: str,
    sqlstate: str,
    message: str,
    detail: str | None,
    hint: str | None,
    routine: str | None = None,
) -> bytes:
    fields = (
        ("S", severity), ("V", severity), ("C", sqlstate), ("M", message), ("D", detail), ("H", hint), ("R", routine),
    )  # fmt: skip
    body = b"".join(
        code.encode() + value.replace("\0", "").encode(errors="replace") + b"\0"
        for code, value in fields
        if value is not None
    )
    return kind + (len(body) + 5).to_bytes(4, "big") + body + b"\0"


def parse_fields(payload: bytes) -> dict[str, str]:
    """The fields of an ErrorResponse's or NoticeResponse's body, by their one-letter codes."""
    fields = {}
    for field in payload.split(b"\0"):
        if field:
            fields[chr(field[0])] = field[1:].decode(errors="replace")
    return fields

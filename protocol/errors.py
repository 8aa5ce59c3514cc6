"""ErrorResponse and NoticeResponse, and every error that pgnear itself raises.

An error of pgnear's reads like one of PostgreSQL's: severity, SQLSTATE, message, and where they help a detail and a
hint that names the setting. The functions at the end are the whole list; nothing else in pgnear makes up a SQLSTATE.
Source: PostgreSQL documentation, "Error and Notice Message Fields" and "PostgreSQL Error Codes".
"""

from __future__ import annotations


class PgError(Exception):
    """An error that a client can be told.

    Args:
      sqlstate: five characters.
      message: one line, lower case first, as PostgreSQL writes them.
      severity: ERROR, FATAL or PANIC.
      detail, hint: whole sentences, or None.
    """

    def __init__(
        self,
        sqlstate: str,
        message: str,
        *,
        severity: str = "ERROR",
        detail: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message
        self.severity = severity
        self.detail = detail
        self.hint = hint

    @classmethod
    def from_payload(cls, payload: bytes) -> PgError:
        """The error that an ErrorResponse's body tells of."""
        fields = parse_fields(payload)
        return cls(
            fields.get("C", "XX000"),
            fields.get("M", "no message"),
            severity=fields.get("V", fields.get("S", "ERROR")),
            detail=fields.get("D"),
            hint=fields.get("H"),
        )

    def response(self) -> bytes:
        """The whole ErrorResponse frame."""
        return _response(b"E", self.severity, self.sqlstate, self.message, self.detail, self.hint)

    def fatal(self) -> PgError:
        """The same error as the last thing a client hears."""
        return PgError(self.sqlstate, self.message, severity="FATAL", detail=self.detail, hint=self.hint)

    def __str__(self) -> str:
        return self.message


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


def _response(kind: bytes, severity: str, sqlstate: str, message: str, detail: str | None, hint: str | None) -> bytes:
    fields = (("S", severity), ("V", severity), ("C", sqlstate), ("M", message), ("D", detail), ("H", hint))
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


# ---- what pgnear itself says -----------------------------------------------------------------------------------------


def pool_timeout(pool: str, waited_seconds: float, size: int) -> PgError:
    return PgError(
        "53300",
        f'no origin connection of pool "{pool}" became free within {waited_seconds:g} s',
        detail=f"All {size} connections are in use.",
        hint="Shorten transactions, or raise pool_size or pool_wait_timeout.",
    )


def too_many_clients(limit: int) -> PgError:
    return PgError(
        "53300",
        "sorry, too many clients already",
        detail=f"{limit} clients are connected.",
        hint="Raise max_client_connections.",
    )


def too_many_logins(limit: int) -> PgError:
    return PgError(
        "53300",
        "too many connections that have not logged in yet",
        detail=f"{limit} logins are under way.",
        hint="Try again; raise max_unauthenticated_connections if this is expected.",
    )


def too_many_statements(limit: int) -> PgError:
    return PgError(
        "53400",
        f"this client has {limit} prepared statements, as many as it may have",
        hint="DEALLOCATE some, or raise max_client_statements.",
    )


def origin_lost(reason: str) -> PgError:
    return PgError(
        "08006",
        "the connection to the origin database was lost",
        detail=f"{reason[:1].upper()}{reason[1:]}. A query that was under way may or may not have taken effect.",
        hint="Reconnect and check before you repeat a write.",
    )


def origin_unreachable(reason: str) -> PgError:
    return PgError("08001", f"the origin database cannot be reached: {reason}")


def auth_failed(user: str) -> PgError:
    return PgError("28P01", f'password authentication failed for user "{user}"')


def unknown_database(name: str) -> PgError:
    return PgError(
        "3D000",
        f'database "{name}" does not exist',
        hint="pgnear serves the origin URL's database and those under [databases].",
    )


def no_user() -> PgError:
    return PgError("28000", "no PostgreSQL user name specified in startup packet")


def tls_required() -> PgError:
    return PgError(
        "28000",
        "this pgnear accepts only encrypted connections",
        hint="Connect with sslmode=require or stronger.",
    )


def protocol_violation(message: str) -> PgError:
    return PgError("08P01", message)


def plaintext_after_ssl_request() -> PgError:
    return PgError(
        "08P01",
        "received unencrypted data after SSL request",
        detail="This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.",
    )


def unsupported_protocol(major: int, minor: int) -> PgError:
    return PgError("0A000", f"unsupported frontend protocol {major}.{minor}: pgnear supports 3.0 to 3.2")


def replication_not_supported() -> PgError:
    return PgError(
        "0A000",
        "replication connections are not pooled",
        hint="Connect to the origin database directly for replication.",
    )


def login_timeout(seconds: float) -> PgError:
    return PgError("57014", f"login did not finish within {seconds:g} s", hint="See client_login_timeout.")


def query_canceled() -> PgError:
    return PgError("57014", "canceling statement due to user request")


def admin_shutdown() -> PgError:
    return PgError("57P01", "terminating connection due to administrator command")


def duplicate_prepared_statement(name: str) -> PgError:
    return PgError("42P05", f'prepared statement "{name}" already exists')


def undefined_prepared_statement(name: str) -> PgError:
    if not name:
        return PgError("26000", "unnamed prepared statement does not exist")
    return PgError("26000", f'prepared statement "{name}" does not exist')


def outdated_plan() -> PgError:
    return PgError("0A000", "cached plan must not change result type")


def no_transaction_blocks() -> PgError:
    return PgError(
        "0A000",
        "transaction blocks are not allowed in statement pooling mode",
        hint='Set pooling = "transaction" for this user or database.',
    )


def internal_error() -> PgError:
    return PgError("XX000", "internal error of pgnear; its log says more")

"""Deadlines for some clients: `[[override]]`.

Not here: which override counts for whom (`deadlines`), and the deadlines of all others (`model`).
"""

from __future__ import annotations

from pydantic import Field, model_validator

from config.values import Duration, Names, Section, Ttl


class Override(Section):
    """Deadlines for some clients. Of each, the first override counts whose conditions hold and that sets it."""

    database: Names = Field(
        (),
        description="Condition: the client's database is one of these. Set it where databases differ.",
        examples=["shop"],
    )
    user: Names = Field(
        (),
        description="Condition: the client's user is one of these. Set it where users differ; not for what concerns "
        "origin connections, which users share.",
        examples=["reporting"],
    )
    query_timeout: Duration | None = Field(
        None,
        description="In place of the top-level query_timeout; unset, that. Raise it for reports.",
        examples=[300.0],
    )
    transaction_timeout: Duration | None = Field(
        None,
        description="In place of the top-level transaction_timeout; unset, that. Raise it for migrations.",
        examples=[600.0],
    )
    idle_in_transaction_timeout: Duration | None = Field(
        None,
        description="In place of the top-level idle_in_transaction_timeout; unset, that. Raise it for people at psql.",
        examples=[600.0],
    )
    client_idle_timeout: Duration | None = Field(
        None,
        description="In place of the top-level client_idle_timeout; unset, that. Lower it for clients that forget to "
        "leave.",
        examples=[600.0],
    )
    pool_wait_timeout: Ttl | None = Field(
        None,
        description="In place of the top-level pool_wait_timeout; unset, that. Raise it for work that nobody watches.",
        examples=[60.0],
    )
    pause_timeout: Duration | None = Field(
        None,
        description="In place of the top-level pause_timeout; unset, that. Lower it for clients that may fail.",
        examples=[30.0],
    )
    origin_connect_timeout: Ttl | None = Field(
        None,
        description="In place of the top-level origin_connect_timeout; unset, that. Raise it for a database that "
        "sleeps until somebody connects.",
        examples=[30.0],
    )
    origin_idle_timeout: Duration | None = Field(
        None,
        description="In place of the top-level origin_idle_timeout; unset, that. Lower it for a database that few ask "
        "for.",
        examples=[60.0],
    )
    origin_lifetime: Duration | None = Field(
        None,
        description="In place of the top-level origin_lifetime; unset, that. Lower it for a database that moves.",
        examples=[300.0],
    )
    cancel_wait_timeout: Ttl | None = Field(
        None,
        description="In place of the top-level cancel_wait_timeout; unset, that. Raise it for a database far away.",
        examples=[30.0],
    )

    @model_validator(mode="after")
    def _origins_are_shared(self) -> Override:
        names = (
            "pause_timeout", "origin_connect_timeout", "origin_idle_timeout", "origin_lifetime", "cancel_wait_timeout",
        )  # fmt: skip
        if self.user and (wrong := [name for name in names if getattr(self, name) is not None]):
            raise ValueError(f"{', '.join(wrong)}: users share origin connections; give it without user")
        return self

"""Where connections lead besides the top-level origin, when they are not tried, and how many work at once:
`[databases]`, `[[replica]]`, `[breaker]`, `[concurrency]`.

Not here: how a URL is read (`url`), and the rules between these and the top-level settings (`model`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from config.values import Command, Pooling, PoolSize, Seconds, Section, Size, Url, number


class Database(Section):
    """A database that clients can ask for by the name of its table."""

    origin: Url = Field(
        description="Its connection URL. Give it for each database beyond the one of the top-level origin.",
        examples=["postgresql://app:secret@replica.example.com:5432/shop"],
    )
    password_file: Path | None = Field(
        None,
        description="A file with the password for its origin, as the top-level password_file. Give it where the URL "
        "has no password.",
        examples=["/run/secrets/shop"],
    )
    password_command: Command | None = Field(
        None,
        description="A command that prints the password for its origin, as the top-level password_command. Give it "
        "where the URL has no password.",
        examples=["/usr/local/bin/password-of shop"],
    )
    pool_size: PoolSize | None = Field(
        None,
        description="Origin connections of its own pool; unset, the top-level pool_size. Lower it for a database that "
        "few ask for.",
        examples=[5],
    )
    pooling: Pooling | None = Field(
        None,
        description="The database's own mode; unset, the top-level one. Set it where one database needs another.",
        examples=["session"],
    )
    reuse_statements: bool | None = Field(
        None,
        description="Whether its connections keep statements that clients parse without a name; unset, as at the top "
        "level. Set it where one database needs another.",
        examples=[False],
    )
    defer_begin: bool | None = Field(
        None,
        description="Whether BEGIN of its clients waits for the first statement that needs an origin; unset, as at the "
        "top level. Set it where one database needs another.",
        examples=[True],
    )


class Replica(Section):
    """A physical standby that answers reads which may be cached, where it is far enough."""

    url: Url = Field(
        description="Its connection URL: the same user and database as the origin's; without a password it has the "
        "origin's. Give one for each replica.",
        examples=["postgresql://app:secret@replica.example.com:5432/shop"],
    )
    database: str | None = Field(
        None,
        description="Whose replica it is, by the name that clients ask for; unset, the top-level origin's. Set it for "
        "one of [databases].",
        examples=["orders"],
    )
    pool_size: PoolSize = Field(
        10, description="Connections to it at most; when all are busy the origin answers. Raise it for many readers."
    )
    max_lag: Seconds = Field(
        5.0,
        ge=1,
        description="What was written past pgnear may be missing for so long; a replica that is further behind is not "
        "asked. Writes through pgnear are never missing. Lower it where others write.",
    )
    max_lag_bytes: Size = Field(
        0,
        ge=0,
        description="Of the primary's log, a replica that is asked may not have replayed so much; 0: no limit. Set it "
        "where bursts of writes past pgnear matter sooner than max_lag says.",
    )
    read_only_transactions: Literal["never", "own", "all"] = Field(
        "never",
        description="Whether transactions that begin as READ ONLY (BEGIN READ ONLY, default_transaction_read_only) go "
        "there as a whole. own: where it has what the same client has written through pgnear; what others wrote in the "
        "last max_lag may be missing. all: where it has what everybody has. Set it for reports.",
    )


class Breaker(Section):
    """When an origin that cannot be reached is left alone for a while."""

    failures: Annotated[int, BeforeValidator(number), Field(json_schema_extra={"unit": "attempts"})] = Field(
        5,
        ge=0,
        description="So many connections in a row that cannot be made open the breaker: then queries that need a new "
        "one fail at once (57P03) and one probe at a time is made. Raise it for an unreliable network; 0 turns it off.",
    )
    timeout_rate: Annotated[float, BeforeValidator(number), Field(json_schema_extra={"unit": "part"})] = Field(
        0.5,
        gt=0,
        le=1,
        description="The part of the last 20 attempts to connect that may run into origin_connect_timeout before the "
        "breaker opens though others succeed. Raise it for an origin that is often slow; 1 turns it off.",
    )
    silence: Seconds = Field(
        5.0,
        ge=0,
        description="With every connection at work, queries waiting and nothing said by the origin for so long, one "
        "more connection is tried; where that fails the origin is frozen or gone, and the breaker opens. Raise it to "
        "probe an origin with long queries less often; 0 turns it off.",
    )
    retry_after: Seconds = Field(
        1.0,
        gt=0,
        description="From the breaker's opening to its first probe; each that fails slowly, or by a refused login, "
        "doubles it. Raise it where attempts do harm.",
    )
    retry_at_most: Seconds = Field(
        10.0,
        gt=0,
        description="The longest time between two probes. Lower it to notice sooner that the origin is back.",
    )


class Concurrency(Section):
    """When an origin that has slowed down is given less to do at once."""

    adaptive: bool = Field(
        False,
        description="Whether fewer connections than pool_size work at once while the origin finishes far fewer "
        "transactions than it did and clients wait, as long as that costs no throughput: see docs/faults.md. Turn it "
        "on where pool_size is more than the origin can bear on a bad day.",
    )
    least: Annotated[float, BeforeValidator(number), Field(json_schema_extra={"unit": "part"})] = Field(
        0.5,
        gt=0,
        le=1,
        description="The part of pool_size that always works at once, reports and pinned clients not counted. Lower it "
        "where the origin has far fewer processors than connections.",
    )
    tolerance: Annotated[float, BeforeValidator(number), Field(json_schema_extra={"unit": "times"})] = Field(
        2.0,
        gt=1,
        description="So many times fewer transactions than usual are no reason to do anything. Raise it where the load "
        "changes its nature during the day.",
    )

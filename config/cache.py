"""The query cache's settings: `[cache]` and `[[cache.policy]]`.

Not here: what the cache does with them (`pooler.cache.policy`, `pooler.cache.store`).
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from config.values import Budget, Duration, Names, Seconds, Section, Size, Statements, Ttl, from_json, several


class CachePolicy(Section):
    """How answers of some statements are cached. The first policy whose every condition holds counts."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9_-]+$",
        description="Its name, in metrics and for purging; not default, which is that of all others. Give each policy "
        "its own.",
        examples=["catalogue"],
    )
    tables: Names = Field(
        (),
        description="Condition: the statement reads one of these tables, given as table or schema.table. Set it for "
        "tables that change more rarely or more often than others.",
        examples=["public.products"],
    )
    fingerprint: Names = Field(
        (),
        description="Condition: the statement's fingerprint, as EXPLAIN CACHE shows it, is one of these. Set it for "
        "single statements.",
        examples=["0a1b2c3d4e5f6071"],
    )
    user: Names = Field(
        (),
        description="Condition: the client's user is one of these. Set it where users differ in how fresh their "
        "answers must be.",
        examples=["reporting"],
    )
    database: Names = Field(
        (),
        description="Condition: the client's database is one of these. Set it where there are several.",
        examples=["shop"],
    )
    application_name: Names = Field(
        (),
        description="Condition: the client's application_name is one of these. Set it for programs that share a user.",
        examples=["dashboard"],
    )
    text: str | None = Field(
        None,
        description="Condition: a regular expression (Python's) that is found in the statement's text. Set it where "
        "nothing else tells statements apart.",
        examples=["(?i)from products"],
    )
    enabled: bool = Field(
        True,
        description="Whether the answers are cached at all. Turn off for what must always come from the origin; a "
        "comment in the statement cannot turn it on again.",
    )
    ttl: Ttl | None = Field(
        None,
        description="In place of cache.ttl; unset, that. Raise it for what rarely changes, lower it where writes go "
        "past pgnear.",
        examples=[600.0],
    )
    stale_while_revalidate: Duration | None = Field(
        None,
        description="In place of cache.stale_while_revalidate; unset, that. Use 0 where no answer may be older than "
        "its ttl.",
        examples=[0.0],
    )
    negative_ttl: Duration | None = Field(
        None,
        description="In place of cache.negative_ttl; unset, that. Use 0 where a new row must be seen at once though it "
        "was written past pgnear.",
        examples=[0.0],
    )
    max_bytes: Budget | None = Field(
        None,
        description="Memory for these answers, of cache.max_bytes; unset, they share that with all others. Set it so "
        "that they cannot crowd others out.",
        examples=[16 * 1024**2],
    )

    @model_validator(mode="after")
    def _usable(self) -> CachePolicy:
        if self.name == "default":
            raise ValueError("default is the name of what holds without a policy")
        try:
            re.compile(self.text or "")
        except re.error as error:
            raise ValueError(f"text is no regular expression: {error}") from None
        return self


class Cache(Section):
    """The query cache."""

    enabled: bool = Field(True, description="Whether repeated reads are answered from memory. Turn off to only pool.")
    ttl: Seconds = Field(
        60.0,
        gt=0,
        description="How long an answer may be served, unless a write through pgnear ends it earlier. Lower it where "
        "others write past pgnear and readers must see that sooner.",
    )
    stale_while_revalidate: Seconds = Field(
        15.0,
        ge=0,
        description="How long after its ttl an answer is still served, while one query fetches a new one. Use 0 where "
        "no answer may be older than its ttl.",
    )
    negative_ttl: Seconds = Field(
        5.0,
        ge=0,
        description="The ttl of answers without rows, and the most that they may be stale. Raise it where questions "
        "about what does not exist are many.",
    )
    ttl_without_stream: Seconds = Field(
        5.0,
        gt=0,
        description="The most that an answer may be old while the stream of the origin's changes, where there is one, "
        "is lost. Lower it where writes go past pgnear and readers must see them soon.",
    )
    stale_if_error: Seconds = Field(
        0.0,
        ge=0,
        description="How long after its time an answer is still served while the origin cannot be reached (its breaker "
        "is open); 0 is never. Writes end it as ever. Set it where an old answer is better than none.",
    )
    max_bytes: Size = Field(
        128 * 1024**2,
        ge=1024**2,
        description="Memory for all answers together. Raise it when pgnear_cache_evictions_total grows.",
    )
    max_entry_bytes: Size = Field(
        1024**2,
        ge=1024,
        description="The largest answer that is kept; a larger one is passed on and forgotten. Raise it for large "
        "answers that are asked for often.",
    )
    safe_functions: Annotated[tuple[str, ...], BeforeValidator(several)] | None = Field(
        None,
        description="Names of your STABLE functions (`name` or `schema.name`) whose answers follow from arguments and "
        "settings alone: statements that call them may be cached. Do not name one that reads a table: a change of that "
        "table would not be noticed. IMMUTABLE ones need no entry, VOLATILE ones are never cached.",
        examples=["app.price_class"],
    )

    policy: Annotated[tuple[CachePolicy, ...], BeforeValidator(from_json)] = Field(
        (),
        description="How answers of some statements are cached. The first policy whose every condition holds counts. "
        "In the environment, PGNEAR_CACHE__POLICY holds them as a JSON list.",
    )

    max_advice_shapes: Statements = Field(
        500,
        ge=0,
        le=100000,
        description="Shapes of reads, in each database, whose calls are counted for SHOW CACHE ADVICE, with the cache "
        "on or off; some 2 kB each, and the cheapest are forgotten for new ones. Raise it where SHOW CACHE ADVICE "
        "says that many were; 0 counts nothing.",
    )
    invalidation: Literal["auto", "writes", "stream"] = Field(
        "auto",
        description="Which writes end an answer's life: those through pgnear (writes), or also those past it, by a "
        "logical replication stream from the origin. auto uses one where the origin is ready for it; stream makes the "
        "publication, and warns where there is no stream. See docs/invalidation.md.",
    )
    notify_channel: Annotated[str, Field(json_schema_extra={"unit": "name"})] | None = Field(
        None,
        pattern=r"^.{1,63}$",
        description="A channel that pgnear listens on at each origin, for NOTIFYs that say what to purge (table "
        "orders, namespace catalogue, fingerprint 0a1b2c3d4e5f6071, all); unset, none. Set it where programs that "
        "write past pgnear can tell it. See docs/invalidation.md.",
        examples=["pgnear"],
    )
    publication: Annotated[str, Field(json_schema_extra={"unit": "name"})] = Field(
        "pgnear",
        pattern=r"^.{1,63}$",
        description="The publication that the stream reads, made by pgnear cache setup. Change it where several "
        "pgnears of different owners use one database.",
    )

    @model_validator(mode="after")
    def _one_fits(self) -> Cache:
        if self.max_entry_bytes > self.max_bytes:
            raise ValueError("max_entry_bytes is larger than max_bytes: no answer of that size could be kept")
        seen: set[str] = set()
        for policy in self.policy:
            if policy.name in seen:
                raise ValueError(f"two policies are called {policy.name}")
            seen.add(policy.name)
            if policy.max_bytes is not None and policy.max_bytes > self.max_bytes:
                raise ValueError(f"the policy {policy.name} may have more memory (max_bytes) than the whole cache")
        return self

"""EXPLAIN CACHE: whether the answer to a statement may be cached, what decides that, and what is cached now.

Lives here: the words of the answer. The judgements are those that traffic gets: the classifier's, the catalog's and the
policies'. A client's own search_path, role or comment may lead to others; what was assumed is part of the answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from pooler.admin.everybody import ask_everybody
from pooler.cache.catalog import Catalog, Verdict, parse_search_path
from pooler.settings import DEFAULTS
from pooler.sql.parser import fingerprint
from pooler.workers.peers import answers
from protocol import errors

if TYPE_CHECKING:
    from pooler.cache.entry import Entry
    from pooler.cache.policy import Policy
    from pooler.cache.store import Store
    from pooler.pool import Pool
    from pooler.service import Service
    from pooler.sql.statement import Statement

MAX_ENTRIES = 20
"""So many entries of a statement are shown one by one, the most used first."""

Line = tuple[str, str]


async def explain(
    service: Service, user: str, application_name: str, database: str | None, statement: str
) -> tuple[list[Line], list[int]]:
    """(property, value) of `statement`, as `user` would get it; and the workers whose entries are missing.

    Args:
      database: None is the first one.

    Raises:
      PgError: 3D000, there is no such database.
    """
    lines = _judge(service, user, application_name, database, statement)
    if service.cache is None:
        return lines, []
    asked = {"database": dict(lines)["database"], "user": user, "text": statement}
    replies = await ask_everybody(service, "entries", asked)
    return lines + _entries(replies.answers, user, several=service.peers is not None), replies.silent


def _judge(service: Service, user: str, application_name: str, database: str | None, statement: str) -> list[Line]:
    """What does not depend on what is cached: every worker would say the same."""
    pool = next(iter(service.pools.values())) if database is None else service.pools.get(database)
    if pool is None:
        raise errors.unknown_database(database or "")
    store, policies = service.cache, service.policies
    if store is None or policies is None:
        return [("cacheable", "no"), ("reason", "the cache is off (cache.enabled)"), ("database", pool.name)]
    text = statement.encode()
    understood = service.classifier(text)
    path = search_path_of(pool)
    names = parse_search_path(path) if path is not None else None
    catalog = pool.catalog
    known = catalog is not None or not understood.cacheable
    verdict = (
        catalog.reads(understood, names, pool.target.user)
        if catalog is not None
        else Verdict(False, understood.why_not or "the origin's catalog is not known now: see SHOW POOLS")
    )
    mark = fingerprint(text)
    policy = policies.choose(understood, user, pool.name, application_name, text, mark)
    reason = verdict.reason or ("" if policy.enabled else f"it is switched off: {policy.source}")
    return [
        ("cacheable", "no" if reason else "yes" if known else "unknown"),
        ("reason", reason),
        ("database", pool.name),
        ("user", user),
        ("search_path", path or "not known: every schema counts"),
        ("tables", table_names(catalog, verdict.tables) or _named(understood)),
        ("functions", ", ".join(sorted(verdict.functions if verdict.cacheable else _suspects(understood, verdict)))),
        ("fingerprint", mark),
        *_policy(policy),
        *_capped(service, store, pool, verdict),
        ("key", "database, user, settings except application_name, text, parameters and their types, result formats"),
    ]


def search_path_of(pool: Pool) -> str | None:
    """The search_path of a session that sets none; None where the origin does not report it (before 18)."""
    for origin in pool.origins:
        if origin.settings is DEFAULTS and "search_path" in origin.reports.values:
            return origin.reports.values["search_path"]
    known = pool.greetings.reports(DEFAULTS)
    return known.values.get("search_path") if known is not None else None


def table_names(catalog: Catalog | None, oids: Iterable[int]) -> str:
    """Relations as an operator knows them, in order."""
    relations = catalog.relations if catalog is not None else {}
    return ", ".join(sorted(f"{relations[oid].schema}.{relations[oid].name}" for oid in oids if oid in relations))


def _named(statement: Statement) -> str:
    """Its relations as it names them itself, for one that is not looked up."""
    return ", ".join(sorted(".".join(filter(None, name)) for name in statement.relations))


def _suspects(statement: Statement, verdict: Verdict) -> frozenset[str]:
    return verdict.functions or statement.functions


def _policy(policy: Policy) -> list[Line]:
    lines = [
        ("policy", policy.source),
        ("namespace", policy.namespace.name),
        ("ttl", f"{policy.ttl:g} s"),
        ("stale_while_revalidate", f"{policy.stale_while_revalidate:g} s"),
        ("negative_ttl", f"{policy.negative_ttl:g} s"),
    ]
    return lines + ([("note", policy.ignored)] if policy.ignored else [])


def _capped(service: Service, store: Store, pool: Pool, verdict: Verdict) -> list[Line]:
    """Why the answer lives no longer than `ttl_without_stream`, where it does not."""
    if not verdict.cacheable:
        return []
    lost = service.ears.lost[pool.name] if service.ears is not None else ()
    reasons = [f"the {ear} that tells of writes past pgnear is lost" for ear in sorted(lost)]
    untold = verdict.tables & store.uncovered(pool.name)
    if untold:
        reasons.append(f"the stream does not tell of changes of {table_names(pool.catalog, untold)}")
    seconds = service.config.cache.ttl_without_stream
    return [("capped", f"{seconds:g} s: {'; '.join(reasons)}")] if reasons else []


def _entries(answers: dict[int, Any], user: str, *, several: bool) -> list[Line]:
    """The entries of all workers: how many, and the most used."""
    count = sum(answer["count"] for answer in answers.values())
    mine = sum(answer["mine"] for answer in answers.values())
    shown = [
        (not own, -hits, f"{said}, worker {worker}" if several else said)
        for worker, answer in answers.items()
        for own, hits, said in answer["entries"]
    ]
    shown.sort(key=itemgetter(0, 1))
    lines = [("entries", f"{count}, {mine} of them for user {user}")]
    return lines + [("entry", said) for _, _, said in shown[:MAX_ENTRIES]]


@answers("entries")
async def _own_entries(service: Service, data: Any) -> dict[str, Any]:
    """This worker's entries of this very text in this database, whoever asked; those of `user` first."""
    store, user, wanted = service.cache, data["user"], _bare(data["text"].encode())
    if store is None:
        return {"count": 0, "mine": 0, "entries": []}
    found = [entry for entry in store.find(database=data["database"]) if _bare(entry.key[3]) == wanted]
    found.sort(key=lambda entry: (entry.key[1] != user, -entry.hits))
    now = time.perf_counter()
    return {
        "count": len(found),
        "mine": sum(entry.key[1] == user for entry in found),
        "entries": [(entry.key[1] == user, entry.hits, _entry(store, entry, now)) for entry in found[:MAX_ENTRIES]],
    }


def _bare(text: bytes) -> bytes:
    """A text without what stands around it and does not matter: psql sends the semicolon, others do not."""
    return text.strip().rstrip(b";").rstrip()


def _entry(store: Store, entry: Entry, now: float) -> str:
    _, user, settings, _, types, _ = entry.key
    if not store.is_alive(entry, now):
        state = "ended"
    else:
        state = "fresh" if now < entry.expires else "stale"
    parameters = int.from_bytes(types[:2], "big")
    return (
        f"{state}, {now - entry.stored_at:.1f} s old, {entry.row_count} rows, {entry.size} bytes, {entry.hits} hits; "
        f"user {user}, settings {', '.join(name for name, _ in settings) or 'none'}, "
        f"{parameters} parameter types given"
    )

"""What is to be purged, as PURGE on the console and a NOTIFY from an origin say it.

Lives here: reading that, and dropping entries at the console's word. Not here: the listener (`ceremony.notify`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pooler.admin.everybody import ask_everybody
from pooler.workers.peers import answers
from protocol import errors
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.cache.store import Store
    from pooler.pool import Pool
    from pooler.service import Service

PART = r'(?:"(?:[^"]|"")+"|[^\s;".]+)'
"""An identifier, quoted or not."""

_WHAT = re.compile(
    rf"(?P<all>all)|table\s+(?:(?P<schema>{PART})\.)?(?P<table>{PART})|namespace\s+(?P<namespace>{PART})"
    r"|fingerprint\s+'?(?P<fingerprint>[0-9a-f]{1,16})'?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Purge:
    """One of: everything, a table (of `schema`, or of any), a namespace, a fingerprint."""

    everything: bool = False
    schema: str | None = None
    table: str | None = None
    namespace: str | None = None
    fingerprint: str | None = None


def read_purge(text: str) -> Purge | None:
    """What `text` (`table shop.orders`, `namespace x`, `fingerprint f`, `all`) names; None if it is not understood."""
    found = _WHAT.fullmatch(text.strip())
    if found is None:
        return None
    return Purge(
        everything=found["all"] is not None,
        schema=found["schema"] and identifier(found["schema"]),
        table=found["table"] and identifier(found["table"]),
        namespace=found["namespace"] and found["namespace"].strip('"'),
        fingerprint=found["fingerprint"] and found["fingerprint"].lower(),
    )


def identifier(written: str) -> str:
    """An identifier as it is meant: in lower case, unless it is quoted."""
    return written[1:-1].replace('""', '"') if written.startswith('"') else written.lower()


async def everywhere(service: Service, text: str) -> int:
    """Have every worker drop what `text` names; how many entries that were.

    Raises:
      PgError: the cache is off, there is no such table or namespace, or some workers have failed or do not answer.
    """
    replies = await ask_everybody(service, "purge", {"what": text})
    replies.check()
    return sum(replies.answers.values())


@answers("purge")
async def _purge(service: Service, data: Any) -> int:
    purge = read_purge(data["what"])
    if service.cache is None:
        raise errors.cache_is_off()
    with service.cache.quiet():  # the others do the same, and count what they drop
        return carry_out(service, service.cache, purge) if purge is not None else 0


def carry_out(service: Service, store: Store, purge: Purge) -> int:
    """Drop what is meant, in every database; how many entries that were.

    Raises:
      PgError: there is no such table or namespace, or a catalog is not known now.
    """
    if purge.table is not None:
        return _purge_table(service, store, purge)
    if purge.namespace is not None:
        _check_namespace(store, purge.namespace)
    return store.purge(everything=purge.everything, namespace=purge.namespace, fingerprint=purge.fingerprint)


def _check_namespace(store: Store, name: str) -> None:
    known = [namespace.name for namespace in store.namespaces]
    if name not in known:
        raise errors.unknown_namespace(name, known)


def _purge_table(service: Service, store: Store, purge: Purge) -> int:
    """Entries that were read from a table, its partitions or what it is a partition of."""
    meant = [(pool.name, oid) for pool in service.pools.values() for oid in _oids(pool, purge)]
    if not meant:
        raise _unknown(purge)
    return sum(store.purge(database=database, table=oid) for database, oid in meant)


def _oids(pool: Pool, purge: Purge) -> frozenset[int]:
    if pool.catalog is None:
        raise errors.catalog_unknown(pool.name)
    return pool.catalog.tables((purge.schema, purge.table or ""))


def _unknown(purge: Purge) -> PgError:
    return errors.unknown_table(".".join(filter(None, (purge.schema, purge.table))))


def told_by_origin(store: Store, pool: Pool, text: str) -> None:
    """A NOTIFY from the origin of `pool` with `text`: end what it names, of that database.

    Tables and everything cost what they name, not what is stored: an origin may say so often.

    Raises:
      PgError: it is not understood, or there is no such table or namespace.
    """
    purge = read_purge(text)
    if purge is None:
        raise errors.unknown_command(text[:60])
    if purge.everything or (purge.table is not None and pool.catalog is None):
        store.invalidate_database(pool.name)
    elif purge.table is not None:
        oids = _oids(pool, purge)
        if not oids:
            raise _unknown(purge)
        store.invalidate_tables(pool.name, oids)
    else:
        if purge.namespace is not None:
            _check_namespace(store, purge.namespace)
        store.purge(database=pool.name, namespace=purge.namespace, fingerprint=purge.fingerprint)

"""Two PostgreSQL servers alike, and pgnear processes in front of one of them; both made the same again for each script.

Two servers and not two databases of one, because roles and their defaults belong to a server. Not here: what a script
does (`referee`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager

from pooler.embedded import installed
from tests.support.postgres import Server
from tests.support.process import Pgnear
from tests.support.waiting import until
from tests.support.wire import WireClient, error_fields, rows

CLIENTS = 4

APPLICATIONS = ["", "one", "two words", "it's", "back\\slash", "by function", "named"]
"""The names of applications that clients in scripts may have. All of them are known to ask for values of sequences:
until one of its kind has, a client may see more than its own in the transaction that drew (docs/differences.md)."""

ROLES = "create role alice; create role bob nologin; grant alice to bob"

FRESH = f"""
drop schema if exists public cascade;
drop schema if exists other cascade;
create schema public;
create schema other;
grant all on schema public, other to public;
alter role postgres reset all;
alter role alice reset all;
alter database postgres reset all;
create table word (id int primary key, v text);
insert into word values (1, 'one'), (2, 'two'), (3, 'three'), (4, 'four'), (5, 'five');
create table other.word (id int primary key, v text);
insert into other.word values (1, 'another one');
create table tenant_row (tenant text, v int);
insert into tenant_row values ('a', 1), ('a', 2), ('b', 3);
alter table tenant_row enable row level security;
create policy own on tenant_row using (tenant = current_setting('app.tenant', true));
create sequence shared_seq;
create function remember(name text, value text) returns text language sql as 'select set_config(name, value, false)';
create procedure remember_it(name text, value text) language plpgsql as
 $$ begin perform set_config(name, value, false); end $$;
create procedure remember_and_fail(name text, value text) language plpgsql as
 $$ begin perform set_config(name, value, false); commit; raise exception 'half-way'; end $$;
create function touch(name regclass) returns int language plpgsql as
 $$ begin execute format('update %s set v = v || %L', name, 't'); return 1; end $$;
{
    "".join(
        f"create table t{n} (id int primary key, v text); insert into t{n} values (1, 'mine {n}');"
        f"create sequence seq{n}; create table late{n} (id int unique deferrable initially deferred);"
        for n in range(CLIENTS)
    )
}
grant all on all tables in schema public, other to public;
grant all on all sequences in schema public to public;
"""
"""What both sides begin with. Client n alone writes to table and sequence number n."""

ROWS = f"""
{
    "".join(
        f"delete from late{n}; delete from t{n};"
        f"insert into t{n} values (1, 'mine {n}'); select setval('seq{n}', 1, false);"
        for n in range(CLIENTS)
    )
}
select setval('shared_seq', 1, false);
"""
"""The same, where the script before changed nothing but rows."""

LEFT_BEHIND = """
select 'advisory lock', format('%%s %%s %%s %%s', classid, objid, objsubid, mode) from pg_locks
 where locktype = 'advisory'
union all
select 'temporary relation', relname::text from pg_class where relpersistence = 't' and relkind in ('r', 'S', 'v')
union all
select 'open transaction', count(*)::text from pg_stat_activity
 where state like 'idle in transaction%%' and pid <> all (%s)
order by 1, 2
"""

_CONNECTIONS = re.compile(r"^pgnear_pool_(?:idle|busy)\{.*\} (\d+)", re.MULTILINE)
_BACKENDS = "from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"


class Rig:
    """Both sides.

    Attributes:
      started: when both servers ran (monotonic).
      structure_changed: the last script may have changed more than rows.
    """

    def __init__(self, stack: ExitStack, version: int) -> None:
        self._stack = stack
        settings = {"autovacuum": "off", "max_connections": "60", "jit": "off", "max_prepared_transactions": "5"}
        hba = "host all all 127.0.0.1/32 trust"
        self.private, self.pooled = (
            stack.enter_context(Server(installation=installed(version), settings=settings, hba=hba)) for _ in range(2)
        )
        self._admins = [stack.enter_context(server.connect()) for server in (self.private, self.pooled)]
        for admin in self._admins:
            admin.execute(ROLES)
        self.started = time.monotonic()
        self.structure_changed = True
        self._fresh: set[Pgnear] = set()
        self._pgnears: dict[tuple[int, bool, bool], Pgnear] = {}
        self._consoles: dict[Pgnear, WireClient] = {}

    def pgnear(self, pool_size: int, cache: bool, defer: bool = False) -> Pgnear:
        """The process with these settings, started where it does not run."""
        running = self._pgnears.get((pool_size, cache, defer))
        if running is None or running.process.poll() is not None:
            running = self._pgnears[pool_size, cache, defer] = Pgnear(
                self.pooled.url(),
                {
                    "auth": "trust",
                    "pool_size": pool_size,
                    "min_pool_size": 0,
                    "strict_custom_settings": True,
                    "pool_wait_timeout": "4s",
                    "defer_begin": defer,
                    "cache": {"enabled": cache},
                },
            )
            self._stack.callback(_end, running)
            running.wait_for_log("catalog_read")
            for name in APPLICATIONS:
                with WireClient.logged_in(running.port, application_name=name) as client:
                    client.query("select lastval()")
                    client.terminate()
        return running

    def linked(self, pgnear: Pgnear) -> dict[int, bool]:
        """The process ids of clients that have a connection of the pool now, and whether a pin is why."""
        console = self._consoles.get(pgnear)
        if console is None:
            console = WireClient.logged_in(pgnear.port, database="pgnear")
            self._consoles[pgnear] = self._stack.enter_context(console)
        clients = rows(console.query("show clients"))
        return {int(row[3] or 0): row[5] is not None for row in clients if row[4] == b"linked"}

    def refresh(self, pgnear: Pgnear) -> None:
        """Make both sides what they are before every script."""
        structure = self.structure_changed or pgnear not in self._fresh
        for admin in self._admins:
            for (name,) in admin.execute("select gid from pg_prepared_xacts").fetchall():
                admin.execute(f"rollback prepared '{name}'")
        self._end_connections()
        self._admins[0].execute(FRESH if structure else ROWS)
        with WireClient.logged_in(pgnear.port) as client:  # through pgnear, which must know of it
            failed = [error_fields(body) for kind, body in client.query(FRESH if structure else ROWS) if kind == "E"]
            assert not failed, failed
            client.terminate()
        if structure:
            self._end_connections()  # this one has begun with the defaults from before
        self._fresh = {pgnear} if structure else self._fresh | {pgnear}

    def _end_connections(self) -> None:
        """End every connection to both servers, and wait until pgnear has noticed: nothing outlives a script."""
        (begun,) = self._admins[1].execute("select clock_timestamp()").fetchone()
        self._admins[0].execute(f"select pg_terminate_backend(pid) {_BACKENDS}")
        end_old = f"select pg_terminate_backend(pid) {_BACKENDS} and backend_start < %s"
        query = f"select count(*), coalesce(min(backend_start), %s) {_BACKENDS}"

        def noticed() -> bool:
            self._admins[1].execute(end_old, (begun,))  # again and again: one may just have been starting
            count, oldest = self._admins[1].execute(query, (begun,)).fetchone()
            return oldest >= begun and count == sum(map(_connections, self._pgnears.values()))

        try:
            until(noticed, within=5.0)
        except AssertionError:
            backends = (
                self._admins[1].execute(f"select pid, state, wait_event, query, backend_start {_BACKENDS}").fetchall()
            )
            said = {key: (_connections(p), p.log_lines[-8:]) for key, p in self._pgnears.items()}
            raise RuntimeError(f"pgnear keeps connections that are dead: {begun} {backends} {said}") from None

    def until_backend_is_gone(self, pid: int) -> None:
        """Until the private server has cleaned up behind a connection that was closed."""
        query = f"select 1 {_BACKENDS} and pid = %s"
        until(lambda: self._admins[0].execute(query, (pid,)).fetchone() is None, what="a backend stays")

    def asleep(self, *, pooled: bool) -> bool:
        """Whether a backend of that side sleeps in pg_sleep."""
        query = "select 1 from pg_stat_activity where wait_event = 'PgSleep'"
        return self._admins[pooled].execute(query).fetchone() is not None

    def left_behind(self, confused: Collection[int]) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
        """What exists on the private and on the pooled server that belongs to sessions.

        Private backends that are `confused` have a transaction open that they told their client is over.
        """
        private = self._admins[0].execute(LEFT_BEHIND, (list(confused),)).fetchall()
        pooled = self._admins[1].execute(LEFT_BEHIND, ([],)).fetchall()
        return private, pooled


def _connections(pgnear: Pgnear) -> int:
    return sum(map(int, _CONNECTIONS.findall(pgnear.metrics())))


def _end(pgnear: Pgnear) -> None:
    if pgnear.process.poll() is None:
        pgnear.stop()


@contextmanager
def rig(version: int = 18) -> Iterator[Rig]:
    """Both sides for the length of the block."""
    with ExitStack() as stack:
        yield Rig(stack, version)

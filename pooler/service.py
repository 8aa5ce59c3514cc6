"""What exists once per process: pools, cache, sessions, and what changes them all.

Not here: how any of it works, and the order in which it starts and ends (`serving`).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import trio
from pydantic import SecretStr

from config import Config, Target, User
from pooler import ending, upkeep
from pooler.addresses import Addresses
from pooler.admin.console import Console
from pooler.admin.purge import told_by_origin
from pooler.cache.advice import Advice
from pooler.cache.entry import Entry
from pooler.cache.flight import Flights
from pooler.cache.policy import Policies
from pooler.cache.store import Store
from pooler.ceremony import drain
from pooler.ceremony.cancel import cancel_origin, end_abandoned
from pooler.ceremony.certificate import Certificate
from pooler.ceremony.deadlines import DeadlineTable
from pooler.ceremony.doors import Doors
from pooler.ceremony.ears import Ears
from pooler.ceremony.greeting import is_clients, worker_of
from pooler.ceremony.opening import open_for, probe_for
from pooler.ceremony.passthrough import Relay
from pooler.ceremony.reset import reset
from pooler.ceremony.rotation import Rotation
from pooler.ceremony.signal import signal as send_signal
from pooler.ceremony.unsure import Unsure
from pooler.ceremony.verifiers import Verifiers
from pooler.defaults import as_settings
from pooler.logs import get_logger
from pooler.origin import Origin
from pooler.pool import Pool
from pooler.reactor import Reactor
from pooler.replicas import Replica, Replicas
from pooler.sequences import Kind, Recallers
from pooler.session import Session
from pooler.sql.classifier import Classifier
from pooler.sql.statement import Carrier, DefaultChange, PinKind
from pooler.statements import PreparedStatements
from pooler.stats import Stats
from pooler.workers import hearsay
from pooler.workers.board import CLIENTS, REPLICATION

if TYPE_CHECKING:
    from pooler.signals import Rights
    from pooler.sql.signals import Call
    from pooler.workers.board import Board
    from pooler.workers.handover import Handover
    from pooler.workers.peers import Peers

log = get_logger(__name__)

LEAVE_SECONDS = 5.0
"""How long what a client sent before its Terminate may take before it is cancelled."""


class Service:
    """Everything that exists once. Made by `serving.serve`."""

    def __init__(
        self,
        config: Config,
        nursery: trio.Nursery,
        passwords: Mapping[str, str] | None = None,
        load: Callable[[], Config] | None = None,
        *,
        peers: Peers | None = None,
        board: Board | None = None,
        handover: Handover | None = None,
    ) -> None:
        self.config = config
        self.load = load
        self.peers = peers
        self.board = board
        self.handover = handover
        self.reloading = trio.Lock()
        self.deadlines = DeadlineTable(config)
        self.nursery = nursery
        self.stats = Stats()
        self.addresses = Addresses(board)
        self.reactor = Reactor()
        self.doors = Doors(self)
        self.certificate = Certificate(config)
        cache = config.cache
        self.cache = (
            Store(
                cache.max_bytes,
                cache.max_entry_bytes,
                stale_if_error=cache.stale_if_error,
                on_drop=self._dropped,
            )
            if cache.enabled
            else None
        )
        self.observes = cache.enabled or cache.max_advice_shapes > 0
        """Whether it matters what statements read and write."""
        self.unsure = Unsure(nursery, self.cache, self.stats)
        self.flights = Flights(self.cache, config.pool_wait_timeout) if self.cache is not None else None
        self.policies = Policies(cache, self.cache) if self.cache is not None else None
        self.classifier = Classifier(
            parse_always=self.observes, session_functions=frozenset(config.session_functions or ())
        )
        self.prepared = PreparedStatements()
        self.classifier.when_changed = self._classify_again
        self.recallers = Recallers()
        targets = config.targets(passwords)
        self.pools = {name: Pool(name, target, config, self.stats, self) for name, target in targets.items()}
        if cache.max_advice_shapes:
            for pool in self.pools.values():
                pool.advice = Advice(cache.max_advice_shapes, time.perf_counter())
        self.verifiers = Verifiers(self._client_users())
        sources = config.password_sources()
        self.replica_pools = self._make_replicas(config)
        self.rotations = {name: Rotation(self, pool, sources.get(name)) for name, pool in self.pools.items()}
        self.sessions: set[Session] = set()
        self.unfinished: dict[Session, int] = {}
        """Whose last batch has no Sync or Flush yet, and how much of it had come, for `ceremony.deadlines`."""
        self.crowded: dict[Session, None] = {}
        """Who waits with more input than is read, and may have left behind it, for `ceremony.deadlines`."""
        self.console = Console(self)
        self.relays: dict[int, Relay] = {}
        """Replication connections, by the process id that the client was given; those being made, too."""
        self.since = time.time()
        self.draining = False
        self.stays_until: dict[Session, float] = {}
        """During the drain: whom not to disconnect before when (trio's clock), though it does nothing."""
        self.listen_addresses: list[str] = []
        self.listens_for_others = False  # the sockets were passed to us, and outlive us: who has connected can wait
        self.http_address: str | None = None
        self.catalog_stale = {name: trio.Event() for name in self.pools}
        self._by_pid: dict[int, Session] = {}
        self.ears = Ears(self, self.cache, told_by_origin) if self.cache is not None else None
        if board is not None:
            hearsay.listen(self, board)

    def _make_replicas(self, config: Config) -> list[Pool]:
        pools: list[Pool] = []
        replicas: dict[str, list[Replica]] = {}
        for name, target, settings in config.replicas() if config.replica else ():
            pool = Pool(f"{name} at {target.place}", target, config, self.stats, self)
            pool.home = self.pools[name]
            pools.append(pool)
            replica = Replica(pool, settings.max_lag, settings.max_lag_bytes, settings.read_only_transactions)
            replicas.setdefault(name, []).append(replica)
        for name, several in replicas.items():
            self.pools[name].replicas = Replicas(several)
        return pools

    @property
    def whole_config(self) -> Config:
        """The configuration, of which a worker among several has its share in `config`."""
        return self.config if self.peers is None or self.peers.whole is None else self.peers.whole

    @property
    def every_pool(self) -> list[Pool]:
        """Those that clients ask for, and those of replicas."""
        return [*self.pools.values(), *self.replica_pools]

    def _dropped(self, entry: Entry) -> None:
        advice = self.pools[entry.database].advice
        if advice is not None:
            advice.gone(entry.fingerprint, entry.hits)

    # ---- sessions ----------------------------------------------------------------------------------------------------

    def remember(self, session: Session) -> None:
        self.sessions.add(session)
        if self.draining:
            self.stays_until[session] = trio.current_time() + drain.LATE_SECONDS
        self._by_pid[session.key[0]] = session
        if self.board is not None:
            self.count_clients()

    def forget(self, session: Session) -> None:
        self.sessions.discard(session)
        self.unfinished.pop(session, None)
        self.crowded.pop(session, None)
        self.stays_until.pop(session, None)
        self._by_pid.pop(session.key[0], None)
        if self.board is not None:
            self.count_clients()

    @property
    def clients(self) -> int:
        """How many there are, those of the console and of other workers included."""
        here = len(self.sessions) + len(self.console.conversations)
        return here if self.board is None else here + self.board.others_have(CLIENTS)

    def count_clients(self) -> None:
        """Somebody has come or gone: the other workers see how many are here."""
        if self.board is not None:
            self.board.set_count(CLIENTS, len(self.sessions) + len(self.console.conversations))
            self.doors.tell_load()

    @property
    def replication_connections(self) -> int:
        """How many there are, those of other workers included."""
        return len(self.relays) if self.board is None else len(self.relays) + self.board.others_have(REPLICATION)

    def count_relays(self) -> None:
        if self.board is not None:
            self.board.set_count(REPLICATION, len(self.relays))

    def session_by_key(self, pid: int, secret: bytes) -> Session | None:
        session = self._by_pid.get(pid)
        return session if session is not None and session.has_key(secret) else None

    def session_by_pid(self, pid: int) -> Session | None:
        return self._by_pid.get(pid)

    def may_have_client(self, pid: int) -> bool:
        """Whether `pid` is a client's here, or may be one's at another worker."""
        return pid in self._by_pid or (
            self.peers is not None and is_clients(pid) and worker_of(pid) != self.peers.index
        )

    def relay_by_key(self, pid: int, secret: bytes) -> Relay | None:
        relay = self.relays.get(pid)
        return relay if relay is not None and relay.has_key(secret) else None

    def leave_databases(self, names: frozenset[str]) -> None:
        """One of these databases is about to be dropped, renamed or copied: idle connections must not be in the way."""
        if self.peers is not None:
            hearsay.tell_leave(self.peers, names)
        self.step_aside(names)

    def recalls(self, kind: Kind) -> bool:
        """A client of `kind` asks for a sequence's value; whether that is new."""
        is_new = self.recallers.add(kind)
        if is_new and self.peers is not None:
            hearsay.tell_of_recaller(self.peers, kind)
        return is_new

    def add_effects(self, pool: Pool, made: frozenset[tuple[str | Carrier, PinKind]]) -> None:
        """A client makes functions that change their session, or what reaches such functions."""
        if self.peers is not None:
            hearsay.tell_of_effects(self.peers, pool.name, made)
        self.classifier.add_effects(pool.name, made)

    def _classify_again(self) -> None:
        """More is known to have effects on sessions, or less: what was prepared before may mean something else."""
        for prepared in self.prepared:
            text = prepared.said or prepared.text
            if prepared.statement.has_effects or self.classifier.names_suspect(text):
                prepared.statement = self.classifier(text)
                prepared.asked = None

    def step_aside(self, names: frozenset[str]) -> None:
        """Close idle connections to these databases."""
        for pool in self.pools.values():
            if pool.target.dbname in names:
                upkeep.step_aside(pool)

    def depart_soon(self, session: Session) -> None:
        """`session` goes when it asks for something, or in a moment."""
        self.stays_until[session] = trio.current_time() + drain.PARTING_SECONDS

    def defaults_changed(self, changes: Sequence[DefaultChange]) -> None:
        """A client has changed what new connections begin with."""
        if self.peers is not None:
            hearsay.tell_defaults(self.peers, changes)
        self.follow_defaults(changes)

    def follow_defaults(self, changes: Iterable[DefaultChange]) -> None:
        """New connections begin with something else: those who are here keep what they began with."""
        for pool in self.pools.values():
            kept = pool.defaults.change(changes, pool.target.user, pool.target.dbname)
            if kept is not None:
                self.keep_defaults(pool, kept)

    def keep_defaults(self, pool: Pool, kept: dict[str, str]) -> None:
        """New connections of `pool` begin with other settings: who is here keeps `kept`, what it began with."""
        settings = as_settings(kept)
        clients = [session for session in self.sessions if session.pool is pool]
        for session in clients:
            session.state.keep(settings)
        upkeep.renew(pool)
        self.catalog_stale[pool.name].set()
        log.info("defaults_changed", pool=pool.name, settings=sorted(kept), clients_kept=len(clients))

    def leave_later(self, session: Session) -> None:
        """`session` said Terminate while answers are owed; it is cut off if they take too long."""
        self.nursery.start_soon(self._cut_off, session)

    async def _cut_off(self, session: Session) -> None:
        await trio.sleep(LEAVE_SECONDS)
        ending.end(session, abrupt=True)

    def cancel_overdue(self, origin: Origin) -> None:
        """What `origin` works on takes too long."""
        self.nursery.start_soon(self._contained, origin, cancel_origin, self, origin)

    def signal(self, session: Session, call: Call, rights: Rights | None) -> None:
        """`session` waits while another client is cancelled or terminated for it."""
        self.nursery.start_soon(send_signal, self, session, call, rights)

    @property
    def origin_roles(self) -> frozenset[str]:
        """The roles that clients have at their origins."""
        return frozenset(pool.target.user for pool in self.pools.values())

    def cancel_abandoned(self, origin: Origin, *, within_message: bool) -> None:
        """The client of `origin` vanished while the origin worked for it: stop that work, then close.

        `within_message`: the client was in the middle of a CopyData message.
        """
        origin.leave_reactor()
        self.nursery.start_soon(self._contained, origin, end_abandoned, self, origin, within_message)

    def note_backends(self) -> None:
        """Which of the origins' processes work for this worker, for the others to know if it dies."""
        if self.board is not None:
            here = [(pool.name, origin.pid) for pool in self.pools.values() for origin in pool.origins]
            self.board.set_backends(here + list(self.unsure.followed))

    async def _contained(self, origin: Origin, ceremony: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Run a ceremony with `origin`: a bug in it costs that connection, not the process."""
        try:
            await ceremony(*arguments)
        except Exception as error:
            log.exception("internal_error", where=ceremony.__name__, error=str(error))
            origin.close()

    # ---- ceremonies that pools ask for -------------------------------------------------------------------------------

    def connect(self, pool: Pool) -> None:
        self.nursery.start_soon(open_for, self, pool)

    def probe(self, pool: Pool) -> None:
        self.nursery.start_soon(probe_for, self, pool)

    def soon(self, function: Callable[[], None]) -> None:
        self.reactor.call_soon(function)

    def reset(self, pool: Pool, origin: Origin) -> None:
        self.nursery.start_soon(self._contained, origin, reset, pool, origin, pool.limits.origin_connect_timeout)

    # ---- what changes while it runs ----------------------------------------------------------------------------------

    def adopt(self, config: Config) -> None:
        """Follow `config`, but for the origins' addresses and credentials."""
        self.config = config
        self.deadlines.adopt(config)
        for name, target in config.targets().items():
            self.pools[name].adopt(config, target.pool_size)
            self.forget_catalog(self.pools[name])  # other functions may be safe now
        for pool in self.replica_pools:
            pool.adopt(config, pool.size)
        if self.cache is not None:
            self.cache.max_entry_bytes = config.cache.max_entry_bytes
            self.cache.stale_if_error = config.cache.stale_if_error
            self.policies = Policies(config.cache, self.cache)
        if self.flights is not None:
            self.flights.wait = config.pool_wait_timeout
        self.verifiers.adopt(self._client_users())

    def target_changed(self, pool: Pool, old: Target) -> None:
        """`pool` connects with other credentials now, or to another place."""
        new = pool.target
        if (old.user, old.place, old.dbname) != (new.user, new.place, new.dbname):
            pool.schema_epoch += 1
            if self.cache is not None:
                self.cache.invalidate_database(pool.name)
            self.forget_catalog(pool)  # other workers see for themselves
        if self.ears is not None:
            self.ears.target_changed(pool)
        if not self.config.users:
            self.verifiers.adopt(self._client_users(), time.monotonic() + self.config.password_grace)

    def _client_users(self) -> Mapping[str, User]:
        """The configured users, or else the first origin's user with the password that it has now."""
        if self.config.users:
            return self.config.users
        first = next(iter(self.pools.values())).target
        return {first.user: User(password=SecretStr(first.password))} if first.password else {}

    def doubt_roles(self, but: Origin | None = None) -> None:
        """DDL passed: a role that was made anew is not the one that a connection was made before; `but` has noticed."""
        for pool in self.every_pool:
            for origin in pool.origins:
                if not origin.settings.plain_user and origin is not but:
                    origin.settings = origin.settings.doubted()

    def catalog_changed(self, pool: Pool) -> None:
        """DDL passed: until its catalog has been read anew nothing of `pool` is cached, by any worker."""
        if self.board is not None:
            self.board.put_catalog(pool.name)
        self.forget_catalog(pool)

    def forget_catalog(self, pool: Pool) -> None:
        """The same for this worker alone."""
        pool.catalog = None
        pool.sequence_tables = None
        self.catalog_stale[pool.name].set()

    # ---- the end -----------------------------------------------------------------------------------------------------

    def close_pools(self) -> None:
        """Close the origin connections. No ceremony may still use one: its socket would vanish under it."""
        for pool in self.every_pool:
            pool.close()

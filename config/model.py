"""All settings of pgnear in one `Config`: name, type, unit, default and when to change each.

Lives here: the settings at the top, and the rules between sections, at the end of `Config`. Not here: the sections
(`users`, `origins`, `overrides`, `cache`, `log`), and what a value may be (`values`).

The descriptions are the documentation: the README's table, `pgnear.example.toml` and `schema.json` are generated from
them by `python -m config.reference`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from config import url
from config.cache import Cache
from config.certificates import problem_of_authorities, problems_of_pair
from config.deadlines import Deadlines, deadlines_of
from config.log import Log
from config.origins import Breaker, Concurrency, Database, Replica
from config.overrides import Override
from config.passwords import PasswordSource
from config.url import Target, is_local
from config.users import User
from config.values import (
    Address,
    Command,
    Connections,
    Duration,
    Names,
    Pooling,
    PoolSize,
    Seconds,
    Section,
    Size,
    Statements,
    Url,
    Workers,
    host_and_port,
    several,
)

CONSOLE = "pgnear"
"""The database name by which clients ask for pgnear itself."""


class Config(Section):
    """All settings."""

    origin: Url | None = Field(
        None,
        description="The origin database. Required, unless there are only named databases; user and password are also "
        "those of clients, unless there are users. Name several hosts (a,b:5433) and target_session_attrs for one that "
        "fails over: see docs/faults.md.",
        examples=["postgresql://app:secret@db.example.com:5432/shop"],
    )
    password_file: Path | None = Field(
        None,
        description="A file with the password for the origin, which the URL lacks then. It is read again when it "
        "changes, and a new password takes over once the origin has let it in. Set it for mounted secrets.",
        examples=["/run/secrets/pgnear"],
    )
    password_command: Command | None = Field(
        None,
        description="A command that prints the password for the origin; no shell is involved. It is run at the start, "
        "at RELOAD, and when the origin refuses the password that it printed last. Set it for passwords that expire.",
        examples=["aws rds generate-db-auth-token --hostname db.example.com --port 5432 --username app"],
    )
    password_command_timeout: Seconds = Field(
        10.0,
        gt=0,
        description="How long a password_command may take before it is killed. Raise it for a slow one.",
    )
    password_grace: Duration = Field(
        300.0,
        description="How long clients may still log in with the origin's old password after a new one has taken over, "
        "where there are no users of their own. Raise it until every client has the new one.",
    )
    allow_plaintext_origin: bool = Field(
        False,
        description="Whether an origin on another machine may be reached without encryption. Turn on only where nobody "
        "else can listen in between.",
    )
    origin_connect_timeout: Seconds = Field(
        10.0,
        gt=0,
        description="How long connecting to the origin may take, TLS and login included. Raise it for an origin that "
        "sleeps until somebody connects.",
    )
    listen: Annotated[tuple[Address, ...], BeforeValidator(several)] = Field(
        ("127.0.0.1:6432",),
        min_length=1,
        json_schema_extra={"unit": "addresses"},
        description="Where clients connect: HOST:PORT, [IPv6]:PORT or unix:/path, one or a list. Change it when "
        "clients are on other machines (0.0.0.0:6432) or use a unix socket (unix:/run/pgnear/.s.PGSQL.6432).",
    )
    http: Annotated[Address, BeforeValidator(host_and_port)] | None = Field(
        None,
        description="Where /metrics, /healthz and /readyz are served: HOST:PORT; unset, nowhere. Set it to be "
        "monitored.",
        examples=["127.0.0.1:9432"],
    )
    workers: Workers = Field(
        1,
        ge=1,
        le=64,
        description="Processes that share the work, behind the same addresses: pool_size, the cache's memory and every "
        "limit are for all of them together. Raise it where pgnear's process keeps a core busy and others are free: "
        "see docs/operations.md.",
    )
    reuse_port: bool = Field(
        False,
        description="Whether another pgnear may listen on the same TCP addresses, so that a new one can start before "
        "the old one stops. Turn on to restart without systemd's sockets; see docs/operations.md.",
    )
    tls: Literal["disable", "allow", "require"] = Field(
        "allow",
        description="Whether clients cannot, may or must encrypt; unix sockets never must. Use require when clients "
        "come over a network.",
    )
    tls_cert_file: Path | None = Field(
        None,
        description="The certificate that clients are shown, with its chain, PEM; unset, a self-signed one is made at "
        "start. Set it when clients verify (sslmode=verify-full).",
        examples=["server.crt"],
    )
    tls_key_file: Path | None = Field(
        None,
        description="The certificate's private key, PEM. Set it unless tls_cert_file has both.",
        examples=["server.key"],
    )
    auth: Literal["scram-sha-256", "trust"] = Field(
        "scram-sha-256",
        description="How clients prove who they are. trust asks for nothing, and is only for loopback and unix sockets "
        "that nobody else can reach.",
    )
    users: dict[str, User] = Field(
        default_factory=dict,
        description="Who may connect; unset, the origin URL's user with its password. They all share its connections.",
    )
    admin_users: Names | None = Field(
        None,
        description="Who may use the console, the database called pgnear: see docs/console.md. Unset, the origin URL's "
        "user where there are no users, else nobody. Set it to give operators a user of their own.",
        examples=["app"],
    )
    client_login_timeout: Seconds = Field(
        15.0,
        gt=0,
        description="How long a client may take to log in. Raise it for clients on very slow lines.",
    )
    max_client_connections: Connections = Field(
        10000,
        ge=1,
        description="Clients connected at once; more are refused with 53300. Lower it to bound memory; raise it, and "
        "the limit on open files, for more.",
    )
    pooling: Pooling = Field(
        "transaction",
        description="When a client gives its origin connection back: after each transaction, after each statement "
        "(transaction blocks are refused), or when it leaves. Set session for a client whose state cannot be followed.",
    )
    session_functions: Annotated[tuple[str, ...], BeforeValidator(several)] | None = Field(
        None,
        description="Names of functions with effects on the session that neither their call nor their body shows; "
        "calling one pins the client, and so does what reaches it (a trigger, a view, a default). Add those of your "
        "extensions; well-known ones are built in.",
        examples=["remember_user"],
    )
    strict_custom_settings: bool = Field(
        False,
        description="Whether a client never gets an origin connection on which others have used custom settings "
        "(app.tenant) or temporary tables that it has not: to it such a setting would be '' and not NULL, in "
        "policies and functions, too. Another one is opened then, which costs a login at the origin, and such a "
        "connection is closed for it where the pool is full. Where it is off, that is done for statements which ask by "
        "themselves (current_setting, SHOW), outside transactions. Turn it on where policies tell the two apart.",
    )
    max_replication_connections: Connections = Field(
        10,
        ge=0,
        description="Replication connections at once, each with an origin connection of its own beside the pool; more "
        "are refused with 53300, and with 0 all of them with 0A000. Raise it together with the origin's "
        "max_wal_senders.",
    )
    max_unauthenticated_connections: Connections = Field(
        256,
        ge=1,
        description="Connections at once that have not logged in yet; more wait up to a second for one of them to "
        "finish, and are refused with 53300 if none does. Raise it when a great many clients connect at the same "
        "moment.",
    )
    max_connections_per_address: Connections = Field(
        0,
        ge=0,
        description="Connections at once from one source address, logged in or not; more are refused with 53300, and 0 "
        "is no limit. Of an IPv6 address its /64 counts; unix sockets are exempt. Set it where clients come over a "
        "network, above what your busiest host needs.",
    )
    pool_size: PoolSize = Field(
        20,
        description="Origin connections per database at most. Raise it when clients wait (pgnear_pool_waiting) and the "
        "origin is not busy; two to four per core of the origin is plenty.",
    )
    min_pool_size: Connections = Field(
        2,
        ge=0,
        le=10000,
        description="Connections per database that are opened at start and kept, pool_size at most. Raise it when the "
        "first queries after a quiet time are slow.",
    )
    pool_wait_timeout: Seconds = Field(
        10.0,
        gt=0,
        description="How long a query waits for a free connection before it fails with 53300. Lower it to fail fast, "
        "raise it to ride out bursts.",
    )
    max_waiting: Connections = Field(
        0,
        ge=0,
        description="Clients that may wait for a connection of one pool; more are refused at once with 53300. 0 is no "
        "limit of its own. Set it to shed load earlier than by the expected wait, which may not pass "
        "pool_wait_timeout.",
    )
    reserve_pool_size: Connections = Field(
        0,
        ge=0,
        le=100,
        description="Connections per database, beyond pool_size, that only admin_users are given, when all others are "
        "busy. Set it so that operators get in on an overloaded day.",
    )
    query_timeout: Duration = Field(
        0.0,
        description="How long the origin may work on a query (a pipeline up to its Sync) before it is cancelled with "
        "57014; 0 for ever. Set it so that slow queries cannot hold every connection.",
    )
    transaction_timeout: Duration = Field(
        0.0,
        description="How long a transaction may be open before its client is disconnected with 25P04; 0 for ever. Set "
        "it so that forgotten transactions cannot hold every connection.",
    )
    idle_in_transaction_timeout: Duration = Field(
        0.0,
        description="How long a client may say nothing inside a transaction before it is disconnected with 25P03; 0 "
        "for ever. Set it where clients wait for something else within transactions.",
    )
    client_idle_timeout: Duration = Field(
        0.0,
        description="How long a client may say nothing outside a transaction before it is disconnected with 57P05; 0 "
        "for ever. Set it where clients forget to leave and max_client_connections is reached.",
    )
    pause_timeout: Duration = Field(
        300.0,
        description="How long a query waits while its database is paused (PAUSE, SUSPEND, KILL) before it fails with "
        "57P03; 0 for ever. pool_wait_timeout does not count meanwhile. Raise it for longer maintenance.",
    )
    origin_idle_timeout: Seconds = Field(
        600.0,
        ge=0,
        description="Idle connections above min_pool_size are closed after so long; 0 keeps them. Set it below the "
        "time after which a firewall forgets an idle connection.",
    )
    origin_lifetime: Seconds = Field(
        3600.0,
        ge=0,
        description="A connection is replaced at this age, between two transactions; 0 never. Lower it so that a "
        "change of the origin's address is followed sooner.",
    )
    cancel_wait_timeout: Seconds = Field(
        10.0,
        gt=0,
        description="How long a cancel request may take to reach the origin. Raise it together with "
        "origin_connect_timeout.",
    )
    drain_timeout: Seconds = Field(
        5.0,
        ge=0,
        description="How long running transactions may take to finish when pgnear is told to stop. Keep it below the "
        "time after which whoever stops pgnear kills it.",
    )
    max_message_bytes: Size = Field(
        128 * 1024**2,
        ge=65536,
        le=1024**3,
        description="The largest single message of a client: a statement with its parameters. COPY and results have no "
        "limit. Raise it for larger values, lower it to bound memory.",
    )
    buffer_high_water: Size = Field(
        256 * 1024,
        ge=16384,
        description="Bytes that wait for a slow reader before the other side is paused, per connection. Lower it to "
        "save memory with very many slow clients.",
    )
    max_prepared_statements: Statements = Field(
        200,
        ge=1,
        description="Prepared statements kept on each origin connection; the least recently used goes. Raise it when "
        "clients use more distinct statements than that.",
    )
    reuse_statements: bool = Field(
        True,
        description="Whether an origin connection keeps a statement that clients parse without a name, or a text that "
        "they send as a simple Query, again and again, so that it need not parse and plan it each time. Switch it off "
        "where generic plans are bad plans and plan_cache_mode cannot be set, or where the origin's log must show "
        "Queries as Queries.",
    )
    defer_begin: bool = Field(
        False,
        description="Whether BEGIN is answered at once and sent to an origin together with the first statement that "
        "needs one. It spares each transaction a round trip, and one that the cache answers needs no origin at all. "
        "now() is then the time of that statement, not of BEGIN. Switch it on where the origin is far away.",
    )
    max_client_statements: Statements = Field(
        5000,
        ge=1,
        description="Prepared statements that one client may have. Raise it for a client that is refused another.",
    )
    max_client_settings_bytes: Size = Field(
        32 * 1024,
        ge=16384,
        le=1024**2,
        description="How much the SET statements of one client, those that still hold, may take together: they follow "
        "it from connection to connection. A client with more keeps its connection until DISCARD ALL. Raise it where "
        "SHOW CLIENTS says so of clients that should not.",
    )
    replica: tuple[Replica, ...] = Field(
        (),
        description="Physical standbys that answer reads which may be cached, where they are far enough.",
    )
    breaker: Breaker = Field(
        default=Breaker(), description="When an origin that cannot be reached is left alone for a while."
    )
    concurrency: Concurrency = Field(
        default=Concurrency(), description="When an origin that has slowed down is given less to do at once."
    )
    override: tuple[Override, ...] = Field(
        (),
        description="Deadlines for some clients. Of each, the first override counts whose conditions hold and that "
        "sets it.",
    )
    cache: Cache = Field(default=Cache(), description="The query cache.")
    log: Log = Field(default=Log(), description="What is written to standard error.")
    databases: dict[str, Database] = Field(
        default_factory=dict, description="More origin databases, by the name that clients ask for."
    )

    @model_validator(mode="after")
    def _whole(self) -> Config:
        problems = []
        targets: dict[str, Target] = {}
        if self.origin is None and not self.databases:
            problems.append(
                'origin: nothing to connect to; give --origin, PGNEAR_ORIGIN or origin = "postgresql://..."'
            )
        sources: set[str] = set()
        for key, name, secret, size, sourced in self._urls():
            try:
                target = url.parse(secret.get_secret_value(), database=name, pool_size=size)
            except ValueError as error:
                problems.append(f"{key}: {error}")
                continue
            given = [
                *(["a password in the URL"] if target.password else ()),
                *(name for name in ("password_file", "password_command") if getattr(sourced, name) is not None),
            ]
            if len(given) > 1:
                problems.append(f"{key}: gives {' and '.join(given)}; give one of them")
            if given:
                sources.add(target.database)
            if target.database == CONSOLE:
                problems.append(
                    f"{key}: {CONSOLE} is the name of pgnear's console; serve the database by another name, under "
                    "[databases]"
                )
            if target.database in targets:
                problems.append(f"{key}: {target.database} is the name of the top-level origin's database already")
            targets[target.database] = target
            root = target.sslrootcert
            if root not in (None, "system") and (problem := problem_of_authorities(str(root))):
                problems.append(f"{key}: sslrootcert: {problem}")
            if target.sslcert:
                pair = Path(target.sslcert), Path(target.sslkey) if target.sslkey else None
                problems += [f"{key}: {each}" for each in problems_of_pair(*pair, ("sslcert", "sslkey"))]
            if target.may_be_plaintext and not target.is_local and not self.allow_plaintext_origin:
                problems.append(
                    f"{key}: sslmode={target.sslmode} may send passwords and data unencrypted to {target.place}; "
                    "use verify-full, or set allow_plaintext_origin = true"
                )
            if size < self.workers:
                problems.append(f"{key}: a pool_size of {size} leaves some of {self.workers} workers no connection")
        problems += self._problems_of_replicas(targets)
        if self.auth == "trust":
            for address in self.listen:
                if not address.startswith(("unix:", "/")) and not is_local(address.rpartition(":")[0].strip("[]")):
                    problems.append(
                        f"auth: trust lets anybody in who reaches {address}; listen on loopback or a unix socket"
                    )
        problems += problems_of_pair(self.tls_cert_file, self.tls_key_file)
        if self.auth != "trust" and not self.users and targets and next(iter(targets)) not in sources:
            problems.append(
                'users: the origin URL has no password that clients could log in with; add a user, or auth = "trust"'
            )
        if not problems and self.auth != "trust":
            unknown = sorted(set(self.admin_users or ()) - (self.users.keys() or {next(iter(targets.values())).user}))
            problems += [f"admin_users: {name} is not among those who may connect" for name in unknown]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems_of_replicas(self, targets: Mapping[str, Target]) -> Iterator[str]:
        for number, replica in enumerate(self.replica):
            key = f"replica.{number}"
            try:
                target = url.parse(replica.url.get_secret_value())
            except ValueError as error:
                yield f"{key}.url: {error}"
                continue
            origin = targets.get(replica.database) if replica.database else next(iter(targets.values()), None)
            if origin is None:
                if replica.database:  # else the origin's own URL is wrong, which is said already
                    yield f"{key}.database: there is no database {replica.database}"
            elif (target.user, target.dbname) != (origin.user, origin.dbname):
                yield f"{key}.url: its user and database must be those of the origin"
            if target.may_be_plaintext and not target.is_local and not self.allow_plaintext_origin:
                yield f"{key}.url: sslmode={target.sslmode} may send passwords and data unencrypted to {target.place}"
            if not self.cache.enabled:
                yield f"{key}: only what may be cached goes to a replica; cache.enabled must be true"

    def replicas(self) -> list[tuple[str, Target, Replica]]:
        """(database that clients ask for, where it is, its settings) of each replica."""
        top = next(iter(self.targets()))
        return [
            (
                replica.database or top,
                url.parse(
                    replica.url.get_secret_value(), database=replica.database or top, pool_size=replica.pool_size
                ),
                replica,
            )
            for replica in self.replica
        ]

    def _urls(self) -> list[tuple[str, str | None, SecretStr, int, Config | Database]]:
        """(key, client-visible name, URL, pool size, who has the settings of its password) of each origin."""
        urls: list[tuple[str, str | None, SecretStr, int, Config | Database]] = []
        if self.origin is not None:
            urls.append(("origin", None, self.origin, self.pool_size, self))
        for name, database in self.databases.items():
            size = database.pool_size or self.pool_size
            urls.append((f"databases.{name}.origin", name, database.origin, size, database))
        return urls

    def targets(self, passwords: Mapping[str, str] | None = None) -> dict[str, Target]:
        """Where each pool's connections lead, by the database name that clients ask for.

        Args:
          passwords: what the `password_sources` gave; without them the targets of those have none.
        """
        parsed = (
            url.parse(secret.get_secret_value(), database=name, pool_size=size)
            for _, name, secret, size, _ in self._urls()
        )
        passwords = passwords or {}
        return {
            target.database: replace(target, password=passwords.get(target.database, target.password))
            for target in parsed
        }

    def top_database(self) -> str | None:
        """By what name clients ask for the top-level origin's database; None where there is none."""
        return url.parse(self.origin.get_secret_value()).database if self.origin is not None else None

    def password_sources(self) -> dict[str, PasswordSource]:
        """Where the passwords are read that no URL has, by the database name that clients ask for."""
        sources = {}
        for _, name, secret, _, sourced in self._urls():
            database = url.parse(secret.get_secret_value(), database=name).database
            if sourced.password_file is not None or sourced.password_command is not None:
                sources[database] = PasswordSource(
                    sourced.password_file, sourced.password_command, self.password_command_timeout
                )
        return sources

    def pooling_of(self, database: str, user: str) -> Pooling:
        """The pooling mode for a client: its user's, else its database's, else the general one."""
        mine, theirs = self.users.get(user), self.databases.get(database)
        return (mine and mine.pooling) or (theirs and theirs.pooling) or self.pooling

    def reuses_statements(self, database: str) -> bool:
        """`reuse_statements` of a database."""
        theirs = self.databases.get(database)
        own = theirs.reuse_statements if theirs is not None else None
        return self.reuse_statements if own is None else own

    def defers_begin(self, database: str) -> bool:
        """`defer_begin` of a database."""
        theirs = self.databases.get(database)
        own = theirs.defer_begin if theirs is not None else None
        return self.defer_begin if own is None else own

    def deadlines(self, database: str, user: str | None) -> Deadlines:
        """What holds for `user` in `database`; None: for what is nobody's own, as origin connections are."""
        return deadlines_of(self, self.override, database, user)

    def shortest(self, *names: str) -> float:
        """The shortest of these deadlines, for whomever it holds; 0 where they are all off."""
        values = (getattr(each, name) for each in (self, *self.override) for name in names)
        return min((value for value in values if value), default=0.0)

    def administrators(self) -> frozenset[str]:
        """Who may use the console."""
        if self.admin_users is not None:
            return frozenset(self.admin_users)
        return frozenset() if self.users else frozenset({next(iter(self.targets().values())).user})

    def client_users(self) -> dict[str, User]:
        """Who may connect: the configured users, or else the first origin's user with its password."""
        if self.users:
            return dict(self.users)
        first = next(iter(self.targets().values()))
        return {first.user: User(password=SecretStr(first.password))} if first.password else {}

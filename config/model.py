"""Every setting of pgnear: its name, type, unit, default and when to change it.

The descriptions are the documentation: the README's table, `pgnear.example.toml` and `schema.json` are generated from
here by `python -m config.reference`. Rules that concern several settings at once are at the end of `Config`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from config import url
from config.url import Target, is_local

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|kB|KB|KiB|MB|MiB|GB|GiB)?", re.IGNORECASE)
_SIZE_UNITS = {
    "": 1,
    "b": 1,
    "kb": 1024,
    "kib": 1024,
    "mb": 1024**2,
    "mib": 1024**2,
    "gb": 1024**3,
    "gib": 1024**3,
}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d)?", re.IGNORECASE)
_DURATION_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError("write a size like 64MB, 512kB or a number of bytes")
    return int(float(match[1]) * _SIZE_UNITS[(match[2] or "").lower()])


def _duration(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError("write a duration like 500ms, 10s, 5min or a number of seconds")
    return float(match[1]) * _DURATION_UNITS[(match[2] or "").lower()]


def _addresses(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _address(value: Any) -> Any:
    if isinstance(value, str) and not value.startswith(("unix:/", "/")):
        host, colon, port = value.rpartition(":")
        if not colon or not port.isdigit() or int(port) > 65535 or (":" in host and not host.startswith("[")):
            raise ValueError("write HOST:PORT, [IPv6]:PORT or unix:/path/of/socket")
    return value


Size = Annotated[int, BeforeValidator(_size), Field(json_schema_extra={"unit": "bytes"})]
Seconds = Annotated[float, BeforeValidator(_duration), Field(json_schema_extra={"unit": "seconds"})]
Address = Annotated[str, BeforeValidator(_address)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


Pooling = Literal["transaction", "session", "statement"]


class User(_Model):
    """A user that may connect to pgnear."""

    password: SecretStr | None = Field(None, description="The user's password.")
    verifier: SecretStr | None = Field(
        None,
        description="Instead of a password: its SCRAM verifier, as in the origin's pg_authid.rolpassword.",
    )

    pooling: Pooling | None = Field(None, description="The user's own mode; wins over the database's.")

    @model_validator(mode="after")
    def _one_of_them(self) -> User:
        if (self.password is None) == (self.verifier is None):
            raise ValueError("give either a password or a verifier")
        if self.verifier is not None and not self.verifier.get_secret_value().startswith("SCRAM-SHA-256$"):
            raise ValueError("a verifier looks like SCRAM-SHA-256$4096:salt$StoredKey:ServerKey")
        return self


class Database(_Model):
    """A database that clients can ask for by the name of its table."""

    origin: SecretStr = Field(description="Its connection URL.")
    pool_size: Annotated[int, Field(ge=1, le=10000)] | None = Field(
        None, description="Origin connections of its own pool; the top-level pool_size where unset."
    )
    pooling: Pooling | None = Field(None, description="The database's own mode; the top-level one where unset.")


class Cache(_Model):
    """The query cache."""

    enabled: bool = Field(True, description="Answer repeated reads from memory. Turn off to only pool.")
    ttl: Seconds = Field(
        60.0,
        gt=0,
        description="How long an answer may be served; a write through pgnear ends it. Lower it if others write.",
    )
    max_bytes: Size = Field(
        128 * 1024**2,
        ge=1024**2,
        description="Memory for all answers together. Raise it when evictions are frequent.",
    )
    max_entry_bytes: Size = Field(
        1024**2,
        ge=1024,
        description="The largest answer that is kept; larger ones are passed on and forgotten.",
    )


class Log(_Model):
    """What is written to standard error."""

    format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto writes key=value lines to a terminal and JSON elsewhere."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug adds a line for each connection on either side."
    )


class Config(_Model):
    """All settings."""

    origin: SecretStr | None = Field(
        None, description="The origin database: postgresql://user:password@host:5432/database?sslmode=..."
    )
    databases: dict[str, Database] = Field(
        default_factory=dict, description="More origin databases, by the name that clients ask for."
    )
    listen: Annotated[tuple[Address, ...], BeforeValidator(_addresses)] = Field(
        ("127.0.0.1:6432",),
        min_length=1,
        description="Where clients connect: HOST:PORT, [IPv6]:PORT or unix:/path; several are separated by commas.",
    )
    http: Address | None = Field(None, description="Where /metrics, /healthz and /readyz are served; off where unset.")
    tls: Literal["disable", "allow", "require"] = Field(
        "allow", description="TLS for clients. require turns plaintext clients away (unix sockets excepted)."
    )
    tls_cert_file: Path | None = Field(
        None,
        description="The certificate chain shown to clients, PEM. Unset: a self-signed one is made at start.",
    )
    tls_key_file: Path | None = Field(None, description="Its private key, PEM.")
    auth: Literal["scram-sha-256", "trust"] = Field(
        "scram-sha-256",
        description="How clients prove who they are. trust is only for loopback and unix sockets.",
    )
    users: dict[str, User] = Field(
        default_factory=dict, description="Who may connect; unset: the origin URL's user with its password."
    )
    allow_plaintext_origin: bool = Field(
        False, description="Permit an unencrypted connection to an origin on another machine."
    )
    pool_size: int = Field(
        20,
        ge=1,
        le=10000,
        description="Origin connections per database. Two to four per core of the origin is plenty.",
    )
    pooling: Pooling = Field(
        "transaction",
        description="When a client gives its origin connection back: after each transaction, after each statement "
        "(transaction blocks are refused), or when it leaves (session).",
    )
    session_functions: list[str] = Field(
        default_factory=list,
        description="Names of functions with effects on the session that neither their call nor their body shows; "
        "calling one pins the client. Well-known ones are built in.",
    )
    min_pool_size: int = Field(
        2,
        ge=0,
        le=10000,
        description="Connections that are opened at start and kept, so that no query waits for one.",
    )
    pool_wait_timeout: Seconds = Field(
        10.0, gt=0, description="How long a query waits for a free connection before it fails with 53300."
    )
    max_client_connections: int = Field(
        10000, ge=1, description="Clients connected at once; more are refused with 53300."
    )
    max_unauthenticated_connections: int = Field(
        256, ge=1, description="Connections at once that have not logged in yet; more are refused."
    )
    client_login_timeout: Seconds = Field(15.0, gt=0, description="How long a client may take to log in.")
    origin_connect_timeout: Seconds = Field(
        10.0, gt=0, description="How long connecting to the origin may take, TLS and login included."
    )
    origin_idle_timeout: Seconds = Field(
        600.0,
        ge=0,
        description="Idle connections above min_pool_size are closed after so long; 0 keeps them.",
    )
    origin_lifetime: Seconds = Field(
        3600.0, ge=0, description="A connection is replaced at this age, between two transactions; 0 never."
    )
    drain_timeout: Seconds = Field(
        5.0, ge=0, description="How long running transactions may take to finish when pgnear is told to stop."
    )
    cancel_wait_timeout: Seconds = Field(
        10.0, gt=0, description="How long a cancel request may take to reach the origin."
    )
    max_message_bytes: Size = Field(
        128 * 1024**2,
        ge=65536,
        le=1024**3,
        description="The largest single message from a client. COPY and results have no limit.",
    )
    buffer_high_water: Size = Field(
        256 * 1024, ge=16384, description="Bytes that wait for a slow reader before the other side is paused."
    )
    max_prepared_statements: int = Field(
        200,
        ge=1,
        description="Prepared statements kept on each origin connection; the least recently used goes.",
    )
    max_client_statements: int = Field(5000, ge=1, description="Prepared statements that one client may have.")
    cache: Cache = Field(default=Cache(), description="The query cache.")
    log: Log = Field(default=Log(), description="Logging.")

    @model_validator(mode="after")
    def _whole(self) -> Config:
        problems = []
        targets: dict[str, Target] = {}
        if self.origin is None and not self.databases:
            problems.append(
                'origin: nothing to connect to; give --origin, PGNEAR_ORIGIN or origin = "postgresql://..."'
            )
        for key, name, secret, size in self._urls():
            try:
                target = url.parse(secret.get_secret_value(), database=name, pool_size=size)
            except ValueError as error:
                problems.append(f"{key}: {error}")
                continue
            targets[target.database] = target
            if target.may_be_plaintext and not target.is_local and not self.allow_plaintext_origin:
                problems.append(
                    f"{key}: sslmode={target.sslmode} may send passwords and data unencrypted to {target.host}; "
                    "use verify-full, or set allow_plaintext_origin = true"
                )
        if self.auth == "trust":
            for address in self.listen:
                if not address.startswith(("unix:", "/")) and not is_local(address.rpartition(":")[0].strip("[]")):
                    problems.append(
                        f"auth: trust lets anybody in who reaches {address}; listen on loopback or a unix socket"
                    )
        if self.tls_key_file is not None and self.tls_cert_file is None:
            problems.append("tls_cert_file: missing, though tls_key_file is set")
        for file_key in ("tls_cert_file", "tls_key_file"):
            path = getattr(self, file_key)
            if path is not None and not path.is_file():
                problems.append(f"{file_key}: {path} is not a file")
        if self.auth != "trust" and not self.users and targets and not next(iter(targets.values())).password:
            problems.append(
                'users: the origin URL has no password that clients could log in with; add a user, or auth = "trust"'
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _urls(self) -> list[tuple[str, str | None, SecretStr, int]]:
        """(key, client-visible name, URL, pool size) of each origin."""
        urls: list[tuple[str, str | None, SecretStr, int]] = []
        if self.origin is not None:
            urls.append(("origin", None, self.origin, self.pool_size))
        for name, database in self.databases.items():
            urls.append((f"databases.{name}.origin", name, database.origin, database.pool_size or self.pool_size))
        return urls

    def targets(self) -> dict[str, Target]:
        """Where each pool's connections lead, by the database name that clients ask for."""
        parsed = (
            url.parse(secret.get_secret_value(), database=name, pool_size=size)
            for _, name, secret, size in self._urls()
        )
        return {target.database: target for target in parsed}

    def pooling_of(self, database: str, user: str) -> Pooling:
        """The pooling mode for a client: its user's, else its database's, else the general one."""
        mine, theirs = self.users.get(user), self.databases.get(database)
        return (mine and mine.pooling) or (theirs and theirs.pooling) or self.pooling

    def client_users(self) -> dict[str, User]:
        """Who may connect: the configured users, or else the first origin's user with its password."""
        if self.users:
            return dict(self.users)
        first = next(iter(self.targets().values()))
        return {first.user: User(password=SecretStr(first.password))} if first.password else {}

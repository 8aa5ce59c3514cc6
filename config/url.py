"""Reads an origin's connection URL into a `Target`. Source: PostgreSQL documentation, "Connection URIs"."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_PLAINTEXT_MODES = ("disable", "allow", "prefer")
_OPTIONS = ("application_name", "options", "client_encoding", "TimeZone", "search_path")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a pool's connections lead.

    Attributes:
      database: the name that clients ask for.
      host: a host name, an address, or the directory of a unix socket (begins with /).
      sslmode: one of libpq's words. sslrootcert: a file, "system", or None.
      options: startup parameters for every connection.
    """

    database: str
    host: str
    port: int
    user: str
    password: str = field(repr=False)
    dbname: str
    sslmode: str
    sslrootcert: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    pool_size: int = 20

    @property
    def is_local(self) -> bool:
        """Whether the origin is this machine: nothing crosses a network."""
        return is_local(self.host)

    @property
    def may_be_plaintext(self) -> bool:
        return self.sslmode in _PLAINTEXT_MODES


def is_local(host: str) -> bool:
    """Whether `host` is a unix socket or a loopback address or name."""
    if host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse(url: str, *, database: str | None = None, pool_size: int = 20) -> Target:
    """The target that `url` names.

    Args:
      database: what clients call it; the URL's own database name where None.

    Raises:
      ValueError: the URL cannot be used; the message never repeats it, for it holds a password.
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError("must be a URL like postgresql://user:password@host:5432/database")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    try:
        port = parts.port or int(query.pop("port", 5432))
    except ValueError:
        raise ValueError("the port is not a number from 1 to 65535") from None
    host = query.pop("host", "") or unquote(parts.hostname or "")
    user = unquote(parts.username or "") or query.pop("user", "")
    password = unquote(parts.password or "") or query.pop("password", "")
    if not host:
        raise ValueError("names no host")
    if "," in host or "," in parts.netloc.rpartition("@")[2]:
        raise ValueError("names several hosts; pgnear connects to one")
    if not user:
        raise ValueError("names no user")
    dbname = unquote(parts.path.lstrip("/")) or query.pop("dbname", "") or user
    sslmode = query.pop("sslmode", "prefer" if is_local(host) else "verify-full")
    if sslmode not in SSLMODES:
        raise ValueError(f"sslmode must be one of {', '.join(SSLMODES)}")
    sslrootcert = query.pop("sslrootcert", None)
    options = {name: query.pop(name) for name in _OPTIONS if name in query}
    if query:
        raise ValueError(f"has unknown parameters: {', '.join(sorted(query))}")
    return Target(database or dbname, host, port, user, password, dbname, sslmode, sslrootcert, options, pool_size)

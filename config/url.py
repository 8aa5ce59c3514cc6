"""Reads an origin's connection URL into a `Target`.

Follows libpq, which differs from a general URL parser: everything before the first @ is user and password whatever
characters it has, a parameter overrides what the URL says before it, + is no space. Source: PostgreSQL documentation,
"Connection URIs" and "Parameter Key Words".
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from dataclasses import dataclass, field, replace

SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_PLAINTEXT_MODES = ("disable", "allow", "prefer")

_TAKEN = (
    "host", "port", "user", "password", "dbname", "sslmode", "sslrootcert", "sslcert", "sslkey",
    "target_session_attrs", "load_balance_hosts",
)  # fmt: skip
SESSION_ATTRS = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")
_STARTUP = {
    name.lower(): name for name in ("application_name", "options", "client_encoding", "TimeZone", "search_path")
}
_ALREADY_SO = {
    "channel_binding": ("prefer",),
    "gssencmode": ("disable", "prefer"),
    "sslnegotiation": ("postgres",),
}
"""libpq's parameters that ask, with these values, for what pgnear does anyway."""

_INSTEAD = {
    "channel_binding": "pgnear binds to the channel wherever the origin offers it; leave it out",
    "connect_timeout": "leave it out and set origin_connect_timeout",
    "hostaddr": "write the address as the host",
    "passfile": "write the password into the URL",
    "service": "write host, user and database into the URL",
    "sslnegotiation": "pgnear asks the origin for TLS with SSLRequest; leave it out",
    "requiressl": "write sslmode=require",
    "ssl": "write sslmode=require or sslmode=verify-full",
}
_KNOWN = (
    "fallback_application_name gsslib gssdelegation keepalives keepalives_count keepalives_idle keepalives_interval "
    "krbsrvname max_protocol_version min_protocol_version pgbouncer replication require_auth requirepeer schema "
    "scram_client_key scram_server_key sslcertmode sslcompression sslcrl sslcrldir sslkeylogfile sslpassword sslsni "
    "ssl_max_protocol_version ssl_min_protocol_version tcp_user_timeout"
).split()
"""Parameters of libpq (and of common ORMs) that pgnear has no use for. Other names are not repeated in messages."""

_ENCODE = "in a password write %40 for @, %3A for :, %2F for / and %3F for ?"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a pool's connections lead.

    Attributes:
      database: the name that clients ask for.
      host: a host name, an address, or the directory of a unix socket (begins with /); of several, the first.
      sslmode: one of libpq's words. sslrootcert: a file, "system", or None.
      sslcert, sslkey: files with pgnear's own certificate and its key, where the origin asks for one.
      options: startup parameters for every connection.
      hosts: (host, port) of each where there are several; see `each`.
      session_attrs: which of them will do, one of libpq's words. load_balance: whether they are tried in random order.
      address: where the host was found; unset, its name is resolved.
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
    hosts: tuple[tuple[str, int], ...] = ()
    session_attrs: str = "any"
    load_balance: bool = False
    address: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None

    def each(self) -> list[Target]:
        """One target for each host, in the URL's order."""
        return [replace(self, host=host, port=port, hosts=()) for host, port in self.hosts] or [self]

    def at(self, address: str) -> Target:
        """The same host, at one of its addresses."""
        return replace(self, address=address, hosts=())

    @property
    def picky(self) -> bool:
        """Whether there is a choice to be made between servers."""
        return bool(self.hosts) or self.session_attrs != "any" or self.load_balance

    @property
    def place(self) -> str:
        """Where it leads, in words: host:port, and others behind commas."""
        return ",".join(f"{host}:{port}" for host, port in self.hosts or ((self.host, self.port),))

    @property
    def server(self) -> tuple[str, int]:
        """The address, or the name where none is known, and the port."""
        return self.address or self.host, self.port

    @property
    def is_local(self) -> bool:
        """Whether the origin is this machine: nothing crosses a network."""
        return all(is_local(each.host) for each in self.each())

    @property
    def may_be_plaintext(self) -> bool:
        return self.sslmode in _PLAINTEXT_MODES


def is_local(host: str) -> bool:
    """Whether `host` is a unix socket or a loopback address or name."""
    if host.startswith("/") or host.lower() == "localhost":
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
      ValueError: the URL cannot be used; the message never repeats a part that could be of the password.
    """
    parameters = _split(url.strip())
    hosts = _hosts(parameters.pop("host", ""), parameters.pop("port", ""))
    host, port = hosts[0]
    user = parameters.pop("user", "")
    if not user:
        raise ValueError("names no user")
    password = parameters.pop("password", "")
    dbname = parameters.pop("dbname", "") or user
    sslmode = parameters.pop("sslmode", "")
    if parameters.get("ssl") == "true":  # as JDBC writes it; libpq takes it for this, too
        del parameters["ssl"]
        sslmode = sslmode or "require"
    sslrootcert = parameters.pop("sslrootcert", "") or None
    sslcert, sslkey = parameters.pop("sslcert", "") or None, parameters.pop("sslkey", "") or None
    if sslkey and not sslcert:
        raise ValueError("has an sslkey and no sslcert")
    local = all(is_local(each) for each, _ in hosts)
    sslmode = sslmode or ("prefer" if local and sslrootcert != "system" else "verify-full")
    if sslmode not in SSLMODES:
        raise ValueError(f"sslmode must be one of {', '.join(SSLMODES)}")
    if sslrootcert == "system" and sslmode != "verify-full":
        raise ValueError("sslrootcert=system needs sslmode=verify-full")
    session_attrs = parameters.pop("target_session_attrs", "any")
    if session_attrs not in SESSION_ATTRS:
        raise ValueError(f"target_session_attrs must be one of {', '.join(SESSION_ATTRS)}")
    balance = parameters.pop("load_balance_hosts", "disable")
    if balance not in ("disable", "random"):
        raise ValueError("load_balance_hosts must be disable or random")
    options = {}
    for name in list(parameters):
        if name.lower() in _STARTUP:
            options[_STARTUP[name.lower()]] = parameters.pop(name)
    _refuse_the_rest(parameters)
    return Target(
        database or dbname, host, port, user, password, dbname, sslmode, sslrootcert, options, pool_size,
        hosts if len(hosts) > 1 else (), session_attrs, balance == "random", None, sslcert, sslkey,
    )  # fmt: skip


def _hosts(hosts: str, ports: str) -> tuple[tuple[str, int], ...]:
    """Each host with its port: one port is that of all, and an empty one is 5432."""
    names, numbers = hosts.split(","), ports.split(",")
    if not all(names):
        raise ValueError("names no host" if len(names) == 1 else "has an empty place in its list of hosts")
    if len(numbers) == 1:
        numbers *= len(names)
    if len(numbers) != len(names):
        raise ValueError("has another number of ports than of hosts")
    return tuple((name, _port(number or "5432")) for name, number in zip(names, numbers, strict=True))


def _split(url: str) -> dict[str, str]:
    """The URL's parts by libpq's parameter names, decoded."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgresql", "postgres"):
        raise ValueError("must be a URL like postgresql://user:password@host:5432/database")
    parts: dict[str, str] = {}
    authority = re.match(r"[^/]*", rest)
    assert authority is not None
    if "@" in authority[0]:
        login, _, rest = rest.partition("@")
        user, _, password = login.partition(":")
        parts |= {"user": user, "password": password}
    rest, _, query = rest.partition("?")
    place, _, dbname = rest.partition("/")
    if "@" in rest:  # libpq would take it for a part of the database's name: more likely it is the end of a password
        raise ValueError(f"has more than one @; {_ENCODE}")
    parts |= {"dbname": dbname} | _split_place(place)
    for item in query.split("&") if query else ():
        name, separator, value = item.partition("=")
        if not separator or not name:
            raise ValueError("must have name=value, separated by &, behind the question mark")
        parts[_decoded(name)] = value
    return {name: _decoded(value) for name, value in parts.items() if value}


def _split_place(place: str) -> dict[str, str]:
    """The hosts and the ports, each with commas between them where there are several."""
    places = [_split_one(each) for each in place.split(",")]
    ports = [port for _, port in places]
    return {"host": ",".join(host for host, _ in places), "port": ",".join(ports) if any(ports) else ""}


def _split_one(place: str) -> tuple[str, str]:
    if place.startswith("["):
        host, bracket, port = place[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError("an IPv6 address is written [address]:port")
        try:
            ipaddress.IPv6Address(_decoded(host))
        except ValueError:
            raise ValueError("has no IPv6 address between its brackets") from None
        return host, port[1:]
    host, _, port = place.partition(":")
    if ":" in port:
        raise ValueError("has a second : behind its host; an IPv6 address is written [address]:port")
    return host, port


def _decoded(text: str) -> str:
    """Percent-decoded. Unlike urllib's, this refuses what is no encoding: the password would silently be another."""
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise ValueError("has a % that two hexadecimal digits do not follow; write %25 for a percent sign")
    try:
        decoded = re.sub(rb"%(..)", lambda match: bytes.fromhex(match[1].decode()), text.encode()).decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 once it is percent-decoded") from None
    if "\0" in decoded:
        raise ValueError("must not have %00")
    return decoded


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise ValueError(f"the port is not a number from 1 to 65535; {_ENCODE}")
    return int(text)


def _refuse_the_rest(parameters: dict[str, str]) -> None:
    """What is left was either asked for in vain or is no parameter at all."""
    said = []
    for name, value in sorted(parameters.items()):
        if value in _ALREADY_SO.get(name, ()):
            continue
        if name in _INSTEAD:
            said.append(f"{name} is not supported: {_INSTEAD[name]}")
        elif name in _KNOWN or name in _ALREADY_SO:
            said.append(f"{name} is not supported; leave it out")
        else:
            near = difflib.get_close_matches(name, [*_TAKEN, *_STARTUP.values(), *_INSTEAD], 1)
            said.append("has an unknown parameter" + (f" (did you mean {near[0]}?)" if near else f"; {_ENCODE}"))
    if said:
        raise ValueError("; ".join(said))

"""Connection URLs mean what they mean to libpq, and one that cannot be used is refused without showing its password."""

from __future__ import annotations

import psycopg
import pytest

from config.url import Target, is_local, parse

SECRET = "Tr0ub4dor"


def test_every_part_of_a_url_is_read() -> None:
    target = parse("postgresql://app:pw@db.example.com:6543/shop?sslmode=verify-ca&sslrootcert=/ca.pem", pool_size=7)
    assert target == Target("shop", "db.example.com", 6543, "app", "pw", "shop", "verify-ca", "/ca.pem", {}, 7)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://app@db",
        "postgres://app@db",
        "postgresql://app:pw@db:6543/shop",
        "postgresql://app:@db/",
        "postgresql://db/shop?user=app&password=pw",
        "postgresql:///shop?host=db&port=6543&user=app",
        "postgresql://app@one:1/first?host=two&port=2&dbname=second&user=other",
        "postgresql://app:p%40ss%2Fw%3Aord%25@db/shop",
        "postgresql://app:a+b?c#d[e]@db/shop",
        "postgresql://us%20er:%C3%A9t%C3%A9@db/sh%2Fop",
        "postgresql://app@[::1]:6543/shop",
        "postgresql://app@[2001:db8::7]/shop",
        "postgresql://app@/shop?host=/var/run/postgresql",
        "postgresql://app@%2Fvar%2Frun%2Fpostgresql:5433/shop",
        "postgresql://app@db/shop?application_name=a+b%20c",
        "postgresql://app@db/shop?options=-c%20search_path%3Da",
        "postgresql://app@db?sslmode=require",
        "postgresql://app@db/shop?ssl=true",
        "postgresql://app@db/shop?user=first&user=last",
    ],
)
def test_a_url_means_what_it_means_to_libpq(url: str) -> None:
    theirs = psycopg.conninfo.conninfo_to_dict(url)
    ours = parse(url)
    assert ours.host == theirs["host"]
    assert ours.port == int(theirs.get("port") or 5432)
    assert ours.user == theirs["user"]
    assert ours.password == (theirs.get("password") or "")
    assert ours.dbname == (theirs.get("dbname") or theirs["user"])
    assert ours.options == {name: theirs[name] for name in ("application_name", "options") if name in theirs}
    if "sslmode" in theirs:
        assert ours.sslmode == theirs["sslmode"]


def test_clients_ask_for_the_urls_own_database_unless_it_has_another_name() -> None:
    assert parse("postgresql://app@db/shop").database == "shop"
    renamed = parse("postgresql://app@db/shop", database="store")
    assert (renamed.database, renamed.dbname) == ("store", "shop")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.10", "[::1]", "%2Ftmp"])
def test_encryption_is_preferred_on_this_machine(host: str) -> None:
    target = parse(f"postgresql://app@{host}/shop")
    assert target.is_local
    assert target.sslmode == "prefer"


@pytest.mark.parametrize("host", ["db", "10.0.0.1", "[2001:db8::7]", "localhost.example.com", "127.0.0.1.example.com"])
def test_another_machine_must_prove_its_name(host: str) -> None:
    target = parse(f"postgresql://app@{host}/shop")
    assert not target.is_local
    assert target.sslmode == "verify-full"
    assert not target.may_be_plaintext


def test_only_the_modes_that_can_fall_back_to_plaintext_say_so() -> None:
    modes = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
    plaintext = [mode for mode in modes if parse(f"postgresql://app@db?sslmode={mode}").may_be_plaintext]
    assert plaintext == ["disable", "allow", "prefer"]


def test_the_systems_authorities_are_only_trusted_together_with_the_name() -> None:
    assert parse("postgresql://app@localhost?sslrootcert=system").sslmode == "verify-full"
    with pytest.raises(ValueError, match="needs sslmode=verify-full"):
        parse("postgresql://app@db?sslrootcert=system&sslmode=require")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "must be a URL like"),
        ("host=db user=app", "must be a URL like"),
        ("mysql://app@db/shop", "must be a URL like"),
        ("postgresql:/app@db", "must be a URL like"),
        ("postgresql://db/shop", "names no user"),
        ("postgresql://app@/shop", "names no host"),
        ("postgresql://app@one,,two/shop", "empty place"),
        ("postgresql://app@one,two,three/shop?port=1,2", "another number of ports"),
        ("postgresql://app@one:1,two:x/shop", "port is not a number"),
        ("postgresql://app@one/shop?target_session_attrs=master", "one of any, read-write"),
        ("postgresql://app@one/shop?load_balance_hosts=yes", "disable or random"),
        ("postgresql://app@db:0/shop", "port is not a number from 1 to 65535"),
        ("postgresql://app@db:65536/shop", "port is not a number from 1 to 65535"),
        ("postgresql://app@db:5x/shop", "port is not a number from 1 to 65535"),
        ("postgresql://app@[::1/shop", r"written \[address\]:port"),
        ("postgresql://app@[db]/shop", "no IPv6 address"),
        ("postgresql://app@::1/shop", r"written \[address\]:port"),
        ("postgresql://app:100%@db", "%25"),
        ("postgresql://app:%00@db", "%00"),
        ("postgresql://app:%ff@db", "UTF-8"),
        ("postgresql://app@db?sslmode=on", "one of disable, allow"),
        ("postgresql://app@db?sslmode", "name=value"),
        ("postgresql://app@db?sslmod=require", "did you mean sslmode"),
        ("postgresql://app@db?connect_timeout=3", "origin_connect_timeout"),
        ("postgresql://app@db?service=a&channel_binding=require", "channel_binding is not.*; service is not"),
        ("postgresql://app@db?sslkey=a", "an sslkey and no sslcert"),
        ("postgresql://app@db?gssencmode=require", "gssencmode is not supported"),
        ("postgresql://app@db?keepalives=1", "keepalives is not supported"),
        ("postgresql://app@db?sslnegotiation=direct", "sslnegotiation is not supported"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_would_be_right(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(url)


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://app@one,two/shop", (("one", 5432), ("two", 5432))),
        ("postgresql://app@one:1,two/shop", (("one", 1), ("two", 5432))),
        ("postgresql://app@[::1]:1,two:2/shop", (("::1", 1), ("two", 2))),
        ("postgresql://app@/shop?host=one,/run/pg&port=7", (("one", 7), ("/run/pg", 7))),
        ("postgresql://app@one,two/shop?port=7,8", (("one", 7), ("two", 8))),
    ],
)
def test_several_hosts_are_read_as_libpq_does(url: str, hosts: tuple[tuple[str, int], ...]) -> None:
    target = parse(url + ("&" if "?" in url else "?") + "target_session_attrs=read-write&load_balance_hosts=random")
    assert target.hosts == hosts
    assert [(each.host, each.port, each.hosts) for each in target.each()] == [(*place, ()) for place in hosts]
    assert (target.session_attrs, target.load_balance, target.picky) == ("read-write", True, True)


def test_a_host_that_is_not_local_among_others_needs_encryption() -> None:
    assert parse("postgresql://app@localhost,db.example.com/shop").sslmode == "verify-full"
    assert parse("postgresql://app@localhost,127.0.0.1/shop").sslmode == "prefer"


def test_parameters_that_ask_for_what_happens_anyway_are_accepted() -> None:
    parse(
        "postgresql://app@db?channel_binding=prefer&gssencmode=disable&target_session_attrs=any&sslnegotiation=postgres"
    )


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://app:{SECRET}@x@db/shop",
        f"postgresql://app:x@{SECRET}@db/shop",
        f"postgresql://app:x@{SECRET}:y@db/shop",
        f"postgresql://app:x/{SECRET}@db/shop",
        f"postgresql://app:x@y/{SECRET}:z@db/shop",
        f"postgresql://app:x@y?{SECRET}@db/shop",
        f"postgresql://app:x@y?{SECRET}=z@db/shop",
        f"postgresql://app:x@y?z={SECRET}@db/shop",
        f"postgresql://app:x@[{SECRET}]@db/shop",
        f"postgresql://app:100%{SECRET}@db/shop",
        f"postgresql://app:{SECRET}@",
        f"mysql://app:{SECRET}@db/shop",
        f"postgresql://app@db?password={SECRET}&sslmode=x",
        f"postgresql://app@db?pasword={SECRET}",
        f"postgresql://app@db?sslpassword={SECRET}",
    ],
)
def test_a_refusal_never_repeats_a_part_of_the_password(url: str) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 (each for a reason of its own)
        parse(url)
    assert SECRET not in str(refusal.value)
    assert refusal.value.__cause__ is None


def test_a_target_does_not_show_its_password() -> None:
    assert SECRET not in repr(parse(f"postgresql://app:{SECRET}@db/shop"))


@pytest.mark.parametrize(
    ("host", "local"),
    [("/tmp", True), ("::1", True), ("127.0.0.1", True), ("0.0.0.0", False), ("::", False), ("", False), ("db", False)],
)
def test_only_loopback_is_this_machine(host: str, local: bool) -> None:
    assert is_local(host) is local

"""The rules over several settings: what may not be combined, and why."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

import config
from config import Config, ConfigError
from protocol.auth import ScramVerifier
from tests.support.certificates import Authority

URL = "postgresql://app:secret@localhost/shop"
REMOTE = "postgresql://app:secret@db.example.com/shop"


def load(origin: str | None = URL, **settings: Any) -> Config:
    return config.load(flags={"origin": origin, **settings}, environ={})


def problem(origin: str | None = URL, **settings: Any) -> str:
    """The only thing that is wrong."""
    with pytest.raises(ConfigError) as refusal:
        load(origin, **settings)
    (only,) = map(str, refusal.value.problems)
    return only


@pytest.mark.parametrize("sslmode", ["disable", "allow", "prefer"])
def test_a_plaintext_origin_on_another_machine_is_refused_unless_it_is_asked_for(sslmode: str) -> None:
    url = f"{REMOTE}?sslmode={sslmode}"
    assert "may send passwords and data unencrypted to db.example.com" in problem(url)
    assert load(url, allow_plaintext_origin=True).targets()["shop"].sslmode == sslmode
    assert "unencrypted" in problem(databases={"other": {"origin": url}})


def test_an_encrypted_origin_or_one_on_this_machine_needs_no_leave() -> None:
    for url in (REMOTE, f"{REMOTE}?sslmode=require", f"{URL}?sslmode=disable", "postgresql://a:b@/c?host=/tmp"):
        load(url)


@pytest.mark.parametrize("address", ["0.0.0.0:6432", "[::]:6432", ":6432", "10.1.2.3:6432", "db:6432"])
def test_trust_is_refused_where_others_could_connect(address: str) -> None:
    assert f"anybody in who reaches {address}" in problem(auth="trust", listen=f"127.0.0.1:1,{address}")


def test_trust_is_possible_on_loopback_and_unix_sockets() -> None:
    load(auth="trust", listen="127.0.0.1:1,[::1]:2,localhost:3,unix:/run/4,/run/5")


def test_without_users_and_without_a_password_in_the_url_nobody_could_log_in() -> None:
    url = "postgresql://app@localhost/shop"
    assert 'add a user, or auth = "trust"' in problem(url)
    load(url, auth="trust")
    assert set(load(url, users={"ann": {"password": "x"}}).client_users()) == {"ann"}


def test_the_origins_user_is_the_only_one_until_others_are_listed() -> None:
    assert set(load().client_users()) == {"app"}
    assert set(load(users={"ann": {"password": "x"}}).client_users()) == {"ann"}


def test_a_user_has_a_password_or_a_verifier() -> None:
    verifier = ScramVerifier.from_password("x")
    text = "SCRAM-SHA-256$4096:{}${}:{}".format(
        *(b64encode(part).decode() for part in (verifier.salt, verifier.stored_key, verifier.server_key))
    )
    load(users={"ann": {"verifier": text}})
    assert "either a password or a verifier" in problem(users={"ann": {}})
    assert "either a password or a verifier" in problem(users={"ann": {"password": "x", "verifier": text}})
    assert "the password is empty" in problem(users={"ann": {"password": ""}})


@pytest.mark.parametrize(
    "verifier",
    ["", "SCRAM-SHA-256$", "md5a3556571e93b0d20722ba62be61e8c2d", "SCRAM-SHA-256$4096:c2FsdA==$c2hvcnQ=:c2hvcnQ=", "x"],
)
def test_what_is_no_verifier_is_refused_before_anything_starts(verifier: str) -> None:
    assert "a verifier looks like SCRAM-SHA-256$4096:" in problem(users={"ann": {"verifier": verifier}})


@pytest.fixture
def pem(tmp_path: Path) -> dict[str, str]:
    """Files by what is in them."""
    authority = Authority()
    one, other = authority.issue("localhost"), authority.issue("localhost")
    key = serialization.load_pem_private_key(one.key, None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    contents = {
        "certificate": one.certificate,
        "key": one.key,
        "both": one.key + one.certificate,
        "other key": other.key,
        "encrypted": encrypted,
        "authority": authority.certificate,
        "damaged": one.certificate[:200] + b"\n-----END CERTIFICATE-----\n",
        "empty": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: str(tmp_path / name) for name in (*contents, "missing")}


def test_certificates_that_can_be_used_are_accepted(pem: dict[str, str]) -> None:
    load(tls_cert_file=pem["certificate"], tls_key_file=pem["key"])
    load(tls_cert_file=pem["both"])
    load(f"{REMOTE}?sslrootcert={pem['authority']}")
    load(f"{REMOTE}?sslrootcert=system")


@pytest.mark.parametrize(
    ("certificate", "key", "where", "what"),
    [
        (None, "key", "tls_cert_file", "missing, though tls_key_file is set"),
        ("missing", "key", "tls_cert_file", "missing cannot be read: No such file or directory"),
        ("certificate", "missing", "tls_key_file", "missing cannot be read: No such file or directory"),
        ("empty", "key", "tls_cert_file", "empty has no PEM block of a certificate"),
        ("certificate", "empty", "tls_key_file", "empty has no PEM block of a private key"),
        ("certificate", None, "tls_cert_file", "certificate has no PEM block of a private key"),
        ("damaged", "key", "tls_cert_file", "damaged and its key cannot be used: "),
        ("certificate", "other key", "tls_key_file", "other key is not that of the certificate in "),
        ("certificate", "encrypted", "tls_key_file", "encrypted is encrypted; pgnear cannot ask for its password"),
    ],
)
def test_certificates_that_cannot_be_used_are_named(
    pem: dict[str, str], certificate: str | None, key: str | None, where: str, what: str
) -> None:
    said = problem(tls_cert_file=pem[certificate] if certificate else None, tls_key_file=pem[key] if key else None)
    assert f"{where}: " in said
    assert what in said


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("missing", "cannot be read: No such file or directory"),
        ("key", "has no PEM block of a certificate"),
        ("damaged", "cannot be used: "),
    ],
)
def test_authorities_that_cannot_be_used_are_named(pem: dict[str, str], file: str, what: str) -> None:
    said = problem(f"{REMOTE}?sslrootcert={pem[file]}")
    assert f"--origin: origin: sslrootcert: {pem[file]} {what}" in said


def test_databases_have_pools_of_their_own() -> None:
    settings = load(
        pool_size=7,
        databases={"small": {"origin": REMOTE, "pool_size": 2}, "other": {"origin": REMOTE}},
    )
    assert {name: target.pool_size for name, target in settings.targets().items()} == {
        "shop": 7,
        "small": 2,
        "other": 7,
    }
    assert {target.dbname for target in settings.targets().values()} == {"shop"}
    assert set(load(None, databases={"only": {"origin": URL}}).targets()) == {"only"}


def test_the_consoles_name_is_no_databases() -> None:
    assert "pgnear is the name of pgnear's console" in problem(databases={"pgnear": {"origin": URL}})
    assert "pgnear is the name of pgnear's console" in problem("postgresql://app:secret@localhost/pgnear")
    load(None, databases={"other": {"origin": "postgresql://app:secret@localhost/pgnear"}})


def test_administrators_are_named_or_the_origins_user_where_there_are_no_users() -> None:
    users = {"ann": {"password": "x"}, "bob": {"password": "y"}}
    assert load().administrators() == {"app"}
    assert load(users=users).administrators() == frozenset()
    assert load(users=users, admin_users="bob").administrators() == {"bob"}
    assert "admin_users: eve is not among those who may connect" in problem(users=users, admin_users="ann,eve")
    assert load(auth="trust", admin_users="eve").administrators() == {"eve"}


def test_no_two_databases_have_one_name() -> None:
    assert "shop is the name of the top-level origin's database already" in problem(
        databases={"shop": {"origin": REMOTE}}
    )


def test_the_largest_answer_fits_into_the_cache() -> None:
    assert "larger than max_bytes" in problem(cache={"max_bytes": "2MB", "max_entry_bytes": "3MB"})


def test_a_database_says_when_its_origin_is_missing() -> None:
    assert problem(databases={"other": {}}).endswith("databases.other.origin: is missing")


def test_a_configuration_cannot_be_changed() -> None:
    settings = load()
    with pytest.raises(ValueError, match="frozen"):
        settings.pool_size = 1
    with pytest.raises(ValueError, match="frozen"):
        settings.cache.ttl = 1


@pytest.mark.parametrize(
    ("replica", "more", "reason"),
    [
        ({"url": "postgresql://app@127.0.0.1/other"}, {}, "user and database must be those of the origin"),
        ({"url": "postgresql://other@127.0.0.1/shop"}, {}, "user and database must be those of the origin"),
        ({"url": "postgresql://app@127.0.0.1/shop", "database": "orders"}, {}, "there is no database orders"),
        (
            {"url": "postgresql://app@db.example.com/shop?sslmode=disable"},
            {},
            "may send passwords and data unencrypted",
        ),
        ({"url": "postgresql://app@127.0.0.1/shop"}, {"cache": {"enabled": False}}, "cache.enabled must be true"),
        ({"url": "postgresql://app@127.0.0.1:x/shop"}, {}, "port is not a number"),
    ],
)
def test_a_replica_that_could_not_stand_in_for_the_origin_is_refused(
    replica: dict[str, str], more: dict[str, object], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        Config.model_validate({"origin": "postgresql://app:x@127.0.0.1/shop", "replica": [replica], **more})

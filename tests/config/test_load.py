"""Where settings come from: precedence, nesting, and what is said when something is wrong with them."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

import config
from config import Config, ConfigError

URL = "postgresql://app:secret@localhost/shop"
SECRET = "Tr0ub4dor"


def write(directory: Path, text: str) -> Path:
    path = directory / "pgnear.toml"
    path.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
    return path


def load(*, file: Path | None = None, environ: dict[str, str] | None = None, **flags: Any) -> Config:
    """Loaded with nothing of this process's own environment; `origin` is a flag unless it is given elsewhere."""
    return config.load(file=file, environ=environ or {}, flags=flags)


def problems(
    *, file: Path | None = None, environ: dict[str, str] | None = None, flags: dict[str, Any] | None = None
) -> list[str]:
    """What is wrong, one line each; at least one."""
    with pytest.raises(ConfigError) as refusal:
        config.load(file=file, environ=environ or {}, flags=flags)
    assert str(refusal.value).splitlines() == list(map(str, refusal.value.problems))
    return list(map(str, refusal.value.problems))


# ---- where values come from -----------------------------------------------------------------------------------------


def test_an_origin_is_all_that_is_needed() -> None:
    settings = load(origin=URL)
    assert settings.listen == ("127.0.0.1:6432",)
    assert list(settings.targets()) == ["shop"]
    assert settings.client_users()["app"].password is not None


def test_a_flag_wins_over_the_environment_that_over_the_file_that_over_the_default(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        f"""
        origin = "{URL}"
        pool_size = 3
        min_pool_size = 3
        pool_wait_timeout = 3
        [cache]
        ttl = 3
        max_bytes = "3MB"
        """,
    )
    environ = {"PGNEAR_POOL_SIZE": "2", "PGNEAR_MIN_POOL_SIZE": "2", "PGNEAR_CACHE__TTL": "2", "HOME": "/"}
    settings = load(file=file, environ=environ, pool_size=1)
    assert (settings.pool_size, settings.min_pool_size, settings.pool_wait_timeout) == (1, 2, 3.0)
    assert (settings.cache.ttl, settings.cache.max_bytes) == (2.0, 3 * 1024**2)
    assert settings.max_client_connections == Config.model_fields["max_client_connections"].default


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    assert load(environ={"PGNEAR_POOL_SIZE": "2"}, origin=URL, pool_size=None).pool_size == 2


def test_nested_settings_come_from_every_source(tmp_path: Path) -> None:
    file = write(tmp_path, f'origin = "{URL}"\ncache.ttl = 5\nlog = {{ level = "debug" }}')
    settings = config.load(
        file=file,
        environ={"PGNEAR_CACHE__MAX_BYTES": "2MB", "PGNEAR_log__format": "json"},
        flags={"cache.enabled": False},
    )
    assert (settings.cache.ttl, settings.cache.max_bytes, settings.cache.enabled) == (5.0, 2 * 1024**2, False)
    assert (settings.log.level, settings.log.format) == ("debug", "json")


def test_the_names_of_users_and_databases_keep_their_case() -> None:
    environ = {
        "PGNEAR_DATABASES__ShopDB__ORIGIN": URL,
        "PGNEAR_databases__ShopDB__Pool_Size": "3",
        "PGNEAR_USERS__Ann_Lee__PASSWORD": "x",
        "PGNEAR_USERS__ann__password": "y",
    }
    settings = load(environ=environ)
    assert {name: target.pool_size for name, target in settings.targets().items()} == {"ShopDB": 3}
    assert set(settings.users) == {"Ann_Lee", "ann"}


@pytest.mark.parametrize(
    ("text", "size"),
    [("65536", 65536), ("64kB", 65536), ("64 KB", 65536), ("64KiB", 65536), ("1MB", 2**20), ("0.5GB", 2**29)],
)
def test_sizes_are_written_as_people_write_them(text: str, size: int) -> None:
    assert load(origin=URL, max_message_bytes=text).max_message_bytes == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2", 2), ("500ms", 0.5), ("2s", 2), ("1.5 s", 1.5), ("2min", 120), ("2m", 120), ("1h", 3600), ("1d", 86400)],
)
def test_durations_are_written_as_people_write_them(text: str, seconds: float) -> None:
    assert load(origin=URL, pool_wait_timeout=text).pool_wait_timeout == seconds


def test_several_addresses_are_a_list_or_separated_by_commas() -> None:
    addresses = ("127.0.0.1:1", "[::1]:2", "unix:/run/3")
    assert load(origin=URL, listen="127.0.0.1:1, [::1]:2,unix:/run/3").listen == addresses
    assert load(origin=URL, listen=["127.0.0.1:1,[::1]:2", "unix:/run/3"]).listen == addresses


def test_what_kubernetes_says_about_a_service_named_pgnear_is_not_for_us() -> None:
    load(
        origin=URL,
        environ={
            "PGNEAR_SERVICE_HOST": "10.0.0.7",
            "PGNEAR_SERVICE_PORT": "6432",
            "PGNEAR_SERVICE_PORT_POSTGRES": "6432",
            "PGNEAR_PORT": "tcp://10.0.0.7:6432",
            "PGNEAR_PORT_6432_TCP": "tcp://10.0.0.7:6432",
            "PGNEAR_PORT_6432_TCP_ADDR": "10.0.0.7",
            "PGNEAR_PORT_6432_TCP_PORT": "6432",
            "PGNEAR_PORT_6432_TCP_PROTO": "tcp",
        },
    )
    assert problems(environ={"PGNEAR_PORT": "6432"}, flags={"origin": URL}) == [
        "environment PGNEAR_PORT: port: there is no such setting"
    ]


# ---- what is said when something is wrong ---------------------------------------------------------------------------


def test_everything_that_is_wrong_is_said_at_once_with_its_place(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        # the origin
        origin = "postgresql://app:secret@db.example.com/shop?sslmode=disable"
        pool_sise = 20
        listen = ["127.0.0.1:6432", "localhost"]
        tls_cert_file = "missing.crt"

        [cache]
        ttl = "5 weeks"
        [users.ann]
        """,
    )
    environ = {"PGNEAR_TLS": "perhaps", "PGNEAR_CACHE__MAX_BYTES": "12"}
    assert problems(file=file, environ=environ, flags={"http": "9432", "min_pool_size": -1}) == [
        f"{file} line 4: listen.1: write HOST:PORT, [IPv6]:PORT or unix:/path/of/socket",
        "--http: http: write HOST:PORT, [IPv6]:PORT or unix:/path/of/socket",
        "environment PGNEAR_TLS: tls: input should be 'disable', 'allow' or 'require'",
        f"{file} line 9: users.ann: give either a password or a verifier",
        "--min-pool-size: min_pool_size: input should be greater than or equal to 0",
        f"{file} line 8: cache.ttl: write a duration like 500ms, 10s, 5min or a number of seconds",
        "environment PGNEAR_CACHE__MAX_BYTES: cache.max_bytes: input should be greater than or equal to 1048576",
        f"{file} line 3: pool_sise: there is no such setting (did you mean pool_size?)",
        f"{file} line 2: origin: sslmode=disable may send passwords and data unencrypted to db.example.com:5432; "
        "use verify-full, or set allow_plaintext_origin = true",
        f"{file} line 5: tls_cert_file: missing.crt cannot be read: No such file or directory",
    ]


def test_no_configuration_at_all_says_the_three_ways_to_give_an_origin() -> None:
    (only,) = problems()
    assert only.startswith("origin: nothing to connect to; give --origin, PGNEAR_ORIGIN or origin =")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("PGNEAR_MAX_CLIENT_CONN", "max_client_connections"),
        ("PGNEAR_CACHE__TLL", "ttl"),
        ("PGNEAR_TTL", "cache.ttl"),
        ("PGNEAR_LEVEL", "log.level"),
        ("PGNEAR_DATABASES__x__POOLSIZE", "pool_size"),
        ("PGNEAR_USERS__x__PASSWD", "password"),
    ],
)
def test_an_unknown_setting_is_told_from_the_one_that_was_meant(key: str, meant: str) -> None:
    said = problems(environ={"PGNEAR_ORIGIN": URL, key: "1"})
    assert any(f"environment {key}: " in line and f"(did you mean {meant}?)" in line for line in said), said


def test_a_table_that_was_given_a_value_says_how_it_is_written() -> None:
    said = problems(environ={"PGNEAR_ORIGIN": URL, "PGNEAR_CACHE": "off", "PGNEAR_USERS": "ann"})
    assert said == [
        "environment PGNEAR_USERS: users: is a table of settings, not a value "
        "(write [users.NAME] and its settings below, or PGNEAR_USERS__NAME__...)",
        "environment PGNEAR_CACHE: cache: is a table of settings, not a value "
        "(write [cache] and its settings below, or PGNEAR_CACHE__...)",
    ]


@pytest.mark.parametrize(
    "key", ["pool_size", "max_client_statements", "max_message_bytes", "pool_wait_timeout", "min_pool_size"]
)
def test_a_switch_where_a_number_is_wanted_is_not_taken_for_one(tmp_path: Path, key: str) -> None:
    file = write(tmp_path, f'origin = "{URL}"\n{key} = true')
    assert problems(file=file) == [f"{file} line 2: {key}: is true or false where a number is wanted"]


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_no_deadline_is_infinite(tmp_path: Path, value: str) -> None:
    file = write(tmp_path, f'origin = "{URL}"\nclient_login_timeout = {value}')
    assert problems(file=file)[0].startswith(f"{file} line 2: client_login_timeout: input should be")


@pytest.mark.parametrize(
    "address",
    ["6432", "localhost", "localhost:", "::1:6432", "[::1:6432", "::1]:6432", "h:65536", "unix:here", "h:x", "", ","],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    (only,) = problems(flags={"origin": URL, "listen": [address]})
    assert only.startswith("--listen: listen")


def test_the_rules_are_checked_for_what_is_left_of_a_list_and_of_a_table() -> None:
    environ = {
        "PGNEAR_LISTEN": "0.0.0.0:1,x,y",
        "PGNEAR_AUTH": "trust",
        "PGNEAR_DATABASES__a__ORIGIN": "postgresql://app@db/a?sslmode=disable",
        "PGNEAR_DATABASES__b__POOL_SIZE": "0",
        "PGNEAR_DATABASES__b__X": "0",
    }
    said = [line.removeprefix("environment ").split(": ") for line in problems(environ=environ)]
    assert [words[:2] for words in said] == [
        ["PGNEAR_LISTEN", "listen.1"],
        ["PGNEAR_LISTEN", "listen.2"],
        ["databases.b.origin", "is missing"],
        ["PGNEAR_DATABASES__b__POOL_SIZE", "databases.b.pool_size"],
        ["PGNEAR_DATABASES__b__X", "databases.b.x"],
        ["PGNEAR_DATABASES__a__ORIGIN", "databases.a.origin"],
    ]


def test_lines_are_found_whatever_way_the_toml_is_written(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        '''
        # """ is no string here
        "pool_size" = 0
        'tls' = "x"
        origin = """
        min_pool_size = -1
        pool_wait_timeout = 0
        """
        pool_wait_timeout = 0
        log . level = "x"
        cache = { ttl = -1, max_bytes = 1 }
        [ users . "ann.lee" ]
        [databases.'b.c']
          origin = "no url"
        ''',
    )
    places = {line.split(": ")[1]: line.split(": ")[0].removeprefix(f"{file} line ") for line in problems(file=file)}
    assert places == {
        "pool_size": "2",
        "tls": "3",
        "origin": "4",
        "pool_wait_timeout": "8",
        "log.level": "9",
        "cache.ttl": "10",
        "cache.max_bytes": "10",
        "users.ann.lee": "11",
        "databases.b.c.origin": "13",
    }


def test_a_problem_of_a_table_written_with_dotted_keys_has_the_line_of_its_first_value(tmp_path: Path) -> None:
    file = tmp_path / "pgnear.toml"
    file.write_text(
        'origin = "postgresql://app:x@127.0.0.1/shop"\nusers.a.password = "a"\nusers.web.verifier = "wrong"\n'
    )
    (problem,) = problems(file=file)
    assert problem.startswith(f"{file} line 3: users.web: a verifier looks like")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    missing, broken, binary = (
        tmp_path / "missing.toml",
        write(tmp_path, "pool_size = 1\npool size = 2\n"),
        tmp_path / "x",
    )
    binary.write_bytes(b"\xff\xfe")
    assert problems(file=missing) == [f"{missing}: cannot be read: No such file or directory"]
    assert problems(file=tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]
    assert problems(file=binary) == [f"{binary}: cannot be read: it is not UTF-8"]
    (only,) = problems(file=broken)
    assert only.startswith(f"{broken} line 2: is not TOML: ")


def test_no_secret_is_in_a_message_or_a_representation(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        f"""
        origin = "postgresql://app:{SECRET}@x@db/shop"
        http = 5
        [users.ann]
        password = "{SECRET}"
        verifier = "{SECRET}"
        [users.bob]
        verifier = "SCRAM-SHA-256${SECRET}"
        [users.eve]
        password = ["{SECRET}"]
        [users]
        joe = "{SECRET}"
        [databases.other]
        origin = {{ url = "{SECRET}" }}
        """,
    )
    said = problems(file=file)
    assert len(said) >= 6
    assert SECRET not in "\n".join(said)
    with pytest.raises(ConfigError) as refusal:
        load(file=file)
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__

    settings = load(
        environ={
            "PGNEAR_ORIGIN": f"postgresql://app:{SECRET}@localhost/shop",
            "PGNEAR_USERS__ann__PASSWORD": SECRET,
            "PGNEAR_DATABASES__other__ORIGIN": f"postgresql://app:{SECRET}@localhost/other",
        }
    )
    shown = f"{settings!r} {settings} {settings.targets()!r} {settings.client_users()!r} {settings.model_dump_json()}"
    assert SECRET not in shown
    assert settings.targets()["shop"].password == SECRET


def test_a_problem_in_a_policy_names_its_line_and_hides_no_other(tmp_path: Path) -> None:
    file = tmp_path / "pgnear.toml"
    file.write_text(
        'origin = "postgresql://app:secret@db.example.com/shop?sslmode=disable"\n'
        "[cache]\nttl = 3\n"
        '[[cache.policy]]\nname = "a"\nttl = -1\n'
        '[[ cache.policy ]]\nname = "b"\nbogus = 3\n'
        "[log]\nlevel = 3\n"
    )
    said = "\n".join(problems(file=file))
    assert f"{file} line 6: cache.policy.0.ttl: " in said
    assert f"{file} line 9: cache.policy.1.bogus: there is no such setting" in said
    assert f"{file} line 11: log.level: " in said
    assert f"{file} line 1: origin: sslmode=disable" in said


def test_policies_are_json_in_the_environment() -> None:
    text = '[{"name": "catalogue", "tables": ["products"], "ttl": "10min"}, {"name": "live", "enabled": false}]'
    settings = load(environ={"PGNEAR_CACHE__POLICY": text}, origin=URL)
    assert [(policy.name, policy.ttl, policy.enabled) for policy in settings.cache.policy] == [
        ("catalogue", 600.0, True),
        ("live", None, False),
    ]
    (problem,) = problems(environ={"PGNEAR_CACHE__POLICY": "[{"}, flags={"origin": URL})
    assert problem.startswith("environment PGNEAR_CACHE__POLICY: cache.policy: is no JSON: ")


def test_a_value_where_a_list_belongs_is_told_so_in_the_words_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "pgnear.toml"
    file.write_text('origin = "postgresql://app:x@127.0.0.1/shop"\n[[override]]\nuser = 3\nquery_timeout = "1s"\n')
    with pytest.raises(ConfigError) as caught:
        load(file=file)
    assert "line 3: override.0.user: is a list of texts" in str(caught.value)

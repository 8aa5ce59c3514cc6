"""Which suites `tests.suites.drivers` knows: where their tests come from, and how they are run."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.support.postgres import PASSWORD


@dataclass(frozen=True)
class Suite:
    """A driver's tests.

    Attributes:
      driver: what is installed. The tests come from the source distribution of `source` (`name` where it is empty), of
        the same version, or from the tag `version` of `repository`.
      members: what is unpacked of the source distribution; the driver's own modules are not, for they would be
        imported instead of the installed ones.
      tests: what pytest is given. options: and how.
      setup: SQL that its authors ask for.
      databases: those that pgnear serves beside `postgres`; the tests make them where `setup` does not.
      environment: for pytest. In it and in `options`, {port} is where to connect, {password} that of postgres and
        {quoted} the same for a URL.
      users: name -> password of those that may log in to pgnear beside `postgres`.
      excluded: tests that are not run either way, with the reason: node ids begin with the key.
      parts: of the tests: the files and directories that are run, where it is not all of them.
      by_django: Django's own `runtests.py` runs them, which calls its parts apps.
      on_demand: it takes too long, or its sources are too far away, to be run unless it is named.
    """

    name: str
    version: str
    driver: str
    members: tuple[str, ...]
    tests: str
    needs: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    databases: tuple[str, ...] = ()
    users: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    source: str = ""
    repository: str = ""
    parts: tuple[str, ...] = ()
    by_django: bool = False
    on_demand: bool = False


_OWN_CLUSTER = "starts a cluster of its own, which is not the one behind pgnear"
_LEAKING = tuple(
    f"tests/test_{file}{kind}.py::{test}"
    for file, test in (
        ("cursor", "test_leak"),
        ("cursor_client", "test_leak"),
        ("cursor_raw", "test_leak"),
        ("copy", "test_copy_from_leaks"),
        ("copy", "test_copy_to_leaks"),
    )
    for kind in ("", "_async")
)
_NO_DATABASE = "connects to nothing"
_SERVERS_DOOR = "tests an authentication method in the server's pg_hba.conf; clients of pgnear log in to pgnear"
_DJANGO_APPS = tuple(
    """
    aggregation annotations async backends basic bulk_create constraints custom_pk datatypes db_functions dbshell defer
    delete expressions expressions_case expressions_window fixtures force_insert_update foreign_object get_or_create
    indexes inspectdb introspection lookup m2m_through many_to_many migrate_signals migrations model_fields
    multiple_database ordering postgres_tests prefetch_related queries raw_query schema select_for_update select_related
    serializers test_utils timezones transaction_hooks transactions update xor_lookups
    """.split()
)

_SQLALCHEMY_PARTS = (
    "test/dialect/postgresql",
    "test/dialect/test_suite.py",
    "test/engine",
    "test/sql",
    "test/orm/test_transaction.py",
    "test/orm/test_unitofworkv2.py",
    "test/orm/test_versioning.py",
)

SUITES = (
    Suite(
        name="asyncpg",
        version="0.32.0",
        driver="asyncpg",
        members=("tests/",),
        tests="tests",
        needs=("distro",),
        databases=("testdb", "asyncpg_intro_test"),
        environment={"PGSSLMODE": "disable"},  # as in a cluster of its own; with TLS its garbage tests fail
        excluded={
            "tests/test__sourcecode.py": "checks the driver's sources, which are not unpacked",
            "tests/test_codecs.py::TestCodecsLargeOIDs": _OWN_CLUSTER,
            "tests/test_connect.py::TestGSSAuthentication": _OWN_CLUSTER,
            "tests/test_connect.py::TestConnectionAttributes": _OWN_CLUSTER,
            "tests/test_pool.py::TestPoolReconnectWithTargetSessionAttrs": _OWN_CLUSTER,
            "tests/test_pool.py::TestHotStandby": _OWN_CLUSTER,
        },
    ),
    Suite(
        name="pg8000",
        version="1.31.6",
        driver="pg8000",
        members=("test/", "README.md"),
        tests="test",
        needs=("pytest-mock", "pytest-benchmark", "pytz", "docutils"),
        setup=("CREATE DATABASE pg8000_scram_sha_256", "CREATE EXTENSION hstore"),
        databases=("pg8000_scram_sha_256",),
        users={"boltzmann": "cha\uff6fs"},
        excluded={
            **{f"test/{api}/auth/test_gss.py": _SERVERS_DOOR for api in ("dbapi", "legacy", "native")},
            "test/test_readme.py": "connects to a server on port 5432 with a password of its own",
        },
    ),
    Suite(
        name="psycopg2",
        version="2.9.13",
        driver="psycopg2-binary",
        members=("tests/",),
        tests="tests",
        setup=("CREATE EXTENSION hstore", "CREATE DATABASE psycopg2_test TEMPLATE postgres"),
        databases=("psycopg2_test",),
        environment={
            "PSYCOPG2_TESTDB": "psycopg2_test",
            "PSYCOPG2_TESTDB_PASSWORD": f"'{PASSWORD}'",  # goes into a connection string as it is
            "PSYCOPG2_TEST_REPL_DSN": "",  # means: the same server, and test replication
        },
    ),
    *(
        Suite(
            name=name,
            version="3.3.4",
            driver="psycopg[binary]",
            repository="https://github.com/psycopg/psycopg",  # its source distribution has no tests
            members=("tests/", "tools/"),
            tests=tests,
            needs=("psycopg-pool", "anyio>=4", "pproxy", "numpy", "shapely"),
            setup=("CREATE EXTENSION hstore", "CREATE DATABASE psycopg_test TEMPLATE postgres"),
            databases=("psycopg_test",),
            environment={
                "PSYCOPG_TEST_DSN": "host=127.0.0.1 port={port} user=postgres password='{password}' dbname=psycopg_test"
            },
            options=("-m", "not timing"),
            excluded=excluded,
            on_demand=True,
        )
        for name, tests, excluded in (
            (
                "psycopg",
                "tests",
                {
                    "tests/crdb": "tests with CockroachDB",
                    "tests/pool": "the suite psycopg-pool",
                    **dict.fromkeys(_LEAKING, "looks for leaks in the driver's own memory, half an hour long"),
                    "tests/test_conninfo_attempts": _NO_DATABASE,
                    "tests/test_dns": _NO_DATABASE,
                    "tests/test_typing.py": _NO_DATABASE,
                },
            ),
            ("psycopg-pool", "tests/pool", {}),
        )
    ),
    *(
        Suite(
            name=f"sqlalchemy-{driver}",
            source="sqlalchemy",
            version="2.1.9",
            driver="sqlalchemy",
            members=("test/", "lib/", "examples/", "setup.cfg", "pyproject.toml"),
            tests="test",
            needs=("greenlet", package),
            setup=(
                "CREATE EXTENSION hstore",
                "CREATE EXTENSION citext",
                "CREATE SCHEMA test_schema",
                "CREATE SCHEMA test_schema_2",
                "CREATE DATABASE sqlalchemy_test TEMPLATE postgres",
                "ALTER DATABASE sqlalchemy_test SET default_text_search_config = 'pg_catalog.english'",
            ),
            databases=("sqlalchemy_test",),
            options=(
                "--dburi",
                f"postgresql+{driver}://postgres:{{quoted}}@127.0.0.1:{{port}}/sqlalchemy_test",
                "--backend-only",
                "--maxfail=1000000",
            ),
            environment={"PYTHONNOUSERSITE": "1"},
            parts=_SQLALCHEMY_PARTS,
            on_demand=True,
        )
        for driver, package in (("psycopg2", "psycopg2-binary"), ("asyncpg", "asyncpg"), ("psycopg", "psycopg[binary]"))
    ),
    Suite(
        name="alembic",
        version="1.20.1",
        driver="alembic",
        members=("tests/", "alembic/", "setup.cfg", "pyproject.toml"),
        tests="tests",
        needs=("psycopg2-binary", "black", "zimports", "tzdata"),
        setup=("CREATE SCHEMA test_schema", "CREATE DATABASE alembic_test TEMPLATE postgres"),
        databases=("alembic_test",),
        options=(
            "--dburi",
            "postgresql+psycopg2://postgres:{quoted}@127.0.0.1:{port}/alembic_test",
            "--backend-only",
            "--maxfail=1000000",
        ),
        on_demand=True,
    ),
    *(
        Suite(
            name=f"django-{driver}",
            source="django",
            version="5.2.19",
            driver="django",
            members=("tests/",),
            tests="tests",
            needs=(package, "jinja2", "Pillow", "PyYAML", "tblib", "tzdata"),
            databases=("test_django", "test_django_other"),
            parts=_DJANGO_APPS,
            by_django=True,
            on_demand=True,
        )
        for driver, package in (("psycopg", "psycopg[binary,pool]"), ("psycopg2", "psycopg2-binary"))
    ),
    *(
        Suite(
            name=f"peewee-{driver}",
            version="4.3.0",
            driver="peewee",
            repository="https://github.com/coleifer/peewee",  # its source distribution has no tests
            members=("tests/",),
            tests="tests",
            needs=(package,),
            setup=("CREATE EXTENSION hstore", "CREATE DATABASE peewee_test TEMPLATE postgres"),
            databases=("peewee_test",),
            options=("-o", "python_files=*.py"),
            parts=("tests/__init__.py",),  # which has those of all the files that can be imported
            environment={
                "PEEWEE_TEST_BACKEND": backend,
                "PEEWEE_PSQL_HOST": "127.0.0.1",
                "PEEWEE_PSQL_PORT": "{port}",
                "PEEWEE_PSQL_USER": "postgres",
                "PEEWEE_PSQL_PASSWORD": "{password}",
            },
            on_demand=True,
        )
        for driver, backend, package in (
            ("psycopg2", "postgresql", "psycopg2-binary"),
            ("psycopg", "psycopg3", "psycopg[binary]"),
        )
    ),
)

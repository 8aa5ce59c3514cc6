"""The command `pgnear`: serve, demo, check-config, cache, explain-cache, trace.

Exit statuses: 0 done, 1 failed while running, 2 wrong usage or configuration. No traceback reaches the user.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import config
from pooler import __version__, accelerated, command_line, logs

app = typer.Typer(
    name="pgnear",
    help="A PostgreSQL connection pooler with a query cache: makes a far-away database near.",
    epilog="Example: pgnear serve --origin postgresql://app:secret@db.example.com/shop, then use 127.0.0.1:6432.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"pgnear {__version__}{' (accelerated)' if accelerated() else ''}")
        raise typer.Exit


@app.callback()
def _pgnear(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _load_or_exit(file: Path | None, flags: dict[str, Any]) -> config.Config:
    try:
        return config.load(file=file, flags=flags)
    except config.ConfigError as error:
        for problem in error.problems:
            typer.echo(f"pgnear: {problem}", err=True)
        raise typer.Exit(2) from None


@app.command(
    epilog="Every setting can also be a variable (PGNEAR_POOL_SIZE=40, PGNEAR_CACHE__TTL=5min) or a line of the file; "
    "a flag wins over a variable, a variable over the file."
)
def serve(
    origin: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The origin database: postgresql://user:password@host/db."),
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option("-c", "--config", metavar="FILE", envvar="PGNEAR_CONFIG", help="A TOML file with settings."),
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="Where clients connect: HOST:PORT, [IPv6]:PORT or unix:/path; may be given again. "
            "Default 127.0.0.1:6432.",
        ),
    ] = None,
    pool_size: Annotated[
        int | None, typer.Option(metavar="N", help="Origin connections per database, at most. Default 20.")
    ] = None,
    workers: Annotated[int | None, typer.Option(metavar="N", help="Processes that share the work. Default 1.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Only pool; answer nothing from memory.")] = False,
    http: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Where to serve /metrics, /healthz and /readyz. Default nowhere."),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error. Default info.")
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="auto, console or json. Default auto.")
    ] = None,
) -> None:
    """Pool and cache one or more origin databases."""
    flags = {
        "origin": origin,
        "listen": listen or None,
        "pool_size": pool_size,
        "workers": workers,
        "cache.enabled": False if no_cache else None,
        "http": http,
        "log.level": log_level,
        "log.format": log_format,
    }
    settings = _load_or_exit(config_file, flags)
    logs.configure(settings.log.format, settings.log.level)
    if command_line.passwords_in(sys.argv):
        logs.get_logger(__name__).warning(
            "password_on_command_line",
            hint="others could have read it; write the URL into PGNEAR_ORIGIN or the configuration file",
        )
    if settings.workers > 1:
        from pooler.workers import parent

        raise typer.Exit(parent.run(settings, config_file, flags))
    from pooler import serving  # only this command needs all of it

    raise typer.Exit(serving.run(settings, lambda: config.load(file=config_file, flags=flags)))


@app.command("check-config")
def check_config(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A TOML file; the environment is applied to it.")],
) -> None:
    """Say everything that is wrong in FILE, or that nothing is."""
    settings = _load_or_exit(file, {})
    names = ", ".join(sorted(settings.targets()))
    typer.echo(f"{file}: ok (databases: {names}; listening on {', '.join(settings.listen)})")


@app.command()
def demo(
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Where pgnear listens on 127.0.0.1; 0 is any free port.")
    ] = 6432,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the database in DIR and open it again. Default: removed at the end."),
    ] = None,
    http: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where /metrics is served; elsewhere if taken.")
    ] = "127.0.0.1:9432",
) -> None:
    """Try pgnear with a PostgreSQL of its own and some data in it."""
    try:
        from pooler import demo as demonstration
    except ModuleNotFoundError as error:
        typer.echo(f"pgnear: the demo needs {error.name}; install pgnear[demo]", err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(demonstration.run(port=port, data=data, http=http))


cache = typer.Typer(
    name="cache",
    help="Prepare origins for a stream of their changes, which ends cached answers that others made old.",
    no_args_is_help=True,
)
app.add_typer(cache)

_CacheConfig = Annotated[
    Path | None,
    typer.Option("-c", "--config", metavar="FILE", envvar="PGNEAR_CONFIG", help="A TOML file with settings."),
]
_CacheOrigin = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The origin database, where the role of the configured one may not do it."),
]
_CacheDatabase = Annotated[str | None, typer.Option(metavar="NAME", help="Only this one. Default: each.")]


def _cache(what: str, config_file: Path | None, origin: str | None, database: str | None) -> NoReturn:
    settings = _load_or_exit(config_file, {"origin": origin})
    if database is not None and database not in settings.targets():
        typer.echo(
            f"pgnear: there is no database {database}; there is {', '.join(sorted(settings.targets()))}", err=True
        )
        raise typer.Exit(2)
    from pooler.admin import invalidation

    work = {"setup": invalidation.setup, "teardown": invalidation.teardown, "status": invalidation.status}[what]
    raise typer.Exit(work(settings, database, typer.echo))


@cache.command("setup")
def cache_setup(config_file: _CacheConfig = None, origin: _CacheOrigin = None, database: _CacheDatabase = None) -> None:
    """Make the publication where it is missing, and say what else is. Changes nothing the second time."""
    _cache("setup", config_file, origin, database)


@cache.command("teardown")
def cache_teardown(
    config_file: _CacheConfig = None, origin: _CacheOrigin = None, database: _CacheDatabase = None
) -> None:
    """Drop the publication, and pgnear's replication slots that nobody uses."""
    _cache("teardown", config_file, origin, database)


@cache.command("status")
def cache_status(
    config_file: _CacheConfig = None, origin: _CacheOrigin = None, database: _CacheDatabase = None
) -> None:
    """Show whether a stream is possible, and the slots there are. Status 0 if it is for each database."""
    _cache("status", config_file, origin, database)


@app.command("explain-cache")
def explain_cache(
    statement: Annotated[str, typer.Argument(metavar="STATEMENT", help="As a client would send it; it is not run.")],
    console: Annotated[
        str,
        typer.Option(
            metavar="URL",
            envvar="PGNEAR_CONSOLE",
            help="A running pgnear and one of its admin_users: postgresql://user:password@127.0.0.1:6432.",
        ),
    ],
    database: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where it would be run. Default: the first that pgnear serves.")
    ] = None,
) -> None:
    """Ask a running pgnear what its cache makes of a statement."""
    try:
        target = config.url.parse(console, database=config.model.CONSOLE)
    except ValueError as error:
        typer.echo(f"pgnear: --console: {error}", err=True)
        raise typer.Exit(2) from None
    from pooler.admin import explain_cache as asking

    def complain(line: str) -> None:
        typer.echo(line, err=True)

    raise typer.Exit(asking.explain_cache(target, database, statement, typer.echo, complain))


@app.command()
def trace(
    server: Annotated[str, typer.Argument(metavar="HOST:PORT", help="A PostgreSQL (or pgnear) that takes plaintext.")],
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the client connects.")] = "127.0.0.1:6433",
    limit: Annotated[int, typer.Option(help="Characters of a text or value that are shown; 0 for all.", min=0)] = 1000,
) -> None:
    """Stand between a client and a server and print every message that passes, without passwords and keys."""
    for address in (server, listen):
        if not address.rpartition(":")[2].isdigit():
            typer.echo(f"pgnear: {address} is not HOST:PORT", err=True)
            raise typer.Exit(2)
    from pooler.ceremony import trace as relay

    raise typer.Exit(relay.run(listen, server, limit))


def main() -> None:
    """Entry point of the console script."""
    if secrets := command_line.passwords_in(sys.argv):
        command_line.hide(secrets)
    app(prog_name="pgnear")


if __name__ == "__main__":
    main()

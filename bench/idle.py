"""`python -m bench.idle`: thousands of clients that are logged in and do nothing: what memory each of them takes, and
what they cost sixteen that are busy.
"""

from __future__ import annotations

import argparse
import resource
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from bench import load, page, rigs
from bench.report import Run, machine, markdown
from bench.rigs import Manner, Rig
from pooler.embedded import EmbeddedPostgres
from tests.support.wire import WireClient, query, startup

IDLE = 10_000
RIGS = ("pgbouncer", "pgnear", "pgnear+cache")
BUSY = 16
AT_ONCE = 100
"""Logins under way at one time."""

TLS_PART = 10
"""Of the clients, one in so many connects with TLS where that is measured: each costs both ends a handshake."""

CAPTION = """\
Memory: what the process grew by, for each client more, in KB: logged in; after one query each; and, with TLS, logged
in. Login: CPU of the pooler for each, SCRAM-SHA-256 without TLS, µs. Busy: pgbench's transactions per second of 16
clients (hot, prepared where the rig can) with nobody else and beside the idle ones, the latter as a part of the former;
and CPU of the pooler for each, µs."""


@dataclass(frozen=True)
class Crowd:
    """What was measured of one rig. Memory in bytes for each client, CPU in µs."""

    rig: str
    clients: int
    memory: float
    memory_after_query: float
    memory_tls: float
    login_microseconds: float
    tps_alone: float
    tps_beside: float
    cpu_alone: float
    cpu_beside: float


def allow_files(count: int) -> None:
    """Let this process, and those that it starts, have `count` files open.

    Raises:
      OSError, ValueError: the system does not let it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (count, max(hard, count) if hard != resource.RLIM_INFINITY else hard)
        )


@contextmanager
def crowd(port: int, password: str, count: int, context: ssl.SSLContext | None = None) -> Iterator[list[WireClient]]:
    """So many clients, logged in as the superuser; encrypted where there is a `context`."""
    clients: list[WireClient] = []
    try:
        while len(clients) < count:
            fresh = [WireClient(port, timeout=60) for _ in range(min(AT_ONCE, count - len(clients)))]
            clients += fresh
            for client in fresh:
                if context is not None:
                    client.encrypt(context)
                client.send(startup({"user": "postgres", "database": "postgres"}))
            for client in fresh:
                client.log_in_from_here(password)
        yield clients
    finally:
        for client in clients:
            client.hang_up()


def settled_memory(rig: Rig) -> int:
    """Its memory, once that has stopped changing."""
    before = rig.memory_bytes()
    while True:
        time.sleep(0.3)
        now = rig.memory_bytes()
        if abs(now - before) < 65536:
            return now
        before = now


def measure(rig: Rig, encrypted: Rig, password: str, count: int, busy: Callable[[], list[Run]]) -> Crowd:
    """Let `count` clients come to `rig`, and a part of them, with TLS, to `encrypted`.

    Raises:
      bench.load.LoadFailed: pgbench failed.
    """
    with crowd(rig.port, password, 4 * AT_ONCE) as first:  # what is made once is made
        for client in first:
            client.query("select 1")
    busy()  # for warmth
    alone = busy()
    memory, spent = settled_memory(rig), rig.cpu_seconds()
    with crowd(rig.port, password, count) as clients:
        spent = rig.cpu_seconds() - spent
        grown = settled_memory(rig) - memory
        beside = busy()
        for start in range(0, count, AT_ONCE):
            some = clients[start : start + AT_ONCE]
            for client in some:
                client.send(query("select 1"))
            for client in some:
                client.receive_until("Z")
        grown_by_queries = settled_memory(rig) - memory
    tls = _tls_memory(encrypted, password, max(count // TLS_PART, 1))
    return Crowd(
        rig.name, count, grown / count, grown_by_queries / count, tls, spent / count * 1e6,
        median(run.tps for run in alone), median(run.tps for run in beside),
        median(run.cpu_microseconds for run in alone), median(run.cpu_microseconds for run in beside),
    )  # fmt: skip


def _tls_memory(rig: Rig, password: str, count: int) -> float:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with crowd(rig.port, password, 4 * AT_ONCE):
        pass
    before = settled_memory(rig)
    with crowd(rig.port, password, count, context):
        return (settled_memory(rig) - before) / count


def run(
    postgres: EmbeddedPostgres, names: tuple[str, ...], clients: int, *, rounds: int, seconds: int
) -> tuple[list[Crowd], list[str]]:
    """Each rig in turn; the crowds and the rigs' settings. pgbench's tables are there already."""
    allow_files(clients + 1000)
    crowds, abouts = [], []
    with tempfile.TemporaryDirectory() as scripts:
        load.write_scripts(Path(scripts))
        for name in names:
            with (
                rigs.running([name], postgres, clients, Manner(password=True)) as plain,
                rigs.running([name], postgres, clients, Manner(password=True, tls=True)) as encrypted,
            ):
                if not plain:
                    continue
                rig = plain[0]
                mode = "extended" if rigs.why_not(rig, "prepared") else "prepared"

                def busy(rig: Rig = rig, mode: str = mode) -> list[Run]:
                    return [
                        load.measure(
                            postgres, rig, "hot", mode, BUSY, seconds=seconds, scale=1, scripts=Path(scripts)
                        )
                        for _ in range(rounds)
                    ]  # fmt: skip

                crowds.append(measure(rig, encrypted[0], postgres.password, clients, busy))
                abouts.append(rig.about)
    return crowds, abouts


def render(crowds: list[Crowd]) -> str:
    heads = [
        "rig", "clients", "KB each", "after a query", "with TLS", "login", "busy alone", "busy beside them", "of that",
        "CPU alone", "CPU beside them",
    ]  # fmt: skip
    lines = (
        [
            each.rig, f"{each.clients:,}", f"{each.memory / 1024:.1f}", f"{each.memory_after_query / 1024:.1f}",
            f"{each.memory_tls / 1024:.1f}", f"{each.login_microseconds:.0f}", f"{each.tps_alone:,.0f}",
            f"{each.tps_beside:,.0f}", f"{each.tps_beside / each.tps_alone:.2f}x", f"{each.cpu_alone:.1f}",
            f"{each.cpu_beside:.1f}",
        ]
        for each in crowds
    )  # fmt: skip
    return f"{CAPTION}\n\n{markdown(heads, lines)}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description=__doc__)
    parser.add_argument("--clients", type=int, default=IDLE, help=f"how many are idle (default {IDLE:,})")
    parser.add_argument("--rounds", type=int, default=3, help="of the busy ones, before and beside (default 3)")
    parser.add_argument("--seconds", type=int, default=1, help="of each round (default 1)")
    parser.add_argument("--rigs", type=lambda text: tuple(text.split(",")), default=RIGS, help="what is compared")
    parser.add_argument("--results", type=Path, default=page.RESULTS, help="where the results go")
    arguments = parser.parse_args(argv)
    with rigs.origin() as postgres:
        load.initialize(postgres, 1)
        crowds, abouts = run(
            postgres, arguments.rigs, arguments.clients, rounds=arguments.rounds, seconds=arguments.seconds
        )
        abouts = [load.settings(postgres), *abouts]
        about = machine({"postgresql": load.version(postgres)})
    text = render(crowds)
    page.write(arguments.results, "idle", text, about, abouts, [asdict(each) for each in crowds])
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m bench.growth`: what a query costs pgnear when there is more of everything: clients, cached
answers, prepared statements. One client asks, one query at a time; what is measured is the process's CPU.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from bench import idle, load, page, rigs
from bench.report import machine, markdown
from bench.rigs import Manner, Rig
from pooler.embedded import EmbeddedPostgres
from tests.support.wire import SYNC, WireClient, bind, execute, parse

CLIENTS = (10, 1000, 10_000)
ENTRIES = (1, 1000, 1_000_000)
STATEMENTS = (1, 100, 5000)
QUERIES = 3000
ROUNDS = 3
AT_ONCE = 64
"""Clients that fill the cache."""

PIPELINED = 200
"""Requests under way at once while something is filled."""

CAPTION = """\
CPU of pgnear for a query, µs: the median of three times 3,000 queries of one client, each key or statement drawn at
random from all. Clients: the others are connected and idle. Entries: answers in the cache, of which one is asked for
(hit; each was found once before). Statements: prepared by the client, executed past the cache; the origin connections
may keep as many."""


@dataclass(frozen=True)
class Grown:
    """CPU for a query in microseconds, with `count` of `what`."""

    what: str
    count: int
    microseconds: float


def cpu(rig: Rig, client: WireClient, request: Callable[[], bytes]) -> float:
    """CPU of `rig` for each of QUERIES, in microseconds; the median of ROUNDS."""
    found = []
    for turn in range(ROUNDS + 1):
        before = rig.cpu_seconds()
        for _ in range(QUERIES if turn else 200):  # the first ones are for warmth
            client.ask(request())
        if turn:
            found.append((rig.cpu_seconds() - before) / QUERIES * 1e6)
    return median(found)


def pipeline(client: WireClient, requests: list[bytes]) -> None:
    """Have all of them answered, each of which ends with a Sync."""
    for start in range(0, len(requests), PIPELINED):
        some = requests[start : start + PIPELINED]
        client.ask(*some, syncs=len(some))


def clients(postgres: EmbeddedPostgres, counts: tuple[int, ...]) -> list[Grown]:
    """With idle clients beside."""
    idle.allow_files(max(counts) + 1000)
    grown = []
    with rigs.running(["pgnear"], postgres, max(counts), Manner(password=True)) as [rig]:
        for count in counts:
            with (
                idle.crowd(rig.port, postgres.password, count - 1),
                WireClient.logged_in(rig.port, password=postgres.password) as client,
            ):
                client.ask(parse("select 1", "s") + SYNC)
                grown.append(Grown("clients", count, cpu(rig, client, lambda: bind("s") + execute() + SYNC)))
    return grown


def entries(postgres: EmbeddedPostgres, counts: tuple[int, ...]) -> list[Grown]:
    """With answers in the cache."""
    grown: list[Grown] = []
    # What is stored must still be there when the last has been stored.
    kept = {"cache__max_bytes": "4GB", "cache__ttl": "10h", "cache__invalidation": "writes"}
    with (
        rigs.running(["pgnear+cache"], postgres, 16, Manner(pgnear=kept)) as [rig],
        idle.crowd(rig.port, postgres.password, AT_ONCE) as fillers,
    ):
        for client in fillers:
            client.ask(parse("select $1::int", "s") + SYNC)

        def request(key: int) -> bytes:
            return bind("s", [str(key).encode()]) + execute() + SYNC

        wait_until_cached(rig, client, request(-1))
        stored = 0
        for count in counts:
            while stored < count:  # one at a time from each client: what is pipelined is not kept
                some = fillers[: count - stored]
                for _ in range(2):  # stored, then found: as often as the only one is before it is measured
                    for key, filler in enumerate(some, stored):
                        filler.send(request(key))
                    for filler in some:
                        filler.receive_until("Z")
                stored += len(some)
            among = random.Random(count)

            def drawn(count: int = count, among: random.Random = among) -> bytes:
                return request(among.randrange(count))

            grown.append(Grown("entries", count, cpu(rig, client, drawn)))
    return grown


def wait_until_cached(rig: Rig, client: WireClient, request: bytes) -> None:
    """Until a repeated `request` is cheap: the catalog is read and the answer kept."""
    for _ in range(100):
        before = rig.cpu_seconds()
        for _ in range(500):
            client.ask(request)
        if (rig.cpu_seconds() - before) / 500 < 30e-6:
            return


def statements(postgres: EmbeddedPostgres, counts: tuple[int, ...]) -> list[Grown]:
    """With prepared statements."""
    grown: list[Grown] = []
    most = str(max(counts) + 100)
    kept = {"max_prepared_statements": most, "max_client_statements": most}
    with (
        rigs.running(["pgnear"], postgres, 16, Manner(pgnear=kept)) as [rig],
        WireClient.logged_in(rig.port, password=postgres.password) as client,
    ):
        prepared = 0
        for count in counts:
            fresh = range(prepared, count)
            pipeline(client, [parse(f"select {number}", f"s{number}") + SYNC for number in fresh])
            pipeline(client, [bind(f"s{number}") + execute() + SYNC for number in fresh])
            prepared = count
            among = random.Random(count)

            def drawn(count: int = count, among: random.Random = among) -> bytes:
                return bind(f"s{among.randrange(count)}") + execute() + SYNC

            grown.append(Grown("statements", count, cpu(rig, client, drawn)))
    return grown


def run(
    postgres: EmbeddedPostgres,
    client_counts: tuple[int, ...] = CLIENTS,
    entry_counts: tuple[int, ...] = ENTRIES,
    statement_counts: tuple[int, ...] = STATEMENTS,
) -> list[Grown]:
    return [
        *statements(postgres, statement_counts), *entries(postgres, entry_counts), *clients(postgres, client_counts)
    ]  # fmt: skip


def flatness(grown: list[Grown], what: str) -> float:
    """What a query costs with the most of `what`, as a part of what it costs with the least."""
    mine = [each.microseconds for each in grown if each.what == what]
    return mine[-1] / mine[0]


def render(grown: list[Grown]) -> str:
    def cells(what: str) -> list[str]:
        return [f"{each.count:,}: {each.microseconds:.1f}" for each in grown if each.what == what]

    kinds = dict.fromkeys(each.what for each in grown)
    lines = ([what, *cells(what), f"{flatness(grown, what):.2f}x"] for what in kinds)
    return f"{CAPTION}\n\n{markdown(['of', 'few', 'more', 'many', 'many / few'], lines)}"


def main(argv: list[str] | None = None) -> int:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(word) for word in text.split(","))

    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--clients", type=numbers, default=CLIENTS, help="three numbers of them")
    parser.add_argument("--entries", type=numbers, default=ENTRIES, help="likewise; a million take some two minutes")
    parser.add_argument("--statements", type=numbers, default=STATEMENTS, help="likewise")
    parser.add_argument("--results", type=Path, default=page.RESULTS, help="where the results go")
    arguments = parser.parse_args(argv)
    with rigs.origin() as postgres:
        grown = run(postgres, arguments.clients, arguments.entries, arguments.statements)
        about = machine({"postgresql": load.version(postgres)})
        abouts = [load.settings(postgres)]
    text = render(grown)
    page.write(arguments.results, "growth", text, about, abouts, [asdict(each) for each in grown])
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m bench.far` (or `make bench-far`): what a far-away database costs, in round trips and in time.

A `Distance` lies between client and pooler and another one between pooler and PostgreSQL, and one of them at a time is
far. Everything is encrypted and every login asks for a password, as it would be over a network.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from bench import load, page, rigs
from bench.distance import Distance
from bench.drivers import CACHED_KEY, DRIVERS, Address, Driver, new_key
from bench.report import machine, markdown
from bench.rigs import Manner, Rig
from pooler.embedded import EmbeddedPostgres

ROUND_TRIPS = (0, 20, 80, 200)
"""Milliseconds."""

LEGS = ("client", "origin")
"""What is far: the client from the pooler, or the pooler from its origin. Without a pooler both are the same."""

RIGS = ("direct", "pgbouncer", "pgnear+cache", "pgnear+defer")


def _connect_and_ask(driver: Driver) -> None:
    driver.connect()
    driver.ask(new_key())


STEPS: dict[str, Callable[[Driver], None]] = {
    "cold connect + query": _connect_and_ask,
    "warm query": lambda driver: driver.ask(new_key()),
    "cached query": lambda driver: driver.ask(CACHED_KEY),
    "BEGIN; SELECT; COMMIT": lambda driver: driver.transact(new_key()),
    "the same, cached": lambda driver: driver.transact(CACHED_KEY),
    "prepared, first use": lambda driver: driver.execute_prepared(new_key()),
    "prepared, second use": lambda driver: driver.execute_prepared(new_key()),
}
"""What is measured on one connection, in this order."""

QUIET_SECONDS = 0.3
"""A pooler that has waited for nobody for so long has done what it does at its start."""

CAPTION = """\
Round trips that each step waits for, between the client and what it is connected to | between the pooler and the
origin, counted by a proxy; TCP's handshake and TLS are on every leg, and every login asks for a password. Direct, both
are the same network. A dash: PgBouncer before 1.21 has no prepared statements in transaction mode. PostgreSQL before 18
does TLS with P-256 only, which costs drivers that propose X25519 one round trip more. pgnear+defer: with
`defer_begin`, which sends BEGIN with the first statement that needs the origin."""


@dataclass(frozen=True)
class Waited:
    """One step of one driver: how long it took, and how many round trips each leg saw."""

    rig: str
    driver: str
    step: str
    far: str
    milliseconds: int
    seconds: float
    client_trips: int
    origin_trips: int


@dataclass(frozen=True)
class Seat:
    """A rig between two distances. `origin` is None where there is no pooler."""

    rig: Rig
    client: Distance
    origin: Distance | None
    address: Address

    def put_far(self, leg: str, seconds: float) -> None:
        self.client.round_trip = seconds if leg == "client" or self.origin is None else 0.0
        if self.origin is not None:
            self.origin.round_trip = seconds if leg == "origin" else 0.0

    def trips(self) -> tuple[int, int]:
        return self.client.round_trips, (self.origin or self.client).round_trips

    def settle(self) -> None:
        """Wait until nobody waits for anybody."""
        quiet_since, before = time.monotonic(), self.trips()
        while time.monotonic() - quiet_since < QUIET_SECONDS:
            time.sleep(0.02)
            if self.trips() != before:
                quiet_since, before = time.monotonic(), self.trips()


@contextmanager
def seats(names: tuple[str, ...], postgres: EmbeddedPostgres, *, tls: bool = True) -> Iterator[list[Seat]]:
    """The rigs called `names` that this machine has, each between distances of its own.

    Raises:
      ValueError, RuntimeError: as `rigs.running`.
    """
    with ExitStack() as stack:
        made = []
        for name in names:
            origin = stack.enter_context(Distance(postgres.port)) if name != "direct" else None
            manner = Manner(password=True, tls=tls, origin_port=origin.port if origin else None, origin_tls=tls)
            for rig in stack.enter_context(rigs.running([name], postgres, 10, manner)):
                client = stack.enter_context(Distance(rig.port))
                prepares = not rigs.why_not(rig, "prepared")
                address = Address(client.port, postgres.password, tls, postgres.bin, prepares)
                made.append(Seat(rig, client, origin, address))
        yield made


def warm_up(seat: Seat, kind: type[Driver]) -> None:
    """Let the pooler connect, learn the driver's settings and store what is asked for from the cache later on."""
    for _ in range(2):
        driver = kind(seat.address)
        driver.connect()
        for _ in range(3):
            driver.ask(CACHED_KEY)
            driver.transact(CACHED_KEY)
        driver.close()
        seat.settle()


def measure(seat: Seat, kind: type[Driver], leg: str, milliseconds: int) -> Iterator[Waited]:
    """Each of STEPS, on a new connection; what the rig cannot do is left out."""
    driver = kind(seat.address)
    seat.settle()  # what TLS says at the end of the connection before has arrived
    seat.put_far(leg, milliseconds / 1000)
    try:
        for step, take in STEPS.items():
            if step.startswith("prepared") and not seat.address.prepares:
                continue
            if "cached" in step:
                take(driver)  # whatever an earlier step has ended is stored again
            before = seat.trips()
            began = time.perf_counter()
            take(driver)
            seconds = time.perf_counter() - began
            client, origin = (now - then for now, then in zip(seat.trips(), before, strict=True))
            yield Waited(seat.rig.name, kind.name, step, leg, milliseconds, seconds, client, origin)
        driver.close()
    finally:
        seat.put_far(leg, 0.0)


def main(argv: list[str] | None = None) -> int:
    """0, or 1 where the machine lacks what it takes."""
    arguments = _arguments(argv)
    if rigs.system_postgres() is None:
        print("bench.far needs a PostgreSQL with TLS: the system's packages.", file=sys.stderr)
        return 1
    taken: list[Waited] = []
    with rigs.origin() as postgres:
        load.initialize(postgres, 1)
        with seats(RIGS, postgres) as made:
            for seat in made:
                for kind in DRIVERS:
                    warm_up(seat, kind)
                    for leg in LEGS if seat.origin else LEGS[:1]:
                        for milliseconds in arguments.round_trips * arguments.rounds:
                            taken += measure(seat, kind, leg, milliseconds)
                    print(f"{seat.rig.name}, {kind.name}: done", flush=True)
            abouts = [load.settings(postgres), *(seat.rig.about for seat in made if seat.rig.about)]
        versions = {"postgresql": load.version(postgres), "pgbouncer": rigs.version("pgbouncer")}
    about = machine(versions) | {"rounds": str(arguments.rounds)}
    text = render(taken)
    page.write(arguments.results, "far", text, about, abouts, [asdict(each) for each in taken])
    print(text)
    return 0


def render(taken: list[Waited]) -> str:
    """The tables: round trips, and milliseconds for each leg."""
    parts = [CAPTION, _trips(taken)]
    for leg in LEGS:
        where = "the client is far from what it connects to" if leg == "client" else "the pooler is far from its origin"
        parts += [f"Milliseconds where {where}, by the network's round trip:", _times(taken, leg)]
    return "\n\n".join(parts)


def _trips(taken: list[Waited]) -> str:
    def cell(rig: str, driver: str, step: str) -> str:
        mine = [each for each in taken if (each.rig, each.driver, each.step) == (rig, driver, step)]
        if not mine:
            return "-"
        # Where nothing is far, answers may come between questions that would travel together.
        mine = [each for each in mine if each.milliseconds] or mine
        client = min(each.client_trips for each in mine if each.far == "client")
        if rig == "direct":
            return str(client)
        return f"{client} \\| {min(each.origin_trips for each in mine if each.far == 'origin')}"

    lines = ([driver, step, *(cell(rig, driver, step) for rig in _rigs(taken))] for driver, step in _rows(taken))
    return markdown(["driver", "step", *_rigs(taken)], lines)


def _times(taken: list[Waited], leg: str) -> str:
    distances = list(dict.fromkeys(each.milliseconds for each in taken))

    def cell(rig: str, driver: str, step: str, milliseconds: int) -> str:
        wanted = (rig, driver, step, leg if rig != "direct" else "client", milliseconds)
        found = [
            each.seconds for each in taken if (each.rig, each.driver, each.step, each.far, each.milliseconds) == wanted
        ]
        return f"{median(found) * 1000:,.1f}" if found else "-"

    heads = [f"{rig}, {milliseconds} ms" for milliseconds in distances for rig in _rigs(taken)]
    lines = (
        [driver, step] + [cell(rig, driver, step, milliseconds) for milliseconds in distances for rig in _rigs(taken)]
        for driver, step in _rows(taken)
    )
    return markdown(["driver", "step", *heads], lines)


def _rigs(taken: list[Waited]) -> list[str]:
    return list(dict.fromkeys(each.rig for each in taken))


def _rows(taken: list[Waited]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((each.driver, each.step) for each in taken))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(word) for word in text.split(","))

    parser = argparse.ArgumentParser(prog="python -m bench.far", description=__doc__)
    parser.add_argument("--round-trips", type=numbers, default=ROUND_TRIPS, help="in ms (default 0,20,80,200)")
    parser.add_argument("--rounds", type=int, default=2, help="how often each is measured (default 2)")
    parser.add_argument("--results", type=Path, default=page.RESULTS, help="where the results go")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

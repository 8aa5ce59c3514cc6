"""Mixed load and faults at random for as long as one likes; in the end everything is where it was."""

from __future__ import annotations

import os
import random
import threading
import time
from dataclasses import dataclass
from urllib.request import urlopen

from tests.chaos.bank import Bank, audit
from tests.chaos.faults import FAULTS
from tests.chaos.matrix import RECOVERS_WITHIN
from tests.chaos.rig import TELLER_PASSWORD, Rig, rig
from tests.support.hostile import MESSAGES
from tests.support.postgres import Server
from tests.support.waiting import until
from tests.support.wire import WireClient

KINDS = ("terminate", "kill_backend", "restart", "cut", "reset", "freeze", "refuse", "throttle", "half_open")
PAUSE = (2.0, 8.0)
"""Seconds between a recovery and the next fault, least and most."""

MEMORY_MAY_GROW_BYTES = 24 << 20


@dataclass
class Holdings:
    """What pgnear holds while nobody is connected."""

    memory: int
    descriptors: int
    tasks: int
    origins: int


def holdings(made: Rig) -> Holdings:
    """As they are once the last client is gone."""
    until(
        lambda: _metric(made, "pgnear_clients") == 0 and _metric(made, "pgnear_clients_unauthenticated") == 0, within=30
    )
    until(lambda: _metric(made, "pgnear_pool_busy") == 0, within=30, what="connections are held by nobody")
    pid = made.process.pid
    with open(f"/proc/{pid}/statm") as file:
        memory = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    return Holdings(
        memory,
        len(os.listdir(f"/proc/{pid}/fd")),
        int(_metric(made, "pgnear_tasks")),
        int(_metric(made, "pgnear_pool_idle")),
    )


def _at_rest(made: Rig, before: Holdings, within: float = 30.0) -> Holdings:
    """What is held when tasks with a deadline of their own (a client that left, a write that is followed) are over."""
    end = time.monotonic() + within
    while (now := holdings(made)).tasks > before.tasks and time.monotonic() < end:
        _wait(0.2)
    return now


def _metric(made: Rig, name: str) -> float:
    with urlopen(f"http://127.0.0.1:{made.http}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def _nuisance(made: Rig, chance: random.Random) -> None:
    """Somebody who comes, does one odd thing, and is gone."""
    what = chance.randrange(4)
    if what == 0:
        with WireClient.logged_in(made.port, user="teller", password=TELLER_PASSWORD, timeout=5) as client:
            client.send(chance.choice(list(MESSAGES.values())))
    elif what == 1:
        with WireClient(made.port, timeout=5) as client:
            client.send(chance.randbytes(chance.randrange(1, 100)))
    elif what == 2:
        with made.connect() as connection:
            connection.execute("begin")
            connection.execute("set local work_mem = '1MB'")
            connection.pgconn.finish()
    else:
        copied = "copy (select generate_series(1, 5000)) to stdout"
        with made.connect() as connection, connection.cursor() as cursor, cursor.copy(copied) as copy:
            copy.read()


def _nuisances(made: Rig, stop: threading.Event, seed: int) -> None:
    chance = random.Random(seed)
    while not stop.wait(0.02):
        try:
            _nuisance(made, chance)
        except Exception:
            continue  # it is pgnear that is watched, not this


def soak(server: Server, seconds: float, tellers: int, seed: int, pause: tuple[float, float] = PAUSE) -> list[str]:
    """Run it; what is wrong in the end, [] if nothing is."""
    chance = random.Random(seed)
    wrong: list[str] = []
    happened: dict[str, int] = {}
    print(f"soak for {seconds:g} s, seed {seed}", flush=True)
    with rig(server) as made:
        with Bank(made.connect, tellers) as bank:  # once, so that what is made once is made before
            bank.wait_until_all_work(RECOVERS_WITHIN)
            _wait(min(5.0, seconds / 4))
        before = holdings(made)
        end = time.monotonic() + seconds
        stop = threading.Event()
        with Bank(made.connect, tellers, first=tellers + 1) as second:
            worker = threading.Thread(target=_nuisances, args=(made, stop, seed), daemon=True)
            worker.start()
            while time.monotonic() < end and not wrong:
                _wait(min(chance.uniform(*pause), max(0.0, end - time.monotonic())))
                kind = chance.choice(KINDS)
                FAULTS[kind](made)
                happened[kind] = happened.get(kind, 0) + 1
                try:
                    second.wait_until_all_work(RECOVERS_WITHIN)
                except AssertionError as error:
                    wrong.append(f"after {kind}: {error}")
            stop.set()
            worker.join(30)
        wrong += audit(second, made.ask)
        after = _at_rest(made, before)
        print(f"faults {happened}; {second.acknowledged} transfers; errors {second.errors}", flush=True)
        print(f"before {before}\nafter  {after}", flush=True)
        if after.memory > before.memory + MEMORY_MAY_GROW_BYTES:
            wrong.append(f"memory has grown from {before.memory >> 20} to {after.memory >> 20} MiB")
        for what in ("descriptors", "tasks"):
            then, now = getattr(before, what), getattr(after, what)
            if now > then + 4:  # an origin connection more or less
                wrong.append(f"{what}: {now}, were {then}")
        if after.origins > 4:
            wrong.append(f"{after.origins} origin connections, of 4")
    for each in wrong:
        print(f"WRONG: {each}", flush=True)
    return wrong


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)

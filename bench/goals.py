"""The goals: what is to be reached, what was measured last, and what limits it where it falls short.

Lives here: the table, made from the files that the measurements have left. Nothing is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench import page, report
from bench.report import Row, Run, markdown

CAPTION = """\
Of the medians of the sections below. CPU is the pooler's for a transaction; how busy its thread was says whether the
pooler or the load on the same machine was the limit. Where PgBouncer has no prepared statements (before 1.21), its
figure in mode extended is what pgnear's prepared one is compared to. `compiled`: the same pgnear with its hot path
compiled (`make accelerate`; the container image has it so). `2 workers`: with `workers = 2`, not compiled; on a machine
with two cores they take turns with the origin and the load."""

VARIANTS = {"compiled": "pgnear-c", "2 workers": "pgnear-2"}
"""Columns of their own, and what stands for `pgnear` in the names of their rigs."""

FLAT = 1.1
"""What grows by no more than to this part of itself counts as flat."""

CLIENT_KB = 12
GROWTH_MB = 8


@dataclass(frozen=True)
class Outcome:
    """One goal. `measured` and `limit` are words; `reached` is None where it was not measured. `variants`: words and
    whether it is reached, by the names of VARIANTS, where that was measured.
    """

    work: str
    wanted: str
    measured: str
    reached: bool | None
    limit: str = ""
    variants: Mapping[str, tuple[str, bool]] = field(default_factory=dict)


def outcomes(directory: Path) -> list[Outcome]:
    """Every goal, from the results in `directory`."""
    runs = [Run(**each) for each in _read(directory, "latest").get("runs", [])]
    heavy = _read(directory, "heavy").get("measured", [])
    rows = {(row.workload, row.mode, row.clients): row for row in report.rows(runs)}
    rows |= {
        (row.workload, row.mode, row.clients): row
        for row in report.rows([Run(**each) for each in heavy if "tps" in each])
    }
    return [
        *_throughput(rows),
        *_big([each for each in heavy if "growth" in each]),
        *_idle(_read(directory, "idle").get("measured", [])),
        *_growth(_read(directory, "growth").get("measured", [])),
    ]


def _read(directory: Path, name: str) -> dict[str, Any]:
    path = directory / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


Rows = dict[tuple[str, str, int], Row]


def _throughput(rows: Rows) -> Iterator[Outcome]:
    for mode, wanted in (("simple", 1.0), ("extended", 1.2), ("prepared", 1.0)):
        for clients in (1, 16, 64):
            if mode == "simple" or clients == 16:
                yield _ratio(rows, f"forwarded, {mode}", ("hot", mode, clients), "pgnear", "pgbouncer", wanted)
    for mode in ("simple", "extended", "prepared"):
        bases = [("pgbouncer", 4.0), ("direct", 3.0)]
        bases += {"simple": [("pgpool", 2.0)], "extended": [("pgpool", 8.0)]}.get(mode, [])
        for base, wanted in bases:
            yield _ratio(rows, f"cached, {mode}", ("hot", mode, 16), "pgnear+cache", base, wanted)
    yield _ratio(rows, "TPC-B-like", ("tpcb", "simple", 16), "pgnear", "pgbouncer", 1.0)
    yield _ratio(rows, "TPC-B-like, cache on", ("tpcb", "simple", 16), "pgnear+cache", "pgbouncer", 1.0)
    named = {name: key for key in rows for name in [key[0]]}
    for name, words, wanted in (
        ("tls", "TLS to clients", 1.0), ("tls -C", "TLS, a connection each (-C)", 1.0),
        ("storm", "connection storm, SCRAM (-C)", 0.8),
    ):  # fmt: skip
        yield _ratio(rows, words, named.get(name, (name, "simple", 16)), "pgnear", "pgbouncer", wanted)


def _ratio(rows: Rows, work: str, key: tuple[str, str, int], rig: str, base: str, wanted: float) -> Outcome:
    work = f"{work}, {key[2]} client{'s' * (key[2] != 1)}"
    words = f">= {wanted:g}x {report.TITLES[base]}"
    row = rows.get(key)
    if row is None or rig not in row.tps:
        return Outcome(work, words, "not measured", None)
    other = row.tps.get(base) or _without_prepared(rows, key, base)
    if not other:
        return Outcome(work, words, f"{row.tps[rig]:,.0f}/s, without {report.TITLES[base]}", None)
    ratio = row.tps[rig] / other
    cpu = row.cpu_microseconds[rig]
    said = f"{ratio:.2f}x ({row.tps[rig]:,.0f} / {other:,.0f})"
    limit = f"{cpu:.1f} µs of CPU, a thread {row.tps[rig] * cpu / 1e6:.0%} busy"
    variants = {}
    for title, name in VARIANTS.items():
        variant = rig.replace("pgnear", name)
        if variant in row.tps:
            times = row.tps[variant] / other
            variants[title] = f"{times:.2f}x", times >= wanted
            limit += f"; {title} {row.cpu_microseconds[variant]:.1f} µs"
    if base in row.cpu_microseconds and base != "direct":
        limit += f"; {report.TITLES[base]} {row.cpu_microseconds[base]:.1f} µs"
    return Outcome(work, words, said, ratio >= wanted, limit, variants)


def _without_prepared(rows: Rows, key: tuple[str, str, int], base: str) -> float | None:
    instead = rows.get((key[0], "extended", key[2])) if key[1] == "prepared" and base == "pgbouncer" else None
    return instead.tps.get(base) if instead else None


def _big(bigs: list[dict[str, Any]]) -> Iterator[Outcome]:
    seconds = {
        name: median(each["seconds"] for each in bigs if each["rig"] == name) for name in {each["rig"] for each in bigs}
    }
    for rig in ("pgnear", "pgnear+cache"):
        work = f"a result of 100 MB, {'cache on' if rig.endswith('cache') else 'cache off'}"
        if not {rig, "pgbouncer"} <= seconds.keys():
            yield Outcome(work, ">= 0.9x PgBouncer", "not measured", None)
            continue
        ratio = seconds["pgbouncer"] / seconds[rig]
        cpu = {name: median(each["cpu"] for each in bigs if each["rig"] == name) for name in (rig, "pgbouncer")}
        limit = f"{cpu[rig] * 1000:.0f} ms of CPU for all of it; PgBouncer {cpu['pgbouncer'] * 1000:.0f} ms"
        yield Outcome(work, ">= 0.9x PgBouncer", f"{ratio:.2f}x", ratio >= 0.9, limit)
        grown = max(each["growth"] for each in bigs if each["rig"] == rig) / (1 << 20)
        yield Outcome(f"{work}, memory", f"< {GROWTH_MB} MB more", f"{grown:.1f} MB", grown < GROWTH_MB)


def _idle(crowds: list[dict[str, Any]]) -> Iterator[Outcome]:
    mine = [each for each in crowds if each["rig"].startswith("pgnear")]
    if not mine:
        yield Outcome("10,000 idle clients", f"< {CLIENT_KB} KB each", "not measured", None)
    for each in mine:
        work = f"{each['clients']:,} idle clients, {each['rig']}"
        memory = max(each["memory"], each["memory_after_query"]) / 1024
        said = f"{memory:.1f} KB; with TLS {each['memory_tls'] / 1024:.1f} KB"
        yield Outcome(work, f"< {CLIENT_KB} KB each", said, memory < CLIENT_KB)
        kept = each["tps_beside"] / each["tps_alone"]
        cpu = f"{each['cpu_alone']:.1f} µs of CPU alone, {each['cpu_beside']:.1f} beside them"
        yield Outcome(f"{work}: 16 busy ones", ">= 0.9x of alone", f"{kept:.2f}x", kept >= 0.9, cpu)


COLD = "the machine's caches: a look-up touches memory that has not been touched lately"
PLANS = "; the origin's plans of them pass through the same caches"


def _growth(grown: list[dict[str, Any]]) -> Iterator[Outcome]:
    for what in ("clients", "entries", "statements"):
        mine = [each for each in grown if each["what"] == what]
        if not mine:
            yield Outcome(f"growth: {what}", "CPU per query flat", "not measured", None)
            continue
        few, many = mine[0], mine[-1]
        ratio = many["microseconds"] / few["microseconds"]
        said = f"{ratio:.2f}x ({few['microseconds']:.1f} -> {many['microseconds']:.1f} µs)"
        work = f"growth: {few['count']:,} to {many['count']:,} {what}"
        yield Outcome(work, f"<= {FLAT:g}x", said, ratio <= FLAT, COLD + PLANS if what == "statements" else COLD)


def _said(variant: tuple[str, bool] | None, marks: Mapping[bool | None, str]) -> str:
    return f"{variant[0]}, {marks[variant[1]]}" if variant is not None else ""


def render(found: list[Outcome]) -> str:
    marks = {True: "reached", False: "**not reached**", None: "-"}
    lines = (
        [
            each.work, each.wanted, each.measured, marks[each.reached],
            *(_said(each.variants.get(name), marks) for name in VARIANTS),
            "" if each.reached and all(reached for _, reached in each.variants.values()) else each.limit,
        ]
        for each in found
    )  # fmt: skip
    return f"{CAPTION}\n\n{markdown(['work', 'to reach', 'measured', '', *VARIANTS, 'what limits it'], lines)}"


def write(directory: Path) -> str:
    """The section, from what is in `directory`; the page anew; the table."""
    text = render(outcomes(directory))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "goals.md").write_text(text + "\n")
    page.assemble(directory)
    return text

"""From measurements to a table, a JSON file and a plot."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

COLOURS = {
    "direct": "#9aa5b1",
    "pgbouncer": "#c98a2b",
    "odyssey": "#8a6d3b",
    "pgpool": "#a5488c",
    "pgnear": "#2b6cb0",
    "pgnear+cache": "#2f9e67",
    "pgnear-c": "#1a365d",
    "pgnear-c+cache": "#1c5f3e",
    "pgnear-2": "#6b8fd6",
    "pgnear-2+cache": "#7cc49b",
}

TITLES = {"direct": "direct", "pgbouncer": "PgBouncer", "odyssey": "Odyssey", "pgpool": "Pgpool-II"}

BASES = ("pgbouncer", "direct", "pgpool")
"""What pgnear is compared to."""

CAPTION = (
    "Transactions per second, and what pgnear's are of the others'. pgbench runs on the same machine, with one thread, "
    "or two (-j 2) for 16 clients and more, whose one thread would limit the fastest; it is the same for every rig. "
    "hot: one row of 100; rows: 100 rows; aggregate: three aggregates over 5,000 rows; of the latter two there are 20 "
    "each. select: one row of all; tpcb: pgbench's own transaction. A cache helps the first three, costs in the last. "
    "pgnear-c is pgnear with its hot path compiled (make accelerate; the container image's way), pgnear-2 with "
    "two workers."
)


@dataclass(frozen=True)
class Run:
    """One pgbench run. `cpu_microseconds`: the pooler's, per transaction; 0 where there is no pooler."""

    workload: str
    mode: str
    clients: int
    rig: str
    tps: float
    cpu_microseconds: float
    failed: int


@dataclass(frozen=True)
class Row:
    """Medians over the rounds of one workload, mode and number of clients, by rig."""

    workload: str
    mode: str
    clients: int
    tps: dict[str, float]
    cpu_microseconds: dict[str, float]


def rows(runs: list[Run]) -> list[Row]:
    """Medians, in the order in which the runs were made."""
    keys = list(dict.fromkeys((run.workload, run.mode, run.clients) for run in runs))
    made = []
    for key in keys:
        mine = [run for run in runs if (run.workload, run.mode, run.clients) == key]
        rigs = list(dict.fromkeys(run.rig for run in mine))
        made.append(
            Row(
                *key,
                {rig: median(run.tps for run in mine if run.rig == rig) for rig in rigs},
                {rig: median(run.cpu_microseconds for run in mine if run.rig == rig) for rig in rigs},
            )
        )
    return made


def table(rows_: Iterable[Row], rigs: list[str]) -> str:
    """A Markdown table: transactions/s, and the ratios of each pgnear to each of BASES."""
    pairs = [(rig, base) for rig in rigs if rig.startswith("pgnear") for base in BASES if base in rigs]
    heads = ["workload", "mode", "clients", *rigs, *(f"{rig} / {base}" for rig, base in pairs)]
    return markdown(
        heads,
        (
            [*_key(row), *(f"{row.tps[rig]:,.0f}" if rig in row.tps else "-" for rig in rigs)]
            + [_ratio(row, rig, base) for rig, base in pairs]
            for row in rows_
        ),
    )


def cpu_table(rows_: Iterable[Row], rigs: list[str]) -> str:
    """A Markdown table: CPU microseconds of each pooler's processes per transaction."""
    poolers = [rig for rig in rigs if rig != "direct"]
    spent = (
        [*_key(row), *(f"{row.cpu_microseconds[rig]:.1f}" if rig in row.cpu_microseconds else "-" for rig in poolers)]
        for row in rows_
    )
    return markdown(["workload", "mode", "clients", *poolers], spent)


def _key(row: Row) -> list[str]:
    return [row.workload, row.mode, str(row.clients)]


def markdown(heads: list[str], lines: Iterable[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *lines])


def _ratio(row: Row, rig: str, base: str) -> str:
    if rig not in row.tps or not row.tps.get(base):
        return "-"
    return f"{row.tps[rig] / row.tps[base]:.2f}x"


def plot(rows_: list[Row], rigs: list[str]) -> str:
    """An SVG bar chart: one group for each row, one bar for each rig, transactions/s."""
    bar, gap, left, top, height = 16, 26, 70, 40, 260
    group = bar * len(rigs) + gap
    width = left + max(group * len(rows_), 130 * len(rigs)) + 20
    most = max((value for row in rows_ for value in row.tps.values()), default=1.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top + height + 70}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{left}" y="16" font-size="13">transactions per second (median)</text>',
    ]
    for step in range(5):
        value = most * step / 4
        y = top + height - height * step / 4
        parts.append(f'<line x1="{left}" x2="{width - 10}" y1="{y:.0f}" y2="{y:.0f}" stroke="#e3e7eb"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.0f}" text-anchor="end">{value:,.0f}</text>')
    for index, row in enumerate(rows_):
        x = left + gap / 2 + index * group
        for place, rig in enumerate(rigs):
            value = row.tps.get(rig, 0.0)
            tall = height * value / most
            parts.append(
                f'<rect x="{x + place * bar:.0f}" y="{top + height - tall:.1f}" width="{bar - 2}" '
                f'height="{tall:.1f}" fill="{COLOURS.get(rig, "#666")}"><title>{rig}: {value:,.0f}</title></rect>'
            )
        middle = x + bar * len(rigs) / 2
        parts.append(f'<text x="{middle:.0f}" y="{top + height + 16}" text-anchor="middle">{row.mode}</text>')
        label = f"{row.workload}, {row.clients}"
        parts.append(f'<text x="{middle:.0f}" y="{top + height + 30}" text-anchor="middle">{label}</text>')
    for place, rig in enumerate(rigs):
        x = left + place * 130
        y = top + height + 50
        parts.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{COLOURS.get(rig, "#666")}"/>')
        parts.append(f'<text x="{x + 15}" y="{y}">{rig}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def machine(versions: dict[str, str]) -> dict[str, str]:
    """What the figures depend on, without saying whose machine it is. Versions that are empty are left out."""
    about = {
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        **versions,
        "system": platform.system(),
    }
    return {name: value for name, value in about.items() if value}


def write(
    directory: Path, name: str, runs: list[Run], rigs: list[str], about: dict[str, str], notes: list[str],
    settings: list[str],
) -> str:  # fmt: skip
    """Write NAME.json, NAME.md and NAME.svg into `directory`; the tables, with the notes below them.

    Args:
      about: of the machine and the run.
      notes: what a reader must know beside the figures, one sentence each.
      settings: version and settings of each rig, one line each.
    """
    directory.mkdir(parents=True, exist_ok=True)
    made = rows(runs)
    text = "\n\n".join([table(made, rigs), "CPU of the pooler per transaction, µs:", cpu_table(made, rigs), *notes])
    words = ", ".join(f"{key} {value}" for key, value in about.items())
    below = "\n".join(f"- {line}" for line in settings)
    (directory / f"{name}.json").write_text(
        json.dumps(
            {"about": about, "settings": settings, "notes": notes, "runs": [asdict(run) for run in runs]}, indent=1
        )
        + "\n"
    )
    top = f"Medians of interleaved runs ({words}). Only ratios within one table mean anything."
    parts = [top, CAPTION, f"![Throughput](results/{name}.svg)", text, "Versions and settings:", below]
    (directory / f"{name}.md").write_text("\n\n".join(parts) + "\n")
    (directory / f"{name}.svg").write_text(plot(made, rigs))
    return text

"""`python -m bench.rates`: latency where the load is given: pgbench sends so many transactions per second and not more
(-R), and what each waits for is counted from when it was due.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles

from bench import load, page, rigs
from bench.report import COLOURS, machine, markdown
from pooler.embedded import EmbeddedPostgres

RATES = (1000, 4000, 8000)
"""Transactions per second."""

RIGS = ("direct", "pgbouncer", "pgnear", "pgnear+cache")
CLIENTS = 16

CAPTION = """\
Milliseconds from when a transaction was due to its end, half of them (p50) and 99 of 100 (p99): hot, extended, 16
clients, one thread of pgbench. `late`: pgbench could not send as many as it was told to."""

_LATE_PART = 0.95


@dataclass(frozen=True)
class Latency:
    """One run. Milliseconds; `tps` is what was reached of `rate`."""

    rig: str
    rate: int
    tps: float
    p50: float
    p90: float
    p99: float


def read_log(lines: Iterable[str], rate: int, rig: str, seconds: int) -> Latency:
    """From pgbench's log of transactions, whose third word is each one's latency in µs, the lag of its start included.

    Raises:
      bench.load.LoadFailed: there is nothing in it.
    """
    took = [int(words[2]) / 1000 for words in map(str.split, lines) if words[2].isdecimal()]
    if len(took) < 2:
        raise load.LoadFailed(f"pgbench logged no transactions at {rate} per second")
    percent = quantiles(took, n=100)
    return Latency(rig, rate, len(took) / seconds, percent[49], percent[89], percent[98])


def run(postgres: EmbeddedPostgres, rates: tuple[int, ...], seconds: int) -> tuple[list[Latency], list[str]]:
    """Each rate on each rig; and the rigs' settings."""
    found = []
    with tempfile.TemporaryDirectory() as scripts, rigs.running(RIGS, postgres, CLIENTS) as started:
        load.write_scripts(Path(scripts))
        for rate in rates:
            for rig in started:
                log = Path(scripts, f"{rate}-{rig.name}")
                more = ("-R", str(rate), "-l", f"--log-prefix={log}", "-j", "1")
                load.measure(
                    postgres, rig, "hot", "extended", CLIENTS, seconds=seconds, scale=1, scripts=Path(scripts),
                    more=more,
                )  # fmt: skip
                lines = [line for path in log.parent.glob(f"{log.name}.*") for line in path.read_text().splitlines()]
                found.append(read_log(lines, rate, rig.name, seconds))
        return found, [rig.about for rig in started if rig.about]


def render(found: list[Latency]) -> str:
    names = list(dict.fromkeys(each.rig for each in found))

    def cell(rate: int, name: str) -> str:
        for each in found:
            if (each.rate, each.rig) == (rate, name):
                late = " late" if each.tps < _LATE_PART * rate else ""
                return f"{each.p50:.2f} / {each.p99:.2f}{late}"
        return "-"

    rates = dict.fromkeys(each.rate for each in found)
    lines = ([f"{rate:,}", *(cell(rate, name) for name in names)] for rate in rates)
    return f"{CAPTION}\n\n{markdown(['per second', *(f'{name}, p50 / p99' for name in names)], lines)}"


def plot(found: list[Latency]) -> str:
    """An SVG: for each rate a group of bars, one for each rig; the bar's whole height is p99, its dark part p50."""
    names, rates = ([*dict.fromkeys(getattr(each, part) for each in found)] for part in ("rig", "rate"))
    bar, left, top, height = 22, 60, 36, 220
    group = bar * len(names) + 30
    width = left + max(group * len(rates), 130 * len(names)) + 20
    most = max(each.p99 for each in found)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top + height + 60}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{left}" y="16" font-size="13">latency, ms: p50 (dark) and p99, at fixed rates</text>',
        f'<text x="{left - 8}" y="{top + 8}" text-anchor="end">{most:.1f}</text>',
        f'<line x1="{left}" x2="{width - 10}" y1="{top + height}" y2="{top + height}" stroke="#9aa5b1"/>',
    ]
    for each in found:
        x = left + rates.index(each.rate) * group + names.index(each.rig) * bar
        for value, opacity in ((each.p99, 0.4), (each.p50, 1.0)):
            tall = height * value / most
            parts.append(
                f'<rect x="{x}" y="{top + height - tall:.1f}" width="{bar - 3}" height="{tall:.1f}" '
                f'fill="{COLOURS.get(each.rig, "#666")}" fill-opacity="{opacity}"><title>{value:.2f}</title></rect>'
            )
    for place, rate in enumerate(rates):
        x = left + place * group + bar * len(names) / 2
        parts.append(f'<text x="{x:.0f}" y="{top + height + 16}" text-anchor="middle">{rate:,}/s</text>')
    for place, name in enumerate(names):
        x, y = left + place * 130, top + height + 42
        parts.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{COLOURS.get(name, "#666")}"/>')
        parts.append(f'<text x="{x + 15}" y="{y}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def write(directory: Path, found: list[Latency], about: dict[str, str], abouts: list[str]) -> str:
    """The section and its plot; the text."""
    text = render(found)
    page.write(
        directory, "rates", f"{text}\n\n![Latency](results/rates.svg)", about, abouts, [asdict(each) for each in found]
    )
    (directory / "rates.svg").write_text(plot(found))
    return text


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.rates", description=__doc__)
    parser.add_argument("--seconds", type=int, default=3, help="how long each run takes (default 3)")
    parser.add_argument("--results", type=Path, default=page.RESULTS, help="where the results go")
    arguments = parser.parse_args(argv)
    with rigs.origin() as postgres:
        load.initialize(postgres, 1)
        found, abouts = run(postgres, RATES, arguments.seconds)
        about = machine({"postgresql": load.version(postgres), "pgbouncer": rigs.version("pgbouncer")})
        abouts = [load.settings(postgres), *abouts]
    print(write(arguments.results, found, about, abouts))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""bench/RESULTS.md: what each measurement has left in bench/results/, one section each, on one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

SECTIONS = {
    "goals": "Goals",
    "latest": "Throughput",
    "rates": "Latency at fixed rates",
    "heavy": "Big results, TLS, connection storms",
    "idle": "Idle clients",
    "growth": "Growth",
    "far": "The geography tax",
}
"""Headings by the name of the file that has the section."""

TOP = """\
# Results

Written by `make bench` and `make bench-far`; each section says on what machine, with which versions and settings. Only
ratios within one table mean anything.
"""


def write(
    directory: Path, name: str, text: str, about: dict[str, str], settings: list[str], measured: list[dict[str, Any]]
) -> None:
    """Write NAME.md and NAME.json into `directory`, and the page anew.

    Args:
      about: of the machine and the run.
      settings: version and settings of each rig, one line each.
      measured: the figures, one by one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    words = ", ".join(f"{key} {value}" for key, value in about.items())
    below = "".join(f"- {line}\n" for line in settings)
    (directory / f"{name}.md").write_text(f"Measured with: {words}.\n\n{text}\n\nVersions and settings:\n\n{below}")
    record = {"about": about, "settings": settings, "measured": measured}
    (directory / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    assemble(directory)


def assemble(directory: Path) -> None:
    """RESULTS.md beside `directory`, of the sections that are in it."""
    parts = [TOP]
    for name, heading in SECTIONS.items():
        path = directory / f"{name}.md"
        if path.exists():
            parts.append(f"## {heading}\n\n{path.read_text()}")
    (directory.parent / "RESULTS.md").write_text("\n".join(parts))

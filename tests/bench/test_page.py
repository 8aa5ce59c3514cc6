"""bench/RESULTS.md: the goals are judged by what was measured, and each measurement has its section."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import goals, load, page, rates, report
from bench.report import Run


def outcome(directory: Path, work: str, wanted: str) -> goals.Outcome:
    (found,) = (each for each in goals.outcomes(directory) if each.work == work and each.wanted == wanted)
    return found


def runs(directory: Path, *measured: Run) -> Path:
    report.write(directory, "latest", list(measured), ["pgbouncer", "pgnear"], {}, [], [])
    return directory


def test_a_goal_is_reached_by_the_ratio_of_medians(tmp_path: Path) -> None:
    results = runs(
        tmp_path / "results",
        *(Run("hot", "simple", 16, "pgnear", tps, 30.0, 0) for tps in (90, 110, 200)),
        Run("hot", "simple", 16, "pgbouncer", 100, 20.0, 0),
    )
    reached = outcome(results, "forwarded, simple, 16 clients", ">= 1x PgBouncer")
    assert (reached.measured, reached.reached) == ("1.10x (110 / 100)", True)


def test_a_goal_that_is_missed_says_what_limits_it(tmp_path: Path) -> None:
    results = runs(
        tmp_path / "results",
        Run("hot", "simple", 16, "pgnear", 20_000, 40.0, 0),
        Run("hot", "simple", 16, "pgbouncer", 25_000, 20.0, 0),
    )
    missed = outcome(results, "forwarded, simple, 16 clients", ">= 1x PgBouncer")
    assert missed.reached is False
    assert missed.limit == "40.0 µs of CPU, a thread 80% busy; PgBouncer 20.0 µs"


def test_what_a_compiled_hot_path_or_more_workers_reach_stands_beside_what_python_does(tmp_path: Path) -> None:
    results = runs(
        tmp_path / "results",
        Run("hot", "simple", 16, "pgnear", 20_000, 40.0, 0),
        Run("hot", "simple", 16, "pgnear-c", 26_000, 30.0, 0),
        Run("hot", "simple", 16, "pgnear-2", 24_000, 50.0, 0),
        Run("hot", "simple", 16, "pgbouncer", 25_000, 20.0, 0),
    )
    found = outcome(results, "forwarded, simple, 16 clients", ">= 1x PgBouncer")
    assert (found.reached, found.variants) == (False, {"compiled": ("1.04x", True), "2 workers": ("0.96x", False)})
    assert (
        "| **not reached** | 1.04x, reached | 0.96x, **not reached** | 40.0 µs of CPU, a thread 80% busy; "
        "compiled 30.0 µs; 2 workers 50.0 µs; PgBouncer 20.0 µs |"
    ) in goals.render([found])


def test_prepared_is_compared_to_extended_where_pgbouncer_prepares_nothing(tmp_path: Path) -> None:
    results = runs(
        tmp_path / "results",
        Run("hot", "prepared", 16, "pgnear", 300, 40.0, 0),
        Run("hot", "extended", 16, "pgbouncer", 200, 20.0, 0),
    )
    assert outcome(results, "forwarded, prepared, 16 clients", ">= 1x PgBouncer").measured == "1.50x (300 / 200)"


def test_what_was_not_measured_is_neither_reached_nor_missed(tmp_path: Path) -> None:
    assert {each.reached for each in goals.outcomes(tmp_path)} == {None}
    assert "not measured" in goals.render(goals.outcomes(tmp_path))


def test_growth_and_memory_have_goals_of_their_own(tmp_path: Path) -> None:
    results = tmp_path / "results"
    grown = [{"what": "entries", "count": count, "microseconds": cost} for count, cost in ((1, 20.0), (1000, 30.0))]
    page.write(results, "growth", "", {}, [], grown)
    big = [{"rig": rig, "seconds": 1.0, "growth": 9 << 20, "cpu": 0.2} for rig in ("pgbouncer", "pgnear")]
    page.write(results, "heavy", "", {}, [], big)
    assert outcome(results, "growth: 1 to 1,000 entries", "<= 1.1x").reached is False
    assert outcome(results, "a result of 100 MB, cache off", ">= 0.9x PgBouncer").reached is True
    assert outcome(results, "a result of 100 MB, cache off, memory", "< 8 MB more").reached is False


def test_the_page_has_a_section_for_each_measurement_that_was_made(tmp_path: Path) -> None:
    results = tmp_path / "results"
    page.write(results, "far", "| a table |", {"cores": "2"}, ["PostgreSQL: fsync off"], [{"seconds": 1}])
    goals.write(results)
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.index("## Goals") < text.index("## The geography tax") < text.index("| a table |")
    assert "cores 2" in text
    assert "- PostgreSQL: fsync off" in text
    assert "## Growth" not in text
    assert json.loads((results / "far.json").read_text())["measured"] == [{"seconds": 1}]


def test_latencies_are_read_from_pgbenchs_log() -> None:
    lines = [f"0 {number} {number * 1000} 0 1700000000 0 5" for number in range(1, 101)]
    found = rates.read_log([*lines, "0 101 skipped 0 1700000000 0 5"], 50, "direct", 2)
    assert (found.tps, found.rig) == (50.0, "direct")
    assert found.p50 == pytest.approx(50.5)
    assert 98 < found.p99 <= 100
    with pytest.raises(load.LoadFailed, match="no transactions"):
        rates.read_log([], 50, "direct", 2)

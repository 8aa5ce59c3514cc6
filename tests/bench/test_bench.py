"""The benchmark's tables say what was measured, its rigs leave nothing behind, and a small run goes through."""

from __future__ import annotations

import json
import os
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import psutil
import pytest

from bench import __main__ as bench_main
from bench import compiled, load, profile, report, rigs
from bench.__main__ import CLIENTS, QUICK, main
from bench.report import Run
from tests.support.postgres import Server
from tests.support.waiting import until

needs_pgpool = pytest.mark.skipif(not rigs.version("pgpool"), reason="Pgpool-II is not installed")


def run(rig: str, tps: float, *, workload: str = "hot", mode: str = "simple", cpu: float = 10.0) -> Run:
    return Run(workload, mode, 16, rig, tps, cpu, 0)


def cells(table: str) -> list[dict[str, str]]:
    """A Markdown table's lines, by head."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_a_figure_is_the_median_of_its_rounds() -> None:
    (row,) = report.rows([run("direct", 100, cpu=1), run("direct", 900, cpu=3), run("direct", 200, cpu=2)])
    assert row.tps == {"direct": 200}
    assert row.cpu_microseconds == {"direct": 2}


def test_rows_stand_in_the_order_of_the_runs() -> None:
    runs = [run("direct", 1, workload="tpcb"), run("direct", 1), run("direct", 1, mode="extended"), run("direct", 2)]
    assert [(row.workload, row.mode) for row in report.rows(runs)] == [
        ("tpcb", "simple"),
        ("hot", "simple"),
        ("hot", "extended"),
    ]


def test_pgnear_is_compared_to_pgbouncer_to_direct_and_to_pgpool() -> None:
    names = ["direct", "pgbouncer", "pgpool", "pgnear+cache"]
    runs = [run("direct", 40_000), run("pgbouncer", 20_000), run("pgpool", 50_000), run("pgnear+cache", 80_000)]
    assert cells(report.table(report.rows(runs), names)) == [
        {
            "workload": "hot", "mode": "simple", "clients": "16",
            "direct": "40,000", "pgbouncer": "20,000", "pgpool": "50,000", "pgnear+cache": "80,000",
            "pgnear+cache / pgbouncer": "4.00x", "pgnear+cache / direct": "2.00x", "pgnear+cache / pgpool": "1.60x",
        }
    ]  # fmt: skip


def test_what_was_not_measured_is_a_dash_and_no_ratio() -> None:
    runs = [run("direct", 10), run("pgnear", 5)]
    (line,) = cells(report.table(report.rows(runs), ["direct", "pgbouncer", "pgnear"]))
    assert (line["pgbouncer"], line["pgnear / pgbouncer"], line["pgnear / direct"]) == ("-", "-", "0.50x")


def test_the_cpu_table_has_poolers_only() -> None:
    runs = [run("direct", 10, cpu=0), run("pgbouncer", 10, cpu=18.66)]
    (line,) = cells(report.cpu_table(report.rows(runs), ["direct", "pgbouncer", "pgpool"]))
    assert line == {"workload": "hot", "mode": "simple", "clients": "16", "pgbouncer": "18.7", "pgpool": "-"}


def test_the_plot_has_a_bar_for_each_figure() -> None:
    rows = report.rows([run("direct", 10), run("pgnear", 5), run("direct", 20, mode="prepared")])
    drawn = ElementTree.fromstring(report.plot(rows, ["direct", "pgnear"]))
    titles = [title.text for title in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["direct: 10", "pgnear: 5", "direct: 20", "pgnear: 0"]


def test_nothing_measured_is_an_empty_table_and_no_failure(tmp_path: Path) -> None:
    report.write(tmp_path, "none", [], ["direct"], {}, ["direct failed."], [])
    assert "direct failed." in (tmp_path / "none.md").read_text()


def test_the_results_say_versions_settings_and_notes(tmp_path: Path) -> None:
    about = report.machine({"postgresql": "15.8", "pgpool": ""})
    report.write(tmp_path, "some", [run("direct", 10)], ["direct"], about, ["A note."], ["A pooler 1.2: setting on"])
    text = (tmp_path / "some.md").read_text()
    for said in ("postgresql 15.8", "-j 2", "A note.", "- A pooler 1.2: setting on"):
        assert said in text
    assert "pgpool " not in text.splitlines()[0]
    assert json.loads((tmp_path / "some.json").read_text())["settings"] == ["A pooler 1.2: setting on"]


def test_every_workload_of_the_plans_has_a_script() -> None:
    assert set(CLIENTS) == {*load.SCRIPTS, "tpcb"}
    assert set(QUICK) <= set(CLIENTS)


def test_a_rig_that_does_not_exist_is_named_with_those_that_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--rigs", "direct,pgbuoncer"])
    assert (
        "'pgbuoncer' is none of direct, pgbouncer, odyssey, pgpool, pgnear, pgnear+cache, pgnear-c, pgnear-c+cache"
        in capsys.readouterr().err
    )


def test_a_rig_that_is_not_installed_is_left_out_with_a_line(
    origin: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rigs, "_binary", lambda name: None)
    with rigs.running(["direct", "pgbouncer", "odyssey", "pgpool"], origin, 1) as started:
        assert [rig.name for rig in started] == ["direct"]
    said = capsys.readouterr().err.splitlines()
    assert said == [f"{name} is not installed: its column is left out." for name in ("pgbouncer", "odyssey", "pgpool")]


def test_without_a_compiler_the_columns_of_compiled_pgnear_are_left_out_with_a_line(
    tmp_path: Path, origin: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (*compiled.PACKAGES, *compiled.FILES):  # sources that nobody has compiled
        (tmp_path / name).touch()
    monkeypatch.setattr(compiled, "ROOT", tmp_path)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    compiled.compiled.cache_clear()
    try:
        with rigs.running(["direct", "pgnear-c"], origin, 1) as started:
            assert [rig.name for rig in started] == ["direct"]
    finally:
        compiled.compiled.cache_clear()
    assert "There is no C compiler: the columns of compiled pgnear are left out." in capsys.readouterr().err


@needs_pgpool
def test_pgpool_answers_from_its_cache_and_leaves_no_process_behind(origin: Server, table: str) -> None:
    question = f"select v from {table} where id = 2"
    with rigs.running(["pgpool"], origin, 2) as [rig]:
        pgpool = psutil.Process(rig.pid)
        until(lambda: len(pgpool.children(recursive=True)) >= 2 + 4, what="it has no process for each client")
        processes = pgpool.children(recursive=True)
        command = [
            str(origin.bin / "psql"), "-h", "127.0.0.1", "-p", str(rig.port), "-U", "postgres", "-At",
            *("-c", question) * 3, "-c", "show pool_cache", "postgres",
        ]  # fmt: skip
        env = {**os.environ, "PGSSLMODE": "disable"}
        lines = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[:3] == ["20"] * 3
    assert int(lines[3].split("|")[0]) >= 2, f"hits: {lines[3]}"
    assert [process for process in processes if process.is_running()] == []


@needs_pgpool
def test_a_small_run_measures_every_rig_and_writes_its_results(tmp_path: Path) -> None:
    small = "--scale 1 --rounds 1 --clients 2 --workloads rows --modes extended --rigs direct,pgpool,pgnear+cache"
    assert main([*small.split(), "--results", str(tmp_path), "--name", "small"]) == 0
    written = (tmp_path / "small.md").read_text().split("\n\n")
    (figures,) = cells(next(part for part in written if part.startswith("| workload")))
    assert figures["workload"] == "rows"
    assert all(float(figures[rig].replace(",", "")) > 0 for rig in ("direct", "pgpool", "pgnear+cache"))
    settings = written[-1].splitlines()
    for line, said in zip(settings, ("PostgreSQL: fsync off", "Pgpool-II", "pgnear"), strict=True):
        assert line.startswith(f"- {said}")
    ElementTree.parse(tmp_path / "small.svg")


def test_each_tpcb_run_finds_the_tables_as_the_first_did(origin: Server, tmp_path: Path) -> None:
    load.initialize(origin, 1)
    rig = rigs.Rig("direct", origin.port)
    history = "select count(*) from pgbench_history"
    origin.execute("insert into pgbench_history (tid) select 1 from generate_series(1, 100000)")
    measured = load.measure(origin, rig, "tpcb", "simple", 1, seconds=1, scale=1, scripts=tmp_path)
    assert measured.tps > 0
    assert 0 < int(str(origin.execute(history)[0][0])) < 100_000
    origin.execute("drop table pgbench_history, pgbench_tellers, pgbench_branches, pgbench_accounts")


def test_one_failed_run_is_reported_and_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(load.SCRIPTS, "hot", "select no_such_column from pgbench_accounts;\n")
    arguments = "--scale 1 --rounds 1 --clients 1 --workloads hot,select --modes simple --rigs direct".split()
    assert main([*arguments, "--results", str(tmp_path)]) == 1
    text = (tmp_path / "latest.md").read_text()
    assert "direct failed at hot, simple, 1 clients: pgbench: " in text
    assert "| select | simple | 1 |" in text


@pytest.mark.parametrize("words", ["Error: Permission denied (os error 13)", "Operation not permitted (os error 1)"])
def test_a_refused_ptrace_is_explained(words: str) -> None:
    said = profile.explain(words + "\nStack backtrace:\n  0: somewhere")
    assert "ptrace is not allowed" in said
    assert said.endswith(words)


def test_another_failure_of_py_spy_is_passed_on() -> None:
    assert profile.explain("Error: no such process") == "py-spy failed: Error: no such process"


def test_a_profile_without_py_spy_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert profile.main([]) == 1
    assert "py-spy is not installed: pip install 'pgnear[bench]'" in capsys.readouterr().err


def test_one_failed_section_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: object) -> None:
        raise load.LoadFailed("no word of why")

    done: list[object] = []
    monkeypatch.setattr(bench_main, "_SECTIONS", {"heavy": fails, "rates": done.append})
    assert main(["--sections", "heavy,rates", "--results", str(tmp_path / "results")]) == 1
    assert len(done) == 1
    assert "heavy failed: no word of why" in capsys.readouterr().err
    assert "## Goals" in (tmp_path / "RESULTS.md").read_text()

"""The frame of the benchmark, and its cheap parts at a small size: a figure that misses its goal says so."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from orchestrator.planning.requests import Request, resolve
from tests.benchmarks import __main__ as bench
from tests.benchmarks import driver, loops, prices, roofline
from tests.benchmarks.cases import matching
from tests.benchmarks.measure import Row, medians


def test_every_part_is_a_module_with_rows() -> None:
    folder = Path(bench.__file__).parent
    modules = {file.stem for file in folder.glob("*.py")} - {"__init__", "__main__", "measure"}
    assert modules == set(bench.PARTS)
    assert all(callable(importlib.import_module(f"tests.benchmarks.{part}").rows) for part in bench.PARTS)


def test_a_figure_above_its_goal_is_missed() -> None:
    def row(**figures: float) -> Row:
        return Row(part="p", name="n", **{"cpu_seconds": None, "goal": 1.0, **figures})  # type: ignore[arg-type]

    assert row(cpu_seconds=0.5).met and row(cpu_seconds=5.0, ratio=0.9).met
    assert row(cpu_seconds=2.0).met is row(wall_seconds=2.0).met is row(ratio=1.1).met is False
    assert row().met is None and Row(part="p", name="n", cpu_seconds=1.0).met is None


def test_what_is_compared_is_measured_in_turns() -> None:
    calls: list[str] = []
    medians(lambda: calls.append("a"), lambda: calls.append("b"), repeats=2)
    assert calls == ["a", "b", "a", "b"]


def test_the_parts_named_are_run_and_written_with_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(driver, "SIZES", (20, 50, 100))
    monkeypatch.setattr(sys, "argv", ["bench", "driver", "--json", str(tmp_path / "rows.json")])
    bench.main()
    document = json.loads((tmp_path / "rows.json").read_text())
    assert document["machine"]["cores"] >= 1 and document["machine"]["processor"]
    assert [row["name"] for row in document["rows"]] == [
        "20 jobs", "50 jobs", "100 jobs", "50 jobs in groups", "100 jobs in groups", "growth", "peak memory",
    ]  # fmt: skip
    assert {"part", "name", "cpu_seconds", "ratio", "goal", "met", "note"} <= document["rows"][0].keys()
    assert "20 jobs" in capsys.readouterr().out


def test_an_unknown_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "weather"])
    with pytest.raises(SystemExit, match="2"):
        bench.main()


def test_what_every_operator_takes_adds_up_to_the_loop() -> None:
    case = matching.case(width=8, batch=10, steps=2, side=8)
    work = case.sides()[case.default]
    spent = roofline.by_operator(work, limit=1e11)
    assert sum(each.flops for each in spent.values()) == loops.operations(work) > 0
    assert list(spent) == sorted(spent, key=lambda name: -spent[name].seconds)
    assert spent["convolution"].best == pytest.approx(spent["convolution"].flops / 1e11)
    assert spent["threshold_backward"].bytes > 0 and spent["view"].bytes == 0
    *operators, others, whole = roofline.rows_of(case, 1e11)
    assert operators and whole.share and "at most" in whole.note and others.name.endswith(": others")


def test_a_price_that_is_too_high_is_missed_like_one_that_is_too_low() -> None:
    assert prices.apart(2.0, 1.0) == prices.apart(1.0, 2.0) == 2.0
    assert prices.row("a run", 1.0, 1.3, prices.MAKESPAN).met is prices.row("a run", 1.3, 1.0, 1.25).met is False
    assert prices.row("a run", 1.0, 1.2, prices.MAKESPAN).met


def test_six_kinds_of_runs_have_plans(tmp_path: Path) -> None:
    runs = prices.plans(tmp_path)
    assert len(runs) == 6
    kinds = {name: {job.kind for job in runs[name]().graph} for name in runs if "tables" not in name}
    assert all({"dataset", "distil", "evaluate"} <= found for found in kinds.values())


@pytest.mark.slow
def test_a_run_has_a_row_for_its_makespan_and_for_its_kinds(tmp_path: Path) -> None:
    rows = list(prices.rows_of("tiny", resolve(Request(experiments=("tiny",))).plan, tmp_path))
    assert rows[0].name == "tiny" and {"tiny: distil", "tiny: evaluate"} <= {row.name for row in rows}
    assert all(row.cpu_seconds and row.ratio and row.ratio >= 1 for row in rows)

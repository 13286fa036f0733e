from __future__ import annotations

import io
import stat
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from rich.console import Console

from jobs.documents import validate
from jobs.experiment import Experiment, Plan
from jobs.sweep import Sweep
from orchestrator.planning.requests import resolve_experiment
from orchestrator.reports.sections import RunFacts
from orchestrator.results.statistics import interval
from orchestrator.workloads.base import RunEnd
from orchestrator.workloads.sweep import plots
from orchestrator.workloads.sweep.mailbox import StageMetrics
from orchestrator.workloads.sweep.report import page_of, table, verdict_of, write
from orchestrator.workloads.sweep.rows import Row, rows
from orchestrator.workloads.sweep.sweep import SweepResult
from orchestrator.workloads.sweep.trials import TrialState, make_trial
from tests.orchestrator.results.test_cells import put
from tests.orchestrator.umask import mask
from tests.orchestrator.workloads.sweep.test_trials import BASE
from workers.store.store import Store

GRID = {
    "stages": {"path": "arms.0.stages", "grid": [1, 2]},
    "ipc": {"path": "arms.0.ipc_per_stage", "grid": [1, 2]},
}


def sweep_of(space: Any = GRID, **fields: Any) -> Sweep:
    return validate(Sweep, {"name": "s", "base": BASE, "space": space, **fields}, "s.yaml")


def row(number: int, held_out: float, state: str = "done", **values: Any) -> Row:
    return Row(
        number=number,
        values=values,
        state=state,
        why="",
        stages=2,
        ipc_per_stage=1,
        metrics=({"held_out": held_out, "loss": 1.0, "ipc_total": 1.0},),
        seconds=10.0,
        marginal_seconds=4.0,
        rank=0,
    )


RUN = RunFacts(command="the command")


def empty(folder: Path) -> Store:
    return Store.open(folder / "store")


class OneSecondEach:
    """A store in which every artifact is there and took a second."""

    def manifest(self, key: str) -> Any:
        return SimpleNamespace(seconds=1.0)


@pytest.fixture(scope="module")
def standings() -> list[TrialState]:
    """Two trials that share their first stage."""
    made = []
    for number, stages in enumerate((1, 2), start=1):
        trial = make_trial(sweep_of(), BASE, "s.yaml", number, {"stages": stages, "ipc": 1})
        answers = [StageMetrics({"held_out": 40.0 + n, "loss": 1.0, "ipc_total": n + 1.0}) for n in range(stages)]
        made.append(TrialState(trial, answers, "done"))
    return made


def test_a_trial_costs_all_its_jobs_and_marginally_those_that_no_other_needs(standings: list[TrialState]) -> None:
    one, two = rows(standings, standings[1:], cast(Store, OneSecondEach()))
    # dataset, two experts and a set; twice experts and set more in the longer trial; the shorter one has nothing alone
    assert (one.seconds, one.marginal_seconds) == (4.0, 0.0)
    assert (two.seconds, two.marginal_seconds) == (7.0, 3.0)
    assert (one.rank, two.rank) == (0, 1)
    assert two.score("held_out") == 41.0 and two.stage == 2


def test_the_report_holds_tables_a_heat_map_and_an_experiment_to_run(
    tmp_path: Path, standings: list[TrialState]
) -> None:
    made = rows(standings, standings[1:], cast(Store, OneSecondEach()))
    files = write(tmp_path / "report", sweep_of(), made, standings[1:], Plan(), empty(tmp_path), RUN)
    assert [path.name for path in files] == [
        "report.md",
        "report.html",
        "heat_map.png",
        "trials.parquet",
        "stages.parquet",
        "best.yaml",
        "jobs.parquet",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~mask()}
    trials = pq.read_table(tmp_path / "report" / "trials.parquet").to_pylist()
    assert [(one["trial"], one["value_stages"], one["held_out"], one["state"]) for one in trials] == [
        (1, 1, 40.0, "done"),
        (2, 2, 41.0, "done"),
    ]
    stages = pq.read_table(tmp_path / "report" / "stages.parquet").to_pylist()
    assert [(one["trial"], one["stage"], one["held_out"]) for one in stages] == [
        (1, 1, 40.0),
        (2, 1, 40.0),
        (2, 2, 41.0),
    ]
    page = (tmp_path / "report" / "report.md").read_text()
    assert "| 2 \\* | stages=2, ipc=1 | done | 2 of 2 | 41 | 7.0 s | 3.0 s |" in page
    assert "11 s if no trial shared with another, 3.0 s of it in jobs that only one trial needs" in page
    document = yaml.safe_load((tmp_path / "report" / "best.yaml").read_text())
    best = resolve_experiment(validate(Experiment, document, "best.yaml"), "best.yaml")
    assert list(best.graph.jobs) == list(standings[1].trial.plan.graph.jobs)


def test_without_a_finished_trial_there_is_no_best_one(tmp_path: Path) -> None:
    made = [row(1, 30.0, "stopped", stages=1, ipc=1)]
    files = write(tmp_path, sweep_of(), made, [], Plan(), empty(tmp_path), RUN)
    assert "best.yaml" not in {path.name for path in files}
    assert "no best one" in (tmp_path / "report.md").read_text()


def test_the_verdict_names_the_winner_its_setting_and_its_test_accuracy_with_an_interval(tmp_path: Path) -> None:
    store, trial = empty(tmp_path), make_trial(sweep_of(), BASE, "s.yaml", 2, {"stages": 2, "ipc": 1})
    last = next(cell for cell in trial.plan.cells if cell.stage == cell.stages)
    accuracies = [float(90 + number) for number in range(len(last.jobs))]
    for key, accuracy in zip(last.jobs, accuracies, strict=True):
        put(store, trial.plan, key, {"accuracy": accuracy, "curve": [accuracy]})
    won = replace(row(2, 91.25, stages=2, ipc=1), rank=1)
    first, second, *_ = verdict_of(sweep_of(), [row(1, 80.0, stages=1, ipc=1), won], trial.plan, store)
    assert first == "Best of 2 trials: 2 stages, ipc 1 (trial 2, held-out 91.25)."
    assert second.startswith(f"On test images it reaches {fmean(accuracies):.1f} % with {last.architecture} (")
    bounds = interval(accuracies)
    if bounds is not None:
        assert f"95 % interval {bounds[0]:.1f} to {bounds[1]:.1f}, {len(accuracies)} networks" in second


def test_trials_of_several_numbers_of_stages_are_said_to_be_unequal_in_compute_with_the_way_out() -> None:
    shorter = replace(row(1, 30.0, stages=1, ipc=1), stages=1)
    unequal = str(page_of(sweep_of(), [row(2, 20.0, stages=2, ipc=1), shorter], [], won=True))
    assert "Not equal compute" in unequal and "distil.iterations_total" in unequal
    assert "Not equal compute" not in str(page_of(sweep_of(), [row(2, 20.0, stages=2, ipc=1)], [], won=True))


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_loses_no_value_of_a_trial(tmp_path: Path, width: int) -> None:
    values: Any = {"stages": 5, "image_lr": 0.03, "syn_steps": 30, "initial_step_size": 0.01}
    end = RunEnd(
        run="r", command="c", store=empty(tmp_path), workers=1, exit=0, why="", seconds=1.0, counts={}, failures=()
    )
    result = SweepResult(end, Plan(), None, sweep_of(), [row(1, 91.25, **values)], [])
    screen = Console(file=io.StringIO(), width=width, color_system=None)
    screen.print(result.table())
    shown = cast(io.StringIO, screen.file).getvalue()
    column = "".join(line.split("\u2502")[2].strip() + " " for line in shown.splitlines() if line.count("\u2502") > 2)
    for name, value in values.items():
        assert f"{name}={value}" in column.replace(" ", "")
    assert "91.25" in shown and max(map(len, shown.splitlines())) <= width


def test_a_space_with_a_range_is_drawn_as_parallel_coordinates(tmp_path: Path) -> None:
    space = {"lr": {"log_uniform": [0.01, 1.0]}, "name": {"choice": ["a", None, True]}}
    made = [row(1, 30.0, lr=0.1, name="a"), row(2, 50.0, "stopped", lr=0.02, name=None), row(3, 0.0, lr=1.0, name=True)]
    failed = Row(4, {"lr": 0.5, "name": "a"}, "failed", "NaN", 2, 1, (), 0, 0, 0)
    write(tmp_path, sweep_of(space), [*made, failed], [], Plan(), empty(tmp_path), RUN)
    with Image.open(tmp_path / "parallel.png") as picture:
        assert picture.width > picture.height / 2
    values = pq.read_table(tmp_path / "trials.parquet").column("value_name").to_pylist()
    assert values == ["a", "None", "True", "a"]  # a column has one type


def test_the_table_has_finished_trials_first_and_the_best_on_top() -> None:
    made = [
        row(1, 30.0, stages=1, ipc=1),
        row(2, 90.0, "stopped", stages=1, ipc=2),
        row(3, 50.0, stages=2, ipc=1),
        Row(4, {"stages": 2, "ipc": 2}, "failed", "NaN", 2, 2, (), 0.0, 0.0, 0),
    ]
    header, lines = table(made, sweep_of())
    assert header == ("trial", "values", "state", "stages", "held_out", "cost", "marginal cost")
    assert [line[0] for line in lines] == ["3", "1", "2", "4"]
    assert [line[0] for line in table(made, sweep_of(mode="min"))[1]][:2] == ["1", "3"]


def test_a_cell_of_the_heat_map_shows_the_best_finished_trial_and_brackets_for_an_unfinished_one() -> None:
    made = [
        row(1, 30.0, stages=1, ipc=1),
        row(2, 50.0, stages=1, ipc=1),
        row(3, 90.0, "stopped", stages=1, ipc=1),
        row(4, 20.0, "stopped", stages=2, ipc=2),
    ]
    figure = plots.heat_map(made, sweep_of(), "stages", "ipc")
    (axes, _) = figure.axes
    assert {text.get_text() for text in axes.texts} == {"50", "(20)"}
    data: Any = np.ma.asarray(axes.images[0].get_array())
    assert np.ma.getmaskarray(data).tolist() == [[False, True], [True, False]]
    with Image.open(io.BytesIO(plots.png(figure))) as picture:
        assert picture.format == "PNG"

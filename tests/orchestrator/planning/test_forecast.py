from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

from jobs import machines
from jobs.datasets import DATASETS
from jobs.experiment import FOLDER, DatasetChoice
from jobs.machines import Slowness
from jobs.table import TablesPlan, load
from jobs.table_filling import Circumstances, Data, fill
from orchestrator.planning import forecast as forecasts
from orchestrator.planning.durations import machine_of
from orchestrator.planning.forecast import Forecast, Planned
from orchestrator.planning.requests import Request, ResolvedRequest, resolve
from orchestrator.planning.table_requests import ResolvedTables, TableRequest
from orchestrator.runs.timeline import duration
from workers.store.store import Store
from workers.training import speed

DIGITS = replace(DATASETS["digits"], train_per_class=(131,) * 10)


def tiny(*settings: str) -> ResolvedRequest:
    return resolve(Request(experiments=("tiny",), settings=settings))


def tables(*names: str) -> ResolvedTables:
    data = {"digits": Data(DatasetChoice(name="digits"), DIGITS)}
    filled = fill([load(name) for name in names], Circumstances(scale="tiny", data=data, substitute="digits"))
    return ResolvedTables(TableRequest(tables=names, scale="tiny", dataset="digits"), filled, ())


def forecast(resolved: ResolvedRequest | ResolvedTables, store: Store, workers: int, **more: Any) -> Forecast:
    return forecasts.forecast(Planned.of(resolved), store, workers, **{"machine": machines.CORE, **more})


def of_tables(folder: Path, *names: str, **more: Any) -> Forecast:
    return forecast(tables(*names), Store.open(folder), 2, **more)


def stored(store: Store, asked: ResolvedRequest | TablesPlan, *keys: str, seconds: float = 1.0) -> None:
    for key in keys:
        job = asked.plan.graph[key]
        with store.put(key, job.kind, job.canonical()["spec"], job.parents, device="cpu", seconds=seconds) as folder:
            (folder / "data").write_text("x")


def keys(asked: ResolvedRequest, kind: str) -> list[str]:
    return [job.key for job in asked.plan.graph if job.kind == kind]


def test_the_document_has_its_interface(tmp_path: Path) -> None:
    document = forecast(tiny(), Store.open(tmp_path), 2).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["schema"] == 1
    assert {"total", "cached", "to_run", "shared"} <= document["jobs"].keys()
    assert {"naive", "shared", "by_table", "marginal", "sharing_factor"} <= document["gpu_hours"].keys()
    assert {"measured", "corrected", "calibrated", "assumed", "to_run"} == document["duration_source"].keys()
    assert all({"key", "kind", "seconds", "duration_source"} == step.keys() for step in document["critical_path"])
    assert list(document["makespan_hours"]) == list(document["utilisation"]) == ["1", "2", "4", "16", "64", "256"]
    assert document["out_of_scope"] == document["missing_datasets"] == [] and document["budget"] is None
    assert document["scale"] == "tiny" and document["machine"]["name"] == "CPU core"


def test_jobs_are_counted_by_hand(tmp_path: Path) -> None:
    """Tiny has one dataset, 2 draws, 2 experts in each of two stages, 3 distilled sets, 2 + 2 + 4 evaluations, 2 full.

    The one-stage arm would have a dataset and two experts of its own; the other two arms a dataset each.
    """
    document = forecast(tiny(), Store.open(tmp_path), 1).to_json()
    jobs = document["jobs"]
    by_kind = {kind: row["to_run"] for kind, row in jobs["by_kind"].items()}
    assert by_kind == {"dataset": 1, "select": 2, "experts": 4, "distil": 3, "evaluate": 8, "full": 2}
    assert (jobs["total"], jobs["to_run"], jobs["cached"], jobs["shared"]) == (20, 20, 0, 5)
    assert document["duration_source"]["measured"] == 0 and document["duration_source"]["calibrated"] == 20


def test_on_one_worker_the_makespan_is_the_work_and_on_more_it_falls_to_no_less_than_the_critical_path(
    tmp_path: Path,
) -> None:
    found = forecast(tiny(), Store.open(tmp_path), 3)
    path = sum(seconds for _, seconds, _ in found.path)
    assert found.spans[1].seconds == pytest.approx(found.shared)
    spans = [found.spans[workers].seconds for workers in (1, 3, 4, 16, 64)]
    assert spans == sorted(spans, reverse=True) and spans[-1] >= path * (1 - 1e-9)


def test_the_critical_path_is_the_chain_of_the_stages(tmp_path: Path) -> None:
    asked = tiny()
    chain = [key for key, _, _ in forecast(asked, Store.open(tmp_path), 1).path]
    kinds = [asked.plan.graph[key].kind for key in chain]
    assert kinds == ["dataset", "experts", "distil", "experts", "distil", "evaluate"]
    for parent, child in zip(chain, chain[1:], strict=False):
        assert parent in asked.plan.graph[child].parent_keys()


def test_what_is_done_leaves_the_plan_and_gives_its_price(tmp_path: Path) -> None:
    asked, store = tiny(), Store.open(tmp_path)
    (dataset,), (one, _) = keys(asked, "dataset"), keys(asked, "full")
    stored(store, asked, dataset, one, seconds=36.0)
    found = forecast(asked, store, 1)
    assert found.kinds["full"] == (1, 1, 36.0) and found.kinds["dataset"] == (1, 0, 0)
    assert found.durations.count()["measured"] == 3 and dataset not in {key for key, _, _ in found.path}
    assert found.to_json()["jobs"]["cached"] == 2


def test_what_nothing_needs_any_more_is_neither_cached_nor_to_run(tmp_path: Path) -> None:
    asked, store = tiny(), Store.open(tmp_path)
    stored(store, asked, *keys(asked, "evaluate"), *keys(asked, "full"))
    found = forecast(asked, store, 1)
    assert (found.shared, found.unneeded, found.spans[64].seconds, found.path) == (0, 10, 0, ())
    assert found.to_json()["jobs"]["to_run"] == 0


def test_arms_that_share_jobs_cost_less_together_and_each_experiment_has_its_own_part(tmp_path: Path) -> None:
    document = yaml.safe_load((FOLDER / "tiny.yaml").read_text())
    wider = tmp_path / "wider.yaml"
    wider.write_text(yaml.safe_dump(document | {"name": "wider", "networks": 3}))
    asked = resolve(Request(experiments=("tiny", str(wider))))
    found = forecast(asked, Store.open(tmp_path / "store"), 1)
    narrow, wide = found.groups["tiny"], found.groups["wider"]
    assert narrow.marginal == 0 and 0 < wide.marginal < wide.alone
    assert narrow.alone + wide.marginal == pytest.approx(found.shared)
    assert found.naive > found.shared


def test_the_lines_say_the_same_to_people(tmp_path: Path) -> None:
    console = Console(width=120, record=True, quiet=True)
    found = forecast(tiny(), Store.open(tmp_path), 2)
    text = rendered(console, found)
    assert f"20 jobs for {found.cells} cells, 5 more were shared, 0 need not run again" in text
    assert "durations: 20 calibrated (" in text and "assumed" not in text
    assert duration(found.spans[2].seconds) in text


def rendered(console: Console, found: Forecast) -> str:
    with console.capture() as capture:
        console.quiet = False
        for part in found.lines():
            console.print(part)
    return str(capture.get())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"), (0.25, "0.2 s"), (9.94, "9.9 s"), (12.4, "12 s"), (59.4, "59 s"), (59.6, "1 min 00 s"),
        (185, "3 min 05 s"), (3599.7, "1 h 00 min"), (7620, "2 h 07 min"), (4_443_000, "1,234 h"),
    ],
)  # fmt: skip
def test_durations_are_said_in_fitting_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_forecast_of_any_experiment_of_the_house_can_be_written(tmp_path: Path) -> None:
    for name in ("quickstart", "tiny"):
        found: dict[str, Any] = forecast(resolve(Request(experiments=(name,))), Store.open(tmp_path), 2).to_json()
        assert found["gpu_hours"]["naive"] >= found["gpu_hours"]["shared"] > 0


# Tables.


def test_a_forecast_of_tables_has_the_same_interface_and_its_budget(tmp_path: Path) -> None:
    document = of_tables(tmp_path, "figure1", "table5", budget=3.6).to_json()
    assert document.keys() == forecast(tiny(), Store.open(tmp_path), 2).to_json().keys()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["cells"] == 14 and document["out_of_scope"] == []
    assert document["budget"]["gpu_hours"] == 0.001


def test_a_table_that_only_repeats_others_costs_nothing_beyond_them(tmp_path: Path) -> None:
    """Figure 4 shows the sets whose networks Figure 1 measures; Figure 1 has two arms, which share the dataset."""
    found = of_tables(tmp_path, "figure1", "figure4")
    first, fourth = found.groups["figure1"], found.groups["figure4"]
    assert fourth.alone > 0 and fourth.marginal == 0
    assert first.marginal == pytest.approx(first.alone - fourth.alone)
    assert found.shared == pytest.approx(first.alone)
    assert found.naive == pytest.approx(first.alone + found.kinds["dataset"][2] + fourth.alone)
    assert found.sharing == pytest.approx(found.naive / found.shared)


def test_the_makespans_of_tables_fall_from_the_work_to_the_critical_path(tmp_path: Path) -> None:
    found = of_tables(tmp_path, "table5")
    path = sum(seconds for _, seconds, _ in found.path)
    assert found.spans[1].seconds == pytest.approx(found.shared) and found.spans[1].utilisation == pytest.approx(1.0)
    seconds = [span.seconds for span in found.spans.values()]
    assert seconds == sorted(seconds, reverse=True) and seconds[-1] >= path * (1 - 1e-9)
    assert found.spans[256].utilisation == pytest.approx(found.shared / (256 * found.spans[256].seconds))


def test_each_duration_says_where_it_comes_from(tmp_path: Path) -> None:
    """One of two experts of the first stage was measured: the other takes as long, later ones are corrected by it."""
    resolved, store = tables("figure1"), Store.open(tmp_path)
    experts = [key for key in resolved.tables.plan.graph.jobs if key.startswith("experts-convnet-stage")]
    first, other = [key for key in experts if "stage1" in key]
    later = next(key for key in experts if "stage2" in key)
    before = forecast(resolved, store, 1).durations.seconds
    stored(store, resolved.tables, first, seconds=10 * before[first])
    found = forecast(resolved, store, 1)
    assert (found.durations.sources[other], found.durations.seconds[other]) == ("measured", 10 * before[first])
    assert (found.durations.sources[later], found.durations.seconds[later]) == ("corrected", 10 * before[later])
    counted = {source: jobs for source, (jobs, _) in found.to_run.items()}
    kinds = {kind: run for kind, (_, run, _) in found.kinds.items()}
    assert counted == {"measured": 1, "corrected": sum(kinds.values()) - 1, "calibrated": 0, "assumed": 0}


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder in which no speed is remembered."""
    monkeypatch.setenv("PDD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.usefixtures("fresh_cache")
def test_the_papers_scale_is_estimated_for_a_gpu_and_reduced_ones_for_a_core_as_fast_as_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    assert machine_of("paper", 256) == machines.GPU
    monkeypatch.setattr(
        speed, "Timing", lambda workers: SimpleNamespace(slowness=lambda: Slowness(workers, 2.0 * workers - 1))
    )
    assert machine_of("tiny", 1) == machines.CORE
    half = machine_of("tiny", 2)
    assert (half.rate, half.call, half.host) == (machines.RATE / 3, 2 * machines.CALL, 2)
    assert (half.number, half.inner_number, half.weight) == pytest.approx(
        (3 * machines.NUMBER, 3 * machines.INNER_NUMBER, 3 * machines.WEIGHT)
    )


@pytest.mark.usefixtures("fresh_cache")
def test_experiments_are_estimated_for_the_machine_of_their_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "Timing", lambda workers: SimpleNamespace(slowness=lambda: Slowness(2.0, 2.0)))
    slow = forecast(tiny(), Store.open(tmp_path), 1, machine=None)
    assert slow.shared == pytest.approx(2 * forecast(tiny(), Store.open(tmp_path), 1).shared)


def test_where_all_is_there_nobody_waits_for_the_host_to_be_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.planning.durations.host_speed", lambda workers: pytest.fail("timed"))
    planned, store = tiny(), Store.open(tmp_path)
    for key in planned.plan.graph.jobs:
        stored(store, planned, key, seconds=1.0)
    assert forecast(planned, store, 1, machine=None).shared == 0
    store.quarantine(next(iter(planned.plan.graph.jobs)), "for this test")
    with pytest.raises(pytest.fail.Exception, match="timed"):
        forecast(planned, store, 1, machine=None)


def test_a_budget_names_what_it_completes_and_what_it_leaves_out(tmp_path: Path) -> None:
    whole = of_tables(tmp_path, "table5", "figure1")
    selection = of_tables(tmp_path, "table5", "figure1", budget=whole.shared / 2).budget
    assert selection is not None and selection.seconds <= whole.shared / 2
    assert 0 < len(selection.cells) < 14 and len(selection.cells) + len(selection.left_out) == 14
    assert all(seconds > 0 for _, seconds in selection.left_out)


def test_a_budget_selects_cells_of_experiments_too(tmp_path: Path) -> None:
    whole = forecast(tiny(), Store.open(tmp_path), 1)
    selection = forecast(tiny(), Store.open(tmp_path), 1, budget=whole.shared / 2).budget
    assert selection is not None and 0 < len(selection.cells) < whole.cells
    assert all(cell.group == "tiny" for cell in selection.cells)


def test_the_lines_of_tables_can_be_printed(tmp_path: Path) -> None:
    text = rendered(Console(width=120, record=True, quiet=True), of_tables(tmp_path, "table5", budget=1.0))
    assert "sharing saves a factor of" in text and "critical path" in text and "left out" in text

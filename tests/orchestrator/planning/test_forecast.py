from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from jobs.experiment import FOLDER
from orchestrator.planning.forecast import Forecast, forecast
from orchestrator.planning.requests import Request, ResolvedRequest, resolve
from orchestrator.runs.timeline import duration
from workers.store.store import Store


def tiny(*settings: str) -> ResolvedRequest:
    return resolve(Request(experiments=("tiny",), settings=settings))


def stored(store: Store, asked: ResolvedRequest, *keys: str, seconds: float = 1.0) -> None:
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
    assert {"naive", "shared", "by_table"} <= document["gpu_hours"].keys()
    assert {"measured", "calibrated"} == document["price_source"].keys()
    assert all({"key", "kind", "seconds"} == step.keys() for step in document["critical_path"])
    assert list(document["makespan_hours"]) == ["1", "2", "4", "16", "64"]
    assert document["out_of_scope"] == []


def test_jobs_are_counted_by_hand(tmp_path: Path) -> None:
    """Tiny has one dataset, 2 draws, 2 experts in each of two stages, 3 distilled sets, 2 + 2 + 4 evaluations, 2 full.

    The one-stage arm would have a dataset and two experts of its own; the other two arms a dataset each.
    """
    document = forecast(tiny(), Store.open(tmp_path), 1).to_json()
    jobs = document["jobs"]
    by_kind = {kind: row["to_run"] for kind, row in jobs["by_kind"].items()}
    assert by_kind == {"dataset": 1, "select": 2, "experts": 4, "distil": 3, "evaluate": 8, "full": 2}
    assert (jobs["total"], jobs["to_run"], jobs["cached"], jobs["shared"]) == (20, 20, 0, 5)
    assert document["price_source"] == {"measured": 0, "calibrated": 20}


def test_on_one_worker_the_makespan_is_the_work_and_on_more_it_falls_to_no_less_than_the_critical_path(
    tmp_path: Path,
) -> None:
    found = forecast(tiny(), Store.open(tmp_path), 3)
    path = sum(seconds for _, seconds in found.critical_path)
    assert found.makespans[1] == pytest.approx(found.shared)
    spans = [found.makespans[workers] for workers in (1, 3, 4, 16, 64)]
    assert spans == sorted(spans, reverse=True) and spans[-1] >= path * (1 - 1e-9)


def test_the_critical_path_is_the_chain_of_the_stages(tmp_path: Path) -> None:
    asked = tiny()
    chain = [key for key, _ in forecast(asked, Store.open(tmp_path), 1).critical_path]
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
    assert found.measured == 3 and dataset not in dict(found.critical_path)
    assert found.to_json()["jobs"]["cached"] == 2


def test_what_nothing_needs_any_more_is_neither_cached_nor_to_run(tmp_path: Path) -> None:
    asked, store = tiny(), Store.open(tmp_path)
    stored(store, asked, *keys(asked, "evaluate"), *keys(asked, "full"))
    found = forecast(asked, store, 1)
    assert (found.shared, found.unneeded, found.makespans[64], found.critical_path) == (0, 10, 0, ())
    assert found.to_json()["jobs"]["to_run"] == 0


def test_arms_that_share_jobs_cost_less_together_and_each_experiment_has_its_own_part(tmp_path: Path) -> None:
    document = yaml.safe_load((FOLDER / "tiny.yaml").read_text())
    wider = tmp_path / "wider.yaml"
    wider.write_text(yaml.safe_dump(document | {"name": "wider", "networks": 3}))
    asked = resolve(Request(experiments=("tiny", str(wider))))
    found = forecast(asked, Store.open(tmp_path / "store"), 1)
    (tiny_alone, tiny_own), (wider_alone, wider_own) = found.by_experiment["tiny"], found.by_experiment["wider"]
    assert tiny_own == 0 and 0 < wider_own < wider_alone
    assert tiny_alone + wider_own == pytest.approx(found.shared)
    assert found.naive > found.shared


def test_the_tables_say_the_same_to_people(tmp_path: Path) -> None:
    console = Console(width=120, record=True, quiet=True)
    found = forecast(tiny(), Store.open(tmp_path), 2)
    text = rendered(console, found)
    assert "20 jobs, 5 more were shared, 0 need not run again" in text
    assert "0 measured in this store, 20 estimated" in text
    assert f"2: {duration(found.makespans[2])}" in text


def rendered(console: Console, found: Forecast) -> str:
    with console.capture() as capture:
        console.quiet = False
        for part in found.tables():
            console.print(part)
    return str(capture.get())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"), (0.25, "0.2 s"), (9.94, "9.9 s"), (12.4, "12 s"), (59.4, "59 s"), (59.6, "1 min 00 s"),
        (185, "3 min 05 s"), (3599.7, "1 h 00 min"), (7620, "2 h 07 min"),
    ],
)  # fmt: skip
def test_durations_are_said_in_fitting_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_forecast_of_any_experiment_of_the_house_can_be_written(tmp_path: Path) -> None:
    for name in ("quickstart", "tiny"):
        found: dict[str, Any] = forecast(resolve(Request(experiments=(name,))), Store.open(tmp_path), 2).to_json()
        assert found["gpu_hours"]["naive"] >= found["gpu_hours"]["shared"] > 0

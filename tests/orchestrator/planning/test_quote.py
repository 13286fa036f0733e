from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs import cost
from jobs.datasets import DATASETS
from jobs.experiment import DatasetChoice
from jobs.table import Circumstances, Data, TablesPlan, fill, load
from orchestrator.planning.quote import Quote, machine_of, quote
from workers.store.store import Store
from workers.training import speed

DIGITS = replace(DATASETS["digits"], train_per_class=(131,) * 10)


def tables(*names: str) -> TablesPlan:
    data = {"digits": Data(DatasetChoice(name="digits"), DIGITS)}
    return fill([load(name) for name in names], Circumstances(scale="tiny", data=data, instead="digits"))


def offer(folder: Path, *names: str, **more: Any) -> Quote:
    return quote(tables(*names), Store.open(folder), 2, **{"machine": cost.CORE, **more})


def stored(store: Store, plan: TablesPlan, key: str, seconds: float) -> None:
    job = plan.plan.graph[key]
    with store.put(key, job.kind, job.canonical()["spec"], job.parents, device="cpu", seconds=seconds) as folder:
        (folder / "data").write_text("x")


def test_the_document_has_its_interface(tmp_path: Path) -> None:
    document = offer(tmp_path, "figure1", "table5", budget=3.6).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["schema"] == 1 and document["cells"] == 14
    assert {"total", "cached", "to_run", "shared"} <= document["jobs"].keys()
    assert {"naive", "shared", "by_table", "marginal", "sharing_factor"} <= document["gpu_hours"].keys()
    assert {"key", "kind", "seconds", "price"} == document["critical_path"][0].keys()
    assert list(document["makespan_hours"]) == list(document["utilisation"]) == ["1", "2", "4", "16", "64", "256"]
    assert {"measured", "calibrated"} <= document["price_source"].keys()
    assert document["out_of_scope"] == []
    assert document["budget"]["gpu_hours"] == 0.001


def test_a_table_that_only_repeats_others_costs_nothing_beyond_them(tmp_path: Path) -> None:
    """Figure 4 shows the sets whose networks Figure 1 measures; Figure 1 has two arms, which share the dataset."""
    found = offer(tmp_path, "figure1", "figure4")
    assert found.tables["figure4"].alone > 0 and found.tables["figure4"].marginal == 0
    assert found.tables["figure1"].marginal == pytest.approx(
        found.tables["figure1"].alone - found.tables["figure4"].alone
    )
    assert found.shared == pytest.approx(found.tables["figure1"].alone)
    dataset = found.kinds["dataset"][2]
    assert found.naive == pytest.approx(found.tables["figure1"].alone + dataset + found.tables["figure4"].alone)
    assert found.sharing == pytest.approx(found.naive / found.shared)


def test_on_one_worker_the_makespan_is_the_work_and_never_below_the_critical_path(tmp_path: Path) -> None:
    found = offer(tmp_path, "table5")
    path = sum(seconds for _, seconds, _ in found.path)
    assert found.spans[1].seconds == pytest.approx(found.shared) and found.spans[1].utilisation == pytest.approx(1.0)
    seconds = [span.seconds for span in found.spans.values()]
    assert seconds == sorted(seconds, reverse=True) and seconds[-1] >= path * (1 - 1e-9)
    assert found.spans[256].utilisation == pytest.approx(found.shared / (256 * found.spans[256].seconds))


def test_each_price_says_where_it_comes_from(tmp_path: Path) -> None:
    """One of two experts of the first stage was measured: the other has its price, later ones are corrected by it."""
    plan, store = tables("figure1"), Store.open(tmp_path)
    first, other = [key for key in plan.plan.graph.jobs if key.startswith("experts-convnet-stage1")]
    later = next(key for key in plan.plan.graph.jobs if key.startswith("experts-convnet-stage2"))
    before = quote(plan, store, 1, machine=cost.CORE).prices.seconds
    stored(store, plan, first, 10 * before[first])
    found = quote(plan, store, 1, machine=cost.CORE)
    assert (found.prices.witnesses[other], found.prices.seconds[other]) == ("measured", 10 * before[first])
    assert (found.prices.witnesses[later], found.prices.seconds[later]) == ("corrected", 10 * before[later])
    counted = {witness: jobs for witness, (jobs, _) in found.witnesses.items()}
    kinds = {kind: run for kind, (_, run, _) in found.kinds.items()}
    rest = sum(run for kind, run in kinds.items() if kind != "experts")
    assert counted == {"measured": 1, "corrected": kinds["experts"] - 1, "calibrated": rest}


def test_the_papers_scale_is_priced_for_a_gpu_and_reduced_ones_for_a_core_as_fast_as_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert machine_of("paper", 256) == cost.GPU
    monkeypatch.setattr(speed, "slowness", lambda workers: float(workers))
    assert machine_of("tiny", 1) == cost.CORE
    half = machine_of("tiny", 2)
    assert (half.rate, half.call, half.start) == (cost.RATE / 2, 2 * cost.CALL, 2 * cost.START)


def test_a_budget_names_what_it_completes_and_what_it_leaves_out(tmp_path: Path) -> None:
    whole = offer(tmp_path, "table5", "figure1")
    found = offer(tmp_path, "table5", "figure1", budget=whole.shared / 2).purchase
    assert found is not None and found.seconds <= whole.shared / 2
    assert 0 < len(found.cells) < 14 and len(found.cells) + len(found.left_out) == 14
    assert all(seconds > 0 for _, _, seconds in found.left_out)


def test_the_lines_for_people_can_be_printed(tmp_path: Path) -> None:
    from rich.console import Console

    console = Console(record=True, width=120, file=io.StringIO())
    for line in offer(tmp_path, "table5", budget=1.0).lines():
        console.print(line)
    text = console.export_text()
    assert "sharing saves a factor of" in text and "critical path" in text and "left out" in text

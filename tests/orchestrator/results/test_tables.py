from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.datasets import DATASETS
from jobs.experiment import DatasetChoice
from jobs.table import Published, TablesPlan, load
from jobs.table_filling import Circumstances, Data, fill
from orchestrator.results.tables import MeasuredCell, differs, interval, measure
from workers.store.store import Store


def tables(instead: str = "", absent: str = "") -> TablesPlan:
    """Full data and distilled rows of the table on DREAM."""
    name = instead or "cifar10"
    data = {name: Data(DatasetChoice(name=name), DATASETS[name], absent)}
    return fill([load("tableA9")], Circumstances(scale="paper", data=data, substitute=instead))


def measured(plan: TablesPlan, store: Store, failures: Mapping[str, str] | None = None) -> dict[str, MeasuredCell]:
    cells = measure(plan, store, failures or {}, {"tableA9": "do it"})["tableA9"]
    return {f"{one.entry.row} {one.entry.column}": one for one in cells}


def put(store: Store, plan: TablesPlan, row: str, accuracies: list[float]) -> list[str]:
    """Networks of the row's first cell with these accuracies; returns the keys of all of its networks."""
    cell = next(one.cell for one in plan.tables[0].cells if one.row == row)
    assert cell is not None
    for key, accuracy in zip(cell.jobs, accuracies, strict=False):
        job = plan.plan.graph[key]
        extra = {"accuracy": accuracy, "curve": [accuracy]}
        with store.put(key, job.kind, job.canonical()["spec"], job.parents, device="cpu", seconds=1, extra=extra) as at:
            (at / "data").write_text("x")
    return list(cell.jobs)


def test_a_whole_cell_is_measured_with_population_spread_interval_and_difference(tmp_path: Path) -> None:
    """66, 67, 68, 69, 70: mean 68, population variance 2, sample variance 2.5; t(4) = 2.776."""
    plan, store = tables(), Store.open(tmp_path)
    put(store, plan, "DREAM", [66, 67, 68, 69, 70])
    one = measured(plan, store)["DREAM 10"]
    assert (one.status, one.mean, one.n, one.why, one.command) == ("measured", 68.0, 5, "", "do it")
    assert one.std == pytest.approx(2**0.5)
    half = 2.776445 * (2.5 / 5) ** 0.5
    assert one.interval == pytest.approx((68 - half, 68 + half))
    assert one.difference == pytest.approx(-0.7)


def test_a_cell_is_partial_while_networks_are_missing(tmp_path: Path) -> None:
    plan, store = tables(), Store.open(tmp_path)
    put(store, plan, "DREAM", [66, 68])
    one = measured(plan, store)["DREAM 10"]
    assert (one.status, one.mean, one.n, one.why) == ("partial", 67.0, 2, "2 of 5 networks are there")
    assert one.significant is None


def test_a_cell_failed_if_something_behind_it_did_and_names_it(tmp_path: Path) -> None:
    plan, store = tables(), Store.open(tmp_path)
    cause = next(key for key in plan.plan.graph.jobs if key.startswith("distil-dream-stage3-ipc10"))
    found = measured(plan, store, {cause: "diverged: the loss is NaN"})
    assert (found["PDD+DREAM 50"].status, found["PDD+DREAM 50"].why) == (
        "failed",
        f"{cause}: diverged: the loss is NaN",
    )
    assert found["DREAM 50"].status == "not run" and found["DREAM 50"].n == 0


def test_a_cell_whose_dataset_is_absent_says_where_to_get_it(tmp_path: Path) -> None:
    found = measured(tables(absent="cifar10: unpack it there"), Store.open(tmp_path))
    assert {(one.status, one.why) for one in found.values()} == {("not run", "cifar10: unpack it there")}


def test_a_cell_that_the_budget_leaves_out_says_so(tmp_path: Path) -> None:
    plan, store = tables(), Store.open(tmp_path)
    jobs = put(store, plan, "DREAM", [])
    cells = measure(plan, store, {}, {}, dict.fromkeys(jobs, "left out by the budget of 1gpu-h"))["tableA9"]
    assert [(one.status, one.why) for one in cells if one.entry.row == "DREAM"] == [
        ("not run", "left out by the budget of 1gpu-h"),
        ("not run", "the run ended before"),
    ]


def test_a_difference_to_the_paper_is_given_only_at_the_published_scale_and_dataset(tmp_path: Path) -> None:
    plan, store = tables(), Store.open(tmp_path)
    put(store, plan, "DREAM", [50, 50.1, 50.2, 50.1, 50])
    table = plan.tables[0]
    cells = tuple(replace(one, published=Published(68.7, 0.3)) if one.row == "DREAM" else one for one in table.cells)
    told = replace(plan, tables=(replace(table, cells=cells),))
    assert measured(told, store)["DREAM 10"].significant is True
    for changes in ({"scale": "small"}, {"dataset_note": "measured on digits"}):
        other = replace(plan, tables=(replace(table, cells=cells, **changes),))  # type: ignore[arg-type]
        assert measured(other, store)["DREAM 10"].significant is None
        assert measured(other, store)["DREAM 10"].difference is None


@pytest.mark.parametrize(
    ("values", "published", "answer"),
    [
        ([60, 61, 62, 63, 64], Published(62.0, 1.0), False),
        ([60, 61, 62, 63, 64], Published(70.0, 1.0), True),
        ([60, 61, 62, 63, 64], Published(70.0, None), None),
        ([60], Published(70.0, 1.0), None),
        ([60, 60], Published(60.0, 0.0), False),
    ],
)
def test_two_means_differ_by_welchs_test(values: list[float], published: Published, answer: bool | None) -> None:
    assert differs(values, published, 5) is answer


def test_welchs_test_agrees_with_scipys(tmp_path: Path) -> None:
    """The printed spread is of the population, scipy wants the sample's: sqrt(5/4) times as much."""
    from scipy import stats  # type: ignore[import-untyped]

    values = [60.0, 61.0, 62.0, 63.0, 64.5]
    for mean in (60.0, 63.5, 64.0, 64.5, 65.0, 67.0):
        published = Published(mean, 1.2)
        sample = 1.2 * (5 / 4) ** 0.5
        count, ours = len(values), sum(values) / 5
        spread = (sum((value - ours) ** 2 for value in values) / 4) ** 0.5
        p = stats.ttest_ind_from_stats(ours, spread, count, mean, sample, 5, equal_var=False).pvalue
        assert differs(values, published, 5) == (p < 0.05)


def test_one_value_has_no_interval_and_an_accuracy_stays_in_its_bounds() -> None:
    assert interval([50.0]) is None
    assert interval([1.0, 99.0]) == (0.0, 100.0)

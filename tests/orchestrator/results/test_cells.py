from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from jobs.expansion import expand
from jobs.experiment import Arm, Cell, Experiment, Plan
from orchestrator.results.cells import Result, artifacts, by_experiment, collect, label
from orchestrator.results.result_table import tabulate
from orchestrator.results.stages import chains, stage_results
from workers.store.store import Store


@dataclass(frozen=True)
class Facts:
    """A dataset of three classes that nobody has to read."""

    layout: str = "digits"
    channels: int = 1
    height: int = 8
    width: int = 8
    class_names: tuple[str, ...] = ("zero", "one", "two")
    train_per_class: tuple[int, ...] = (40, 40, 40)
    fingerprint: str = "f" * 16


def demo_plan(**changes: object) -> Plan:
    """Random, PDD+MTT with two stages of one image, full data; two networks on two architectures."""
    experiment = Experiment(
        name="demo",
        scale="tiny",
        networks=2,
        architectures=("convnet", "resnet10"),
        arms=(
            Arm(method="random", ipc_per_stage=2),
            Arm(method="mtt", stages=2, ipc_per_stage=1),
            Arm(method="full"),
        ),
    )
    return expand(experiment.model_copy(update=changes), Facts(), "demo.yaml")


NUMBERS: dict[str, dict[str, object]] = {
    "distil": {"iteration": 1, "step_size": None, "loss": 0.5, "first_loss": 0.9},
    "evaluate": {"curve": []},
    "full": {"curve": []},
}
"""What a job of the kind leaves beside the numbers that a test gives."""


def put(store: Store, plan: Plan, key: str, extra: Mapping[str, object], seconds: float = 1.0) -> None:
    """An artifact of one byte with these numbers."""
    job = plan.graph[key]
    spec, extra = job.canonical()["spec"], {**NUMBERS.get(job.kind, {}), **extra}
    with store.put(key, job.kind, spec, job.parents, device="cpu", seconds=seconds, extra=extra) as folder:
        (folder / "data").write_bytes(b"x")


def measure(store: Store, plan: Plan, cell: Cell, accuracies: Iterable[float]) -> None:
    """Artifacts for the cell's first networks, with these accuracies."""
    for key, accuracy in zip(cell.jobs, accuracies, strict=False):
        put(store, plan, key, {"accuracy": accuracy, "curve": [accuracy]})


def cell_of(plan: Plan, method: str, architecture: str, stage: int = 1) -> Cell:
    return next(
        cell for cell in plan.cells if (cell.method, cell.architecture, cell.stage) == (method, architecture, stage)
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def one(results: list[Result], cell: Cell) -> Result:
    return next(result for result in results if result.jobs == cell.jobs)


def test_the_spread_is_the_population_standard_deviation(store: Store) -> None:
    plan = demo_plan()
    cell = cell_of(plan, "PDD+MTT", "convnet", 2)
    measure(store, plan, cell, [80.0, 90.0])
    result = one(collect(plan, store), cell)
    assert (result.mean, result.std, result.n, result.values) == (85.0, 5.0, 2, (80.0, 90.0))
    assert (result.state, result.ipc_total, result.stage, result.stages) == ("done", 2, 2, 2)


def test_a_cell_without_networks_has_no_mean_and_was_not_run(store: Store) -> None:
    plan = demo_plan()
    results = collect(plan, store)
    assert {result.state for result in results} == {"not run"}
    assert {(result.mean, result.std, result.n) for result in results} == {(None, None, 0)}
    assert all(result.missing == result.jobs for result in results)


def test_a_cell_with_some_networks_averages_those_and_says_how_many(store: Store) -> None:
    plan = demo_plan()
    cell = cell_of(plan, "Random", "resnet10")
    measure(store, plan, cell, [60.0])
    result = one(collect(plan, store), cell)
    assert (result.mean, result.std, result.n, result.state) == (60.0, 0.0, 1, "partial (1 of 2)")
    assert result.missing == cell.jobs[1:]


def test_a_failed_ancestor_is_the_reason_of_every_cell_behind_it_and_of_no_other(store: Store) -> None:
    plan = demo_plan()
    second = next(job.key for job in plan.graph if job.kind == "distil" and job.spec.stage == 2)
    results = collect(plan, store, {second: "diverged: the loss is NaN"})
    told = {(result.method, result.stage) for result in results if result.state == "failed"}
    assert told == {("PDD+MTT", 2)}
    assert one(results, cell_of(plan, "PDD+MTT", "convnet", 2)).reason == f"{second}: diverged: the loss is NaN"


def test_a_damaged_artifact_counts_as_missing(store: Store) -> None:
    plan = demo_plan()
    cell = cell_of(plan, "Full data", "convnet", 0)
    measure(store, plan, cell, [99.0, 98.0])
    store.path(cell.jobs[0], "data").write_bytes(b"longer than it was")
    assert one(collect(plan, store), cell).values == (98.0,)


def test_json_has_the_fields_of_the_interface_and_survives_a_round_trip(store: Store) -> None:
    plan = demo_plan()
    measure(store, plan, plan.cells[0], [50.0, 60.0])
    document = [result.to_json() for result in collect(plan, store)]
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    interface = (
        "experiment method base_method dataset scale architecture mode ipc_total ipc_per_stage stages stage "
        "mean std n published_mean published_std key"
    )
    assert set(interface.split()) <= set(document[0])
    assert document[0]["mean"] == 55.0 and document[0]["published_mean"] is None


def test_every_cell_has_a_key_of_its_own(store: Store) -> None:
    results = collect(demo_plan(), store)
    assert len({result.key for result in results}) == len(results) == 8


def test_artifacts_lists_what_is_there_with_the_digest_of_its_data(store: Store) -> None:
    plan = demo_plan()
    first, second = (job.key for job in list(plan.graph)[:2])
    put(store, plan, second, {})
    put(store, plan, first, {})
    listed = artifacts(plan, store)
    assert [entry["key"] for entry in listed] == [first, second]
    assert listed[0] == {"key": first, "kind": "dataset", "digest": store.manifest(first).digest}


def test_rows_are_arms_and_stages_with_full_data_last_whatever_the_order(store: Store) -> None:
    plan = demo_plan()
    results = collect(plan, store)
    made = tabulate(results[-2:] + results[:-2])
    assert made.header == ("Method", "Images per class", "convnet", "resnet10")
    assert [row[:2] for row in made.rows] == [
        ("Random", "2"),
        ("PDD+MTT, stage 1 of 2", "1"),
        ("PDD+MTT, stage 2 of 2", "2"),
        ("Full data", "all"),
    ]


def test_table_cells_show_mean_spread_and_what_is_missing(store: Store) -> None:
    plan = demo_plan()
    measure(store, plan, cell_of(plan, "Random", "convnet"), [80.0, 90.0])
    measure(store, plan, cell_of(plan, "Random", "resnet10"), [71.25])
    made = tabulate(collect(plan, store))
    assert made.rows[0][2:] == ("85.0 ± 5.0", "71.2 (1 of 2)")
    assert made.rows[1][2:] == ("not run", "not run")
    assert made.notes[0] == "Random (resnet10, 1 of 2 networks): not run"
    assert made.notes[1] == "PDD+MTT, stage 1 of 2 (convnet, resnet10): not run"


def test_the_title_says_what_scale_medium_cuts(store: Store) -> None:
    title = tabulate(collect(demo_plan(scale="medium"), store)).title
    assert "width (64 of 128), images (1000 of a class), experts (8 of 100), iterations" in title


def test_title_and_caption_say_scale_n_and_what_the_spread_is(store: Store) -> None:
    made = tabulate(collect(demo_plan(scale="small"), store))
    assert made.title == ("demo on digits (scale: small: a reduced setting, not a reproduction of the paper)")
    assert made.caption == (
        "Test accuracy in percent, mean ± population standard deviation over n = 2 networks per cell. Guessing: 33.3 %."
    )


def test_a_single_network_has_no_spread_to_show(store: Store) -> None:
    plan = demo_plan(networks=1)
    measure(store, plan, plan.cells[0], [88.0])
    made = tabulate(collect(plan, store))
    assert made.rows[0][2] == "88.0"
    assert made.caption == "Test accuracy in percent, mean over n = 1 network per cell. Guessing: 33.3 %."


def test_a_row_that_is_no_better_than_guessing_is_named(store: Store) -> None:
    plan = demo_plan()
    measure(store, plan, cell_of(plan, "Random", "convnet"), [30.0, 36.0])
    measure(store, plan, cell_of(plan, "Random", "resnet10"), [33.0, 34.0])
    made = tabulate(collect(plan, store))
    assert made.notes[0] == "Random (convnet): no better than guessing (33.3 %)"
    assert "resnet10): no better" not in " ".join(made.notes)


def test_a_published_value_stands_in_brackets(store: Store) -> None:
    plan = demo_plan()
    measure(store, plan, plan.cells[0], [80.0, 90.0])
    results = [replace(result, published_mean=84.3) for result in collect(plan, store)]
    made = tabulate(results)
    assert made.rows[0][2] == "85.0 ± 5.0 [84.3]"
    assert "in brackets: published" in made.caption


def test_two_arms_with_the_same_words_keep_a_row_each(store: Store) -> None:
    arm = Arm(method="mtt", ipc_per_stage=1)
    plan = demo_plan(arms=(arm, arm.model_copy(update={"set": {"distil.iterations": 7}})))
    made = tabulate(collect(plan, store))
    assert [row[0] for row in made.rows] == ["MTT", "MTT"]


def test_an_unusual_mode_of_evaluation_is_said(store: Store) -> None:
    plan = demo_plan(arms=(Arm(method="mtt", stages=2, ipc_per_stage=1, modes=("progressive", "union")),))
    assert [label(cell) for cell in plan.cells[::2]] == [
        "PDD+MTT, stage 1 of 2",
        "PDD+MTT, stage 1 of 2, union",
        "PDD+MTT, stage 2 of 2",
        "PDD+MTT, stage 2 of 2, union",
    ]


def test_several_experiments_get_a_column_and_groups_of_their_own(store: Store) -> None:
    first, second = demo_plan(), demo_plan(name="other")
    results = collect(first, store) + collect(second, store)
    assert [group[0].experiment for group in by_experiment(results)] == ["demo", "other"]
    made = tabulate(results)
    assert made.header[0] == "Experiment"
    assert [row[0] for row in made.rows] == ["demo"] * 4 + ["other"] * 4


def test_chains_are_the_sets_of_the_last_stage_each_once() -> None:
    plan = demo_plan(seeds=(0, 1))
    found = [chain for chain in chains(plan) if chain.cell.base_method == "mtt"]
    stages = [[plan.graph[key].spec.stage for key in chain.sets] for chain in found]
    seeds = [plan.graph[chain.sets[0]].spec.seed for chain in found]
    assert (stages, seeds) == ([[1, 2], [1, 2]], [0, 1])


def test_stage_results_weigh_cohorts_by_their_experts(store: Store) -> None:
    plan = demo_plan(set={"experts.number": 3, "experts.expert_batch": 2})
    distil = next(job for job in plan.graph if job.kind == "distil")
    first, second = distil.parents["experts"]
    put(store, plan, first, {"start_accuracy": 10.0, "end_accuracy": 80.0})  # two experts
    put(store, plan, second, {"start_accuracy": 40.0, "end_accuracy": 95.0})  # one expert
    extra = {"iteration": 3, "first_loss": 0.9, "loss": 0.5, "step_size": 0.02, "validation_accuracy": 70.0}
    put(store, plan, distil.key, extra)
    made, not_made = stage_results(plan, store)
    assert (made.expert_start, made.expert_end) == (20.0, 85.0)
    assert (made.kept, made.first_loss, made.loss, made.step_size, made.held_out) == (3, 0.9, 0.5, 0.02, 70.0)
    assert (made.stage, made.stages, made.distilled) == (1, 2, True)
    assert (not_made.distilled, not_made.kept, not_made.expert_start) == (False, None, None)


def test_a_balanced_accuracy_stands_beside_the_accuracy_where_networks_measured_one(store: Store) -> None:
    plan = demo_plan()
    cell = cell_of(plan, "Random", "convnet")
    for key, balanced in zip(cell.jobs, (50.0, 60.0), strict=True):
        put(store, plan, key, {"accuracy": 90.0, "balanced_accuracy": balanced})
    result = next(one for one in collect(plan, store) if one.n)
    assert (result.mean, result.balanced_mean) == (90.0, 55.0)
    assert any("90.0 ± 0.0 (balanced 55.0)" in text for row in tabulate([result]).rows for text in row)


def test_numbers_that_cannot_be_read_count_as_missing(store: Store) -> None:
    """A sound artifact whose manifest lacks its kind's numbers is no traceback, here and in the stages."""
    plan = demo_plan()
    cell = cell_of(plan, "Full data", "convnet", 0)
    put(store, plan, cell.jobs[0], {"curve": [1.0]})
    measure(store, plan, replace(cell, jobs=cell.jobs[1:]), [98.0])
    result = one(collect(plan, store), cell)
    assert (result.values, result.missing) == ((98.0,), cell.jobs[:1])
    distil = next(job for job in plan.graph if job.kind == "distil")
    put(store, plan, distil.key, {"loss": "much"})
    put(store, plan, distil.parents["experts"][0], {})
    first = stage_results(plan, store)[0]
    assert (first.distilled, first.loss, first.expert_start) == (False, None, None)

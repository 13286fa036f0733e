"""`jobs.expansion`: class-incremental learning as datasets, sets and cells by phase.

What an ordinary arm becomes is in `test_experiments`, the jobs behind it in `test_lineage`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jobs.expansion import class_order
from jobs.specs import DatasetSpec, DistilSpec, EvaluateSpec, SelectSpec
from tests.jobs.test_experiment import FakeFacts, pdd, plan_of, refusal, specs

SIX = FakeFacts(class_names=tuple("abcdef"), train_per_class=(40, 50, 60, 40, 50, 60))
CONTINUAL: dict[str, Any] = {"phases": 3, "orders": 2}


def test_an_order_is_numpy_s_permutation_under_its_number_cut_into_phases() -> None:
    random = np.random.RandomState(3)
    expected = random.permutation(100).reshape(5, 20)
    assert class_order(100, 5, 3) == tuple(tuple(sorted(group.tolist())) for group in expected)
    assert sorted(label for group in class_order(10, 5, 0) for label in group) == list(range(10))
    assert class_order(10, 5, 0) != class_order(10, 5, 1)


def test_a_phase_is_a_dataset_of_its_classes_taken_from_the_whole() -> None:
    plan = plan_of({"method": "random", "ipc_per_stage": 1, "class_incremental": {"phases": 3, "orders": 1}}, facts=SIX)
    whole, *phases = (job for job in plan.graph if isinstance(job.spec, DatasetSpec))
    assert [job.parents for job in phases] == 3 * [{"dataset": (whole.key,)}]
    kept = {0: 36, 1: 36, 2: 36, 3: 36, 4: 36, 5: 36}  # 40 of each at this scale, less 4 held out
    for job, group in zip(phases, class_order(6, 3, 0), strict=True):
        assert isinstance(job.spec, DatasetSpec)
        assert (job.spec.subset, job.spec.classes) == (group, 2)
        assert job.spec.train_images == sum(kept[label] for label in group)


def test_after_each_phase_networks_are_trained_on_the_sets_of_all_phases_so_far() -> None:
    plan = plan_of(pdd(2, class_incremental=CONTINUAL), facts=SIX, networks=2, seeds=[0, 1])
    assert [(cell.stage, cell.phase, cell.mode, len(cell.jobs)) for cell in plan.cells] == [
        (2, phase, "progressive", 2 * 2 * 2) for phase in (1, 2, 3)
    ]
    distilled = [job for job in plan.graph if isinstance(job.spec, DistilSpec)]
    groups = {group for order in (0, 1) for group in class_order(6, 3, order)}
    assert len(distilled) == 2 * len(groups) * 2  # seeds, sets of classes, stages
    for cell in plan.cells:
        for key in cell.jobs:
            job = plan.graph[key]
            assert isinstance(job.spec, EvaluateSpec)
            assert job.spec.phases in {class_order(6, 3, order)[: cell.phase] for order in (0, 1)}
            assert len(job.parents["sets"]) == 2 * cell.phase
            data = [plan.graph[plan.graph[one].parents["dataset"][0]].spec for one in job.parents["sets"]]
            assert [one.subset for one in data if isinstance(one, DatasetSpec)] == [
                group for group in job.spec.phases for _ in range(2)
            ]


def test_phases_distil_beside_each_other_and_the_stages_of_one_in_turn() -> None:
    plan = plan_of(pdd(2, class_incremental=CONTINUAL), facts=SIX)
    groups = {group for order in (0, 1) for group in class_order(6, 3, order)}
    assert set(plan.limits) == {f"exam/seed0/classes-{low}-{high}" for low, high in groups}


def test_a_selection_is_made_anew_in_each_phase_and_evaluated_on_the_union() -> None:
    plan = plan_of(
        {"method": "herding", "ipc_per_stage": 4, "class_incremental": {"phases": 3, "orders": 1}},
        facts=SIX,
        networks=3,
    )
    assert len(specs(plan, SelectSpec)) == 3
    assert [(cell.phase, cell.mode, len(cell.jobs)) for cell in plan.cells] == [
        (1, "union", 3),
        (2, "union", 3),
        (3, "union", 3),
    ]


def test_phases_that_do_not_divide_the_classes_are_refused() -> None:
    error = refusal(pdd(1, class_incremental={"phases": 4, "orders": 1}), facts=SIX)
    assert (error.field, error.value) == ("arms.0.class_incremental.phases", 4)
    assert error.fix == "must divide the 6 classes of the dataset"


@pytest.mark.parametrize("phases", [1, 0])
def test_one_phase_is_not_continual(phases: int) -> None:
    assert "must be at least 2" in str(refusal(pdd(1, class_incremental={"phases": phases}), facts=replace(SIX)))

"""The second study: its arms spend what its file says, by the work that is counted for plans."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from jobs import cost
from jobs.expansion import expand
from jobs.experiment import Cell, Plan, load


@dataclass(frozen=True)
class Clothes:
    """Fashion-MNIST, as far as a plan asks."""

    layout: str = "fashion-mnist"
    channels: int = 1
    height: int = 28
    width: int = 28
    class_names: tuple[str, ...] = tuple(map(str, range(10)))
    train_per_class: tuple[int, ...] = (6000,) * 10
    fingerprint: str = "f00d"


@pytest.fixture(scope="module")
def plan() -> Plan:
    experiment, place, _ = load("study_finished")
    return expand(experiment.model_copy(update={"seeds": (0,)}), Clothes(), place)


def work_of(plan: Plan, *kinds: str, method: str, ipc: int, stages: int) -> float:
    """FLOPs of these kinds of jobs behind an arm's last cell."""
    matching = [
        cell
        for cell in plan.cells
        if (cell.method, cell.ipc_per_stage, cell.stages, cell.stage) == (method, ipc, stages, stages)
    ]
    (cell,) = matching
    assert isinstance(cell, Cell)
    behind = plan.graph.ancestors(cell.jobs)
    return sum(cost.work(plan.graph[key], plan.graph) for key in behind if plan.graph[key].kind in kinds)


@pytest.mark.parametrize(("ipc", "stages"), [(5, 2), (2, 5), (10, 5)])
def test_stages_spend_as_much_synthesis_as_a_single_stage(plan: Plan, ipc: int, stages: int) -> None:
    one = work_of(plan, "distil", method="MTT", ipc=ipc * stages, stages=1)
    several = work_of(plan, "distil", method="PDD+MTT", ipc=ipc, stages=stages)
    assert several == pytest.approx(one, rel=0.01)


@pytest.mark.parametrize(("ipc", "stages"), [(5, 2), (2, 5), (10, 5)])
def test_a_single_stage_that_is_as_long_in_all_spends_as_much(plan: Plan, ipc: int, stages: int) -> None:
    name = f"MTT as long as {stages} stages in all"
    one = work_of(plan, "distil", "experts", method=name, ipc=ipc * stages, stages=1)
    several = work_of(plan, "distil", "experts", method="PDD+MTT", ipc=ipc, stages=stages)
    assert several == pytest.approx(one, rel=0.01)

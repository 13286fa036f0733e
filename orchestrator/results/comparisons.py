"""Paired comparisons of arms over seeds: the honest answer to "is this method better here?".

Arms of one experiment that end at the same images per class are compared pair by pair. The unit is a seed: the mean
over its networks, so that networks of one synthetic set do not pass for independent runs. With the seeds in common
cancelled out, the mean difference gets Student's t interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from jobs.experiment import Cell, Plan
from orchestrator.results.cells import Reader, accuracy_of, label
from orchestrator.results.statistics import Difference, mean, paired_difference

LEAST_SEEDS = 3
"""Seeds below which an interval says nothing."""


@dataclass(frozen=True)
class Comparison:
    """`better` minus `worse` in percentage points, over the seeds that both have; named by the sign of the mean."""

    experiment: str
    architecture: str
    ipc_total: int
    better: str
    worse: str
    difference: Difference

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain values."""
        names = ("experiment", "architecture", "ipc_total", "better", "worse")
        return {name: getattr(self, name) for name in names} | self.difference._asdict()


def comparisons(plan: Plan, store: Reader) -> list[Comparison]:
    """Every pair of last stages of one experiment, architecture and total of images that share enough seeds."""
    last = [cell for cell in plan.cells if cell.stage and cell.stage == cell.stages]
    return list(_pairs([(cell, accuracy_by_seed(cell, plan, store)) for cell in last]))


def accuracy_by_seed(cell: Cell, plan: Plan, store: Reader) -> dict[int, float]:
    """The mean accuracy of each seed's networks in percent, for seeds of which every network is measured."""
    values: dict[int, list[float | None]] = {}
    for key in cell.jobs:
        seed = int(getattr(plan.graph[key].spec, "seed", 0))
        values.setdefault(seed, []).append(accuracy_of(store, key))
    complete = {seed: [value for value in several if value is not None] for seed, several in values.items()}
    means = {seed: mean(several) for seed, several in complete.items() if len(several) == len(values[seed])}
    return {seed: value for seed, value in means.items() if value is not None}


def arm_in_brief(cell: Cell) -> str:
    """The arm as comparisons name it, with stages x images per class: `PDD+MTT (5 x 10)`."""
    return f"{label(cell, stage=False)} ({cell.stages} x {cell.ipc_per_stage})"


def _pairs(measured: Sequence[tuple[Cell, Mapping[int, float]]]) -> Iterator[Comparison]:
    for (cell, accuracies), (other, others) in combinations(measured, 2):
        seeds = sorted(accuracies.keys() & others.keys())
        if _setting(cell) != _setting(other) or len(seeds) < LEAST_SEEDS:
            continue
        difference = paired_difference([accuracies[seed] for seed in seeds], [others[seed] for seed in seeds])
        if difference.mean < 0:
            cell, other, difference = other, cell, -difference
        yield Comparison(
            cell.experiment, cell.architecture, cell.ipc_total, arm_in_brief(cell), arm_in_brief(other), difference
        )


def _setting(cell: Cell) -> tuple[str, str, str, int, int]:
    """What two arms must share to be compared."""
    return cell.experiment, cell.dataset, cell.architecture, cell.ipc_total, cell.phase

"""Paired comparisons of arms over seeds: the honest answer to "is this method better here?".

Arms of one experiment that end at the same images per class are compared pair by pair. The unit is a seed: the mean
over its networks, so that networks of one synthetic set do not pass for independent runs. With the seeds in common
cancelled out, the mean difference gets Student's t interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

from jobs.experiment import Cell, Plan
from orchestrator.results.cells import Reader, accuracy_in, label, manifest_of

LEAST = 3
"""Seeds below which an interval says nothing."""


class Paired(NamedTuple):
    """A mean difference of n pairs and its 95 % interval, whose bounds are NaN for a single pair."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """`better` minus `worse` in percentage points, over the seeds that both have; named by the sign of the mean."""

    experiment: str
    architecture: str
    ipc_total: int
    better: str
    worse: str
    paired: Paired

    def to_json(self) -> dict[str, Any]:
        """The contrast as plain values."""
        plain = {name: getattr(self, name) for name in ("experiment", "architecture", "ipc_total", "better", "worse")}
        return {**plain, **self.paired._asdict()}


def paired(values_a: Sequence[float], values_b: Sequence[float]) -> Paired:
    """The mean of a - b over pairs, with Student's t interval (95 %, n - 1 degrees of freedom).

    For studies in which both arms share seeds and networks, so that what a pair has in common cancels out.

    Raises:
        ValueError: the two do not pair up, or there is no pair.
    """
    differences = [a - b for a, b in zip(values_a, values_b, strict=True)]
    n = len(differences)
    if not n:
        raise ValueError("paired: there is no pair of values")
    mean = statistics.fmean(differences)
    if n == 1:
        return Paired(mean, math.nan, math.nan, n)
    from scipy import stats  # type: ignore[import-untyped]  # takes half a second, and only studies need it

    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return Paired(mean, mean - half, mean + half, n)


def comparisons(plan: Plan, store: Reader) -> list[Comparison]:
    """Every pair of last stages of one experiment, architecture and total of images that share enough seeds."""
    measured = [(cell, _by_seed(cell, plan, store)) for cell in plan.cells if cell.stage and cell.stage == cell.stages]
    return list(_pairs(measured))


def _pairs(measured: Sequence[tuple[Cell, Mapping[int, float]]]) -> Iterator[Comparison]:
    for (one, ones), (other, others) in combinations(measured, 2):
        seeds = sorted(ones.keys() & others.keys())
        if _place(one) != _place(other) or len(seeds) < LEAST:
            continue
        found = paired([ones[seed] for seed in seeds], [others[seed] for seed in seeds])
        if found.mean < 0:
            one, other = other, one
            found = Paired(-found.mean, -found.high, -found.low, found.n)
        yield Comparison(one.experiment, one.architecture, one.ipc_total, _name(one), _name(other), found)


def _place(cell: Cell) -> tuple[str, str, str, int, int]:
    return cell.experiment, cell.dataset, cell.architecture, cell.ipc_total, cell.phase


def _name(cell: Cell) -> str:
    return f"{label(cell, stage=False)} ({cell.stages} x {cell.ipc_per_stage})"


def _by_seed(cell: Cell, plan: Plan, store: Reader) -> dict[int, float]:
    """The mean accuracy of each seed's networks, for seeds of which every network is measured."""
    values: dict[int, list[float | None]] = {}
    for key in cell.jobs:
        manifest = manifest_of(store, key)
        seed = int(getattr(plan.graph[key].spec, "seed", 0))
        values.setdefault(seed, []).append(None if manifest is None else accuracy_in(manifest))
    whole = {
        seed: [value for value in found if value is not None] for seed, found in values.items() if None not in found
    }
    return {seed: statistics.fmean(found) for seed, found in whole.items()}

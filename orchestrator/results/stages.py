"""Stages: what the distillation of each arm came to, stage after stage, and the chains of sets behind its last one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.experiment import Cell, Plan
from jobs.graph import Job
from jobs.outcomes import DistilOutcome, ExpertsOutcome
from jobs.specs import DistilSpec, EvaluateSpec
from orchestrator.results.cells import Reader, outcome_of


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """How the distillation of one stage went; None where nothing is known (yet).

    Attributes:
        expert_start: mean held-out accuracy (percent) of the stage's experts before they see real data.
        expert_end: the same after their training.
        iterations: how many were asked for; `kept` is the one whose images were chosen.
        first_loss: matching loss of the first iteration; `loss` is that of the last.
        step_size: learned with the kept images.
        held_out: mean held-out accuracy (percent) after training on the earlier sets and the kept images.
        labels: where the soft labels come from, in words; None for hard ones.
    """

    experiment: str
    arm: str
    seed: int
    stage: int
    stages: int
    key: str
    distilled: bool
    iterations: int
    expert_start: float | None = None
    expert_end: float | None = None
    kept: int | None = None
    first_loss: float | None = None
    loss: float | None = None
    step_size: float | None = None
    held_out: float | None = None
    labels: str | None = None


@dataclass(frozen=True)
class Chain:
    """The sets S_1..S_P, by key, on which the networks of an arm's last cells were trained."""

    cell: Cell
    sets: tuple[str, ...]


def stage_results(plan: Plan, store: Reader) -> list[StageResult]:
    """One result per distilled stage of every chain of the plan."""
    return [
        _stage_result(chain, plan, store, key)
        for chain in chains(plan)
        for key in chain.sets
        if plan.graph[key].kind == "distil"
    ]


def chains(plan: Plan) -> list[Chain]:
    """The synthetic or selected sets behind the last stage of every arm, each once, in order of cells."""
    by_sets: dict[tuple[str, ...], Chain] = {}
    for cell in plan.cells:
        if cell.stage == cell.stages:
            for key in cell.jobs:
                for sets in _by_phase(plan.graph[key]):
                    by_sets.setdefault(sets, Chain(cell, sets))
    return [chain for sets, chain in by_sets.items() if sets]


def arm_label(cell: Cell) -> str:
    """The arm with its images per class: `PDD+MTT, 2 stages of 2 images per class`."""
    stages = f"{cell.stages} stages of " if cell.stages > 1 else ""
    images = "1 image" if cell.ipc_per_stage == 1 else f"{cell.ipc_per_stage} images"
    return f"{cell.method}, {stages}{images} per class"


def _by_phase(job: Job) -> list[tuple[str, ...]]:
    """The sets that a network was trained on; in class-incremental learning each phase has a chain of its own."""
    sets = job.parents.get("sets", ())
    size = len(sets) // max(1, len(job.spec.phases) if isinstance(job.spec, EvaluateSpec) else 1)
    return [sets[first : first + size] for first in range(0, len(sets), max(1, size))]


def _stage_result(chain: Chain, plan: Plan, store: Reader, key: str) -> StageResult:
    job, outcome = plan.graph[key], outcome_of(store, key, DistilOutcome)
    assert isinstance(job.spec, DistilSpec)
    known: dict[str, Any] = (
        {
            "kept": outcome.iteration,
            "first_loss": outcome.first_loss,
            "loss": outcome.loss,
            "step_size": outcome.step_size,
            "held_out": outcome.held_out,
        }
        if outcome
        else {}
    )
    batches = [
        (getattr(plan.graph[parent].spec, "count", 1), batch)
        for parent in job.parents.get("experts", ())
        if (batch := outcome_of(store, parent, ExpertsOutcome)) is not None
    ]
    return StageResult(
        experiment=chain.cell.experiment,
        arm=arm_label(chain.cell),
        seed=job.spec.seed,
        stage=job.spec.stage,
        stages=chain.cell.stages,
        key=key,
        distilled=outcome is not None,
        iterations=job.spec.iterations,
        expert_start=_weighted_mean([(count, batch.start_accuracy) for count, batch in batches]),
        expert_end=_weighted_mean([(count, batch.end_accuracy) for count, batch in batches]),
        labels=job.spec.labels.words if job.spec.labels is not None else None,
        **known,
    )


def _weighted_mean(weighted: Sequence[tuple[int, float]]) -> float | None:
    """The mean of values that stand for `weight` experts each."""
    total = sum(weight for weight, _ in weighted)
    return sum(weight * value for weight, value in weighted) / total if total else None

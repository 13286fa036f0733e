"""Results: what the networks of each table cell reached, as plain values.

A cell of the plan becomes a `Result` by reading the manifests of its jobs; nothing is trained or decided
here. The standard deviation is the population one (ddof 0), which is what every published code of this
field prints, and `n` counts the networks that were measured, so an unfinished cell still says what is
known of it.

`tabulate` arranges results as the table that every reader sees, as text. How it is set (Markdown, a
terminal) is left to `orchestrator.reports.experiment_report`, and where a failure's reason comes from to whoever ran
the jobs and passes it in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

from jobs.errors import Damaged
from jobs.experiment import SELECTIONS, Cell, Plan
from jobs.graph import Job
from jobs.outcomes import DistilOutcome, ExpertsOutcome, NetworkOutcome, Outcome
from jobs.specs import DistilSpec, EvaluateSpec
from orchestrator.results import statistics
from workers.store.store import Manifest

SCALES = {
    "paper": "scale: paper: the published settings; `explain` prints each number with its source",
    "small": "scale: small: a reduced setting, not a reproduction of the paper",
    "tiny": "scale: tiny: seconds of work to see that everything runs, not a reproduction of the paper",
}

Kind = TypeVar("Kind", bound=Outcome)


class Reader(Protocol):
    """What is needed of a store."""

    def manifest(self, key: str) -> Manifest:
        """The manifest of an artifact; raises `Damaged` where there is none."""
        ...


@dataclass(frozen=True, kw_only=True)
class Result:
    """One cell of a table, measured as far as the store goes.

    Attributes:
        ipc_total: images per class that the networks saw, the union of stages 1..`stage`; 0 for full data.
        stages: how many stages the arm has; `stage` is the prefix that this cell is about (0: full data).
        phase: in class-incremental learning the phase after which the networks were trained and tested; else 0.
        mean: mean test accuracy of the measured networks in percent; None if there is none.
        std: their population standard deviation in percentage points; 0 for one, None for no network.
        n: how many networks were measured.
        published_mean: the paper's accuracy for this cell in percent, where the paper has the cell.
        balanced_mean: mean balanced accuracy in percent, where the classes of the test split are uneven.
        key: the cell's identity: a digest of the keys of its jobs.
        jobs: the keys of its `evaluate` or `full` jobs.
        values: the accuracies of the measured networks in percent, in the order of `jobs`.
        missing: the keys of the jobs that have no artifact.
        guessing: the accuracy in percent of guessing among the classes.
        reason: why jobs are missing, as `<key>: <message>`, if one of them or of their ancestors failed.
    """

    experiment: str
    method: str
    base_method: str
    dataset: str
    scale: str
    architecture: str
    mode: str
    ipc_total: int
    ipc_per_stage: int
    stages: int
    stage: int
    phase: int = 0
    mean: float | None
    std: float | None
    n: int
    published_mean: float | None = None
    published_std: float | None = None
    balanced_mean: float | None = None
    key: str
    jobs: tuple[str, ...]
    values: tuple[float, ...]
    missing: tuple[str, ...] = ()
    reason: str = ""
    guessing: float = 0.0

    @property
    def state(self) -> str:
        """`done`, `partial (k of n)`, `failed` or `not run`."""
        if not self.missing:
            return "done"
        if self.values:
            return f"partial ({self.n} of {len(self.jobs)})"
        return "failed" if self.reason else "not run"

    def to_json(self) -> dict[str, Any]:
        """The result as the JSON interface spells it, with its state."""
        plain = asdict(self) | {name: list(getattr(self, name)) for name in ("jobs", "values", "missing")}
        return {**plain, "state": self.state}


@dataclass(frozen=True)
class ResultTable:
    """A table of results as text, for Markdown and the console alike."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str
    notes: tuple[str, ...]
    """Why a cell has no number, or not all of them."""
    best: frozenset[tuple[int, int]] = frozenset()
    """Row and column of the best number of each column, full data aside."""


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


@dataclass(frozen=True)
class Chain:
    """The sets S_1..S_P, by key, on which the networks of an arm's last cells were trained."""

    cell: Cell
    sets: tuple[str, ...]


def collect(plan: Plan, store: Reader, failures: Mapping[str, str] | None = None) -> list[Result]:
    """One result per cell of the plan, in its order.

    Args:
        plan: the cells, and the graph in which the cause of a missing one is looked for.
        store: where the manifests are.
        failures: messages of the jobs that failed, by key.
    """
    return [_result(cell, plan, store, failures or {}) for cell in plan.cells]


def stage_results(plan: Plan, store: Reader) -> list[StageResult]:
    """One result per distilled stage of every chain of the plan."""
    return [
        _stage_result(chain, plan, store, key)
        for chain in chains(plan)
        for key in chain.sets
        if plan.graph[key].kind == "distil"
    ]


def artifacts(plan: Plan, store: Reader) -> list[dict[str, str]]:
    """`key`, `kind` and `digest` of every artifact of the plan that is there, parents before children.

    The digest is over the data files: two runs with the same digests have the same results, byte for byte.
    """
    return [
        {"key": manifest.key, "kind": manifest.kind, "digest": manifest.digest} for manifest in manifests(plan, store)
    ]


def manifests(plan: Plan, store: Reader) -> list[Manifest]:
    """The manifest of every artifact of the plan that is there, parents before children."""
    return [manifest for job in plan.graph if (manifest := manifest_of(store, job.key)) is not None]


def tabulate(results: Sequence[Result]) -> ResultTable:
    """Rows are arms and stages, full data last; columns are architectures, and experiments if several."""
    architectures = tuple(dict.fromkeys(result.architecture for result in results))
    several = len({result.experiment for result in results}) > 1
    rows, notes = [], []
    by_row = _rows(results)
    for row in by_row:
        first = next(iter(row.values()))
        ipc = str(first.ipc_total) if first.stage else "all"
        cells = [_cell_text(row[name]) if name in row else "" for name in architectures]
        rows.append((*([first.experiment] if several else []), label(first), ipc, *cells))
        notes += _notes(row.values())
    header = (*(["Experiment"] if several else []), "Method", "Images per class", *architectures)
    first_number = len(header) - len(architectures)
    best = frozenset(
        (row, first_number + column)
        for column, name in enumerate(architectures)
        for row in best_of([_distilled_mean(results_of_row.get(name)) for results_of_row in by_row])
    )
    return ResultTable(_title(results), header, tuple(rows), _caption(results), tuple(notes), best)


def best_of(means: Sequence[float | None]) -> list[int]:
    """The positions of the largest number, as it is printed; none where there are not two numbers to choose from."""
    printed = [None if mean is None else round(mean, 1) for mean in means]
    known = [mean for mean in printed if mean is not None]
    return [number for number, mean in enumerate(printed) if len(known) > 1 and mean == max(known)]


def label(result: Result | Cell, *, stage: bool = True) -> str:
    """What a row is called: `PDD+MTT, stage 2 of 2`; a mode of evaluation other than the usual is said."""
    after = f", phase {result.phase}" if result.phase else ""
    if result.base_method in (*SELECTIONS, "full"):
        return result.method + after
    prefix = f", stage {result.stage} of {result.stages}" if stage and result.stages > 1 and not after else ""
    return result.method + prefix + after + ("" if result.mode == "progressive" else f", {result.mode}")


def by_experiment(results: Sequence[Result]) -> list[list[Result]]:
    """The results of each experiment, dataset and scale, in the order in which they came."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.experiment, result.dataset, result.scale), []).append(result)
    return list(groups.values())


def chains(plan: Plan) -> list[Chain]:
    """The synthetic or selected sets behind the last stage of every arm, each once, in order of cells."""
    by_sets: dict[tuple[str, ...], Chain] = {}
    for cell in plan.cells:
        if cell.stage == cell.stages:
            for key in cell.jobs:
                for sets in _by_phase(plan.graph[key]):
                    by_sets.setdefault(sets, Chain(cell, sets))
    return [chain for sets, chain in by_sets.items() if sets]


def _by_phase(job: Job) -> list[tuple[str, ...]]:
    """The sets that a network was trained on; in class-incremental learning each phase has a chain of its own."""
    sets = job.parents.get("sets", ())
    size = len(sets) // max(1, len(job.spec.phases) if isinstance(job.spec, EvaluateSpec) else 1)
    return [sets[first : first + size] for first in range(0, len(sets), max(1, size))]


def arm_label(cell: Cell) -> str:
    """The arm with its images per class: `PDD+MTT, 2 stages of 2 images per class`."""
    stages = f"{cell.stages} stages of " if cell.stages > 1 else ""
    images = "1 image" if cell.ipc_per_stage == 1 else f"{cell.ipc_per_stage} images"
    return f"{cell.method}, {stages}{images} per class"


def manifest_of(store: Reader, key: str) -> Manifest | None:
    """The manifest of an artifact, or None if the artifact is absent or was just found damaged."""
    try:
        return store.manifest(key)
    except Damaged:
        return None


def outcome_of(store: Reader, key: str, kind: type[Kind]) -> Kind | None:
    """What a job left in its manifest; None where the artifact is absent, or it or its numbers are damaged.

    Args:
        store: where the manifest is.
        key: of the job.
        kind: the class of what its kind of job leaves.
    """
    try:
        return kind.from_extra(store.manifest(key).extra)
    except Damaged:
        return None


def accuracy_of(store: Reader, key: str) -> float | None:
    """The test accuracy in percent of an `evaluate` or `full` job; None where it is absent or damaged."""
    outcome = outcome_of(store, key, NetworkOutcome)
    return None if outcome is None else outcome.accuracy


def _result(cell: Cell, plan: Plan, store: Reader, failures: Mapping[str, str]) -> Result:
    outcomes = {key: outcome_of(store, key, NetworkOutcome) for key in cell.jobs}
    measured = [outcome for outcome in outcomes.values() if outcome is not None]
    values = tuple(outcome.accuracy for outcome in measured)
    balanced = [outcome.balanced_accuracy for outcome in measured if outcome.balanced_accuracy is not None]
    missing = tuple(key for key, outcome in outcomes.items() if outcome is None)
    return Result(
        experiment=cell.experiment,
        method=cell.method,
        base_method=cell.base_method,
        dataset=cell.dataset,
        scale=cell.scale,
        architecture=cell.architecture,
        mode=cell.mode,
        ipc_total=cell.ipc_total,
        ipc_per_stage=cell.ipc_per_stage,
        stages=cell.stages,
        stage=cell.stage,
        phase=cell.phase,
        mean=statistics.mean(values),
        std=statistics.population_std(values),
        n=len(values),
        key=_key(cell),
        balanced_mean=statistics.mean(balanced),
        jobs=cell.jobs,
        values=values,
        missing=missing,
        reason=_reason(plan, missing, failures),
        guessing=cell.guessing,
    )


def _key(cell: Cell) -> str:
    return "result-" + hashlib.sha256("\n".join(cell.jobs).encode()).hexdigest()[:16]


def _reason(plan: Plan, missing: Sequence[str], failures: Mapping[str, str]) -> str:
    """The first failure, parents before children, among the missing jobs and all that they hang on."""
    if not missing or not failures:
        return ""
    suspects = plan.graph.ancestors(missing)
    cause = next((job.key for job in plan.graph if job.key in suspects and job.key in failures), None)
    return "" if cause is None else f"{cause}: {failures[cause]}"


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
        **known,
    )


def _weighted_mean(weighted: Sequence[tuple[int, float]]) -> float | None:
    """The mean of values that stand for `weight` experts each."""
    total = sum(weight for weight, _ in weighted)
    return sum(weight * value for weight, value in weighted) / total if total else None


# The table.


def _rows(results: Sequence[Result]) -> list[dict[str, Result]]:
    """Results by architecture, a new row whenever anything else changes or an architecture comes again."""
    rows: list[dict[str, Result]] = []
    before: tuple[object, ...] = ()
    for result in results:
        group = (result.experiment, result.dataset, label(result), result.ipc_per_stage, result.stage)
        if group != before or result.architecture in rows[-1]:
            rows.append({})
        rows[-1][result.architecture] = result
        before = group
    order = list(dict.fromkeys(next(iter(row.values())).experiment for row in rows))
    return sorted(rows, key=lambda row: _sort_key(next(iter(row.values())), order))


def _distilled_mean(result: Result | None) -> float | None:
    """The mean of a result; None for full data, which is a bound and no competitor."""
    return result.mean if result is not None and result.stage else None


def _sort_key(result: Result, experiments: Sequence[str]) -> tuple[int, bool]:
    return experiments.index(result.experiment), result.stage == 0


def _cell_text(result: Result) -> str:
    if result.mean is None:
        return result.state
    text = f"{result.mean:.1f}" if result.n == 1 else f"{result.mean:.1f} ± {result.std:.1f}"
    if result.balanced_mean is not None:
        text += f" (balanced {result.balanced_mean:.1f})"
    if result.published_mean is not None:
        text += f" [{result.published_mean:.1f}]"
    return f"{text} ({result.n} of {len(result.jobs)})" if result.missing else text


def _title(results: Sequence[Result]) -> str:
    names = dict.fromkeys(f"{result.experiment} on {result.dataset}" for result in results)
    scales = dict.fromkeys(SCALES[result.scale] for result in results)
    return f"{', '.join(names)} ({'; '.join(scales)})"


def _caption(results: Sequence[Result]) -> str:
    sizes = sorted({len(result.jobs) for result in results})
    n = " or ".join(map(str, sizes))
    networks = "network" if sizes == [1] else "networks"
    spread = "mean" if sizes == [1] else "mean ± population standard deviation"
    compared = any(result.published_mean is not None for result in results)
    published = "; in brackets: published" if compared else ""
    guessing = " or ".join(f"{guess:.1f}" for guess in sorted({result.guessing for result in results}))
    return f"Test accuracy in percent, {spread} over n = {n} {networks} per cell{published}. Guessing: {guessing} %."


def _notes(row: Iterable[Result]) -> list[str]:
    """One note per reason: the row, its architectures, the reason."""
    reasons: dict[str, list[Result]] = {}
    for result in row:
        if result.missing:
            reason = f"failed: {result.reason}" if result.reason else "not run"
            reasons.setdefault(reason, []).append(result)
        elif result.mean is not None and result.mean <= result.guessing < 100:
            reasons.setdefault(f"no better than guessing ({result.guessing:.1f} %)", []).append(result)
    return [
        f"{label(incomplete[0])} ({', '.join(map(_shortfall, incomplete))}): {reason}"
        for reason, incomplete in reasons.items()
    ]


def _shortfall(result: Result) -> str:
    missing = f", {len(result.missing)} of {len(result.jobs)} networks" if result.values and result.missing else ""
    return result.architecture + missing

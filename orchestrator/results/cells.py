"""Results: what the networks of each table cell reached, as plain values.

A cell of the plan becomes a `Result` by reading the manifests of its jobs; nothing is trained or decided
here. The standard deviation is the population one (ddof 0), which is what every published code of this
field prints, and `n` counts the networks that were measured, so an unfinished cell still says what is
known of it.

Where a failure's reason comes from is left to whoever ran the jobs and passes it in. What stages came to is in
`orchestrator.results.stages`, the table of results in `orchestrator.results.result_table`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

from jobs.errors import Damaged
from jobs.experiment import SELECTIONS, Cell, Plan
from jobs.outcomes import NetworkOutcome, Outcome
from orchestrator.results import statistics
from workers.store.store import Manifest

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


def collect(plan: Plan, store: Reader, failures: Mapping[str, str] | None = None) -> list[Result]:
    """One result per cell of the plan, in its order.

    Args:
        plan: the cells, and the graph in which the cause of a missing one is looked for.
        store: where the manifests are.
        failures: messages of the jobs that failed, by key.
    """
    return [_result(cell, plan, store, failures or {}) for cell in plan.cells]


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

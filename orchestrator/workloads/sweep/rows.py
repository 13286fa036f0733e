"""The trials of a sweep as rows: how far each came, what it measured, what it cost.

A trial costs the worker time of the jobs behind the stages it reached. What is shared is counted for each trial that
needs it; the marginal cost is that of the jobs which no other trial needs, so it is what leaving the trial out would
have saved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.sweep import Values
from orchestrator.results.cells import manifest_of
from orchestrator.workloads.sweep.trials import TrialState, jobs_up_to
from workers.store.store import Store


@dataclass(frozen=True)
class Row:
    """One trial: its values, how far it came, the metrics after each stage, and its cost in seconds of a worker."""

    number: int
    values: Values
    state: str
    why: str
    stages: int
    ipc_per_stage: int
    metrics: tuple[dict[str, float], ...]
    seconds: float
    marginal_seconds: float
    rank: int
    """1 for the best; 0 for a trial that did not win."""

    @property
    def stage(self) -> int:
        """The last stage that was reported."""
        return len(self.metrics)

    def score(self, metric: str) -> float | None:
        """The metric after the last stage reported."""
        return self.metrics[-1][metric] if self.metrics else None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Row:
        """The row that `to_json` gave."""
        named = {name: value for name, value in document.items() if name not in ("trial", "stage")}
        return cls(number=document["trial"], **named | {"metrics": tuple(document["metrics"])})

    def to_json(self) -> dict[str, Any]:
        """As `sweep --json` prints it."""
        return {
            "trial": self.number,
            "values": self.values,
            "state": self.state,
            "why": self.why,
            "stage": self.stage,
            "stages": self.stages,
            "ipc_per_stage": self.ipc_per_stage,
            "metrics": list(self.metrics),
            "seconds": round(self.seconds, 3),
            "marginal_seconds": round(self.marginal_seconds, 3),
            "rank": self.rank,
        }


def rows(standings: Sequence[TrialState], winners: Sequence[TrialState], store: Store) -> list[Row]:
    """One row per trial, in order of their numbers; costs are read from the manifests."""
    needed = [{job.key for job in jobs_up_to(one.trial, one.stage)} for one in standings]
    owners = Counter(key for keys in needed for key in keys)
    manifests = {key: manifest_of(store, key) for key in owners}
    seconds = {key: manifest.seconds if manifest is not None else 0.0 for key, manifest in manifests.items()}
    ranks = {one.trial.id: rank for rank, one in enumerate(winners, start=1)}
    made = [
        Row(
            number=one.trial.number,
            values=one.trial.values,
            state=one.state,
            why=one.why,
            stages=len(one.trial.stages),
            ipc_per_stage=one.trial.ipc_per_stage,
            metrics=tuple(dict(answer.metrics) for answer in one.reported),
            seconds=sum(seconds[key] for key in keys),
            marginal_seconds=sum(seconds[key] for key in keys if owners[key] == 1),
            rank=ranks.get(one.trial.id, 0),
        )
        for one, keys in zip(standings, needed, strict=True)
    ]
    return sorted(made, key=lambda row: row.number)

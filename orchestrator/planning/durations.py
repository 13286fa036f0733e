"""How long each job will take: measured seconds where the store has some, its work at a machine's rate else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jobs import cost
from jobs.graph import Graph, Job
from jobs.keys import kind_of
from jobs.specs import DistilSpec, ExpertsSpec
from workers.store.store import Store

WORKERS = (1, 4, 16, 64)
"""The sizes for which `plan` prints a makespan."""


DurationSource = Literal["measured", "corrected", "calibrated"]
"""Where a price comes from: the job itself, or one of its size, was measured in this store; or jobs of its kind were,
and the price of its work is corrected by how far they were off; or it is its work at the calibrated rate alone."""


@dataclass(frozen=True)
class Durations:
    """Seconds of every job by key, and where each comes from."""

    seconds: Mapping[str, float]
    witnesses: Mapping[str, DurationSource]

    def of(self, job: Job) -> float:
        """Seconds of a job on one worker."""
        return self.seconds[job.key]

    @property
    def measured(self) -> int:
        """How many were measured rather than estimated."""
        return sum(witness == "measured" for witness in self.witnesses.values())


def estimate_durations(graph: Graph, store: Store, machine: cost.Machine = cost.CORE) -> Durations:
    """Seconds by key, each by its best witness."""
    taken = {key: store.manifest(key).seconds for key in stored_keys(graph, store)}
    efforts = {job.key: cost.effort(job, graph) for job in graph}
    seconds = {key: cost.estimate(needed, machine) for key, needed in efforts.items()}
    witnesses: dict[str, DurationSource] = dict.fromkeys(graph.jobs, "calibrated")
    if not taken:
        return Durations(seconds, witnesses)
    corrections = _corrections(taken, seconds)
    signatures = {job.key: cost.signature(job, graph, efforts[job.key]) for job in graph}
    alike: dict[cost.Signature, float] = {}
    for key, measured in taken.items():
        alike.setdefault(signatures[key], measured)
    for job in graph:
        if signatures[job.key] in alike:
            seconds[job.key] = taken.get(job.key, alike[signatures[job.key]])
            witnesses[job.key] = "measured"
        elif job.kind in corrections:
            seconds[job.key] *= corrections[job.kind]
            witnesses[job.key] = "corrected"
    return Durations(seconds, witnesses)


def stored_keys(graph: Graph, store: Store) -> set[str]:
    """The keys of a graph whose artifacts are whole in the store."""
    return {key for key in graph.jobs.keys() & set(store.keys()) if store.has(key)}


def core_here(workers: int) -> cost.Machine:
    """A core of this machine, as fast as it was for a moment with as many workers at once."""
    from workers.training import speed  # takes torch along

    return cost.CORE.slower(speed.slowness(workers))


def _corrections(taken: Mapping[str, float], estimated: Mapping[str, float]) -> dict[str, float]:
    """By kind of what was measured: the seconds it took by the seconds that were estimated."""
    sums: dict[str, tuple[float, float]] = {}
    for key, measured in taken.items():
        real, thought = sums.get(kind_of(key), (0.0, 0.0))
        sums[kind_of(key)] = real + measured, thought + estimated[key]
    return {kind: real / thought for kind, (real, thought) in sums.items() if real and thought}


def uninterrupted(job: Job, seconds: float) -> float:
    """Of a job's seconds those that are lost if it has to leave at a bad moment: it should find room for them.

    A stage saves wherever it is; a batch of experts after each of its experts; the others start again from nothing.
    """
    match job.spec:
        case DistilSpec():
            return 0.0
        case ExpertsSpec(count=count):
            return seconds / count
    return seconds

"""How long each job will take: measured seconds where the store has some, else its work at a machine's rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

from jobs import cost, machines
from jobs.errors import Damaged
from jobs.experiment import Plan
from jobs.graph import Graph, Job
from jobs.keys import kind_of
from jobs.specs import DistilSpec, ExpertsSpec
from orchestrator.planning.host_speed import host_speed, machine_of_card
from orchestrator.scheduler.schedule import Row, Schedule, rank_rows
from workers.store.store import Manifest, Store

DurationSource = Literal["measured", "corrected", "calibrated", "assumed"]
"""Where a duration comes from: the job itself, or one of its size, was measured in this store; or other jobs
were, and the estimate from its work is corrected by how far they were off; or it is its work at the calibrated rate
alone; or its method declares no cost, and it is assumed to take what trajectory matching would."""

ALL = ""
"""The name of no kind, for what is true of all kinds together."""


@dataclass(frozen=True)
class Durations:
    """Seconds of every job by key, and where each comes from; `stored` are those whose artifacts are whole."""

    seconds: Mapping[str, float]
    sources: Mapping[str, DurationSource]
    stored: frozenset[str] = frozenset()

    def of(self, job: Job) -> float:
        """Seconds of a job on one worker."""
        return self.seconds[job.key]

    def count(self) -> dict[DurationSource, int]:
        """How many durations come from each source."""
        counts = Counter(self.sources.values())
        return {source: counts[source] for source in get_args(DurationSource)}

    def total(self, keys: Iterable[str]) -> float:
        """The seconds of these jobs, one after the other."""
        return sum(self.seconds[key] for key in keys)


def estimate_durations(graph: Graph, store: Store, machine: machines.Machine = machines.CORE) -> Durations:
    """Estimate the seconds of every job on a machine, each from the best source there is.

    Args:
        graph: the jobs.
        store: where times were measured.
        machine: what a worker is.
    """
    measured = {key: manifest.seconds for key, manifest in stored_manifests(graph, store)}
    declared, undeclared = _plug_in_costs(graph)
    efforts = {job.key: cost.effort(job, graph, declared) for job in graph}
    seconds = {key: machines.estimate(effort, machine) for key, effort in efforts.items()}
    sources: dict[str, DurationSource] = {
        job.key: "assumed" if getattr(job.spec, "method", "") in undeclared else "calibrated" for job in graph
    }
    if not measured:
        return Durations(seconds, sources)
    corrections = _corrections({key: value for key, value in measured.items() if sources[key] != "assumed"}, seconds)
    signatures = {job.key: cost.signature(job, graph, efforts[job.key]) for job in graph}
    alike: dict[cost.Signature, float] = {}
    for key, value in measured.items():
        alike.setdefault(signatures[key], value)
    for job in graph:
        if signatures[job.key] in alike:
            seconds[job.key] = measured.get(job.key, alike[signatures[job.key]])
            sources[job.key] = "measured"
        elif corrections:
            seconds[job.key] *= corrections.get(job.kind, corrections[ALL])
            if sources[job.key] != "assumed":
                sources[job.key] = "corrected"
    return Durations(seconds, sources, frozenset(measured))


def schedule_of(plan: Plan, durations: Durations, **limits: Any) -> Schedule:
    """The driver's schedule for a plan; `limits` are optional fields of `Schedule`."""
    parents = {job.key: job.parent_keys() for job in plan.graph}
    left = {key: 0.0 if key in durations.stored else seconds for key, seconds in durations.seconds.items()}
    rank = rank_rows([Row(cell.jobs, bound=not cell.stage) for cell in plan.cells], parents, left)
    groups = {"exclusive": plan.exclusive, "limits": plan.limits}
    return Schedule.of(plan.graph, plan.wanted(), durations.of, rank=rank, **groups, **limits)


def stored_keys(graph: Graph, store: Store) -> set[str]:
    """The keys of a graph whose artifacts are whole in the store."""
    return {key for key, _ in stored_manifests(graph, store)}


def stored_manifests(graph: Graph, store: Store) -> Iterator[tuple[str, Manifest]]:
    """The keys of a graph whose artifacts are whole in the store, with their manifests; each folder is listed once."""
    for key in graph.jobs.keys() & set(store.keys()):
        with suppress(Damaged):
            yield key, store.manifest(key)


def machine_of(scale: str, workers: int) -> machines.Machine:
    """What a worker is assumed to be.

    The published scale is for GPUs, as fast as this host's when `pdd doctor --gpu` timed it; other scales are for cores
    of this machine, as fast as one was when it was timed with as many workers at once.
    """
    return machine_of_card() if scale == "paper" else machines.CORE.slower(*host_speed(workers).slowness)


def uninterrupted(job: Job, seconds: float) -> float:
    """Of a job's seconds those that are lost if it has to leave at a bad moment.

    A stage saves wherever it is; a batch of experts after each of its experts; the others start again from nothing.
    """
    match job.spec:
        case DistilSpec():
            return 0.0
        case ExpertsSpec(count=count):
            return seconds / count
    return seconds


def _plug_in_costs(graph: Graph) -> tuple[dict[str, cost.IterationCost], set[str]]:
    """The costs that methods from outside declare, by method, and the methods that declare none."""
    methods = {job.spec.method for job in graph if isinstance(job.spec, DistilSpec)} - cost.ITERATIONS.keys()
    if not methods:
        return {}, set()
    from workers.methods import method_named  # takes torch along

    costs = {method: method_named(method).iteration_cost for method in methods}
    declared = {method: function for method, function in costs.items() if function is not None}
    return declared, methods - declared.keys()


def _corrections(measured: Mapping[str, float], estimated: Mapping[str, float]) -> dict[str, float]:
    """By kind of what was measured, and by `ALL`: the seconds it took divided by the seconds that were estimated.

    A machine that did what was measured more slowly than estimated will do so with other kinds.
    """
    keys: dict[str, list[str]] = {ALL: list(measured)}
    for key in measured:
        keys.setdefault(kind_of(key), []).append(key)
    sums = {
        kind: (sum(measured[key] for key in mine), sum(estimated[key] for key in mine)) for kind, mine in keys.items()
    }
    return {kind: took / expected for kind, (took, expected) in sums.items() if took and expected}

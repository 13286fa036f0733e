"""`plan`: what a run would compute, share and take, as one document and as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from jobs.keys import kind_of
from orchestrator.planning import durations as forecasts
from orchestrator.planning import simulate
from orchestrator.planning.requests import ResolvedRequest
from orchestrator.runs.timeline import duration
from orchestrator.scheduler.schedule import Schedule
from workers.store.store import Store

_HOUR = 3600.0


@dataclass(frozen=True)
class Forecast:
    """The plan's numbers; seconds throughout, on one worker unless said otherwise."""

    kinds: dict[str, tuple[int, int, float]]
    """By kind: jobs cached, jobs to run, seconds to run."""
    unneeded: int
    requested: int
    total: int
    naive: float
    shared: float
    by_experiment: dict[str, tuple[float, float]]
    """By experiment: seconds if it were alone, and seconds only it causes."""
    critical_path: tuple[tuple[str, float], ...]
    makespans: dict[int, float]
    measured: int

    def to_json(self) -> dict[str, Any]:
        """The interface of `plan --json`."""
        cached = sum(cached for cached, _, _ in self.kinds.values())
        running = sum(run for _, run, _ in self.kinds.values())
        return {
            "schema": 1,
            "jobs": {
                "total": self.total,
                "cached": cached,
                "to_run": running,
                "shared": self.requested - self.total,
                "by_kind": {kind: {"cached": row[0], "to_run": row[1]} for kind, row in self.kinds.items()},
            },
            "gpu_hours": {
                "naive": self.naive / _HOUR,
                "shared": self.shared / _HOUR,
                "by_table": {name: alone / _HOUR for name, (alone, _) in self.by_experiment.items()},
                "marginal": {name: own / _HOUR for name, (_, own) in self.by_experiment.items()},
            },
            "critical_path": [
                {"key": key, "kind": kind_of(key), "seconds": seconds} for key, seconds in self.critical_path
            ],
            "makespan_hours": {str(workers): seconds / _HOUR for workers, seconds in self.makespans.items()},
            "price_source": {"measured": self.measured, "calibrated": self.total - self.measured},
            "out_of_scope": [],
        }

    def tables(self) -> list[Any]:
        """The same for people."""
        jobs = Table("kind", "cached", "to run", "worker time", title="jobs", title_justify="left")
        for kind, (cached, run, seconds) in self.kinds.items():
            jobs.add_row(kind, str(cached), str(run), duration(seconds))
        path = Table("job", "time", title="critical path of what is left", title_justify="left")
        for key, seconds in self.critical_path:
            path.add_row(key, duration(seconds))
        spans = ", ".join(f"{workers}: {duration(seconds)}" for workers, seconds in self.makespans.items())
        shared = self.requested - self.total
        return [
            jobs,
            path,
            Text(f"time by number of workers: {spans}"),
            Text(f"{self.total} jobs, {shared} more were shared, {self.unneeded} need not run again"),
            Text(f"prices: {self.measured} measured in this store, {self.total - self.measured} estimated from work"),
        ]


def forecast(asked: ResolvedRequest, store: Store, workers: int) -> Forecast:
    """Everything `plan` says of a request, with makespans for these workers and the usual sizes."""
    graph = asked.plan.graph
    priced = forecasts.estimate_durations(graph, store)
    schedule = schedule_of(asked, priced)
    cached = {job.key for job in graph if store.has(job.key)}
    running = simulate.jobs_to_run(schedule, cached)
    counts: dict[str, tuple[int, int, float]] = {}
    for kind in dict.fromkeys(job.kind for job in graph):
        mine = [key for key in running if kind_of(key) == kind]
        there = sum(kind_of(key) == kind for key in cached)
        counts[kind] = (there, len(mine), sum(priced.seconds[key] for key in mine))
    todo = set(running)
    path = graph.critical_path(lambda job: priced.seconds[job.key] if job.key in todo else 0.0) if todo else []
    groups = _experiments(asked, running)
    sizes = sorted({workers, *forecasts.WORKERS})
    return Forecast(
        kinds=counts,
        unneeded=len(graph) - len(running) - len(cached),
        requested=graph.requested,
        total=len(graph),
        naive=sum(sum(priced.seconds[key] for key in keys) for keys in _arms(asked, running)),
        shared=sum(priced.seconds[key] for key in running),
        by_experiment={
            name: (
                sum(priced.seconds[key] for key in keys),
                sum(priced.seconds[key] for key in keys if _owners(groups)[key] == 1),
            )
            for name, keys in groups.items()
        },
        critical_path=tuple((key, priced.seconds[key]) for key in path if key in todo),
        makespans={n: simulate.makespan(schedule, cached, priced.seconds.__getitem__, n) for n in sizes},
        measured=priced.measured,
    )


def schedule_of(asked: ResolvedRequest, priced: forecasts.Durations, **limits: Any) -> Schedule:
    """The driver's plan for a request."""
    plan = asked.plan
    return Schedule.of(plan.graph, plan.wanted(), priced.of, exclusive=plan.exclusive, limits=plan.limits, **limits)


def _experiments(asked: ResolvedRequest, running: Sequence[str]) -> dict[str, set[str]]:
    """By experiment: the jobs to run that it needs."""
    wanted: dict[str, list[str]] = {}
    for cell in asked.plan.cells:
        wanted.setdefault(cell.experiment, []).extend(cell.jobs)
    todo = set(running)
    return {name: asked.plan.graph.ancestors(keys) & todo for name, keys in wanted.items()}


def _arms(asked: ResolvedRequest, running: Sequence[str]) -> list[set[str]]:
    """For each arm of each experiment: the jobs to run if it shared nothing with the others."""
    wanted: dict[tuple[object, ...], list[str]] = {}
    for cell in asked.plan.cells:
        arm = (cell.experiment, cell.method, cell.base_method, cell.ipc_per_stage, cell.stages)
        wanted.setdefault(arm, []).extend(cell.jobs)
    todo = set(running)
    return [asked.plan.graph.ancestors(keys) & todo for keys in wanted.values()]


def _owners(groups: dict[str, set[str]]) -> Counter[str]:
    return Counter(key for keys in groups.values() for key in keys)

"""The forecast of a run: what experiments or tables would compute, share and take, before anything runs.

Every job has a duration and the source of it (`orchestrator.planning.durations.DurationSource`). At the published scale
they are GPU-hours on the machine that `jobs.cost` assumes, at reduced scales hours of a CPU core.

`naive` is what it would take if every arm of every experiment or table (a method on a dataset, its stages and images
per stage) were run by itself; `shared` what the one graph takes. `marginal` is what only that experiment or table asks
for. The makespans are simulated by the scheduler that will run the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from rich.table import Table
from rich.text import Text

from jobs import machines
from jobs.experiment import Cell, Plan
from jobs.keys import kind_of
from jobs.memory import peak_bytes
from jobs.table import is_dash, walk
from jobs.table_filling import DASH
from orchestrator.planning import card_memory, durations, simulate
from orchestrator.planning.budget import BudgetSelection, select_within_budget
from orchestrator.planning.durations import Durations, DurationSource
from orchestrator.planning.requests import ResolvedRequest
from orchestrator.planning.table_requests import ResolvedTables
from orchestrator.runs.timeline import duration
from orchestrator.scheduler.schedule import Schedule
from workers.store.store import Store

SIZES = (1, 4, 16, 64, 256)
"""The numbers of workers for which a makespan is simulated."""
_HOUR = 3600.0


@dataclass(frozen=True)
class PlannedCell:
    """A cell of an experiment or table; without jobs, `missing` says why."""

    group: str
    """The experiment or table."""
    name: str
    cell: Cell | None
    missing: str = ""
    dash: bool = False
    """Whether the paper prints a dash there."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The jobs that fill it."""
        return self.cell.jobs if self.cell else ()

    @property
    def arm(self) -> tuple[object, ...]:
        """What it shares with the other cells of its arm."""
        assert self.cell is not None
        cell = self.cell
        return self.group, cell.dataset, cell.method, cell.base_method, cell.ipc_per_stage, cell.stages

    def __str__(self) -> str:
        return f"{self.group}: {self.name}"


@dataclass(frozen=True)
class Planned:
    """What a forecast is about: a plan, and its cells by experiment or table."""

    plan: Plan
    scale: str
    cells: tuple[PlannedCell, ...]
    missing_datasets: tuple[str, ...] = ()
    """Datasets that are planned with and not here, each with where to get it."""

    @classmethod
    def of(cls, resolved: ResolvedRequest | ResolvedTables) -> Planned:
        """What is planned by experiments or by tables."""
        if isinstance(resolved, ResolvedRequest):
            scale = next((experiment.scale for experiment in resolved.experiments), "paper")
            named = ((cell, f"{cell.method}, stage {cell.stage}, {cell.architecture}") for cell in resolved.plan.cells)
            return cls(resolved.plan, scale, tuple(PlannedCell(cell.experiment, name, cell) for cell, name in named))
        cells = tuple(
            PlannedCell(table.name, f"{one.row} / {one.column}", one.cell, one.absent, is_dash(table, one))
            for table, one in walk(resolved.tables.tables)
        )
        return cls(resolved.tables.plan, resolved.request.scale, cells, resolved.missing_datasets)


@dataclass(frozen=True)
class Span:
    """One simulated run: seconds from its begin to its end, and the share of the workers' time that is work."""

    seconds: float
    utilisation: float


@dataclass(frozen=True)
class GroupForecast:
    """What one experiment or table takes, in seconds: alone, and beyond what the others take anyway."""

    cells: int
    jobs: int
    alone: float
    marginal: float


@dataclass(frozen=True)
class Forecast:
    """The whole forecast; seconds throughout, of one worker unless said otherwise."""

    machine: machines.Machine
    scale: str
    kinds: Mapping[str, tuple[int, int, float]]
    """By kind: jobs cached, jobs to run, seconds to run."""
    requested: int
    total: int
    unneeded: int
    groups: Mapping[str, GroupForecast]
    """By experiment or table."""
    naive: float
    shared: float
    without_dashes: tuple[float, float]
    """Both without the cells in which the paper prints a dash: naive and shared."""
    path: tuple[tuple[str, float, DurationSource], ...]
    """The critical path of what is to run."""
    spans: Mapping[int, Span]
    """By the number of workers."""
    to_run: Mapping[DurationSource, tuple[int, float]]
    """By the source of the duration: jobs to run, and their seconds."""
    cells: int
    out_of_scope: tuple[PlannedCell, ...]
    """Cells without jobs; those in which the paper prints a dash are counted in `dashes`."""
    dashes: int
    missing_datasets: tuple[str, ...]
    notes: tuple[str, ...]
    """What people should know of the data."""
    budget: BudgetSelection[PlannedCell] | None
    peaks: Mapping[str, int]
    """The most bytes of a card that each job to run keeps at once."""
    durations: Durations = field(repr=False)

    @property
    def sharing(self) -> float:
        """How many times as much the arms would take by themselves."""
        return self.naive / self.shared if self.shared else 1.0

    def to_json(self) -> dict[str, Any]:
        """The interface of `plan --json`."""
        cached, running = (sum(row[column] for row in self.kinds.values()) for column in (0, 1))
        naive, shared = self.without_dashes
        return {
            "schema": 1,
            "scale": self.scale,
            "machine": self.machine.to_json(),
            "jobs": {
                "total": self.total,
                "cached": cached,
                "to_run": running,
                "shared": self.requested - self.total,
                "by_kind": {kind: {"cached": row[0], "to_run": row[1]} for kind, row in self.kinds.items()},
            },
            "cells": self.cells,
            "dashes_left_out": self.dashes,
            "gpu_hours": {
                "naive": self.naive / _HOUR,
                "shared": self.shared / _HOUR,
                "sharing_factor": self.sharing,
                "without_dashes": {"naive": naive / _HOUR, "shared": shared / _HOUR},
                "by_table": {name: group.alone / _HOUR for name, group in self.groups.items()},
                "marginal": {name: group.marginal / _HOUR for name, group in self.groups.items()},
            },
            "critical_path": [
                {"key": key, "kind": kind_of(key), "seconds": seconds, "duration_source": source}
                for key, seconds, source in self.path
            ],
            "makespan_hours": {str(size): span.seconds / _HOUR for size, span in self.spans.items()},
            "utilisation": {str(size): span.utilisation for size, span in self.spans.items()},
            "duration_source": {
                **self.durations.count(),
                "to_run": {
                    source: {"jobs": jobs, "gpu_hours": seconds / _HOUR}
                    for source, (jobs, seconds) in self.to_run.items()
                },
            },
            "card_memory": card_memory.to_json(self.peaks),
            "missing_datasets": list(self.missing_datasets),
            "notes": list(self.notes),
            "out_of_scope": [{"cell": str(cell), "reason": cell.missing} for cell in self.out_of_scope],
            "budget": None if self.budget is None else _budget_json(self.budget),
        }

    def lines(self) -> Iterator[Any]:
        """The same for people."""
        time, naive = f"{self.machine.name} time", self.without_dashes[0]
        groups = ((name, group.cells, group.jobs, group.alone, group.marginal) for name, group in self.groups.items())
        yield _table(("experiment or table", "cells", "jobs", f"{time} alone", "beyond the others"), groups)
        kinds = ((kind, *row) for kind, row in self.kinds.items())
        yield _table(("kind", "cached", "to run", time), kinds)
        yield _table(("critical path", "time", "source"), self.path)
        spans = ((str(size), span.seconds, f"{span.utilisation:.0%}") for size, span in self.spans.items())
        yield _table((f"{self.machine.name}s", "makespan", "utilisation"), spans)
        more = self.requested - self.total
        yield Text(
            f"{self.total} jobs for {self.cells} cells, {more} more were shared, {self.unneeded} need not run again"
        )
        yield Text(
            f"{duration(self.shared)} of {time} to run; every arm by itself would take {duration(self.naive)}: "
            f"sharing saves a factor of {self.sharing:.2f}"
        )
        if (shared := self.without_dashes[1]) < self.shared * (1 - 1e-9):
            yield Text(
                f"without the cells in which the paper prints a dash: {duration(shared)} instead of {duration(naive)}, "
                f"a factor of {naive / shared if shared else 1:.2f}"
            )
        if self.dashes:
            yield Text(f"left out: {self.dashes} cells in which the paper prints a dash; --with-dashes plans them, too")
        yield from self._source_lines()
        yield from map(Text, card_memory.lines(self.peaks))
        yield from (Text(f"not here: {reason}") for reason in self.missing_datasets)
        yield from (Text(f"note: {note}") for note in self.notes)
        yield from (Text(f"out of scope: {cell}: {cell.missing}") for cell in self.out_of_scope)
        if self.budget is not None:
            yield from _budget_lines(self.budget, time)

    def _source_lines(self) -> Iterator[Text]:
        sources = (f"{jobs} {source} ({duration(took)})" for source, (jobs, took) in self.to_run.items() if jobs)
        yield Text(f"durations: {', '.join(sources) or 'nothing to run'}; {_assumption(self.machine)}")
        if self.to_run["assumed"][0]:
            yield Text(
                "assumed: as for MTT, since the method declares no cost (Method.iteration_cost); it may be far off"
            )


def forecast(
    planned: Planned, store: Store, workers: int, budget: float | None = None, machine: machines.Machine | None = None
) -> Forecast:
    """Everything that `plan` says.

    Args:
        planned: the experiments or tables.
        store: what is done, and how long it took.
        workers: a number of workers for which a makespan is wanted beside the usual ones.
        budget: seconds of worker time, if cells are to be selected.
        machine: what a worker is; by default that of the scale, where anything is left to do.
    """
    plan, graph = planned.plan, planned.plan.graph
    if machine is None:
        untimed = planned.scale != "paper" and graph.jobs.keys() <= set(store.keys())  # nothing is left to estimate
        machine = machines.CORE if untimed else durations.machine_of(planned.scale, workers)
    estimated = durations.estimate_durations(graph, store, machine)
    schedule, cached = durations.schedule_of(plan, estimated), estimated.stored
    running = simulate.jobs_to_run(schedule, cached)
    work = _Work(plan, set(running), estimated)
    path = graph.critical_path(lambda job: estimated.of(job) if job.key in work.keys else 0.0) if running else []
    cells = [cell for cell in planned.cells if cell.cell is not None]
    shared = estimated.total(running)
    return Forecast(
        machine=machine,
        scale=planned.scale,
        kinds=_by_kind((job.kind for job in graph), running, cached, estimated),
        requested=graph.requested,
        total=len(graph),
        unneeded=len(graph) - len(running) - len(cached),
        groups=work.by_group(planned.cells),
        naive=work.naive(cells),
        shared=shared,
        without_dashes=work.naive_and_shared([cell for cell in cells if not cell.dash]),
        path=tuple((key, estimated.seconds[key], estimated.sources[key]) for key in path if key in work.keys),
        spans=spans(schedule, cached, estimated.seconds, sorted({workers, *SIZES}), shared),
        to_run=_by_source(running, estimated),
        cells=len(cells),
        out_of_scope=tuple(cell for cell in planned.cells if cell.cell is None and cell.missing != DASH),
        dashes=sum(cell.missing == DASH for cell in planned.cells),
        missing_datasets=planned.missing_datasets,
        notes=tuple(planned.plan.notes),
        budget=None if budget is None else work.selection(cells, budget),
        peaks={key: peak_bytes(graph[key], graph) for key in running},
        durations=estimated,
    )


def spans(
    schedule: Schedule, cached: Iterable[str], seconds: Mapping[str, float], sizes: Sequence[int], work: float
) -> dict[int, Span]:
    """Simulate the run on each number of workers.

    A single worker is never idle. Where a run takes no more than its longest chain and a thousandth, no larger number
    of workers is worth a simulation.

    Args:
        schedule: the jobs, targets and limits.
        cached: the keys whose artifacts are in the store.
        seconds: how long each job takes.
        sizes: the numbers of workers, ascending.
        work: the seconds of all jobs to run.
    """
    stored, simulated = frozenset(cached), dict[int, Span]()
    longest = max((schedule.remaining_path[key] for key in schedule.keys), default=0.0)
    taken = float("inf")
    for size in sizes:
        if size == 1:
            taken = work
        elif taken > longest * 1.001:
            taken = simulate.makespan(schedule, stored, seconds.__getitem__, size)
        simulated[size] = Span(taken, work / (size * taken) if taken else 1.0)
    return simulated


class _Work:
    """The jobs to run behind cells; the answer for the same keys is kept, since tables share cells."""

    def __init__(self, plan: Plan, keys: set[str], estimated: Durations) -> None:
        self.graph, self.keys, self.durations = plan.graph, keys, estimated
        self._behind: dict[tuple[str, ...], frozenset[str]] = {}

    def behind(self, keys: Iterable[str]) -> frozenset[str]:
        """The jobs to run without which these cannot be there, themselves included."""
        named = tuple(dict.fromkeys(keys))
        if named not in self._behind:
            self._behind[named] = frozenset(self.graph.ancestors(named) & self.keys)
        return self._behind[named]

    def naive(self, cells: Iterable[PlannedCell]) -> float:
        """The seconds of these cells if every arm of every experiment or table were run by itself."""
        arms: dict[tuple[object, ...], list[str]] = {}
        for cell in cells:
            arms.setdefault(cell.arm, []).extend(cell.keys)
        return sum(self.durations.total(self.behind(keys)) for keys in arms.values())

    def naive_and_shared(self, cells: Sequence[PlannedCell]) -> tuple[float, float]:
        """The seconds of these cells if every arm were run by itself, and in one graph."""
        return self.naive(cells), self.durations.total(self.behind(key for cell in cells for key in cell.keys))

    def by_group(self, cells: Iterable[PlannedCell]) -> dict[str, GroupForecast]:
        """What each experiment or table takes."""
        groups: dict[str, list[PlannedCell]] = {}
        for cell in cells:
            groups.setdefault(cell.group, []).append(cell)
        needed = {name: self.behind(key for cell in group for key in cell.keys) for name, group in groups.items()}
        owners = Counter(key for keys in needed.values() for key in keys)
        return {
            name: GroupForecast(
                cells=sum(cell.cell is not None for cell in groups[name]),
                jobs=len(keys),
                alone=self.durations.total(keys),
                marginal=self.durations.total(key for key in keys if owners[key] == 1),
            )
            for name, keys in needed.items()
        }

    def selection(self, cells: Sequence[PlannedCell], budget: float) -> BudgetSelection[PlannedCell]:
        """What a budget completes of cells."""
        return select_within_budget(cells, [self.behind(cell.keys) for cell in cells], self.durations.seconds, budget)


def _by_kind(
    kinds: Iterable[str], running: Sequence[str], cached: Iterable[str], estimated: Durations
) -> dict[str, tuple[int, int, float]]:
    stored, keys = Counter(map(kind_of, cached)), dict[str, list[str]]()
    for key in running:
        keys.setdefault(kind_of(key), []).append(key)
    mine = {kind: keys.get(kind, []) for kind in kinds}
    return {kind: (stored[kind], len(mine[kind]), float(estimated.total(mine[kind]))) for kind in mine}


def _by_source(running: Sequence[str], estimated: Durations) -> dict[DurationSource, tuple[int, float]]:
    keys: dict[DurationSource, list[str]] = {source: [] for source in get_args(DurationSource)}
    for key in running:
        keys[estimated.sources[key]].append(key)
    return {source: (len(mine), float(estimated.total(mine))) for source, mine in keys.items()}


def _assumption(machine: machines.Machine) -> str:
    if machine.name == machines.GPU.name:
        whose = (
            "measured on an H200; pdd doctor --gpu times a card" if machine == machines.GPU else "by pdd doctor --gpu"
        )
        return f"estimates are for a GPU that sustains {machine.rate / 1e12:.3g} TFLOP/s, {whose}"
    speed = f"takes {machine.call * 1e3:.2g} ms for a layer's call and does {machine.rate / 1e9:.3g} GFLOP/s"
    return f"estimates are for a core that {speed}, as those here when they were timed"


def _budget_json(selection: BudgetSelection[PlannedCell]) -> dict[str, Any]:
    return {
        "gpu_hours": selection.budget / _HOUR,
        "spent": selection.seconds / _HOUR,
        "cells": [str(cell) for cell in selection.cells],
        "left_out": [{"cell": str(cell), "gpu_hours": seconds / _HOUR} for cell, seconds in selection.left_out],
    }


def _budget_lines(selection: BudgetSelection[PlannedCell], time: str) -> Iterator[Any]:
    count, total = len(selection.cells), len(selection.cells) + len(selection.left_out)
    took = duration(selection.seconds)
    yield Text(f"{duration(selection.budget)} of {time} complete {count} of {total} cells and take {took}")
    if selection.left_out:
        rows = ((cell.group, cell.name, seconds) for cell, seconds in selection.left_out)
        yield _table(("left out", "cell", f"{time} more"), rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str | int | float]]) -> Table:
    """A table for people; floats are seconds."""
    table = Table()
    for name in header:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*(Text(duration(value) if isinstance(value, float) else str(value)) for value in row))
    return table

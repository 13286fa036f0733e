"""The paper's tables as a workload: their graph within a budget, the prediction of its makespan, the filled cells.

All tables are one graph, and one run by the same driver; a run that was stopped, or of which jobs failed, leaves its
report like any other, and the same command goes on. With a budget the cells that it does not buy are left out, and say
so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from rich.table import Table
from rich.text import Text

from jobs.experiment import Plan
from jobs.graph import Graph
from orchestrator.clusters.slurm.follow import uses_of
from orchestrator.planning import durations, simulate
from orchestrator.planning.forecast import Planned, forecast
from orchestrator.planning.table_requests import ResolvedTables, TableRequest, resolve_tables
from orchestrator.reports.sections import RunFacts
from orchestrator.results.tables import CELL_STATUSES, MeasuredCell, measure
from orchestrator.runs import journal
from orchestrator.runs.journal import Journal
from orchestrator.runs.timeline import duration, failures
from orchestrator.workloads.base import Run, RunEnd, RunResult, Session, keep_files, new_run_name
from orchestrator.workloads.experiments import plan_session, report_of
from workers.store.store import Store

STARTING = 6.0
"""Seconds from a run's begin until its workers take their first jobs: Ray's start and the import of torch."""


@dataclass(frozen=True)
class TableWorkload:
    """Tables to fill; a `orchestrator.workloads.base.Workload`."""

    resolved: ResolvedTables
    plan: Plan = field(repr=False)
    """What the budget buys of the tables' graph."""
    left_out: Mapping[str, str] = field(default_factory=dict, repr=False)
    """By key of every job that fills a cell but is left out, why."""
    predicted: float | None = None
    """The makespan expected before the run, in seconds."""
    kind: ClassVar[str] = "tables"
    needs_ray: ClassVar[bool] = False

    @classmethod
    def of(cls, resolved: ResolvedTables, store: Store, workers: int) -> Self:
        """The workload of tables on as many workers, within their budget."""
        plan, left_out = bought(resolved, store)
        return cls(resolved, plan, left_out, _predicted(plan, store, workers, resolved.request.scale))

    @property
    def names(self) -> tuple[str, ...]:
        """The tables' experiments."""
        return tuple(dict.fromkeys(experiment.name for experiment in self.resolved.tables.experiments))

    @property
    def graph(self) -> Graph:
        """All jobs that the budget buys."""
        return self.plan.graph

    def run_name(self) -> str:
        """A new name after the table; several are a reproduction."""
        tables = self.resolved.tables.tables
        return new_run_name(tables[0].name if len(tables) == 1 else "reproduce")

    def to_order(self, home: Path) -> dict[str, Any]:
        """The request; of a table's file, a copy stays as it is while the run waits and comes back."""
        request = self.resolved.request
        return {"request": asdict(request) | {"tables": keep_files(request.tables, home)}}

    @classmethod
    def from_order(cls, order: Mapping[str, Any], store: Store, workers: int) -> Self:
        """The workload of the request in an order."""
        request = TableRequest(**order["request"] | {"store": str(store.root)})
        return cls.of(resolve_tables(request), store, workers)

    @contextmanager
    def session(self, run: Run, journal: Journal) -> Iterator[Session]:
        """The fixed plan, with progress on the screen."""
        with plan_session(self.plan, run, self._report) as session:
            yield session

    def result(self, end: RunEnd) -> TableResult:
        """The cells of all tables."""
        measured = measure(self.resolved.tables, end.store, end.messages, commands(self.resolved), self.left_out)
        return TableResult(end, self.plan, report_of(end), self, measured)

    def write_report(self, folder: Path, store: Store, run: str | None, command: str, workers: int = 1) -> list[Path]:
        """Write the report of what the store has for the tables.

        Args:
            folder: made if absent.
            store: where artifacts are looked up.
            run: whose journal has timing and failures; None if there was no run.
            command: the command line, to be run again.
            workers: how many the run had.

        Returns:
            The files written, the report first.
        """
        from orchestrator.reports import table_report  # takes what draws along

        records = [] if run is None else journal.read(store.run_folder(run) / journal.NAME)
        measured = measure(self.resolved.tables, store, failures(records), commands(self.resolved), self.left_out)
        facts = RunFacts(
            command=command,
            records=records,
            predicted=self.predicted,
            predicted_from_measured=None if run is None else predicted_from_measured(self.plan, store, run, workers),
            slurm=uses_of(store, run),
        )
        return table_report.write(folder, self.resolved.tables, measured, store, facts)

    def _report(self, end: RunEnd) -> None:
        self.write_report(end.folder, end.store, end.run, end.command, end.workers)


@dataclass(frozen=True)
class TableResult(RunResult):
    """What a run of tables leaves."""

    workload: TableWorkload
    measured: Mapping[str, Sequence[MeasuredCell]]

    @cached_property
    def predicted_from_measured(self) -> float:
        """The makespan expected with the times that the run's jobs took, in seconds."""
        return predicted_from_measured(self.plan, self.end.store, self.end.run, self.end.workers)

    def to_json(self) -> dict[str, Any]:
        """The interface of `reproduce --json`: as `run --json`, and the tables."""
        return super().to_json() | {
            "makespan": {
                "predicted": round(self.workload.predicted or 0.0, 3),
                "predicted_from_measured": round(self.predicted_from_measured, 3),
                "measured": round(self.end.seconds, 3),
            },
            "tables": {
                table.name: [_cell_json(cell) for cell in self.measured[table.name]]
                for table in self.workload.resolved.tables.tables
            },
        }

    def table(self) -> Table:
        """How many cells of each table have which status."""
        request = self.workload.resolved.request
        title = f"scale {request.scale}"
        title += f", {request.dataset} in the place of all datasets" if request.dataset else ""
        table = Table("table", "cells", *CELL_STATUSES, title=Text(title), title_justify="left")
        for name, cells in self.measured.items():
            counts = (sum(cell.status == status for cell in cells) for status in CELL_STATUSES)
            table.add_row(name, str(len(cells)), *(str(count or "") for count in counts))
        return table

    def remarks(self) -> Iterator[str]:
        """The makespan, and the datasets that are missing."""
        yield (
            f"makespan: predicted {duration(self.workload.predicted or 0.0)}, measured {duration(self.end.seconds)}; "
            f"predicted with the times that its jobs took {duration(self.predicted_from_measured)}"
        )
        yield from (f"not here: {reason}" for reason in self.workload.resolved.missing_datasets)
        yield from super().remarks()


def bought(resolved: ResolvedTables, store: Store) -> tuple[Plan, dict[str, str]]:
    """What to run within the budget, and by key of every job that fills a cell but is left out, why."""
    plan, limit = resolved.tables.plan, resolved.request.seconds()
    if limit is None:
        return plan, {}
    selection = forecast(Planned.of(resolved), store, 1, budget=limit).budget
    assert selection is not None
    cells = [planned.cell for planned in selection.cells if planned.cell is not None]
    needed = plan.graph.ancestors({key for cell in cells for key in cell.jobs})
    kept = {key: job for key, job in plan.graph.jobs.items() if key in needed}
    smaller = replace(plan, graph=Graph(kept, len(kept)), cells=cells)
    why = f"left out by the budget of {resolved.request.budget}"
    return smaller, {key: why for planned, _ in selection.left_out for key in planned.keys if key not in needed}


def commands(resolved: ResolvedTables) -> dict[str, str]:
    """By table, what fills it."""
    named = [Path(name).stem if Path(name).suffix else name for name in resolved.request.tables]
    typed = dict(zip(named, resolved.request.tables, strict=True))
    return {one.name: resolved.request.command(typed.get(one.name, one.name)) for one in resolved.tables.tables}


def predicted_from_measured(plan: Plan, store: Store, run: str, workers: int) -> float:
    """The makespan of the jobs that a run made, simulated with the times they took; nothing if it made none."""
    records = journal.read(store.run_folder(run) / journal.NAME)
    took = {one["key"]: float(one["job_seconds"]) for one in records if one["event"] == "job_done"}
    if not took:
        return 0.0
    measured = durations.Durations({key: took.get(key, 0.0) for key in plan.graph.jobs}, {})
    return STARTING + simulate.makespan(
        durations.schedule_of(plan, measured),
        plan.graph.jobs.keys() - took.keys(),
        measured.seconds.__getitem__,
        workers,
    )


def _predicted(plan: Plan, store: Store, workers: int, scale: str) -> float:
    """Seconds until all is there: the cluster's start, and the simulated run; nothing if nothing is left to do."""
    cached = durations.stored_keys(plan.graph, store)
    if cached.issuperset(plan.wanted()):
        return 0.0
    machine = durations.machine_of(scale, workers)
    estimated = durations.estimate_durations(plan.graph, store, machine)
    schedule = durations.schedule_of(plan, estimated)
    makespan = simulate.makespan(schedule, cached, estimated.seconds.__getitem__, workers)
    return STARTING * machine.host + makespan


def _cell_json(one: MeasuredCell) -> dict[str, Any]:
    published, cell = one.entry.published, one.entry.cell
    return {
        "row": one.entry.row,
        "column": one.entry.column,
        "status": one.status,
        "mean": one.mean,
        "std": one.std,
        "n": one.n,
        "interval": list(one.interval) if one.interval else None,
        "published_mean": published.mean if published else None,
        "published_std": published.std if published else None,
        "difference": one.difference,
        "significant": one.significant,
        "why": one.why,
        "jobs": list(cell.jobs) if cell else [],
    }

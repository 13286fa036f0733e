"""The paper's tables as one run: priced, run, measured, reported.

What `orchestrator.workloads.experiments` is to experiments. All tables are one graph, and one run by the same driver; a
run that was stopped, or of which jobs failed, leaves its report like any other, and the same command goes on. With a
budget the cells that it does not buy are left out, and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table as Grid
from rich.text import Text

from jobs import cost
from jobs.experiment import Plan
from jobs.graph import Graph
from orchestrator.clusters.config import Target
from orchestrator.clusters.ray_cluster import Cluster
from orchestrator.clusters.slurm.follow import uses_of
from orchestrator.planning import durations, quote, simulate
from orchestrator.planning.requests import ResolvedRequest
from orchestrator.planning.table_requests import ResolvedTables
from orchestrator.results.tables import CELL_STATUSES, MeasuredCell, measure
from orchestrator.runs import journal
from orchestrator.runs.timeline import duration, failures
from orchestrator.scheduler.scheduler import State
from orchestrator.workloads import experiments
from workers.store.store import Store

STARTING = 6.0
"""Seconds from a run's begin until its workers take their first jobs: Ray's start and the import of torch."""


@dataclass(frozen=True)
class DoneTables:
    """A run of tables that ended, and what it leaves."""

    done: experiments.Done
    asked: ResolvedTables
    measured: Mapping[str, Sequence[MeasuredCell]]
    predicted: float
    """The makespan expected before the run, on as many workers."""
    predicted_from_measured: float
    """The same with the times that its jobs took."""

    @property
    def exit(self) -> int:
        """The process's exit code."""
        return self.done.exit

    def to_json(self) -> dict[str, Any]:
        """The interface of `reproduce --json`: as `run --json`, and the tables."""
        return self.done.to_json() | {
            "makespan": {
                "predicted": round(self.predicted, 3),
                "predicted_from_measured": round(self.predicted_from_measured, 3),
                "measured": round(self.done.seconds, 3),
            },
            "tables": {
                table.name: [_cell_json(one) for one in self.measured[table.name]] for table in self.asked.tables.tables
            },
        }

    def lines(self) -> Iterator[Any]:
        """The same for people."""
        yield self._grid()
        done, counted = self.done, self.done.counts
        jobs = ", ".join(f"{count} {name}" for name, count in counted.items() if count)
        yield Text(f"{jobs} in {duration(done.seconds)} on {done.workers} workers; run {done.run}")
        yield Text(
            f"makespan: predicted {duration(self.predicted)}, measured {duration(done.seconds)}; "
            f"predicted with the times that its jobs took {duration(self.predicted_from_measured)}"
        )
        if done.report:
            yield Text(f"report: {done.report}")
        yield from (Text(f"not here: {reason}") for reason in self.asked.absent)
        yield from done.troubles()

    def _grid(self) -> Grid:
        title = f"scale {self.asked.request.scale}"
        title += f", {self.asked.request.dataset} in the place of all datasets" if self.asked.request.dataset else ""
        grid = Grid("table", "cells", *CELL_STATUSES, title=Text(title), title_justify="left")
        for name, cells in self.measured.items():
            counts = (sum(one.status == standing for one in cells) for standing in CELL_STATUSES)
            grid.add_row(name, str(len(cells)), *(str(count or "") for count in counts))
        return grid


def run(
    asked: ResolvedTables,
    store: Store,
    place: Target,
    *,
    command: str,
    quiet: bool = False,
    fail_fast: bool = False,
    name: str | None = None,
    cluster: Cluster | None = None,
    watch: Callable[[State], None] = lambda state: None,
) -> DoneTables:
    """Run the graph of the tables to its end and write their report into the run's folder."""
    plan, left_out = bought(asked, store)
    workers = place.cluster.count()
    predicted = _predicted(plan, store, workers, asked.request.scale)

    def write(folder: Path, run: str) -> list[Path]:
        again = predicted_from_measured(plan, store, run, workers)
        return write_report(folder, asked, store, run, command, left_out, predicted, again)

    done = experiments.run(
        ResolvedRequest(asked.tables.experiments, plan),
        store,
        place,
        command=command,
        quiet=quiet,
        fail_fast=fail_fast,
        name=name or run_name(asked),
        cluster=cluster,
        watch=watch,
        write=write,
    )
    return _filled(done, asked, plan, left_out, predicted)


def run_on_slurm(
    asked: ResolvedTables,
    store: Store,
    place: Target,
    *,
    command: str,
    quiet: bool = False,
    fail_fast: bool = False,
    follow: bool = True,
) -> DoneTables | str:
    """Submit the tables to SLURM and follow the run to its end; only its name when it is not followed to its end.

    Raises:
        NotSubmitted, BadInput: SLURM or the shared folder refuse.
        HeadGone: the run ended without a last word.
    """
    from orchestrator.clusters.slurm import submit  # takes Submitit along, which a run on this machine does without

    plan, left_out = bought(asked, store)
    predicted = _predicted(plan, store, place.cluster.count(), asked.request.scale)
    done = experiments.submitted(
        submit.tables_of(asked.request),
        ResolvedRequest(asked.tables.experiments, plan),
        store,
        place,
        run_name(asked),
        command=command,
        quiet=quiet,
        fail_fast=fail_fast,
        follow=follow,
    )
    if isinstance(done, str):
        return done
    return _filled(done, asked, plan, left_out, predicted)


def _filled(
    done: experiments.Done, asked: ResolvedTables, plan: Plan, left_out: Mapping[str, str], predicted: float
) -> DoneTables:
    """The tables as the run left them."""
    found = measure(asked.tables, done.store, experiments.messages_of(done.failures), commands(asked), left_out)
    return DoneTables(done, asked, found, predicted, predicted_from_measured(plan, done.store, done.run, done.workers))


def write_report(
    folder: Path,
    asked: ResolvedTables,
    store: Store,
    run: str | None,
    command: str,
    left_out: Mapping[str, str] | None = None,
    predicted: float | None = None,
    again: float | None = None,
) -> list[Path]:
    """The report of what the store has for the tables; timing and failures come from the run's journal."""
    from orchestrator.reports import table_report  # takes what draws along

    records = journal.read(store.run_folder(run) / journal.NAME) if run is not None else []
    found = measure(asked.tables, store, failures(records), commands(asked), left_out)
    return table_report.write(
        folder, asked.tables, found, store, records, command, predicted, again, uses_of(store, run)
    )


def bought(asked: ResolvedTables, store: Store) -> tuple[Plan, dict[str, str]]:
    """What to run within the budget, and by key of every job that fills a cell but is left out, why."""
    plan, limit = asked.tables.plan, asked.request.seconds()
    if limit is None:
        return plan, {}
    offer = quote.quote(asked.tables, store, 1, budget=limit).purchase
    assert offer is not None
    cells = [one.cell for _, one in offer.cells if one.cell is not None]
    needed = plan.graph.ancestors({key for cell in cells for key in cell.jobs})
    kept = {key: job for key, job in plan.graph.jobs.items() if key in needed}
    smaller = replace(plan, graph=Graph(kept, len(kept)), cells=cells)
    why = f"left out by the budget of {asked.request.budget}"
    return smaller, {key: why for _, one, _ in offer.left_out if one.cell for key in one.cell.jobs if key not in needed}


def commands(asked: ResolvedTables) -> dict[str, str]:
    """By table, what fills it."""
    named = [Path(name).stem if Path(name).suffix else name for name in asked.request.tables]
    typed = dict(zip(named, asked.request.tables, strict=True))
    return {one.name: asked.request.command(typed.get(one.name, one.name)) for one in asked.tables.tables}


def run_name(asked: ResolvedTables) -> str:
    """As `running.run_name`; several tables are a reproduction."""
    named = experiments.run_name(ResolvedRequest(asked.tables.experiments))
    return named if len(asked.tables.tables) == 1 else "reproduce" + named.removeprefix(asked.tables.tables[0].name)


def predicted_from_measured(plan: Plan, store: Store, run: str, workers: int) -> float:
    """The makespan of the jobs that a run made, simulated with the times they took; nothing if it made none."""
    records = journal.read(store.run_folder(run) / journal.NAME)
    took = {one["key"]: float(one["job_seconds"]) for one in records if one["event"] == "job_done"}
    if not took:
        return 0.0
    priced = durations.Durations({key: took.get(key, 0.0) for key in plan.graph.jobs}, {})
    return STARTING + simulate.makespan(
        quote.schedule_of(plan, priced), plan.graph.jobs.keys() - took.keys(), priced.seconds.__getitem__, workers
    )


def _predicted(plan: Plan, store: Store, workers: int, scale: str) -> float:
    """Seconds until all is there: the cluster's start, and the simulated run; nothing if nothing is left to do."""
    cached = durations.stored_keys(plan.graph, store)
    if cached.issuperset(plan.wanted()):
        return 0.0
    machine = quote.machine_of(scale, workers)
    priced = durations.estimate_durations(plan.graph, store, machine)
    spans = simulate.makespan(quote.schedule_of(plan, priced), cached, priced.seconds.__getitem__, workers)
    return STARTING * machine.start / cost.START + spans


def _cell_json(one: MeasuredCell) -> dict[str, Any]:
    published, cell = one.cell.published, one.cell.cell
    return {
        "row": one.cell.row,
        "column": one.cell.column,
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

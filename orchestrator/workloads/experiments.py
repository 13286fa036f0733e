"""Experiments as a workload: the request, its plan, its report. Tables share the session of a fixed plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from rich.console import Console

from jobs.experiment import Plan
from jobs.graph import Graph
from orchestrator.clusters.slurm.follow import uses_of
from orchestrator.planning.durations import estimate_durations, schedule_of
from orchestrator.planning.requests import Request, ResolvedRequest, resolve
from orchestrator.planning.simulate import in_order
from orchestrator.reports import experiment_report
from orchestrator.reports.sections import RunFacts
from orchestrator.runs import journal
from orchestrator.runs.journal import Journal
from orchestrator.runs.progress import Progress
from orchestrator.runs.status import runs
from orchestrator.scheduler.state import State
from orchestrator.workloads.base import Run, RunEnd, RunResult, Session, keep_files, new_run_name
from workers.store.claims import Claim, Claims
from workers.store.store import Store


@dataclass(frozen=True)
class ExperimentWorkload:
    """Experiments to run; a `orchestrator.workloads.base.Workload`."""

    request: Request
    resolved: ResolvedRequest
    kind: ClassVar[str] = "experiments"
    needs_ray: ClassVar[bool] = False

    @classmethod
    def of(cls, request: Request) -> Self:
        """The workload of a request.

        Raises:
            BadInput: anything that cannot work, with its place, field, value and fix.
        """
        return cls(request, resolve(request))

    @property
    def names(self) -> tuple[str, ...]:
        """The experiments."""
        return self.resolved.names

    @property
    def graph(self) -> Graph:
        """All jobs."""
        return self.resolved.plan.graph

    def run_name(self) -> str:
        """A new name after the first experiment."""
        return new_run_name(self.names[0])

    def to_order(self, home: Path) -> dict[str, Any]:
        """The request; of an experiment's file, a copy stays as it is while the run waits and comes back."""
        return {"request": asdict(self.request) | {"experiments": keep_files(self.request.experiments, home)}}

    @classmethod
    def from_order(cls, order: Mapping[str, Any], store: Store, workers: int) -> Self:
        """The workload of the request in an order."""
        return cls.of(Request(**order["request"] | {"store": str(store.root)}))

    @contextmanager
    def session(self, run: Run, journal: Journal) -> Iterator[Session]:
        """The fixed plan, with progress on the screen."""
        with plan_session(self.resolved.plan, run, self._report) as session:
            yield session

    def result(self, end: RunEnd) -> RunResult:
        """The cells of all experiments."""
        return RunResult(end, self.resolved.plan, report_of(end))

    def _report(self, end: RunEnd) -> None:
        write_report(end.folder, self.resolved.plan, end.store, end.run, end.command)


@contextmanager
def plan_session(plan: Plan, run: Run, report: Callable[[RunEnd], object]) -> Iterator[Session]:
    """The session of a plan that is known to its end, with progress on the screen."""
    durations, claims = estimate_durations(plan.graph, run.store), Claims(run.store.root)
    lines_only = run.cluster is None or run.options.verbose  # a debugger or log lines have the terminal
    console = Console(stderr=True, force_terminal=False if lines_only else None)
    with Progress(plan, run.store, quiet=run.options.quiet, seconds=durations.of, console=console) as progress:

        def on_change(state: State) -> None:
            progress.update(state, _claims_when_read(claims))

        schedule = schedule_of(plan, durations, retry_limits=run.retry_limits)
        if not schedule.wanted <= durations.stored:
            schedule, _ = in_order(schedule, durations.stored, durations.seconds.__getitem__, run.workers)
        yield Session(schedule, plan.graph, durations.of, report, on_change)


def _claims_when_read(claims: Claims) -> Iterator[Claim]:
    """The claims, looked up only if somebody goes through them."""
    yield from claims.all()


def write_report(folder: Path, plan: Plan, store: Store, run: str | None, command: str) -> list[Path]:
    """Write the report of what the store has for a plan.

    Args:
        folder: made if absent.
        plan: the cells to report.
        store: where artifacts are looked up.
        run: whose journal has timing and failures; None if there was no run.
        command: the command line, to be run again.

    Returns:
        The files written, the report first.
    """
    records = [] if run is None else journal.read(store.run_folder(run) / journal.NAME)
    return experiment_report.write(
        folder, plan, store, RunFacts(command=command, records=records, slurm=uses_of(store, run))
    )


def report_of(end: RunEnd) -> Path | None:
    """The report of a run; None if its driver did not come so far."""
    return next(iter(end.folder.glob("report.md")), None)


def latest_run(resolved: ResolvedRequest, store: Store) -> str | None:
    """The latest run of exactly these experiments, if there is one."""
    names = list(resolved.names)
    for run in reversed(runs(store)):
        records = journal.read(store.run_folder(run) / journal.NAME)
        if records and list(records[0].get("experiments", ())) == names:
            return run
    return None

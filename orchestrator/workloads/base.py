"""What can be launched: a workload, one run of it, and the result of the run.

A workload says what is to be run and what comes of it. Where and how it runs is none of its business: that is
`orchestrator.workloads.launcher`, which is written once for all of them.
"""

from __future__ import annotations

import secrets
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from rich.console import Console, RenderableType
from rich.text import Text

from jobs.experiment import SELECTIONS, Plan
from jobs.graph import Graph, Job
from orchestrator import MODULE, SCRIPT
from orchestrator.clusters.config import Target
from orchestrator.clusters.ray_cluster import Cluster
from orchestrator.results import cells, verdict
from orchestrator.runs.driver import ScheduleSource
from orchestrator.runs.journal import Journal
from orchestrator.runs.timeline import duration
from orchestrator.scheduler.schedule import RetryLimits, Schedule
from orchestrator.scheduler.state import State
from workers.store.store import Store


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """How a workload is launched: nothing here changes a result."""

    command: str
    """The command line that launches it again."""
    quiet: bool = False
    verbose: bool = False
    fail_fast: bool = False
    follow: bool = True
    """Watch a run that a queue has to its end."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a workload that this process drives."""

    name: str
    store: Store
    target: Target
    options: LaunchOptions
    cluster: Cluster | None
    """Where its workers are; None: the jobs run in this process."""
    queued: bool = False
    """Whether this process belongs to a job of a queue, which may start it again."""

    @property
    def workers(self) -> int:
        """How many jobs the target runs at a time."""
        return self.target.cluster.count()

    @property
    def folder(self) -> Path:
        """The run's folder in the store."""
        return self.store.run_folder(self.name)

    @property
    def retry_limits(self) -> RetryLimits:
        """The limits of the scheduler, with `--fail-fast` in them."""
        return RetryLimits(keep_going=not self.options.fail_fast)


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """How a run ended, by its journal."""

    run: str
    command: str
    store: Store = field(repr=False)
    workers: int
    exit: int
    """The process's exit code."""
    why: str
    seconds: float
    counts: Mapping[str, int]
    """Jobs done, cached (found whole, or not needed any more), failed and skipped."""
    failures: Sequence[Mapping[str, str]]
    """The failed jobs: key, kind, reason, message, log."""

    @property
    def folder(self) -> Path:
        """The folder of its report."""
        return self.store.run_folder(self.run) / "report"

    @property
    def program(self) -> str:
        """The program as it was called, for further commands."""
        return split_command(self.command)[0] or SCRIPT

    @property
    def messages(self) -> dict[str, str]:
        """The reason and message of every failed job, by key, for the cells that it leaves empty."""
        return {job["key"]: f"{job['reason']}: {job['message']}" for job in self.failures}


@dataclass(frozen=True)
class Session:
    """What the driver needs to run a workload."""

    schedule: Schedule
    graph: Graph
    seconds: Callable[[Job], float]
    """How long a job will take."""
    report: Callable[[RunEnd], object]
    """Writes the report when the run has ended."""
    on_change: Callable[[State], None] = lambda state: None
    cluster: Cluster | None = None
    """Instead of the run's own."""
    source: ScheduleSource | None = None
    """Where an open schedule grows from."""


class Workload(Protocol):
    """What can be launched."""

    kind: ClassVar[str]
    """Its name in the order of a queue's job."""
    needs_ray: ClassVar[bool]
    """Whether it cannot run in one process."""

    @property
    def names(self) -> tuple[str, ...]:
        """The experiments or the sweep, for the journal."""

    @property
    def graph(self) -> Graph:
        """All jobs that are known before the run."""

    def run_name(self) -> str:
        """The name of its run: a new one, or the one under which an earlier run is taken up."""

    def to_order(self, home: Path) -> dict[str, Any]:
        """The workload as plain values; the files that they name are copied into the run's folder `home`."""

    @classmethod
    def from_order(cls, order: Mapping[str, Any], store: Store, workers: int) -> Self:
        """The inverse of `to_order`, in the process that drives the run."""

    def session(self, run: Run, journal: Journal) -> AbstractContextManager[Session]:
        """All that the driver needs, until the run has ended."""

    def result(self, end: RunEnd) -> RunResult:
        """What the run left in the store, wherever it was driven."""


@dataclass(frozen=True)
class RunResult:
    """What a run leaves: the basis of `--json` and of the last lines on the screen."""

    end: RunEnd
    plan: Plan = field(repr=False)
    """The cells that have a result."""
    report: Path | None

    @property
    def exit(self) -> int:
        """The process's exit code."""
        return self.end.exit

    @cached_property
    def results(self) -> list[cells.Result]:
        """The result of every cell."""
        return cells.collect(self.plan, self.end.store, self.end.messages)

    @cached_property
    def verdicts(self) -> list[verdict.Verdict]:
        """Progressive distillation against each base method, at equal images per class."""
        return verdict.verdicts(self.plan, self.end.store)

    def to_json(self) -> dict[str, Any]:
        """The interface of `run --json`; other workloads add to it."""
        end = self.end
        return {
            "schema": 1,
            "run": end.run,
            "exit": end.exit,
            "why": end.why,
            "store": str(end.store.root),
            "seconds": round(end.seconds, 3),
            "workers": end.workers,
            "jobs": dict(end.counts),
            "results": [result.to_json() for result in self.results],
            "verdict": [comparison.to_json() for comparison in self.verdicts],
            "artifacts": cells.artifacts(self.plan, end.store),
            "failures": list(end.failures),
            "notes": list(self.plan.notes),
            "report": str(self.report) if self.report else None,
        }

    def lines(self) -> Iterator[RenderableType]:
        """The result for people."""
        end = self.end
        yield self.table()
        jobs = ", ".join(f"{count} {name}" for name, count in end.counts.items() if count)
        workers = "1 worker" if end.workers == 1 else f"{end.workers} workers"
        yield Text(f"{jobs or 'no jobs'} in {duration(end.seconds)} on {workers}; run {end.run}")
        yield from map(Text, self.remarks())
        if self.report:
            yield Text(f"report: {_from_here(self.report.with_name('report.html'))}")
        yield from map(Text, verdict.lines_of(self.verdicts))
        yield from map(Text, self.next_commands())
        for job in end.failures:
            yield Text(f"FAILED {job['key']} ({job['reason']}): {job['message']}\n       log: {job['log']}")
        if any(job["reason"] == "diverged" for job in end.failures):
            yield Text("what diverged does so again, bit for bit: change first what its message names, by --set")
        if end.exit == 3 and end.failures:
            yield Text(f"what failed is tried again by: {end.command}")
        elif end.exit:
            yield Text(f"{end.why}; nothing is lost, go on with: {end.command}")

    def table(self) -> RenderableType:
        """The results for a console."""
        from orchestrator.reports import experiment_report

        return experiment_report.console_table(self.results)

    def next_commands(self) -> Iterator[str]:
        """What one may want to type next: where a set was distilled, how to take it along."""
        if any(result.n and result.stage and result.base_method not in SELECTIONS for result in self.results):
            store = f" --store {shlex.quote(_from_here(self.end.store.root))}"
            yield f"take the best set along: {self.end.program} export --run {self.end.run}{store}"

    def remarks(self) -> Iterator[str]:
        """What else there is to say of the run: notes on its data."""
        yield from (f"note: {note}" for note in self.plan.notes)


def _from_here(path: Path) -> str:
    """A path as people type it: relative to the current folder if it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def split_command(command: str) -> tuple[str, list[str]]:
    """The words of a command line that call this program, and those that follow; nothing of what is not its own."""
    try:
        words = shlex.split(command)
    except ValueError:  # an open quote: somebody else's words
        return "", []
    ends = [number for number, word in enumerate(words, 1) if word == MODULE or Path(word).name == SCRIPT]
    return (shlex.join(words[: ends[0]]), words[ends[0] :]) if ends else ("", [])


def new_run_name(title: str) -> str:
    """A readable and unique name: a title, the time, and chance against two starts in one second."""
    return f"{title}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def speaker(quiet: bool) -> Callable[[str], None]:
    """A function that tells people one line on standard error, with the time of day before it."""
    console = Console(stderr=True)

    def say(text: str) -> None:
        if not quiet:
            console.print(Text(f"[{datetime.now():%H:%M:%S}] {text}"), soft_wrap=True)

    return say


def keep_files(names: Sequence[str], home: Path) -> list[str]:
    """Names of experiments or tables; of each that is a file, a copy in a run's folder that stays as it is."""
    kept = []
    for number, name in enumerate(names):
        path = Path(name)
        if path.suffix:
            copy = home / "experiments" / f"{number}" / path.name
            copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            name = str(copy.resolve())
        kept.append(name)
    return kept

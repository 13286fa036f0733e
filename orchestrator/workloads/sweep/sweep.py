"""Sweeps as a workload: trials, Ray Tune beside the workers, the report and its document.

A sweep's run has a name that follows from what is searched, so the same command takes up the sweep where it was left,
with a larger budget too. Its result is read from the report's `sweep.json`, wherever it was driven.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import yaml
from rich.table import Table
from rich.text import Text

from jobs import experiment
from jobs.graph import Graph
from jobs.sweep import Sweep, Values, listed, load
from orchestrator.clusters.ray_cluster import Cluster
from orchestrator.planning.requests import Request, overridden
from orchestrator.reports.sections import RunFacts
from orchestrator.runs.journal import NAME, Journal, read
from orchestrator.runs.records import Record
from orchestrator.workloads.base import Run, RunEnd, RunResult, Session, speaker
from orchestrator.workloads.experiments import write_report
from orchestrator.workloads.sweep import report
from orchestrator.workloads.sweep.mailbox import TrialMailbox
from orchestrator.workloads.sweep.rows import Row
from orchestrator.workloads.sweep.rows import rows as rows_of
from orchestrator.workloads.sweep.trials import Trial, Trials, make_trial, merge
from orchestrator.workloads.sweep.tune import MAILBOX, TuneCluster, check_searcher
from workers.store.files import replace_file
from workers.store.store import Store

DOCUMENT = "sweep.json"
"""In the report: what `sweep --json` prints, for whoever follows from elsewhere."""
NARROW = ("trial", "stages", "held_out", "loss")
"""Columns of a terminal's table that are never folded."""
LEARNT_RUNG = 1000
"""The highest rung of a sweep whose trials are not known beforehand."""
MOST_AT_ONCE = 16
"""Trials under way at a time unless the sweep says more; each is a process of about 200 MB on the driver's host."""


@dataclass(frozen=True)
class SweepWorkload:
    """A sweep that can run, every trial known beforehand checked; a `orchestrator.workloads.base.Workload`."""

    sweep: Sweep
    base: Mapping[str, Any]
    place: str
    trials: tuple[Trial, ...]
    """All trials, or one that stands for those that the searcher will learn."""
    store: str | None = None
    """Where the facts of datasets are remembered."""
    kind: ClassVar[str] = "sweep"
    needs_ray: ClassVar[bool] = True

    @classmethod
    def of(cls, name: str, request: Request) -> Self:
        """The sweep of a file or name, with the command line's words on top of its base experiment.

        Raises:
            BadInput: anything that cannot work, with its place, field, value and fix.
        """
        sweep, place = load(name)
        check_searcher(sweep, place)
        base = experiment.load(sweep.base)[2] if isinstance(sweep.base, str) else sweep.base
        base = overridden({"name": sweep.name, **base}, request)
        dataset = base.get("dataset")
        named = {"name": dataset} if isinstance(dataset, str) else dict(dataset or {})
        if named.get("path") is None and named.get("name") in request.data:
            base["dataset"] = named | {"path": request.data[named["name"]]}
        values = listed(sweep, place)
        if sweep.searcher == "optuna":
            values = values[:1]
        trials = tuple(
            make_trial(sweep, base, place, number, one, request.store) for number, one in enumerate(values, start=1)
        )
        return cls(sweep, base, place, trials, request.store)

    @property
    def known(self) -> tuple[Trial, ...]:
        """The trials if they are known beforehand."""
        return () if self.sweep.searcher == "optuna" else self.trials

    def make(self, number: int, values: Values) -> Trial:
        """The trial with these values; raises BadInput."""
        return make_trial(self.sweep, self.base, self.place, number, values, self.store)

    def run_name(self) -> str:
        """The same for the same search; what only limits it is left out."""
        document = self.sweep.model_dump(mode="json", exclude={"about", "at_once", "winners", "budget"})
        document["trials"] = self.sweep.budget.trials
        keys = [trial.stages for trial in self.trials]
        text = json.dumps([document, dict(self.base), keys], sort_keys=True, default=str)
        return f"{self.sweep.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def longest(self) -> int:
        """The rung that no trial goes beyond."""
        if not self.known:
            return LEARNT_RUNG
        by_stage = self.sweep.scheduler.rung == "stage"
        return max(len(one.stages) * (1 if by_stage else one.ipc_per_stage) for one in self.known)

    @property
    def names(self) -> tuple[str, ...]:
        """The sweep's name."""
        return (self.sweep.name,)

    @property
    def graph(self) -> Graph:
        """The jobs of the trials that are known beforehand."""
        return self.plan.graph

    @property
    def plan(self) -> experiment.Plan:
        """The plan of these trials."""
        return _together(self.trials)

    def to_order(self, home: Path) -> dict[str, Any]:
        """The sweep's file as it would be with its base, and the command line's words, in it."""
        path = home / "sweep.yaml"
        document = self.sweep.model_dump(mode="json") | {"base": dict(self.base)}
        replace_file(path, yaml.safe_dump(document, sort_keys=False))
        return {"sweep": str(path.resolve())}

    @classmethod
    def from_order(cls, order: Mapping[str, Any], store: Store, workers: int) -> Self:
        """The sweep of the file in an order."""
        return cls.of(order["sweep"], Request(store=str(store.root)))

    @contextmanager
    def session(self, run: Run, journal: Journal) -> Iterator[Session]:
        """The search: Ray Tune beside the workers, and trials that ask for their stages until it is over."""
        assert run.cluster is not None
        at_once = self.sweep.at_once or min(MOST_AT_ONCE, 2 * run.workers)
        values = [trial.values for trial in self.known] or None
        search = TuneCluster(run.cluster, run.folder, self.sweep, values, at_once, self.longest())
        past = read(journal.path)
        (run.folder / "report" / DOCUMENT).unlink(missing_ok=True)
        mailbox = TrialMailbox(run.folder / MAILBOX)
        trials = Trials(self.sweep, self.make, mailbox, run.store, journal, search, speaker(run.options.quiet))
        earlier = mailbox.begin_again()
        known = self.known or [self.make(number, one) for number, one in enumerate(earlier, start=1)]
        driven = seconds_driven(past) if run.queued else 0.0
        schedule = trials.begin(known, run.retry_limits, seconds_paid(past), driven)
        yield Session(
            schedule,
            trials.plan.graph,
            lambda job: trials.schedule.seconds.get(job.key, 0.0),
            lambda end: self._report(end, trials),
            trials.pay,
            cluster=cast(Cluster, search),
            source=trials,
        )
        trials.break_off()

    def result(self, end: RunEnd) -> SweepResult:
        """The trials and winners, as the report has them."""
        try:
            document = json.loads((end.folder / DOCUMENT).read_text(encoding="utf-8"))
        except FileNotFoundError:  # its driver did not come so far
            document = {"trials": [], "files": []}
        rows = [Row.of(trial) for trial in document["trials"]]
        return self._result(end, rows, [Path(path) for path in document["files"]])

    def _result(self, end: RunEnd, rows: Sequence[Row], files: Sequence[Path]) -> SweepResult:
        won = sorted((row for row in rows if row.rank), key=lambda row: row.rank)
        winners = _together(self.make(row.number, row.values) for row in won)
        return SweepResult(end, winners, next(iter(files), None), self.sweep, rows, files)

    def _report(self, end: RunEnd, trials: Trials) -> None:
        """Write the report, the winners' report, and the document for whoever follows from elsewhere."""
        rows = rows_of(list(trials.standings.values()), trials.winners(), end.store)
        best = _together(standing.trial for standing in trials.winners())
        facts = RunFacts(command=end.command, records=read(end.store.run_folder(end.run) / NAME))
        files = report.write(end.folder, self.sweep, rows, trials.winners(), best, end.store, facts)
        if best.cells:
            files += write_report(end.folder / "winners", best, end.store, end.run, end.command)[:1]
        document = self._result(end, rows, files).to_json()
        replace_file(end.folder / DOCUMENT, json.dumps(document, allow_nan=False))


@dataclass(frozen=True)
class SweepResult(RunResult):
    """What a sweep leaves; its plan holds the winners' jobs and cells."""

    sweep: Sweep
    rows: Sequence[Row]
    files: Sequence[Path]

    def to_json(self) -> dict[str, Any]:
        """The interface of `sweep --json`: as `run --json`, and the trials."""
        return super().to_json() | {
            "metric": self.sweep.metric,
            "trials": [row.to_json() for row in self.rows],
            "files": [str(path) for path in self.files],
        }

    def table(self) -> Table:
        """A row for each trial, the best first; where there is little room, the values are folded and none is lost."""
        header, lines = report.table(self.rows, self.sweep)
        table = Table(title=self.sweep.name, title_justify="left")
        for name in header[:-1]:
            table.add_column(name, overflow="fold", min_width=12 if name == "values" else None, no_wrap=name in NARROW)
        for line in lines:
            table.add_row(*map(Text, line[:-1]))
        return table

    def remarks(self) -> Iterator[str]:
        """Who won and with what."""
        yield from report.verdict_of(self.sweep, self.rows, self.plan, self.end.store)

    def next_commands(self) -> Iterator[str]:
        """The best trial as an experiment."""
        best = [path for path in self.files if path.name == "best.yaml"]
        yield from (f"run the best one: {self.end.program} run {path}" for path in best)


def seconds_paid(past: Sequence[Record]) -> float:
    """The worker time of the jobs that earlier drivers of a sweep have seen to their end."""
    return float(sum(record["job_seconds"] for record in past if record["event"] == "job_done"))


def seconds_driven(past: Sequence[Record]) -> float:
    """How long the drivers since the last submission to SLURM took: of one launch there may be many."""
    last = max((number for number, record in enumerate(past) if record["event"] == "submitted"), default=len(past))
    following = pairwise([*past[last + 1 :], {"event": "run_began"}])
    return float(sum(record["seconds"] for record, after in following if after["event"] == "run_began"))


def _together(trials: Iterable[Trial]) -> experiment.Plan:
    """The jobs and cells of these trials as one plan."""
    plan = experiment.Plan()
    for trial in trials:
        merge(plan, trial.plan)
        plan.cells += trial.plan.cells
    return plan

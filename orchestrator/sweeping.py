"""One sweep from a request to its results: trials, Tune, the driver, the report, the document.

What `orchestrator.running` is to a run. A sweep's run has a name that follows from what is searched, so the same
command takes up the sweep where it was left, with a larger budget too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs import experiments
from jobs.errors import BadInput
from jobs.sweep import Sweep, Values, listed, load
from orchestrator import driver, journal, results, running, sweep_report
from orchestrator.cluster import Place
from orchestrator.desk import Desk
from orchestrator.forecast import uninterrupted
from orchestrator.journal import Journal
from orchestrator.plan import Allowances
from orchestrator.planning import duration
from orchestrator.ray_cluster import Cluster
from orchestrator.ray_pool import RayPool
from orchestrator.request import Request, overridden
from orchestrator.state import State
from orchestrator.sweep import DESK, TuneCluster, check_searcher
from orchestrator.sweep_report import Row
from orchestrator.trials import Trial, Trials, make_trial, merge
from workers.store import Store

LEARNT_RUNG = 1000
"""The highest rung of a sweep whose trials are not known beforehand."""
MOST_AT_ONCE = 16
"""Trials under way at a time unless the sweep says more; each is a process of about 200 MB on the driver's host."""


@dataclass(frozen=True)
class AskedSweep:
    """A sweep that can run: every trial known beforehand was checked."""

    sweep: Sweep
    base: Mapping[str, Any]
    place: str
    trials: tuple[Trial, ...]
    """All trials, or one that stands for those that the searcher will learn."""

    @property
    def known(self) -> tuple[Trial, ...]:
        """The trials if they are known beforehand."""
        return () if self.sweep.searcher == "optuna" else self.trials

    def make(self, number: int, values: Values) -> Trial:
        """The trial with these values; raises BadInput."""
        return make_trial(self.sweep, self.base, self.place, number, values)

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


def ask(name: str, request: Request) -> AskedSweep:
    """The sweep of a file or name, with the command line's words on top of its base experiment.

    Raises:
        BadInput: anything that cannot work, with its place, field, value and mend.
    """
    sweep, place = load(name)
    check_searcher(sweep, place)
    base = experiments.load(sweep.base)[2] if isinstance(sweep.base, str) else sweep.base
    base = overridden({"name": sweep.name, **base}, request)
    values = listed(sweep, place)
    if sweep.searcher == "optuna":
        values = values[:1]
    trials = tuple(make_trial(sweep, base, place, number, one) for number, one in enumerate(values, start=1))
    return AskedSweep(sweep, base, place, trials)


@dataclass(frozen=True)
class DoneSweep:
    """A sweep that ended, and what it leaves."""

    run: str
    command: str
    sweep: Sweep
    store: Store = field(repr=False)
    workers: int
    outcome: driver.Outcome
    rows: Sequence[Row]
    winners: experiments.Plan = field(repr=False)
    """The winners' jobs and cells."""
    files: Sequence[Path]

    @property
    def exit(self) -> int:
        """The process's exit code."""
        return self.outcome.exit

    def to_json(self) -> dict[str, Any]:
        """The interface of `sweep --json`: as `run --json`, and the trials."""
        failures = running.failures_of(self.outcome.state)
        messages = {one["key"]: f"{one['reason']}: {one['message']}" for one in failures}
        return {
            "schema": 1,
            "run": self.run,
            "exit": self.exit,
            "why": self.outcome.why,
            "store": str(self.store.root),
            "seconds": round(self.outcome.seconds, 3),
            "workers": self.workers,
            "jobs": running.counts_of(self.outcome.state),
            "metric": self.sweep.metric,
            "trials": [row.to_json() for row in self.rows],
            "results": [one.to_json() for one in results.collect(self.winners, self.store, messages)],
            "artifacts": results.artifacts(self.winners, self.store),
            "failures": failures,
            "files": [str(path) for path in self.files],
        }

    def lines(self) -> Iterator[Any]:
        """The same for people."""
        yield self._table()
        counted = running.counts_of(self.outcome.state)
        jobs = ", ".join(f"{count} {name}" for name, count in counted.items() if count)
        yield Text(f"{jobs} in {duration(self.outcome.seconds)} on {self.workers} workers; run {self.run}")
        for path in self.files:
            yield Text(str(path))
        for one in running.failures_of(self.outcome.state):
            yield Text(f"FAILED {one['key']} ({one['reason']}): {one['message']}\n       log: {one['log']}")
        if self.exit:
            yield Text(f"{self.outcome.why}; nothing is lost, go on with: {self.command}")

    def _table(self) -> Table:
        header, lines = sweep_report.table(self.rows, self.sweep)
        table = Table(*header, title=self.sweep.name, title_justify="left")
        for line in lines:
            table.add_row(*map(Text, line))
        return table


def run(
    asked: AskedSweep,
    store: Store,
    place: Place,
    *,
    command: str,
    quiet: bool = False,
    fail_fast: bool = False,
    name: str | None = None,
    cluster: Cluster | None = None,
    watch: Callable[[State], None] = lambda state: None,
) -> DoneSweep:
    """Search to the end, evaluate the winners, and write the report into the run's folder.

    Where a head job drives, as on SLURM, it has the run's `name`, a `cluster` that is there or on its way, and `watch`.

    Raises:
        BadInput: on SLURM, without a cluster.
    """
    if place.cluster.kind == "slurm" and cluster is None:
        raise BadInput("command line", "--cluster", place.name, "sweep on a local or ray cluster; SLURM is for `run`")
    sweep, workers, name = asked.sweep, place.cluster.count(), name or asked.run_name()
    store.sweep()
    folder = store.run_folder(name)
    desk = Desk(folder / DESK)
    earlier = desk.begin_again()
    at_once = sweep.at_once or min(MOST_AT_ONCE, 2 * workers)
    values = [one.values for one in asked.known] or None
    search = TuneCluster(cluster or running.cluster_of(place), folder, sweep, values, at_once, asked.longest())
    paid = sum(one["job_seconds"] for one in journal.read(folder / journal.NAME) if one["event"] == "job_done")
    with Journal.open(folder) as book:
        trials = Trials(sweep, asked.make, desk, store, book, search, _say(quiet))
        known = asked.known or [asked.make(number, one) for number, one in enumerate(earlier, start=1)]
        orders = trials.begin(known, Allowances(keep_going=not fail_fast), paid)
        seconds = orders.remaining_path
        outcome = driver.run(
            orders,
            trials.plan.graph,
            RayPool(
                cast(Cluster, search),
                str(store.root),
                name,
                uninterrupted=lambda job: uninterrupted(job, seconds.get(job.key, 0.0)),
            ),
            book,
            store,
            watch,
            about=driver.About(
                run=name,
                command=command,
                experiments=(sweep.name,),
                store=str(store.root),
                workers=workers,
                versions=running.versions(),
            ),
            supply=trials,
        )
        trials.break_off()
    return _reported(asked, trials, outcome, store, name, command, workers)


def _reported(
    asked: AskedSweep, trials: Trials, outcome: driver.Outcome, store: Store, name: str, command: str, workers: int
) -> DoneSweep:
    best = experiments.Plan()
    for one in trials.winners():
        merge(best, one.trial.plan)
        best.cells += one.trial.plan.cells
    rows = sweep_report.rows(list(trials.standings.values()), trials.winners(), store)
    folder = store.run_folder(name) / "report"
    files = sweep_report.write(folder, asked.sweep, rows, trials.winners(), command)
    if best.cells:
        files += running.write_report(folder / "winners", best, store, name, command)[:1]
    return DoneSweep(name, command, asked.sweep, store, workers, outcome, rows, best, files)


def _say(quiet: bool) -> Callable[[str], None]:
    console = Console(stderr=True)

    def say(text: str) -> None:
        if not quiet:
            console.print(Text(f"[{datetime.now():%H:%M:%S}] {text}"), soft_wrap=True)

    return say

"""One sweep from a request to its results: trials, Tune, the driver, the report, the document.

What `orchestrator.workloads.experiments` is to a run. A sweep's run has a name that follows from what is searched, so
the same command takes up the sweep where it was left, with a larger budget too. On SLURM a sweep is driven from its
head job; the terminal that follows reads what came of it from the report's `sweep.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from rich.table import Table
from rich.text import Text

from jobs import experiment
from jobs.errors import BadInput
from jobs.sweep import Sweep, Values, listed, load
from orchestrator.clusters.config import Target
from orchestrator.clusters.ray_cluster import Cluster
from orchestrator.clusters.ray_pool import RayPool
from orchestrator.clusters.slurm.follow import POINTER, SlurmRun
from orchestrator.planning.durations import uninterrupted
from orchestrator.planning.requests import Request, overridden
from orchestrator.results import cells
from orchestrator.runs import driver, journal
from orchestrator.runs.journal import Journal, Record
from orchestrator.runs.status import status
from orchestrator.runs.timeline import duration
from orchestrator.scheduler.schedule import RetryLimits
from orchestrator.scheduler.scheduler import State
from orchestrator.workloads import experiments
from orchestrator.workloads.sweep import report
from orchestrator.workloads.sweep.mailbox import TrialMailbox
from orchestrator.workloads.sweep.rows import Row
from orchestrator.workloads.sweep.rows import rows as rows_of
from orchestrator.workloads.sweep.trials import Trial, Trials, make_trial, merge
from orchestrator.workloads.sweep.tune import DESK, TuneCluster, check_searcher
from workers.store.files import replace_file
from workers.store.store import Store

DOCUMENT = "sweep.json"
"""In the report: what `sweep --json` prints, for whoever follows from elsewhere."""
LEARNT_RUNG = 1000
"""The highest rung of a sweep whose trials are not known beforehand."""
MOST_AT_ONCE = 16
"""Trials under way at a time unless the sweep says more; each is a process of about 200 MB on the driver's host."""


@dataclass(frozen=True)
class ResolvedSweep:
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

    def document(self) -> dict[str, Any]:
        """The sweep's file as it would be with its base, and the command line's words, in it."""
        return self.sweep.model_dump(mode="json") | {"base": dict(self.base)}

    def longest(self) -> int:
        """The rung that no trial goes beyond."""
        if not self.known:
            return LEARNT_RUNG
        by_stage = self.sweep.scheduler.rung == "stage"
        return max(len(one.stages) * (1 if by_stage else one.ipc_per_stage) for one in self.known)


def resolve_sweep(name: str, request: Request) -> ResolvedSweep:
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
    trials = tuple(make_trial(sweep, base, place, number, one) for number, one in enumerate(values, start=1))
    return ResolvedSweep(sweep, base, place, trials)


@dataclass(frozen=True)
class DoneSweep:
    """A sweep that ended, and what it leaves."""

    run: str
    command: str
    sweep: Sweep
    store: Store = field(repr=False)
    workers: int
    exit: int
    """The process's exit code."""
    why: str
    seconds: float
    counts: dict[str, int]
    """Jobs done, cached, failed and skipped."""
    failures: list[dict[str, str]]
    """The failed jobs: key, kind, reason, message, log."""
    rows: Sequence[Row]
    winners: experiment.Plan = field(repr=False)
    """The winners' jobs and cells."""
    files: Sequence[Path]

    def to_json(self) -> dict[str, Any]:
        """The interface of `sweep --json`: as `run --json`, and the trials."""
        messages = experiments.messages_of(self.failures)
        return {
            "schema": 1,
            "run": self.run,
            "exit": self.exit,
            "why": self.why,
            "store": str(self.store.root),
            "seconds": round(self.seconds, 3),
            "workers": self.workers,
            "jobs": self.counts,
            "metric": self.sweep.metric,
            "trials": [row.to_json() for row in self.rows],
            "results": [one.to_json() for one in cells.collect(self.winners, self.store, messages)],
            "artifacts": cells.artifacts(self.winners, self.store),
            "failures": self.failures,
            "files": [str(path) for path in self.files],
        }

    def lines(self) -> Iterator[Any]:
        """The same for people."""
        yield self._table()
        jobs = ", ".join(f"{count} {name}" for name, count in self.counts.items() if count)
        yield Text(f"{jobs} in {duration(self.seconds)} on {self.workers} workers; run {self.run}")
        for path in self.files:
            yield Text(str(path))
        for one in self.failures:
            yield Text(f"FAILED {one['key']} ({one['reason']}): {one['message']}\n       log: {one['log']}")
        if self.exit:
            yield Text(f"{self.why}; nothing is lost, go on with: {self.command}")

    def _table(self) -> Table:
        header, lines = report.table(self.rows, self.sweep)
        table = Table(*header, title=self.sweep.name, title_justify="left")
        for line in lines:
            table.add_row(*map(Text, line))
        return table


def run(
    asked: ResolvedSweep,
    store: Store,
    place: Target,
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
        BadInput: the sweep is with SLURM, and this process is not its head's.
        JournalLost: another process drives it.
    """
    sweep, workers, name = asked.sweep, place.cluster.count(), name or asked.run_name()
    if cluster is None:
        _take_back(store, name)
    store.sweep()
    folder = store.run_folder(name)
    mailbox = TrialMailbox(folder / DESK)
    at_once = sweep.at_once or min(MOST_AT_ONCE, 2 * workers)
    values = [one.values for one in asked.known] or None
    search = TuneCluster(cluster or experiments.cluster_of(place), folder, sweep, values, at_once, asked.longest())
    with Journal.open(folder) as book:
        past = journal.read(book.path)
        (folder / "report" / DOCUMENT).unlink(missing_ok=True)
        trials = Trials(sweep, asked.make, mailbox, store, book, search, experiments.teller(quiet))
        earlier = mailbox.begin_again()
        known = asked.known or [asked.make(number, one) for number, one in enumerate(earlier, start=1)]
        driven = 0.0 if cluster is None else seconds_driven(past)
        schedule = trials.begin(known, RetryLimits(keep_going=not fail_fast), seconds_paid(past), driven)
        seconds = schedule.remaining_path
        outcome = driver.run(
            schedule,
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
            about=driver.RunInfo(
                run=name,
                command=command,
                experiments=(sweep.name,),
                store=str(store.root),
                workers=workers,
                versions=experiments.versions(),
            ),
            schedule_source=trials,
        )
        trials.break_off()
    return _reported(asked, trials, outcome, store, name, command, workers)


def _reported(
    asked: ResolvedSweep, trials: Trials, outcome: driver.Outcome, store: Store, name: str, command: str, workers: int
) -> DoneSweep:
    best = _together(one.trial for one in trials.winners())
    rows = rows_of(list(trials.standings.values()), trials.winners(), store)
    folder = store.run_folder(name) / "report"
    files = report.write(folder, asked.sweep, rows, trials.winners(), command)
    if best.cells:
        files += experiments.write_report(folder / "winners", best, store, name, command)[:1]
    done = DoneSweep(
        run=name,
        command=command,
        sweep=asked.sweep,
        store=store,
        workers=workers,
        exit=outcome.exit,
        why=outcome.why,
        seconds=outcome.seconds,
        counts=experiments.counts_of(outcome.state),
        failures=experiments.failures_of(outcome.state),
        rows=rows,
        winners=best,
        files=files,
    )
    replace_file(folder / DOCUMENT, json.dumps(done.to_json(), allow_nan=False))
    return done


def run_on_slurm(
    asked: ResolvedSweep,
    store: Store,
    place: Target,
    *,
    command: str,
    quiet: bool = False,
    fail_fast: bool = False,
    follow: bool = True,
) -> DoneSweep | str:
    """Submit a sweep to SLURM, or find that it is there, and follow it; only its run's name if not to its end.

    Raises:
        NotSubmitted, BadInput: SLURM or the shared folder refuse.
        HeadGone: the sweep ended without a last word.
    """
    from orchestrator.clusters.slurm import submit  # takes Submitit along, which a sweep on this machine does without

    name, say = asked.run_name(), experiments.teller(quiet)
    graph, what = _together(asked.trials).graph, submit.sweep_of(asked.document())
    job = submit.submit(what, (asked.sweep.name,), graph, store, place, name, command=command, fail_fast=fail_fast)
    say(f"sweep {name}: its head is SLURM job {job}" if job else f"sweep {name} is with SLURM already")
    last = experiments.followed(store, name, say) if follow else None
    return name if last is None else load_remote_result(asked, store, place, name, command, last)


def load_remote_result(
    asked: ResolvedSweep, store: Store, place: Target, name: str, command: str, last: Record
) -> DoneSweep:
    """What came of a sweep that another process drove, from its report and the journal's last record."""
    try:
        document = json.loads((store.run_folder(name) / "report" / DOCUMENT).read_text(encoding="utf-8"))
    except FileNotFoundError:  # its driver did not come so far
        document = {"trials": [], "files": []}
    rows, found = [Row.of(one) for one in document["trials"]], status(store, name)
    won = sorted((row for row in rows if row.rank), key=lambda row: row.rank)
    return DoneSweep(
        run=name,
        command=command,
        sweep=asked.sweep,
        store=store,
        workers=place.cluster.count(),
        exit=last["exit"],
        why=last["why"],
        seconds=last["seconds"],
        counts={one: found.jobs[one] for one in ("done", "cached", "failed", "skipped")},
        failures=found.failures,
        rows=rows,
        winners=_together(asked.make(row.number, row.values) for row in won),
        files=[Path(path) for path in document["files"]],
    )


def seconds_paid(past: Sequence[Record]) -> float:
    """The worker time of the jobs that earlier drivers of a sweep have seen to their end."""
    return float(sum(record["job_seconds"] for record in past if record["event"] == "job_done"))


def seconds_driven(past: Sequence[Record]) -> float:
    """How long the drivers since the last submission to SLURM took: of one launch there may be many."""
    last = max((number for number, record in enumerate(past) if record["event"] == "submitted"), default=len(past))
    following = pairwise([*past[last + 1 :], {"event": "run_began"}])
    return float(sum(record["seconds"] for record, after in following if after["event"] == "run_began"))


def _take_back(store: Store, name: str) -> None:
    """Drive here what SLURM drove before, unless it still does."""
    slurm_run = SlurmRun.of(store, name)
    if slurm_run is None:
        return
    if held := slurm_run.head():
        fix = f"SLURM has it ({held[0].sentence()}); follow it with --cluster, or end it with `pdd cancel {name}`"
        raise BadInput("command line", "sweep", name, fix)
    (store.run_folder(name) / POINTER).unlink()


def _together(trials: Iterable[Trial]) -> experiment.Plan:
    """The jobs and cells of these trials as one plan."""
    plan = experiment.Plan()
    for trial in trials:
        merge(plan, trial.plan)
        plan.cells += trial.plan.cells
    return plan

"""One run from a request to its results: the pool, the driver, the screen, the report, the document.

Everything that has to be put together for `run` is put together here and nowhere else; each part stands in a module
of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from jobs.errors import BadInput
from jobs.experiment import Plan
from jobs.keys import kind_of
from orchestrator.clusters.config import LocalClusterSpec, RayClusterSpec, Target
from orchestrator.clusters.ray_cluster import Cluster, ExternalCluster, LocalCluster
from orchestrator.clusters.ray_pool import RayPool
from orchestrator.clusters.slurm.follow import SlurmRun, uses_of
from orchestrator.clusters.slurm.follow import follow as follow_to_end
from orchestrator.clusters.versions import package_versions
from orchestrator.planning.durations import estimate_durations, uninterrupted
from orchestrator.planning.forecast import schedule_of
from orchestrator.planning.requests import Request, ResolvedRequest
from orchestrator.reports import experiment_report
from orchestrator.results import cells
from orchestrator.runs import driver, journal
from orchestrator.runs.journal import Journal, Record
from orchestrator.runs.progress import Progress
from orchestrator.runs.status import runs, status
from orchestrator.runs.timeline import duration
from orchestrator.scheduler.schedule import RetryLimits
from orchestrator.scheduler.scheduler import State, Status
from workers.store.claims import Claim, Claims
from workers.store.store import Store


@dataclass(frozen=True)
class Done:
    """A run that ended, and what it leaves."""

    run: str
    command: str
    plan: Plan = field(repr=False)
    store: Store = field(repr=False)
    workers: int
    exit: int
    """The process's exit code."""
    why: str
    seconds: float
    counts: dict[str, int]
    """Jobs done, cached (found whole, or not needed any more), failed and skipped."""
    failures: list[dict[str, str]]
    """The failed jobs: key, kind, reason, message, log."""
    report: Path | None

    @cached_property
    def results(self) -> list[cells.Result]:
        """One per cell."""
        return cells.collect(self.plan, self.store, messages_of(self.failures))

    def to_json(self) -> dict[str, Any]:
        """The interface of `run --json`."""
        return {
            "schema": 1,
            "run": self.run,
            "exit": self.exit,
            "why": self.why,
            "store": str(self.store.root),
            "seconds": round(self.seconds, 3),
            "workers": self.workers,
            "jobs": self.counts,
            "results": [result.to_json() for result in self.results],
            "artifacts": cells.artifacts(self.plan, self.store),
            "failures": self.failures,
            "report": str(self.report) if self.report else None,
        }

    def lines(self) -> Iterator[Any]:
        """The same for people."""
        yield experiment_report.console_table(self.results)
        counted = self.counts
        jobs = ", ".join(f"{count} {name}" for name, count in counted.items() if count)
        yield Text(f"{jobs} in {duration(self.seconds)} on {self.workers} workers; run {self.run}")
        if self.report:
            yield Text(f"report: {self.report}")
        yield from self.troubles()

    def troubles(self) -> Iterator[Text]:
        """What failed, and how to go on."""
        for one in self.failures:
            yield Text(f"FAILED {one['key']} ({one['reason']}): {one['message']}\n       log: {one['log']}")
        if self.exit == 130:
            yield Text(f"{self.why}; nothing is lost, go on with: {self.command}")
        elif self.exit == 3:
            yield Text(f"what failed is tried again by: {self.command}")


def run(
    asked: ResolvedRequest,
    store: Store,
    place: Target,
    *,
    command: str,
    quiet: bool = False,
    fail_fast: bool = False,
    name: str | None = None,
    cluster: Cluster | None = None,
    watch: Callable[[State], None] = lambda state: None,
    write: Callable[[Path, str], list[Path]] | None = None,
) -> Done:
    """Run a request on a cluster to its end and write its report into the run's folder.

    A run on SLURM has its `name`, and a `cluster` that is there or on its way; `watch` is called at each change.
    `write` writes another report than the usual one, into a folder, of the run with this name.
    """
    workers = place.cluster.count()
    name = name or run_name(asked)
    store.sweep()
    priced = estimate_durations(asked.plan.graph, store)
    schedule = schedule_of(asked, priced, retry_limits=RetryLimits(keep_going=not fail_fast))
    pool = RayPool(
        cluster or cluster_of(place),
        str(store.root),
        name,
        uninterrupted=lambda job: uninterrupted(job, priced.seconds.get(job.key, 0.0)),
    )
    about = driver.RunInfo(
        run=name,
        command=command,
        experiments=asked.names,
        store=str(store.root),
        workers=workers,
        versions=versions(),
    )
    claims = Claims(store.root)

    def on_change(state: State) -> None:
        watch(state)
        screen.update(state, _lately(claims))

    with (
        Journal.open(store.run_folder(name)) as book,
        Progress(asked.plan, store, quiet=quiet, seconds=priced.of) as screen,
    ):
        outcome = driver.run(
            schedule,
            asked.plan.graph,
            pool,
            book,
            store,
            on_change,
            about=about,
        )
    folder = store.run_folder(name) / "report"
    paths = write(folder, name) if write else write_report(folder, asked.plan, store, name, command)
    return Done(
        run=name,
        command=command,
        plan=asked.plan,
        store=store,
        workers=workers,
        exit=outcome.exit,
        why=outcome.why,
        seconds=outcome.seconds,
        counts=counts_of(outcome.state),
        failures=failures_of(outcome.state),
        report=paths[0],
    )


def run_on_slurm(
    request: Request,
    asked: ResolvedRequest,
    store: Store,
    place: Target,
    *,
    command: str,
    quiet: bool = False,
    fail_fast: bool = False,
    follow: bool = True,
) -> Done | str:
    """Submit a request to SLURM, and follow it to its end; only its run's name when it is not followed to its end.

    Whoever follows may leave at any time: the run does not notice.

    Raises:
        NotSubmitted, BadInput: SLURM or the shared folder refuse.
        HeadGone: the run ended without a last word.
    """
    from orchestrator.clusters.slurm import submit  # takes Submitit along, which a run on this machine does without

    return submitted(
        submit.request_of(request),
        asked,
        store,
        place,
        run_name(asked),
        command=command,
        quiet=quiet,
        fail_fast=fail_fast,
        follow=follow,
    )


def submitted(
    what: Callable[[Path], dict[str, Any]],
    asked: ResolvedRequest,
    store: Store,
    place: Target,
    name: str,
    *,
    command: str,
    quiet: bool,
    fail_fast: bool,
    follow: bool,
) -> Done | str:
    """Submit a part of an order (`submission.What`), and be there to the end of its run or not."""
    from orchestrator.clusters.slurm import submit

    graph, say = asked.plan.graph, teller(quiet)
    job = submit.submit(what, asked.names, graph, store, place, name, command=command, fail_fast=fail_fast)
    say(f"run {name}: its head is SLURM job {job}")
    last = followed(store, name, say) if follow else None
    if last is None:
        return name
    found = status(store, name)
    return Done(
        run=name,
        command=command,
        plan=asked.plan,
        store=store,
        workers=place.cluster.count(),
        exit=last["exit"],
        why=last["why"],
        seconds=last["seconds"],
        counts={one: found.jobs[one] for one in ("done", "cached", "failed", "skipped")},
        failures=found.failures,
        report=next(iter((store.run_folder(name) / "report").glob("report.md")), None),
    )


def followed(store: Store, name: str, say: Callable[[str], None]) -> Record | None:
    """The last record of a run on SLURM, which is followed to its end; None if whoever follows leaves before.

    Raises:
        HeadGone: the run ended without a last word.
    """
    slurm_run = SlurmRun.of(store, name)
    assert slurm_run is not None
    try:
        return follow_to_end(store, slurm_run, say)
    except KeyboardInterrupt:
        return None


def teller(quiet: bool) -> Callable[[str], None]:
    """Tells people one line, with the time of day before it."""
    console = Console(stderr=True)

    def say(text: str) -> None:
        if not quiet:
            console.print(Text(f"[{datetime.now():%H:%M:%S}] {text}"), soft_wrap=True)

    return say


def cluster_of(place: Target) -> Cluster:
    """The cluster of a run that this process drives itself.

    Raises:
        BadInput: the token's file cannot be read.
    """
    match place.cluster:
        case LocalClusterSpec():
            return LocalCluster(place.cluster.count())
        case RayClusterSpec(address=address, token_file=token):
            if token is not None and not Path(token).expanduser().is_file():
                raise BadInput("cluster.yaml", f"clusters.{place.name}.token_file", token, "name a file you can read")
            slots = place.cluster.slots_per_node
            return ExternalCluster(address, Path(token).expanduser() if token else None, slots)
    raise AssertionError("a run on SLURM is driven from its head job")


def counts_of(state: State) -> dict[str, int]:
    """Jobs done, cached (found whole, or not needed any more), failed and skipped."""
    counted = state.counts()
    return {
        "done": counted[Status.DONE],
        "cached": counted[Status.CACHED] + counted[Status.UNNEEDED],
        "failed": counted[Status.FAILED],
        "skipped": counted[Status.SKIPPED],
    }


def failures_of(state: State) -> list[dict[str, str]]:
    """The failed jobs: key, kind, reason, message, log."""
    return [
        {
            "key": key,
            "kind": kind_of(key),
            "reason": str(job.reason),
            "message": job.because,
            "log": job.log,
        }
        for key, job in state.jobs.items()
        if job.status is Status.FAILED
    ]


def messages_of(failures: Iterable[dict[str, str]]) -> dict[str, str]:
    """What the failed jobs died of, by key, for the cells that they leave empty."""
    return {one["key"]: f"{one['reason']}: {one['message']}" for one in failures}


def write_report(folder: Path, plan: Plan, store: Store, run: str | None, command: str) -> list[Path]:
    """The report of what the store has for a plan; timing and failures come from the run's journal."""
    records: list[Record] | None = None
    if run is not None:
        records = journal.read(store.run_folder(run) / journal.NAME)
    return experiment_report.write(folder, plan, store, records, command, uses_of(store, run))


def latest_run(asked: ResolvedRequest, store: Store) -> str | None:
    """The latest run of exactly these experiments, if there is one."""
    names = list(asked.names)
    for run in reversed(runs(store)):
        records = journal.read(store.run_folder(run) / journal.NAME)
        if records and list(records[0].get("experiments", ())) == names:
            return run
    return None


def run_name(asked: ResolvedRequest) -> str:
    """Readable and unique: the first experiment, the time, and chance against two starts in one second."""
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{asked.names[0]}-{now}-{secrets.token_hex(2)}"


def _lately(claims: Claims) -> Iterable[Claim]:
    """The claims, read only if somebody goes through them."""
    yield from claims.all()


def versions() -> dict[str, str]:
    """The versions of what computes, for the journal."""
    return package_versions()

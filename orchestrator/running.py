"""One run from a request to its results: the pool, the driver, the screen, the report, the document.

Everything that has to be put together for `run` is put together here and nowhere else; each part stands in a module
of its own.
"""

from __future__ import annotations

import platform
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.text import Text

from jobs.experiments import Plan
from jobs.keys import kind_of
from orchestrator import driver, journal, report, results
from orchestrator.cluster import Place
from orchestrator.forecast import prices
from orchestrator.journal import Journal, Record
from orchestrator.plan import Allowances
from orchestrator.planning import duration, orders_of
from orchestrator.progress import Progress
from orchestrator.ray_pool import LocalCluster, RayPool
from orchestrator.request import Asked
from orchestrator.state import Status
from orchestrator.status import runs
from workers.claims import Claim, Claims
from workers.store import Store


@dataclass(frozen=True)
class Done:
    """A run that ended, and what it leaves."""

    run: str
    command: str
    plan: Plan = field(repr=False)
    store: Store = field(repr=False)
    workers: int
    outcome: driver.Outcome
    report: Path | None

    @property
    def exit(self) -> int:
        """The process's exit code."""
        return self.outcome.exit

    @cached_property
    def results(self) -> list[results.Result]:
        """One per cell."""
        return results.collect(self.plan, self.store, self._messages())

    def _messages(self) -> dict[str, str]:
        return {one["key"]: f"{one['reason']}: {one['message']}" for one in self.failures()}

    def failures(self) -> list[dict[str, str]]:
        """The failed jobs: key, kind, reason, message, log."""
        return [
            {
                "key": key,
                "kind": kind_of(key),
                "reason": str(job.reason),
                "message": job.because,
                "log": job.log,
            }
            for key, job in self.outcome.state.jobs.items()
            if job.status is Status.FAILED
        ]

    def counts(self) -> dict[str, int]:
        """Jobs done, cached (found whole, or not needed any more), failed and skipped."""
        counted = self.outcome.state.counts()
        return {
            "done": counted[Status.DONE],
            "cached": counted[Status.CACHED] + counted[Status.UNNEEDED],
            "failed": counted[Status.FAILED],
            "skipped": counted[Status.SKIPPED],
        }

    def to_json(self) -> dict[str, Any]:
        """The interface of `run --json`."""
        return {
            "schema": 1,
            "run": self.run,
            "exit": self.exit,
            "why": self.outcome.why,
            "store": str(self.store.root),
            "seconds": round(self.outcome.seconds, 3),
            "workers": self.workers,
            "jobs": self.counts(),
            "results": [result.to_json() for result in self.results],
            "artifacts": results.artifacts(self.plan, self.store),
            "failures": self.failures(),
            "report": str(self.report) if self.report else None,
        }

    def lines(self) -> Iterator[Any]:
        """The same for people."""
        yield report.console_table(self.results)
        counted = self.counts()
        jobs = ", ".join(f"{count} {name}" for name, count in counted.items() if count)
        yield Text(f"{jobs} in {duration(self.outcome.seconds)} on {self.workers} workers; run {self.run}")
        if self.report:
            yield Text(f"report: {self.report}")
        for one in self.failures():
            yield Text(f"FAILED {one['key']} ({one['reason']}): {one['message']}\n       log: {one['log']}")
        if self.exit == 130:
            yield Text(f"{self.outcome.why}; nothing is lost, go on with: {self.command}")
        elif self.exit == 3:
            yield Text(f"what failed is tried again by: {self.command}")


def run(
    asked: Asked, store: Store, place: Place, *, command: str, quiet: bool = False, fail_fast: bool = False
) -> Done:
    """Run a request on a cluster to its end and write its report into the run's folder."""
    workers = place.cluster.count()
    name = _run_name(asked)
    store.sweep()
    priced = prices(asked.plan.graph, store)
    orders = orders_of(asked, priced, allowances=Allowances(keep_going=not fail_fast))
    pool = RayPool(LocalCluster(workers), str(store.root), name)
    about = driver.About(
        run=name,
        command=command,
        experiments=tuple(one.name for one in asked.experiments),
        store=str(store.root),
        workers=workers,
        versions=_versions(),
    )
    claims = Claims(store.root)
    with (
        Journal.open(store.run_folder(name)) as book,
        Progress(asked.plan, store, quiet=quiet, seconds=priced.of) as screen,
    ):
        outcome = driver.run(
            orders,
            asked.plan.graph,
            pool,
            book,
            store,
            lambda state: screen.update(state, _lately(claims)),
            about=about,
        )
    paths = write_report(store.run_folder(name) / "report", asked.plan, store, name, command)
    return Done(name, command, asked.plan, store, workers, outcome, paths[0])


def write_report(folder: Path, plan: Plan, store: Store, run: str | None, command: str) -> list[Path]:
    """The report of what the store has for a plan; timing and failures come from the run's journal."""
    records: list[Record] | None = None
    if run is not None:
        records = journal.read(store.run_folder(run) / journal.NAME)
    return report.write(folder, plan, store, records, command)


def latest_run(asked: Asked, store: Store) -> str | None:
    """The latest run of exactly these experiments, if there is one."""
    names = [one.name for one in asked.experiments]
    for run in reversed(runs(store)):
        records = journal.read(store.run_folder(run) / journal.NAME)
        if records and list(records[0].get("experiments", ())) == names:
            return run
    return None


def _run_name(asked: Asked) -> str:
    """Readable and unique: the first experiment, the time, and chance against two starts in one second."""
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{asked.experiments[0].name}-{now}-{secrets.token_hex(2)}"


def _lately(claims: Claims) -> Iterable[Claim]:
    """The claims, read only if somebody goes through them."""
    yield from claims.all()


def _versions() -> dict[str, str]:
    names = ("torch", "ray", "pyarrow", "numpy")
    return {name: metadata.version(name) for name in names} | {"python": platform.python_version()}

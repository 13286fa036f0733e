"""The status of a run, from its journal, the claims in the store and the queue it is in; Ray is never asked.

Works from any shell that sees the store, while the run goes on and after it ended or died.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from rich.text import Text

from jobs.errors import BadInput
from jobs.keys import kind_of
from orchestrator.runs import journal
from orchestrator.runs.records import Record
from orchestrator.runs.time_left import Running, WorkLeft
from orchestrator.runs.timeline import clock_time
from workers.store.claims import Claim, Claims
from workers.store.files import is_plain, is_plain_file, names_in
from workers.store.store import Store

SILENT_SECONDS = 30.0
"""A job that lives beats its claim several times meanwhile."""
STATES = ("blocked", "ready", "running", "done", "cached", "unneeded", "failed", "skipped")
_STATUS_OF = {
    "job_cached": "cached",
    "job_unneeded": "unneeded",
    "job_ready": "ready",
    "job_started": "running",
    "job_done": "done",
    "job_found": "cached",
    "job_busy": "ready",
    "job_yielded": "ready",
    "job_failed": "failed",
    "job_skipped": "skipped",
}


class QueuedJob(Protocol):
    """A job in a queue."""

    @property
    def state(self) -> str:
        """`PENDING` while it waits."""


class QueueView(Protocol):
    """What a queue, such as SLURM's, says of a run's jobs."""

    def head(self) -> Sequence[QueuedJob] | None:
        """The living job that drives the run, in a list; None if the queue does not answer."""

    def sentences(self) -> list[str]:
        """Where its jobs stand, for people."""

    def last_word(self) -> str:
        """Why the head job ended, where the journal does not say; empty if it is not known."""


@dataclass
class RunStatus:
    """One run: `state` is queued, running, ended (with `exit`), or dead (its driver is gone without a last word)."""

    run: str
    state: str
    exit: int | None
    why: str
    command: str
    jobs: dict[str, int]
    running: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    eta_seconds: float | None = None
    slurm: list[str] = field(default_factory=list)
    """Where its SLURM jobs stand."""

    def to_json(self) -> dict[str, Any]:
        """As `status --json` prints it."""
        return {"schema": 1, **vars(self)}

    def lines(self) -> Iterator[Text]:
        """The same for people."""
        ending = f", exit {self.exit}" if self.exit is not None else ""
        eta = f", about {clock_time(self.eta_seconds)} left" if self.eta_seconds and self.eta_seconds >= 1 else ""
        yield Text(f"{self.run}: {self.state}{ending}{eta}" + (f": {self.why}" if self.why else ""))
        yield Text("  " + ", ".join(f"{count} {name}" for name, count in self.jobs.items() if count))
        for job in self.running:
            silent = f", silent for {job['silent_seconds']:.0f} s" if job["silent_seconds"] >= SILENT_SECONDS else ""
            yield Text(f"  {job['key']} on {job['host']}: {job['note']} ({job['seconds']:.0f} s{silent})")
        for line in self.slurm:
            yield Text(f"  SLURM: {line}")
        for job in self.failures:
            yield Text(f"  FAILED {job['key']} ({job['reason']}): {job['message']}; log {job['log']}")


def runs(store: Store) -> list[str]:
    """All runs of a store, the latest last."""
    journals = [store.root / "runs" / name / journal.NAME for name in names_in(store.root / "runs") if is_plain(name)]
    plain = [path for path in journals if is_plain_file(path)]
    return [path.parent.name for path in sorted(plain, key=lambda path: path.stat().st_mtime_ns)]


def chosen_run(store: Store, run: str | None) -> str:
    """The named run, or the latest.

    Raises:
        BadInput: there is no such run, or none at all.
    """
    known = runs(store)
    if run is not None and run in known:
        return run
    if run is not None or not known:
        fix = f"must be one of {', '.join(known[-5:])}" if known else "this store has no runs yet; start one"
        raise BadInput(str(store.root), "run", run, fix)
    return known[-1]


def status(store: Store, run: str, queue: QueueView | None) -> RunStatus:
    """The status of a run at this moment.

    Args:
        store: where its journal and claims are.
        run: its name.
        queue: what its queue says of it; None if it is in no queue.
    """
    records, claims = journal.read(store.run_folder(run) / journal.NAME), Claims(store.root).all()
    if queue is None:
        return from_records(run, records, claims, time.time(), _driver_lives(records))
    head = queue.head()
    current = from_records(run, records, claims, time.time(), head is None or bool(head))
    current.slurm = queue.sentences()
    if current.state == "dead" and (word := queue.last_word()):
        current.why = f"the head ended: {word}; run the same command again"
    if head and all(job.state == "PENDING" for job in head):
        current.state, current.exit, current.why = "queued", None, "its head job waits in SLURM's queue"
    return current


def from_records(
    run: str, records: Sequence[Record], claims: Iterable[Claim], now: float, driver_lives: bool
) -> RunStatus:
    """The same as `status` from plain values."""
    begun = max((n for n, record in enumerate(records) if record["event"] in ("submitted", "run_began")), default=0)
    current = records[begun:]
    began = current[0] if current else {}
    standing = {record["key"]: _STATUS_OF[record["event"]] for record in current if record["event"] in _STATUS_OF}
    ended = next((record for record in reversed(current) if record["event"] == "run_ended"), None)
    counts = Counter(standing.values())
    known = sum(began.get("jobs", {}).values())
    jobs = {name: counts[name] for name in STATES} | {"blocked": max(0, known - sum(counts.values()))}
    state = "ended" if ended else "running" if driver_lives else "dead"
    working = [] if ended else _running(standing, claims, now)
    return RunStatus(
        run=run,
        state=state,
        exit=ended["exit"] if ended else None,
        why=ended["why"] if ended else "" if driver_lives else "the driver is gone; run the same command again",
        command=began.get("command", ""),
        jobs=jobs,
        running=working,
        failures=[
            {
                "key": r["key"],
                "kind": kind_of(r["key"]),
                "reason": r["reason"],
                "message": r["message"],
                "log": r["log"],
            }
            for r in current
            if r["event"] == "job_failed"
        ],
        eta_seconds=_eta(current, working, now) if state == "running" else None,
    )


def log_of(store: Store, run: str, key: str | None) -> Path:
    """The log file of a job of the run; the only or the latest one without a key. A key may be shortened.

    Raises:
        BadInput: no log fits.
    """
    logs = _logs(store, run)
    fitting = [path for path in logs if _fits(path, key)]
    if not fitting:
        has = "none of its jobs has run, so none has a log"
        if logs:
            has = f"no log of such a job; the latest logs: {', '.join(path.stem for path in logs[-5:])}"
        others = [name for name in runs(store) if any(_fits(path, key) for path in _logs(store, name))]
        fix = f"; a run that has one: --run {others[-1]}" if others else ""
        hint = f"that is a run: --run {key}; " if key in runs(store) else ""
        raise BadInput(f"run {run}", "job", "any" if key is None else key, f"{hint}{has}{fix}")
    return fitting[-1]


def _logs(store: Store, run: str) -> list[Path]:
    """The logs of a run's jobs, the latest last."""
    files = filter(is_plain_file, (store.run_folder(run) / "logs").glob("*.log"))  # a pipe might be read for ever
    return sorted(files, key=lambda path: path.stat().st_mtime_ns)


def _fits(log: Path, key: str | None) -> bool:
    """Whether a log is of the job that a part of a key names; any is where none is named."""
    return key is None or key in log.stem


def _running(standing: dict[str, str], claims: Iterable[Claim], now: float) -> list[dict[str, Any]]:
    by_key = {claim.key: claim for claim in claims}
    return [
        {
            "key": key,
            "kind": kind_of(key),
            "host": by_key[key].host if key in by_key else "",
            "seconds": max(0.0, round(now - by_key[key].claimed_at, 1)) if key in by_key else 0.0,
            "progress": round(by_key[key].done, 3) if key in by_key else 0.0,
            "note": by_key[key].note if key in by_key else "",
            "silent_seconds": round(max(0.0, now - by_key[key].beat_at), 1) if key in by_key else 0.0,
        }
        for key, status in standing.items()
        if status == "running"
    ]


def _eta(current: Sequence[Record], working: Sequence[Mapping[str, Any]], now: float) -> float | None:
    """Seconds until the run ends, as far as its records and the claims of running jobs tell; None if nothing was said.

    Args:
        current: the records of its driver.
        working: the running jobs, as `status` describes them.
        now: unix seconds.
    """
    work = WorkLeft()
    for record in current:
        work.follow(record)
    if not current or not current[0].get("jobs"):
        return None
    running = [Running(job["key"], job["progress"], job["note"], job["seconds"]) for job in working]
    left = work.time_left(running, _seconds_of_driver(current, now))
    return None if left is None else round(left, 1)


def _seconds_of_driver(current: Sequence[Record], now: float) -> float:
    """Seconds since the driver began, by the time of its last record."""
    last = current[-1]
    with suppress(ValueError):
        return float(last["seconds"] + max(0.0, now - datetime.fromisoformat(last.get("t", "")).timestamp()))
    return float(last["seconds"])


def _driver_lives(records: Sequence[Record]) -> bool:
    """Whether the last driver's process exists; on another host it is believed."""
    began = next((record for record in reversed(records) if record["event"] == "run_began"), None)
    if began is None:
        return False
    if began["host"] != socket.gethostname():
        return True
    try:
        os.kill(began["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

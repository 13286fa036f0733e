"""A run on SLURM as any login node sees it: its state, followed, cancelled.

Nothing here talks to Ray. What a run does stands in its journal, what SLURM does with its jobs in SLURM's queue; so
any terminal that sees the store may do all of this, and the one that launched the run may leave.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import PddError
from orchestrator.clusters.slurm.client import SlurmClient
from orchestrator.clusters.slurm.parsers import QueuedJob, usage_text
from orchestrator.clusters.slurm.run_folder import HeadMonitor, RunFolder
from orchestrator.clusters.slurm.sbatch import Role, name_of
from orchestrator.runs import journal
from orchestrator.runs.journal import Journal, JournalLost
from orchestrator.runs.records import Record
from orchestrator.runs.status import RunStatus, status
from workers.store.store import Store

POINTER = "slurm.json"
"""In a run's folder: where its SLURM jobs meet."""
POLL_SECONDS = 0.5
QUEUE_POLL_SECONDS, LONGEST_QUEUE_POLL_SECONDS = 3.0, 15.0
"""Seconds between two questions to SLURM's queue while the head gives no sign of life; longer from one to the next."""
SILENCE_SECONDS = 20.0
"""Seconds without a sign of life of the head after which SLURM is asked for it."""
QUEUE_EXIT_SECONDS = 90.0
"""Seconds that a run's jobs may stay in the queue after its last word; if it was stopped, it then goes on."""
NO_ACCOUNTING = "no accounting (sacct): time queued, time run and GPU-hours are not known"


class HeadGone(PddError):
    """The head job ended and the journal has no last word."""


class NeverStarts(PddError):
    """The head job waits for something that waiting does not bring."""


@dataclass(frozen=True)
class SlurmRun:
    """A run's SLURM jobs."""

    run: str
    mode: str
    folder: Path
    client: SlurmClient = SlurmClient()

    @classmethod
    def of(cls, store: Store, run: str, client: SlurmClient | None = None) -> SlurmRun | None:
        """Those of a run of this store; None if it is not on SLURM."""
        try:
            document = json.loads((store.run_folder(run) / POINTER).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return cls(run, document["mode"], Path(document["folder"]), client or SlurmClient())

    @property
    def head_role(self) -> Role:
        """Which job drives the run."""
        return "gang" if self.mode == "gang" else "head"

    def head(self) -> list[QueuedJob] | None:
        """The living head job, in a list; None if SLURM does not say."""
        return self._jobs(self.head_role)

    def workers(self) -> list[QueuedJob] | None:
        """The worker jobs; None if SLURM does not say."""
        return self._jobs("worker")

    def _jobs(self, role: Role) -> list[QueuedJob] | None:
        queued = self.client.jobs(name_of(self.run, role))
        return None if queued is None else [job for job in queued if job.there]

    def sentences(self) -> list[str]:
        """Where the jobs stand and, where there is accounting, what they took; for people."""
        parts = {"head": self.head(), "worker": self.workers()}
        return [
            line
            for role, jobs in parts.items()
            for line in ([f"{role}: SLURM does not say"] if jobs is None else [f"{role} {j.sentence()}" for j in jobs])
        ] + ([NO_ACCOUNTING] if (usage := self._usage()) is None else usage)

    def uses(self) -> list[str]:
        """What the jobs of each role took: starts, time in the queue, GPU-hours; nothing without accounting."""
        return self._usage() or []

    def _usage(self) -> list[str] | None:
        lines = []
        for role in (self.head_role, "worker"):
            used = self.client.used(name_of(self.run, role))
            if used is None:  # asked once, answered for all
                return None
            if used:
                lines.append(f"{role}: {usage_text(used)}")
        return lines

    def cancel(self, store: Store) -> None:
        """End the jobs of a run that no driver drives at the moment; a driver sees the request and ends them itself."""
        head = self.head()
        waits = head is not None and all(job.state == "PENDING" for job in head)
        if waits or not _driven(journal.read(store.run_folder(self.run) / journal.NAME)):
            self.end(store, 130, "cancelled")

    def end(self, store: Store, code: int, why: str) -> None:
        """Take the jobs of a run that nobody drives out of the queue, and write its last word.

        Args:
            store: where the run's journal is.
            code: the exit code of the run.
            why: its last word.
        """
        self.client.cancel_all(name_of(self.run, self.head_role))
        self.client.cancel_all(name_of(self.run, "worker"))
        with suppress(JournalLost), Journal.open(store.run_folder(self.run)) as book:  # else a driver writes it
            book.write("run_ended", exit=code, why=why, counts={})

    def last_word(self) -> str:
        """Why the head ended, where the journal does not say; empty if it is not known."""
        return RunFolder(self.folder).last_word()


def status_of(store: Store, run: str) -> RunStatus:
    """The status of a run, with what SLURM's queue says of it if it is there."""
    return status(store, run, SlurmRun.of(store, run))


def uses_of(store: Store, run: str | None) -> list[str]:
    """What a run took of SLURM, for its report; nothing of a run that was elsewhere."""
    slurm_run = None if run is None else SlurmRun.of(store, run)
    return [] if slurm_run is None else slurm_run.uses()


def _driven(records: list[Record]) -> bool:
    marks = [record["event"] for record in records if record["event"] in ("submitted", "run_began", "run_ended")]
    return bool(marks) and marks[-1] == "run_began"


def follow(store: Store, slurm_run: SlurmRun, say: Callable[[str], None]) -> Record:
    """Tell what a run does, from its last submission until it has ended; returns the journal's last record.

    Raises:
        HeadGone: it ended without a last word.
        NeverStarts: its head will never start as it is; it is taken out of the queue.
    """
    submitted = [
        record["seq"]
        for record in journal.read(store.run_folder(slurm_run.run) / journal.NAME)
        if record["event"] == "submitted"
    ]
    seen = max(submitted, default=0) - 1
    while True:
        watch = _HeadWatch(slurm_run, say)
        last: Record = {}
        try:
            for last in journal.follow(store.run_folder(slurm_run.run) / journal.NAME, watch.wait):
                if last["seq"] <= seen:
                    continue
                seen = last["seq"]
                for line in lines_of(last):
                    say(line)
        except NeverStarts as error:
            slurm_run.end(store, 1, str(error))
            raise
        if _leaves(slurm_run, patiently=last["exit"] != 130):
            return last
        say("the head job is still with SLURM; the run goes on")
        _until_more(store, slurm_run, seen, say)


def _leaves(slurm_run: SlurmRun, patiently: bool) -> bool:
    """Wait for the run's jobs to leave the queue; false if the head stays, as that of a stopped run may.

    A head that is requeued waits in the queue, or drives again.
    """
    deadline, pause = time.monotonic() + QUEUE_EXIT_SECONDS, POLL_SECONDS
    while time.monotonic() < deadline:
        head, workers = slurm_run.head(), slurm_run.workers()
        if head == [] and workers == []:
            return True
        if head and not patiently and all(job.state == "PENDING" for job in head):
            return False
        time.sleep(pause)
        pause = min(5.0, pause * 1.5)
    return patiently


def _until_more(store: Store, slurm_run: SlurmRun, seen: int, say: Callable[[str], None]) -> None:
    """Wait for the next driver's first record."""
    watch = _HeadWatch(slurm_run, say)
    path = store.run_folder(slurm_run.run) / journal.NAME
    while journal.read(path)[-1]["seq"] <= seen:
        watch.wait()


class _HeadWatch:
    """What a follower does while the journal has nothing new: look after the head job."""

    def __init__(self, slurm_run: SlurmRun, say: Callable[[str], None]) -> None:
        self.slurm_run, self.say = slurm_run, say
        self._monitor = HeadMonitor(RunFolder(slurm_run.folder), SILENCE_SECONDS)
        self._ask_at, self._pause = time.monotonic(), QUEUE_POLL_SECONDS
        self._said = ""
        self._missing = self._stuck = 0

    def wait(self) -> None:
        """Wait a moment; SLURM is asked only while the head gives no sign of life.

        Raises:
            HeadGone: nobody can write the journal any more.
            NeverStarts: nobody ever will.
        """
        time.sleep(POLL_SECONDS)
        if self._monitor.listen() is not None and not self._monitor.silent():
            self._missing, self._pause = 0, QUEUE_POLL_SECONDS
            return
        if time.monotonic() < self._ask_at:
            return
        head = self.slurm_run.head()
        self._ask_at = time.monotonic() + self._pause
        self._pause = min(LONGEST_QUEUE_POLL_SECONDS, self._pause * 1.5)
        if head is not None:
            self._judge(head)

    def _judge(self, head: list[QueuedJob]) -> None:
        """Say where the head stands, and find out that it is gone or will never start; twice, for chance."""
        self._missing = 0 if head else self._missing + 1
        self._stuck = self._stuck + 1 if head and all(job.never_starts for job in head) else 0
        sentence = ", ".join(job.sentence() for job in head)
        if self._missing >= 2:
            word = self.slurm_run.last_word()
            raise HeadGone(
                f"the head job of {self.slurm_run.run} is gone without a last word in the journal"
                f"{f' ({word})' if word else ''}; its log is in {self.slurm_run.folder / 'jobs'}; "
                "run the same command again, nothing finished is lost"
            )
        if self._stuck >= 2:
            raise NeverStarts(f"the head job of {self.slurm_run.run} will never start: {sentence}")
        if sentence and sentence != self._said:
            self._said = sentence
            self.say(f"SLURM job {sentence}")


def lines_of(record: Record) -> Iterator[str]:
    """A record of the journal for people who follow; most have nothing to say."""
    match record:
        case {"event": "run_began", "host": host, "jobs": jobs}:
            yield f"the driver is on {host}: {sum(jobs.values())} jobs"
        case {"event": "slot_joined", "host": host}:
            yield f"a worker joined on {host}"
        case {"event": "slot_left", "slot": slot, "message": message}:
            yield f"worker {slot} left: {message}"
        case {"event": "job_done", "key": key, "job_seconds": seconds}:
            yield f"{key} done in {seconds:.1f} s"
        case {"event": "job_failed", "key": key, "reason": reason, "message": message}:
            yield f"{key} FAILED ({reason}): {' '.join(message.split())}"
        case {"event": "trial_reported", "trial": trial, "stage": stage, "stages": stages, "values": values, **rest}:
            tried = ", ".join(f"{name}={value}" for name, value in values.items())
            metrics = ", ".join(f"{name} {value:.4g}" for name, value in rest["metrics"].items() if name != "ipc_total")
            yield f"trial {trial}: {tried}: stage {stage} of {stages}: {metrics}"
        case {"event": "note", "text": text}:
            yield text
        case {"event": "run_ended", "exit": code, "why": why}:
            yield f"ended with {code}: {why}"

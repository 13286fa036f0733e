"""The client of SLURM: its programs, each with a time limit.

An answer that does not come, or comes with an error, is `None`: unknown, never "gone". Everything works with
`squeue` and `scancel` alone; where there is no accounting, only `status` has less to tell.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from math import inf
from typing import TypeVar

from jobs.errors import BadInput
from orchestrator.clusters.slurm import parsers
from orchestrator.clusters.slurm.parsers import JobEnd, JobUsage, QueuedJob

log = logging.getLogger(__name__)

ANSWER_SECONDS = 15.0
"""How long one program may take: a busy controller answers late."""

Run = Callable[[list[str]], str | None]
T = TypeVar("T")


def ask(command: list[str]) -> str | None:
    """What the program prints; None if it fails, is absent, or does not end in time."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_SECONDS, env=outside_a_job(os.environ)
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("%s: %s", command[0], error)
        return None
    if done.returncode != 0:
        level = logging.INFO if command[0] == "sacct" else logging.WARNING  # many sites have no accounting
        log.log(level, "%s ended with %d: %s", " ".join(command), done.returncode, done.stderr.strip())
        return None
    return done.stdout


def allocation(environment: Mapping[str, str] = os.environ) -> str:
    """The SLURM job in which the command was typed.

    Raises:
        BadInput: it was typed in none.
    """
    job = environment.get("SLURM_JOB_ID", "")
    if not job:
        fix = "type it inside salloc, or choose the mode `elastic` or `gang`, which submit jobs"
        raise BadInput("cluster.yaml", "mode", "allocation", fix)
    return job


def outside_a_job(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what SLURM and Submitit set for the job we are in: another job must not inherit it."""
    inside = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SUBMITIT_", "PMI_", "RAY_", "PDD_TIME_LIMIT_")
    return {name: value for name, value in environment.items() if name == "SLURM_CONF" or not name.startswith(inside)}


@dataclass(frozen=True)
class SlurmClient:
    """The jobs of this user and the settings of the site; `run` runs one program, as `ask` does."""

    run: Run = ask

    def jobs(self, name: str) -> list[QueuedJob] | None:
        """The jobs of this name that SLURM holds; None if it does not say."""
        user = ["--user", str(os.getuid())]
        text = self.run(["squeue", "--noheader", "--array", *user, "--name", name, "--format", parsers.SQUEUE_COLUMNS])
        return None if text is None else parsers.read_squeue(text, name)

    def cancel(self, jobs: Iterable[str]) -> bool:
        """Cancel jobs by id; whether SLURM took it. A job that is gone already is no error to it."""
        ids = list(jobs)
        return not ids or self.run(["scancel", "--quiet", *ids]) is not None

    def cancel_all(self, name: str) -> bool:
        """Cancel all jobs of this name."""
        return self.run(["scancel", "--quiet", "--user", str(os.getuid()), "--name", name]) is not None

    def wait_until_gone(self, name: str, seconds: float) -> bool:
        """Wait for the last job of this name to leave the queue; false when some are left or nobody says."""
        deadline, pause = time.monotonic() + seconds, 0.5
        while True:
            queued = self.jobs(name)
            if queued is not None and not any(job.there for job in queued):
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause)
            pause = min(5.0, pause * 1.5)

    def used(self, name: str) -> list[JobUsage] | None:
        """What all starts of the jobs of this name took; None without accounting."""
        options = ["--allocations", "--duplicates", "--noheader", "--parsable2", "--starttime", "now-30days"]
        text = self.run(["sacct", *options, "--name", name, "--format", parsers.SACCT_COLUMNS])
        return None if text is None else parsers.read_sacct(text, name)

    def config(self) -> dict[str, str]:
        """The site's settings; empty if SLURM does not say."""
        return parsers.read_config(self.run(["scontrol", "show", "config"]) or "")

    def partitions(self) -> dict[str, dict[str, str]] | None:
        """The fields of all partitions that this user may see, by name; None if SLURM does not say."""
        text = self.run(["scontrol", "--oneliner", "show", "partition"])
        return None if text is None else parsers.read_partitions(text)

    def ends(self, jobs: Iterable[str]) -> dict[str, JobEnd]:
        """How jobs ended that left the queue lately, by id; what the controller has forgotten is not among them."""
        ends: dict[str, JobEnd] = {}
        for array in sorted({job.partition("_")[0] for job in jobs}):
            ends |= parsers.read_job_ends(self.run(["scontrol", "--oneliner", "show", "job", array]) or "")
        return ends

    def shape(self, job: str) -> tuple[int, float]:
        """How many nodes a job has, and when it ends in unix seconds; one node, without end, if SLURM does not say."""
        fields = parsers.read_fields(self.run(["scontrol", "--oneliner", "show", "job", job]) or "")
        with suppress(ValueError):
            return int(fields.get("NumNodes", "1")), datetime.fromisoformat(fields.get("EndTime", "")).timestamp()
        return int(fields.get("NumNodes", "1")), inf

    def running(self) -> int | None:
        """How many jobs of this user run, of whatever name; None if SLURM does not say."""
        user = ["--user", str(os.getuid())]
        text = self.run(["squeue", "--noheader", "--array", *user, "--states", "RUNNING", "--format", "%i"])
        return None if text is None else len(text.split())


def in_background(call: Callable[[], T]) -> Future[T]:
    """Start a call in a thread of its own, so that a silent controller keeps nobody waiting, not even at the end."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future

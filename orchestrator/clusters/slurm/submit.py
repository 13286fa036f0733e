"""Handing a run over to SLURM: the folder in which its jobs meet, its first record, its head job; by Submitit.

A run has one head. Whether SLURM has it already is asked before another one is submitted, one launch at a time, and
"it does not say" submits nothing. Only a sweep's name comes twice, because it follows from what is searched; its
folder, from which it is taken up again, outlives a refusal of SLURM.

The one file that imports Submitit. Nobody waits for Submitit's results: what a run has done is told by its journal and
its store.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import DelayedSubmission

from jobs.errors import BadInput, PddError
from jobs.graph import Graph
from orchestrator.clusters.config import SlurmClusterSpec, Target
from orchestrator.clusters.slurm import parsers, sbatch
from orchestrator.clusters.slurm.client import SlurmClient, outside_a_job
from orchestrator.clusters.slurm.doctor import may_be_cancelled, partition_findings
from orchestrator.clusters.slurm.follow import POINTER, SlurmRun
from orchestrator.clusters.slurm.jobs import GangJob, HeadJob, SlurmJob, WorkerJob
from orchestrator.clusters.slurm.run_folder import RunFolder
from orchestrator.clusters.slurm.sbatch import Role, name_of
from orchestrator.runs import journal
from orchestrator.runs.journal import Journal
from workers.store.files import replace_file, share
from workers.store.store import Store

log = logging.getLogger(__name__)

LEAVE_SECONDS = 60.0
"""Seconds that jobs of an earlier head get to leave the queue."""
ROLES: Mapping[Role, type[SlurmJob]] = {"head": HeadJob, "worker": WorkerJob, "gang": GangJob}


class NotSubmitted(PddError):
    """SLURM did not take a job."""


class Call:
    """What Submitit pickles, and calls on a node: a role of the run."""

    def __init__(self, job: SlurmJob) -> None:
        self.job = job

    def __call__(self) -> int:
        """Play the role; a run that did not end well ends its job so that SLURM shows it as FAILED."""
        code = self.job()
        if code != 0:
            sys.exit(code)
        return code

    def checkpoint(self) -> DelayedSubmission:
        """Save and end; Submitit then has the job requeued."""
        self.job.save(requeued=True)
        return DelayedSubmission(Call(type(self.job)(self.job.folder)))


def submit(
    order_of: Callable[[Path], Mapping[str, Any]],
    names: Sequence[str],
    graph: Graph,
    store: Store,
    target: Target,
    run: str,
    *,
    command: str,
    fail_fast: bool,
) -> str | None:
    """Submit a run's head (in gang mode: all of it).

    Args:
        order_of: the workload as plain values; the files that it names are put into the run's folder, its argument.
        names: the workload's experiments, for the journal.
        graph: the jobs that are known beforehand, for the journal.
        store: where the run's folder is.
        target: the cluster.
        run: the run's name.
        command: what launches it again.
        fail_fast: whether the first failure ends it.

    Returns:
        The SLURM job's id; None if SLURM has one already.

    Raises:
        BadInput: a partition is not there or allows less time; the shared folder is not private or cannot be written.
        NotSubmitted: SLURM refuses, or does not say what it has.
    """
    spec, home, client = target.cluster, store.run_folder(run), SlurmClient()
    assert isinstance(spec, SlurmClusterSpec)
    partitions = _checked_partitions(spec, client)
    with _one_at_a_time(home):
        if (earlier := SlurmRun.of(store, run)) is not None and _goes_on(earlier):
            return None
        shared = sbatch.shared_folder(spec, home)
        order = {
            "run": run,
            "workload": dict(order_of(home)),
            "cluster": spec.model_dump(mode="json"),
            "logger": target.logger,
            "cluster_name": target.name,
            "store": str(store.root.resolve()),
            "command": command,
            "fail_fast": fail_fast,
            "successor": may_be_cancelled(spec, client.config(), partitions),
        }
        try:
            run_folder = RunFolder.make(shared, order)
        except OSError as error:
            fix = "name a folder that you can write to and that all nodes see"
            raise BadInput("cluster.yaml", "shared_folder", str(shared), f"{fix} ({error.strerror})") from error
        replace_file(home / POINTER, json.dumps({"mode": spec.mode, "folder": str(shared)}))
        kinds, known = Counter(one.kind for one in graph), (home / journal.NAME).exists()
        with Journal.open(home) as book:  # closed before the driver can open it
            facts = {"run": run, "command": command, "experiments": list(names), "jobs": dict(kinds)}
            book.write("submitted", **facts, cluster=target.name)
        try:
            (job,) = submit_jobs(run_folder, "gang" if spec.mode == "gang" else "head")
        except PddError as error:
            shutil.rmtree(shared, ignore_errors=True)
            _forget(home, str(error) if known else "")
            raise
    return job


def _checked_partitions(spec: SlurmClusterSpec, client: SlurmClient) -> dict[str, dict[str, str]]:
    """What SLURM says of its partitions; a job that could never start is refused here."""
    partitions = client.partitions() or {}
    for finding in partition_findings(spec, partitions, must_be_up=False):
        if not finding.ok:
            raise BadInput("cluster.yaml", finding.name, finding.found, finding.fix)
    return partitions


def scripts(target: Target, run: str) -> dict[Role, str]:
    """The scripts that `sbatch` would get for a run, by role; nothing is submitted or written.

    Raises:
        BadInput: a partition is not there or allows less time, or nothing is submitted.
    """
    spec = target.cluster
    assert isinstance(spec, SlurmClusterSpec)
    if spec.mode == "allocation":
        raise BadInput("command line", "--dry-run", target.name, "leave it out: in an allocation nothing is submitted")
    _checked_partitions(spec, SlurmClient())
    run_folder = RunFolder(sbatch.shared_folder(spec, Store(target.store).run_folder(run)))
    roles: tuple[Role, ...] = ("gang",) if spec.mode == "gang" else ("head", "worker")
    texts: dict[Role, str] = {}
    for role in roles:
        executor = _executor(spec, run, role, run_folder)
        if role == "worker" and spec.max_workers > 1:
            executor.parameters["map_count"] = spec.max_workers
        texts[role] = executor._make_submission_file_text(executor._submitit_command_str, "dry-run")
    return texts


def _goes_on(earlier: SlurmRun) -> bool:
    """Whether SLURM has a head of this run; of one that is gone nothing is left behind."""
    head = earlier.head()
    if head is None:
        raise NotSubmitted(f"whether {earlier.run} goes on is unknown: SLURM's queue does not answer; try again")
    if any(job.living for job in head):
        return True
    workers = name_of(earlier.run, "worker")
    earlier.client.cancel_all(workers)
    names = (name_of(earlier.run, earlier.head_role), workers)
    if not all(earlier.client.wait_until_gone(name, LEAVE_SECONDS) for name in names):
        raise NotSubmitted(f"jobs of an earlier head of {earlier.run} do not leave SLURM's queue; try again")
    shutil.rmtree(earlier.folder, ignore_errors=True)
    return False


def _forget(home: Path, why: str) -> None:
    """Take back a submission: the whole folder, or of a run that was there before, with the reason, only that."""
    if not why:
        shutil.rmtree(home)
        return
    (home / POINTER).unlink()
    with Journal.open(home) as book:
        book.write("run_ended", exit=1, why=why, counts={})


@contextmanager
def _one_at_a_time(home: Path) -> Iterator[None]:
    """Make the run's folder, and let another launch of the same run wait; a file system may have no locks."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(home / ".submitting", os.O_RDWR | os.O_CREAT, 0o600)
    for path in (home, home / ".submitting"):
        share(path)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# One role, by Submitit.


def submit_successor(run_folder: RunFolder, head: str) -> str | None:
    """Submit the job that goes on when this head job is cancelled for another job, as preemption may do.

    Args:
        run_folder: where the jobs of the run meet.
        head: the head's job id.

    Returns:
        The successor's id; None if there is one, or SLURM does not take it now.
    """
    order = run_folder.order()
    role: Role = "gang" if order["cluster"]["mode"] == "gang" else "head"
    queued = SlurmClient().jobs(name_of(order["run"], role))
    if queued is None or any(job.living and job.id != head for job in queued):
        return None
    try:
        (job,) = submit_jobs(run_folder, role, dependency=f"afternotok:{head}")
    except NotSubmitted as error:
        log.warning("no successor of the head: %s", error)
        return None
    return job


def submit_jobs(
    run_folder: RunFolder,
    role: Role,
    count: int = 1,
    exclude: Collection[str] = (),
    dependency: str | None = None,
    client: SlurmClient | None = None,
) -> list[str]:
    """Submit `count` jobs of a role and return their ids.

    `sbatch` may fail although SLURM has taken the job. Such a job would find nothing to do; it is cancelled.

    Args:
        run_folder: where the jobs of the run meet.
        role: what the jobs do.
        count: how many; more than one are submitted as arrays.
        exclude: nodes on which they must not run.
        dependency: on which other job they wait, as `sbatch --dependency` has it.
        client: the queue.

    Returns:
        The ids of the jobs, those of an array's elements as `ARRAY_INDEX`.

    Raises:
        NotSubmitted: SLURM refuses.
    """
    order = run_folder.order()
    spec, client = SlurmClusterSpec.model_validate(order["cluster"]), client or SlurmClient()
    name = name_of(order["run"], role)
    before = client.jobs(name)
    executor = _executor(spec, order["run"], role, run_folder, exclude, dependency)
    ids: list[str] = []
    with _clean_environment():
        for size in sbatch.chunks(count, parsers.largest_array(client.config()) if count > 1 else 1):
            try:
                calls = [Call(ROLES[role](str(run_folder.folder))) for _ in range(size)]
                ids += [job.job_id for job in executor.submit_array(calls)]
            except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError, OSError) as error:
                _cancel_the_lost(client, name, ids, before)
                raise NotSubmitted(f"sbatch refuses the {role}: {_words_of(error)}") from error
    return ids


def _executor(
    spec: SlurmClusterSpec,
    run: str,
    role: Role,
    run_folder: RunFolder,
    exclude: Collection[str] = (),
    dependency: str | None = None,
) -> submitit.SlurmExecutor:
    """Submitit's executor with the parameters of a role (see `sbatch.parameters`)."""
    executor = submitit.SlurmExecutor(run_folder.jobs, sbatch.MANY_TIMEOUTS, python=spec.python)
    executor.update_parameters(**sbatch.parameters(spec, run, role, run_folder.code, exclude, dependency))
    return executor


def _cancel_the_lost(client: SlurmClient, name: str, ids: list[str], before: list[parsers.QueuedJob] | None) -> None:
    """Cancel jobs of this name that appeared although `sbatch` failed."""
    queued = client.jobs(name)
    if queued is None or before is None:
        return
    known = {*ids, *(job.id for job in before)}
    client.cancel(job.id for job in queued if job.there and job.id not in known)


@contextmanager
def _clean_environment() -> Iterator[None]:
    """What SLURM set for the job we may be in does not reach a job that is submitted from it; files are private."""
    inside = os.environ.keys() - outside_a_job(os.environ).keys()
    removed = {name: os.environ.pop(name) for name in inside}
    mask = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(mask)
        os.environ.update(removed)  # and nothing else: the driver's thread may have changed others meanwhile


def _words_of(error: BaseException) -> str:
    """What `sbatch` itself says in Submitit's account of its failure."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = [line.partition("sbatch: error: ")[2] for line in lines if "sbatch: error: " in line]
    if words:
        return ": ".join(dict.fromkeys(words))
    return next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else repr(error))

"""What the SLURM jobs of a run do: the head, the workers, and the one job of gang mode.

Elastic mode has two roles. The *head* is a small job on a CPU partition: it starts a Ray head that offers nothing,
and beside it the driver in a process of its own, which is started again if something kills it. *Workers* are an array
of single-node jobs that the driver submits while there is work for them: each joins the head, works, and leaves
before its walltime. *Gang* mode is one job of many nodes, in which task 0 is the head and a worker at once. In an
*allocation* that one has already, nothing is submitted: the command itself is the head, and a step is the workers.

SIGUSR2 says that a job must go soon and may come back: running work is saved, Ray is ended, and the job is requeued.
SIGTERM says that it must go for good. What is pickled for a job is one of these small classes with a path in it.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from jobs.errors import PddError
from orchestrator.clusters.config import SlurmClusterSpec
from orchestrator.clusters.ray_cluster import AttachedCluster, NodeActions, NodeUsage, PlainNodes
from orchestrator.clusters.slurm import sbatch
from orchestrator.clusters.slurm.client import SlurmClient, allocation, outside_a_job
from orchestrator.clusters.slurm.parsers import visible_gpus
from orchestrator.clusters.slurm.ray_node import Node, Offer, start_child, wait_for
from orchestrator.clusters.slurm.run_folder import ALL_WORKERS, Head, HeadMonitor, RunFolder
from orchestrator.clusters.slurm.sbatch import Role, name_of
from orchestrator.clusters.versions import difference, versions
from orchestrator.runs.driver import HEAD_MOVES
from orchestrator.runs.pool import PoolBroken
from orchestrator.runs.stop_file import STOP, StopFile
from workers.runtime.time_limit import TimeLimit
from workers.store.store import Store

POLL_SECONDS = 0.5
"""Seconds between two looks of a job at its children."""
HEARTBEAT_SECONDS = 5.0
"""Seconds between two signs of life of the head."""
HEAD_START_SECONDS = 300.0
"""How long the Ray head may take to answer."""
START_ATTEMPTS = 3
"""How often in a row something may die at once before its job gives up."""
STEP_SECONDS = 30.0
"""Seconds that the workers of an allocation get to leave."""
TERM_SAVE_SECONDS = 3.0
"""Seconds for saving work after SIGTERM; SLURM kills after KillWait, 30 s where the site has not changed it."""

log = logging.getLogger(__name__)


class JobFailed(PddError):
    """A job of this run cannot do its part."""


class SlurmJob:
    """A role in the run that meets in a folder; called on its node, it returns an exit code."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.leaving = False

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "leaving": False}

    @property
    def run_folder(self) -> RunFolder:
        """Where the jobs of the run meet."""
        return RunFolder(Path(self.folder))

    @property
    def order(self) -> dict[str, Any]:
        """What the run is to do."""
        return self.run_folder.order()

    def __call__(self) -> int:
        """Play the role; the number is an exit code."""
        raise NotImplementedError

    def save(self, *, requeued: bool) -> None:
        """Let running work be saved and end what was started."""
        raise NotImplementedError

    def leave_on_term(self) -> None:
        """Let SIGTERM end the job at the next look; Submitit itself ignores it."""

        def leave(number: int, frame: object) -> None:
            self.leaving = True

        signal.signal(signal.SIGTERM, leave)


class WorkerJob(SlurmJob):
    """A node that works for a run: joins its head, and leaves when it is told to or nobody is there."""

    node: Node | None = None
    time_limit: TimeLimit | None = None

    def __call__(self) -> int:
        """Work until the time limit is over or the head is gone for long."""
        self.leave_on_term()
        spec = SlurmClusterSpec.model_validate(self.order["cluster"])
        try:
            visible_gpus(os.environ, spec.gpu_count)
            self.node = Node(spec.temporary_folder, self.run_folder.token, spec.interface)
        except (ValueError, PddError) as error:
            self.run_folder.refuse(job_id(), str(error))
            raise
        try:
            self.time_limit = _time_limit(spec, self.node.folder)
            self._work(spec, self.node, self.time_limit)
            return 0
        finally:
            self.node.close()

    def _work(self, spec: SlurmClusterSpec, node: Node, time_limit: TimeLimit) -> None:
        offer = Offer(spec.slots_per_worker, spec.gpu_count, job_id())
        monitor = HeadMonitor(self.run_folder)
        joined, crashes = "", 0
        while not self.leaving and not self.run_folder.dismissed(offer.job) and not monitor.silent():
            head = monitor.listen()
            if head is not None and head.start != joined:  # a new head, or our first
                if differs := difference(versions(), head.versions):
                    self.run_folder.refuse(job_id(), differs)
                    raise JobFailed(f"this node does not fit the head: {differs}")
                node.stop()
                node.start(offer, head.address, time_limit)
                joined, since = head.start, time.monotonic()
            elif joined and node.ray is not None and node.ray.poll() is not None:
                crashes = crashes + 1 if time.monotonic() - since < 60 else 1
                log.warning("ray ended with %s: %s", node.ray.returncode, node.last_words())
                if crashes >= START_ATTEMPTS:
                    self.run_folder.refuse(job_id(), f"Ray does not stay up: {node.last_words()}")
                    raise JobFailed("Ray does not stay up")
                joined = ""
            time.sleep(POLL_SECONDS)
        self.save(requeued=False)

    def save(self, *, requeued: bool) -> None:
        """Let the jobs on this node save and yield, then take the node out of the cluster."""
        if self.node is None or self.time_limit is None:
            return
        time_limit = self.time_limit
        time_limit.stop()
        wait_for(lambda: not time_limit.busy(), _time_to_save(self.order) if requeued else TERM_SAVE_SECONDS)
        time.sleep(POLL_SECONDS)  # the answers must reach the driver
        self.node.close()


class HeadJob(SlurmJob):
    """The Ray head and the driver of a run."""

    role: Role = "head"
    driver: subprocess.Popen[bytes] | None = None
    node: Node | None = None
    requeued = False

    def __call__(self) -> int:
        """Run the driver to its end and return its exit code."""
        self.leave_on_term()
        spec = SlurmClusterSpec.model_validate(self.order["cluster"])
        self.node = Node(spec.temporary_folder, self.run_folder.token, spec.interface)
        try:
            return self._run(spec, self.node)
        except PddError as error:
            self.run_folder.fail(str(error))
            raise
        finally:
            self.run_folder.withdraw()
            if self.driver is not None and self.driver.poll() is None:
                self.driver.kill()
            if not self.requeued:  # else they wait for the next head, for a while
                SlurmClient().cancel_all(name_of(self.order["run"], "worker"))
                self._cancel_successor()
            self.node.close()

    def offer(self, spec: SlurmClusterSpec) -> Offer:
        """In elastic mode the head's node does no jobs."""
        return Offer()

    def time_limit(self, spec: SlurmClusterSpec, node: Node) -> TimeLimit | None:
        """When the workers of this node must stop."""
        return None

    def _run(self, spec: SlurmClusterSpec, node: Node) -> int:
        for _ in range(START_ATTEMPTS):
            if address := start_head(node, self.run_folder, self.offer(spec), self.time_limit(spec, node)):
                code = self._drive(node, address)
                if code is not None:
                    return code
            log.warning("the Ray head fell: %s", node.last_words())
            node.stop()
        raise JobFailed(f"the Ray head fell {START_ATTEMPTS} times: {node.last_words()}")

    def _drive(self, node: Node, address: str) -> int | None:
        """The driver's exit code; None if the Ray head fell."""
        command = [sys.executable, "-P", "-m", "orchestrator.slurm_driver", self.folder, address, node.address]
        variables = {"PDD_NODE_TOKEN": str(node.folder / "token"), "PDD_HEAD_JOB": job_id()}
        for _ in range(START_ATTEMPTS):
            self.driver = start_child(command, variables, None)
            began = last_heartbeat = time.monotonic()
            while self.driver.poll() is None:
                if node.fell():
                    self.driver.kill()
                    self.driver.wait()
                    return None
                if self.leaving:
                    self.save(requeued=self._preempted())
                    return 130
                if time.monotonic() - last_heartbeat >= HEARTBEAT_SECONDS:
                    last_heartbeat = time.monotonic()
                    self.run_folder.heartbeat()
                time.sleep(POLL_SECONDS)
            if self.driver.returncode >= 0:
                return self.driver.returncode
            log.warning(
                "the driver was killed by signal %d after %.0f s", -self.driver.returncode, time.monotonic() - began
            )
        raise JobFailed(f"the driver was killed {START_ATTEMPTS} times")

    def save(self, *, requeued: bool) -> None:
        """Have running jobs save, and end the driver; the next driver goes on from the store."""
        stop = StopFile(Store(self.order["store"]).run_folder(self.order["run"]) / STOP)
        with suppress(OSError):  # then running jobs are not saved, and go on from their last checkpoints
            stop.write(HEAD_MOVES if requeued else "the head job was cancelled")
        if self.driver is not None:
            try:
                self.driver.wait(_time_to_save(self.order) if requeued else TERM_SAVE_SECONDS)
            except subprocess.TimeoutExpired:
                self.driver.kill()
        self.requeued = requeued
        if requeued:
            self.run_folder.withdraw()
            if self.node is not None:
                self.node.close()

    def _preempted(self) -> bool:
        """Whether SIGTERM means that another job needs the node, and the successor goes on; not that somebody cancels.

        SLURM calls a job that somebody cancels CANCELLED at once, and one that it preempts only after its grace time.
        """
        end = SlurmClient().ends([job_id()]).get(job_id()) if self.order.get("successor") else None
        return end is not None and end.state != "CANCELLED"

    def _cancel_successor(self) -> None:
        """Take the job that waits for this one to fail out of the queue: the run has ended."""
        if self.order.get("successor"):
            client, role = SlurmClient(), self.role
            queued = client.jobs(name_of(self.order["run"], role)) or ()
            client.cancel(job.id for job in queued if job.state == "PENDING" and job.id != job_id())


class GangJob(HeadJob):
    """One job of many nodes: task 0 is the head and works too, the others are workers."""

    role: Role = "gang"
    worker: WorkerJob | None = None

    def __call__(self) -> int:
        """Play the head on task 0, a worker on every other."""
        if os.environ.get("SLURM_PROCID", "0") == "0":
            return super().__call__()
        self.worker = WorkerJob(self.folder)
        return self.worker()

    def offer(self, spec: SlurmClusterSpec) -> Offer:
        """The head's node works as the others do."""
        return Offer(spec.slots_per_worker, spec.gpu_count)

    def time_limit(self, spec: SlurmClusterSpec, node: Node) -> TimeLimit:
        """The node's time limit is that of the job."""
        return _time_limit(spec, node.folder)


def start_head(node: Node, run_folder: RunFolder, offer: Offer, time_limit: TimeLimit | None) -> str:
    """Start a Ray head on this node and announce it; its address, empty if it does not stay up."""
    address = node.start(offer, None, time_limit)
    wait_for(partial(node.settled, address), HEAD_START_SECONDS)
    if not node.listens(address):
        return ""
    run_folder.reopen()
    run_folder.announce(Head(address, f"{job_id()}-{time.time_ns()}", versions()))
    return address


class AllocationCluster(PlainNodes):
    """The nodes of a SLURM job that the user has already: this process is the driver, and a step does the work.

    The Ray head is on the machine of this process, by default of `salloc` the login node.
    """

    def __init__(self, spec: SlurmClusterSpec, home: Path, client: SlurmClient | None = None) -> None:
        """The allocation in which the command was typed; `home` is the folder of the run.

        Raises:
            BadInput: it was typed in none.
        """
        self.spec, self.home, self.job = spec, home, allocation()
        self.run_folder = RunFolder(sbatch.shared_folder(spec, home))
        self.nodes, self.ends = (client or SlurmClient()).shape(self.job)
        self._node: Node | None = None
        self._step: subprocess.Popen[bytes] | None = None
        self._ray: AttachedCluster | None = None
        self._last_heartbeat = 0.0

    def open(self) -> Any:
        """Start the Ray head here and the workers on the nodes, and connect to the head.

        Raises:
            PoolBroken: the head does not start.
        """
        shutil.rmtree(self.run_folder.folder, ignore_errors=True)
        order = {"run": self.home.name, "cluster": self.spec.model_dump(mode="json")}
        RunFolder.make(self.run_folder.folder, order)
        self._node = node = Node(self.spec.temporary_folder, self.run_folder.token, self.spec.interface)
        address = start_head(node, self.run_folder, Offer(), None)
        if not address:
            raise PoolBroken(f"the Ray head fell: {node.last_words()}")
        options = {"jobid": self.job, "overlap": True, "no-kill": True, "output": self.run_folder.log(self.job)}
        words = ("orchestrator.clusters.slurm.jobs", str(self.run_folder.folder))
        nodes = min(self.nodes, self.spec.max_workers)
        command = sbatch.step(self.spec, nodes, options, self.run_folder.code, words)
        ends = {"SLURM_JOB_END_TIME": str(self.ends)}
        self._step = start_child(command, ends, None, outside_a_job(os.environ))
        self._ray = AttachedCluster(address, node.folder / "token", node.address)
        return self._ray.open()

    def reconcile(self, nodes: Sequence[NodeUsage]) -> NodeActions:
        """Tell the workers that the driver lives, and stop the run before the allocation ends.

        Raises:
            PoolBroken: the workers have ended.
        """
        assert self._step is not None
        if time.monotonic() - self._last_heartbeat >= HEARTBEAT_SECONDS:
            self._last_heartbeat = time.monotonic()
            self.run_folder.heartbeat()
        if time.time() >= self.ends - sbatch.lead_seconds(self.spec, "worker"):
            StopFile(self.home / STOP).write(f"allocation {self.job} ends; the same command goes on in another one")
        if self._step.poll() is not None and not nodes:
            why = self.run_folder.refused().get(self.job) or self.run_folder.last_lines(self.job, 2) or "it left no log"
            raise PoolBroken(f"the workers of allocation {self.job} ended: {why}; {self.run_folder.log(self.job)}")
        return NodeActions()

    def close(self) -> None:
        """End the workers and the head; the allocation stays."""
        if self._ray is not None:
            self._ray.close()
        if (step := self._step) is not None:
            self.run_folder.dismiss(ALL_WORKERS)
            wait_for(lambda: step.poll() is not None, STEP_SECONDS)
            step.terminate()  # srun hands it on
        self.run_folder.withdraw()
        if self._node is not None:
            self._node.close()


def job_id() -> str:
    """The id of the SLURM job that this process is in; of an array's element as SLURM's programs write it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "none")


def _time_limit(spec: SlurmClusterSpec, folder: Path) -> TimeLimit:
    """The time limit of this job: when SLURM will signal it, by SLURM's own end time where it gives one."""
    began = time.time()
    end = float(os.environ.get("SLURM_JOB_END_TIME") or began + spec.minutes * 60)
    return TimeLimit(began, end - sbatch.lead_seconds(spec, "worker"), folder)


def _time_to_save(order: dict[str, Any]) -> float:
    """What a job may take to save its work after SIGUSR2; preemption may leave less, then SLURM cuts it short."""
    return max(
        TERM_SAVE_SECONDS, sbatch.lead_seconds(SlurmClusterSpec.model_validate(order["cluster"]), "worker") * 0.7
    )


if __name__ == "__main__":
    sys.exit(WorkerJob(sys.argv[1])())

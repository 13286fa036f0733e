"""The workers of a run on SLURM follow its work; the queue is told by hand, and so is the time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.clusters.config import SlurmClusterSpec
from orchestrator.clusters.ray_cluster import AttachedCluster, NodeUsage
from orchestrator.clusters.slurm.autoscaler import SlurmAutoscaler, open_jobs
from orchestrator.clusters.slurm.client import SlurmClient
from orchestrator.clusters.slurm.parsers import SQUEUE_COLUMNS, QueuedJob
from orchestrator.clusters.slurm.run_folder import RunFolder
from orchestrator.runs.pool import PoolBroken
from orchestrator.scheduler.events import Began
from orchestrator.scheduler.job_status import Status
from orchestrator.scheduler.scheduler import State, decide
from tests.orchestrator.fakes import WORKS, graph_of, plan_of

NAME = "pdd-r-worker"


class Site:
    """A queue that holds what is submitted, and a clock."""

    def __init__(self, folder: Path, **fields: Any) -> None:
        self.now, self.silent, self.jobs, self.cancelled = 0.0, False, list[QueuedJob](), list[str]()
        spec = SlurmClusterSpec.model_validate({"kind": "slurm", "max_workers": 3, "idle_seconds": 30, **fields})
        self.run_folder = RunFolder(folder)
        self.run_folder.refusals.mkdir()
        self.run_folder.dismissals.mkdir()
        cluster = AttachedCluster("head:1", None)
        self.autoscaler = SlurmAutoscaler(
            cluster, self.run_folder, "r", spec, self.submit, SlurmClient(self.run), lambda: self.now
        )

    def submit(self, count: int) -> list[str]:
        made = [f"9_{len(self.jobs) + number}" for number in range(count)]
        self.jobs += [QueuedJob(job, NAME, "PENDING", "Resources", "", "") for job in made]
        return made

    def run(self, command: list[str]) -> str | None:
        if self.silent:
            return None
        if command[0] == "scancel":
            ids = [word for word in command[1:] if not word.startswith("-")]
            self.cancelled += ids
            self.jobs = [job for job in self.jobs if job.id not in ids]
            return ""
        assert command[0] == "squeue" and SQUEUE_COLUMNS in command
        return "".join(f"{j.id}|{j.name}|{j.state}|{j.reason}|{j.nodes}|\n" for j in self.jobs)

    def reconcile(self, *nodes: NodeUsage, after: float = 10.0) -> tuple[str, ...]:
        """One look, some seconds after the last one; the nodes it lets go are ended as the pool would."""
        self.now += after
        care = self.autoscaler.reconcile(nodes)
        self.autoscaler.released([node for node in nodes if node.id in care.release])
        return care.say

    def start(self, *ids: str) -> None:
        self.jobs = [QueuedJob(j.id, j.name, "RUNNING", "None", "n", "") if j.id in ids else j for j in self.jobs]


def node(job: str, busy: int) -> NodeUsage:
    return NodeUsage(f"node-{job}", f"host-{job}", {"pdd_slot": 1.0, f"pdd_job_{job}": 1.0}, busy)


def test_workers_are_submitted_for_the_work_there_is_and_no_more_than_allowed(tmp_path: Path) -> None:
    site = Site(tmp_path)
    assert site.reconcile() == ()
    site.autoscaler.open_jobs = 2
    assert site.reconcile() == ("submitted 2 workers to SLURM (9_0, 9_1)",)
    site.autoscaler.open_jobs = 50
    site.start("9_0", "9_1")
    assert site.reconcile() == ("submitted 1 worker to SLURM (9_2)",)
    assert site.reconcile() == ()
    assert len(site.jobs) == 3


def test_a_queue_that_does_not_answer_is_said_once_and_changes_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.autoscaler.open_jobs, site.silent = 1, True
    assert "does not answer" in site.reconcile()[0]
    assert site.reconcile() == () and site.jobs == []
    site.silent = False
    assert "submitted 1 worker" in site.reconcile()[0]


def test_waiting_for_slurm_is_said_once_a_minute_with_slurms_reason(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.autoscaler.open_jobs = 1
    site.reconcile()
    assert site.reconcile() == ("waiting for SLURM: 9_0 pending (Resources)",)
    assert site.reconcile() == ()
    assert site.reconcile(after=60.0) == ("waiting for SLURM: 9_0 pending (Resources)",)
    site.start("9_0")
    assert site.reconcile(after=60.0) == ()


def test_a_worker_without_work_is_given_back_after_its_idle_time(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.autoscaler.open_jobs = 2
    site.reconcile()
    site.start("9_0", "9_1")
    site.autoscaler.open_jobs = 1
    site.reconcile(node("9_0", 1), node("9_1", 0))
    site.reconcile(node("9_0", 1), node("9_1", 0), after=29.0)
    assert not site.run_folder.dismissed("9_1")
    site.reconcile(node("9_0", 1), node("9_1", 0), after=1.5)
    assert site.run_folder.dismissed("9_1") and not site.run_folder.dismissed("9_0")


def test_a_worker_that_worked_meanwhile_is_idle_anew(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.autoscaler.open_jobs = 1
    site.reconcile()
    for busy in (0, 1, 0):
        site.reconcile(node("9_0", busy), after=20.0)
    assert not site.run_folder.dismissed("9_0")


def test_workers_that_still_wait_are_taken_back_when_no_work_is_left(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.autoscaler.open_jobs = 1
    site.reconcile()
    site.autoscaler.open_jobs = 0
    site.reconcile()
    assert site.cancelled == ["9_0"]


def test_a_worker_given_back_does_not_count_while_it_ends(tmp_path: Path) -> None:
    site = Site(tmp_path, max_workers=1, idle_seconds=1)
    site.autoscaler.open_jobs = 1
    site.reconcile()
    site.start("9_0")
    site.autoscaler.open_jobs = 0
    site.reconcile(node("9_0", 0))
    site.reconcile(node("9_0", 0))
    assert site.run_folder.dismissed("9_0")
    site.autoscaler.open_jobs = 1  # while SLURM still shows the one that leaves
    assert "submitted 1 worker" in site.reconcile()[0]
    site.reconcile(after=40.0)
    assert site.cancelled == ["9_0"]  # it did not hear


def test_a_refusal_is_said_once_and_the_third_ends_the_run(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.run_folder.refuse("9_0", "sees 8 GPUs")
    assert site.reconcile() == ("worker 9_0 refuses to start: sees 8 GPUs",)
    assert site.reconcile() == ()
    for job in ("9_1", "9_2"):
        site.run_folder.refuse(job, "sees 8 GPUs")
    with pytest.raises(PoolBroken, match="3 workers refused to start, the last: sees 8 GPUs"):
        site.reconcile()


def test_workers_that_end_before_they_join_end_the_run(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.autoscaler.open_jobs = 3
    site.reconcile()
    site.jobs.clear()
    with pytest.raises(PoolBroken, match="3 workers ended before they joined"):
        site.reconcile()


def test_workers_of_an_earlier_driver_are_taken_over(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.jobs = [QueuedJob(f"5_{n}", NAME, "RUNNING", "None", "n", "") for n in range(3)]
    site.autoscaler.open_jobs = 9
    assert site.reconcile() == () and len(site.jobs) == 3


def test_jobs_that_exclude_each_other_ask_for_one_worker() -> None:
    plan = plan_of(graph_of([WORKS] * 5)[0])
    plan = replace(plan, exclusive={plan.keys[0]: ("g",), plan.keys[1]: ("g",)}, limits={"g": 1})
    state, _ = decide(State.initial(plan), Began(0.0, frozenset()))
    assert open_jobs(state) == 4
    running = {key: replace(job, status=Status.RUNNING) for key, job in list(state.jobs.items())[:1]}
    assert open_jobs(replace(state, jobs={**state.jobs, **running})) == 4


def test_a_worker_that_slurm_holds_after_a_failed_start_is_replaced(tmp_path: Path) -> None:
    site = Site(tmp_path, max_workers=1)
    site.jobs = [QueuedJob("4_0", NAME, "PENDING", "launch failed requeued held", "", "")]
    site.autoscaler.open_jobs = 1
    assert "submitted 1 worker" in site.reconcile()[0]
    assert site.cancelled == ["4_0"]

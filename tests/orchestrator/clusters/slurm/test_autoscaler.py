"""The workers of a run on SLURM follow its work; the queue is told by hand, and so is the time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import PddError
from orchestrator.clusters.config import SlurmClusterSpec
from orchestrator.clusters.ray_cluster import AttachedCluster, NodeUsage
from orchestrator.clusters.slurm import autoscaler
from orchestrator.clusters.slurm.autoscaler import FailedStarts, OpenJobs, Retry, SlurmAutoscaler
from orchestrator.clusters.slurm.client import SlurmClient, in_background
from orchestrator.clusters.slurm.parsers import SQUEUE_COLUMNS, QueuedJob
from orchestrator.clusters.slurm.run_folder import RunFolder
from orchestrator.runs.pool import PoolBroken
from orchestrator.scheduler.events import Began, Event, JobDone, JobYielded, SlotJoined
from orchestrator.scheduler.scheduler import decide
from orchestrator.scheduler.state import State
from tests.orchestrator.fakes import WORKS, graph_of, plan_of

NAME = "pdd-r-worker"
BUSY = "QOSMaxSubmitJobPerUserLimit: Batch job submission failed: Job violates accounting/QOS policy"


def at_once(call: Callable[[], Any]) -> Future[Any]:
    """A background that does what it is given before it returns."""
    future: Future[Any] = Future()
    try:
        future.set_result(call())
    except PddError as error:
        future.set_exception(error)
    return future


class Site:
    """A queue that holds what is submitted, and a clock."""

    def __init__(self, folder: Path, **fields: Any) -> None:
        self.now, self.silent, self.jobs, self.cancelled = 0.0, False, list[QueuedJob](), list[str]()
        self.ended, self.excluded, self.asked = dict[str, str](), tuple[str, ...](), Counter[str]()
        self.refusal, self.running, self.submissions = "", 1, list[int]()
        spec = SlurmClusterSpec.model_validate({"kind": "slurm", "max_workers": 3, "idle_seconds": 30, **fields})
        self.run_folder = RunFolder(folder)
        for path in (self.run_folder.refusals, self.run_folder.dismissals, self.run_folder.jobs):
            path.mkdir()
        cluster = AttachedCluster("head:1", None)
        client, clock = SlurmClient(self.run), lambda: self.now
        self.autoscaler = SlurmAutoscaler(
            cluster, self.run_folder, "r", spec, self.submit, client, clock, at_once, lambda: self.open_jobs
        )
        self.count = self.open_jobs = 0

    def submit(self, count: int, exclude: tuple[str, ...]) -> list[str]:
        self.submissions.append(count)
        if self.refusal:
            raise PddError(self.refusal)
        self.excluded = exclude
        ids = [f"9_{self.count + number}" for number in range(count)]
        self.count += count
        self.jobs += [QueuedJob(job, NAME, "PENDING", "Resources", "", "") for job in ids]
        return ids

    def run(self, command: list[str]) -> str | None:
        self.asked[command[0]] += 1
        if self.silent:
            return None
        if command[0] == "scancel":
            ids = [word for word in command[1:] if not word.startswith("-")]
            self.cancelled += ids
            self.jobs = [job for job in self.jobs if job.id not in ids]
            return ""
        if command[0] == "scontrol":
            return "".join(
                f"JobId=1{job[2:]} ArrayJobId=9 ArrayTaskId={job[2:]} {e}\n" for job, e in self.ended.items()
            )
        assert command[0] == "squeue"
        if SQUEUE_COLUMNS not in command:
            return "1\n" * self.running
        return "".join(f"{j.id}|{j.name}|{j.state}|{j.reason}|{j.nodes}|\n" for j in self.jobs)

    def reconcile(self, *nodes: NodeUsage, after: float = 10.0) -> tuple[str, ...]:
        """One look, some seconds after the last one; the nodes it lets go are ended as the pool would."""
        self.now += after
        care = self.autoscaler.reconcile(nodes)
        self.autoscaler.released([node for node in nodes if node.id in care.release])
        return care.say

    def start(self, *ids: str) -> None:
        self.jobs = [QueuedJob(j.id, j.name, "RUNNING", "None", "n", "") if j.id in ids else j for j in self.jobs]

    def end(self, job: str, state: str, node: str, code: str = "1:0", log: str = "") -> None:
        """A worker leaves the queue; the controller remembers how."""
        self.jobs = [one for one in self.jobs if one.id != job]
        self.ended[job] = f"JobState={state} ExitCode={code} BatchHost={node} NodeList={node}"
        (self.run_folder.jobs / f"{job}_0_log.out").write_text(log)

    def wait(self, reason: str) -> None:
        """All workers wait for this reason."""
        self.jobs = [replace(job, reason=reason) for job in self.jobs]

    def said_within(self, seconds: int, *nodes: NodeUsage) -> list[str]:
        """All that is said, second by second."""
        return [text for _ in range(seconds) for text in self.reconcile(*nodes, after=1.0)]


def node(job: str, busy: int) -> NodeUsage:
    return NodeUsage(f"node-{job}", f"host-{job}", {"pdd_slot": 1.0, f"pdd_job_{job}": 1.0}, busy)


def test_workers_are_submitted_for_the_work_there_is_and_no_more_than_allowed(tmp_path: Path) -> None:
    site = Site(tmp_path)
    assert site.reconcile() == ()
    site.open_jobs = 2
    assert site.reconcile() == ("submitted 2 workers to SLURM (9_0, 9_1)",)
    site.open_jobs = 50
    site.start("9_0", "9_1")
    assert site.reconcile() == ("submitted 1 worker to SLURM (9_2)",)
    assert site.reconcile() == ()
    assert len(site.jobs) == 3


def test_a_queue_that_does_not_answer_is_said_once_and_changes_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.open_jobs, site.silent = 1, True
    assert "does not answer" in site.reconcile()[0]
    assert site.reconcile() == () and site.jobs == []
    site.silent = False
    assert "submitted 1 worker" in site.reconcile()[0]


def test_the_driver_does_not_wait_for_a_silent_controller(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.open_jobs, site.autoscaler.background = 1, in_background
    answer = site.autoscaler.client.run
    object.__setattr__(site.autoscaler.client, "run", lambda command: time.sleep(0.5) or answer(command))
    began = time.monotonic()
    assert site.reconcile() == () == site.reconcile()
    assert time.monotonic() - began < 0.4 and site.asked["squeue"] == 0
    deadline = time.monotonic() + 20
    said: tuple[str, ...] = ()
    while not said and time.monotonic() < deadline:
        time.sleep(0.02)
        said = site.reconcile(after=0.0)
    assert "submitted 1 worker" in said[0]


def test_a_quiet_run_asks_slurm_at_most_twice_a_minute_and_one_that_waits_too(tmp_path: Path) -> None:
    for folder, state in (("works", "RUNNING"), ("waits", "PENDING")):
        (tmp_path / folder).mkdir()
        site = Site(tmp_path / folder)
        site.open_jobs = 3
        site.said_within(20)
        nodes = [node(f"9_{number}", 1) for number in range(3)] if state == "RUNNING" else []
        site.start(*[job.id for job in site.jobs if state == "RUNNING"])
        site.said_within(120, *nodes)
        site.asked.clear()
        site.said_within(600, *nodes)
        assert 10 <= site.asked["squeue"] <= 21 and site.asked.total() == site.asked["squeue"]
        site.jobs.pop()  # a worker is gone, and with it its node
        nodes = nodes[:2]
        site.said_within(31, *nodes)
        site.asked.clear()
        site.said_within(60, *nodes)
        assert site.asked["squeue"] <= 13


def test_waiting_for_slurm_is_said_once_a_minute_with_slurms_reason(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.open_jobs = 1
    site.reconcile()
    assert site.reconcile() == ("waiting for SLURM: 9_0 pending (Resources)",)
    assert site.reconcile() == ()
    assert site.reconcile(after=60.0) == ("waiting for SLURM: 9_0 pending (Resources)",)
    site.start("9_0")
    assert site.reconcile(after=60.0) == ()


def test_a_worker_without_work_is_given_back_after_its_idle_time(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.open_jobs = 2
    site.reconcile()
    site.start("9_0", "9_1")
    site.open_jobs = 1
    site.reconcile(node("9_0", 1), node("9_1", 0))
    site.reconcile(node("9_0", 1), node("9_1", 0), after=29.0)
    assert not site.run_folder.dismissed("9_1")
    site.reconcile(node("9_0", 1), node("9_1", 0), after=1.5)
    assert site.run_folder.dismissed("9_1") and not site.run_folder.dismissed("9_0")


def test_so_many_workers_as_a_run_keeps_stay_without_work(tmp_path: Path) -> None:
    site = Site(tmp_path, min_workers=2)
    site.open_jobs = 3
    site.reconcile()
    nodes = [node(f"9_{number}", 0) for number in range(3)]
    site.open_jobs = 0
    site.reconcile(*nodes)
    site.reconcile(*nodes, after=31.0)
    assert [site.run_folder.dismissed(f"9_{number}") for number in range(3)].count(True) == 1


def test_a_worker_that_a_job_is_asked_of_again_and_again_stays_longer_than_a_lease(tmp_path: Path) -> None:
    """The job's claim is a dead worker's: a new worker would have to see it for a lease (30 s) again."""
    site = Site(tmp_path)
    site.open_jobs = 1
    site.reconcile()
    site.start("9_0", "9_1")
    for _ in range(11):
        site.reconcile(node("9_0", 0), node("9_1", 0), after=10.0)
    assert [site.run_folder.dismissed(job) for job in ("9_0", "9_1")].count(True) == 1
    for _ in range(3):
        site.reconcile(node("9_0", 0), after=10.0)
    assert site.run_folder.dismissed("9_0"), "it takes no job, whatever the reason"


def test_a_worker_that_worked_meanwhile_is_idle_anew(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.open_jobs = 1
    site.reconcile()
    for busy in (0, 1, 0):
        site.reconcile(node("9_0", busy), after=20.0)
    assert not site.run_folder.dismissed("9_0")


def test_workers_that_still_wait_are_taken_back_when_no_work_is_left(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.open_jobs = 1
    site.reconcile()
    site.open_jobs = 0
    site.reconcile()
    assert site.cancelled == ["9_0"]


def test_a_worker_given_back_does_not_count_while_it_ends(tmp_path: Path) -> None:
    site = Site(tmp_path, max_workers=1, idle_seconds=1)
    site.open_jobs = 1
    site.reconcile()
    site.start("9_0")
    site.open_jobs = 0
    site.reconcile(node("9_0", 0))
    site.reconcile(node("9_0", 0))
    assert site.run_folder.dismissed("9_0")
    site.open_jobs = 1  # while SLURM still shows the one that leaves
    assert "submitted 1 worker" in site.reconcile()[0]
    site.reconcile(after=40.0)
    assert site.cancelled == ["9_0"]  # it did not hear


def test_a_worker_that_comes_back_after_it_was_replaced_is_taken_out_of_the_queue(tmp_path: Path) -> None:
    site = Site(tmp_path, max_workers=1)
    site.open_jobs = 1
    site.jobs = [QueuedJob("8", NAME, "COMPLETING", "None", "n", "")]  # SLURM takes it back into the queue
    site.reconcile()
    site.start("9_0")
    site.jobs = [QueuedJob("8", NAME, "PENDING", "BeginTime", "", ""), *site.jobs[1:]]
    site.reconcile(node("9_0", 1))
    assert site.cancelled == ["8"] and [job.id for job in site.jobs] == ["9_0"]


def test_workers_of_an_earlier_driver_are_taken_over(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.jobs = [QueuedJob(f"5_{n}", NAME, "RUNNING", "None", "n", "") for n in range(3)]
    site.open_jobs = 9
    assert site.reconcile() == () and len(site.jobs) == 3


def test_a_worker_that_slurm_holds_after_a_failed_start_is_replaced(tmp_path: Path) -> None:
    site = Site(tmp_path, max_workers=1)
    site.jobs = [QueuedJob("4_0", NAME, "PENDING", "launch failed requeued held", "", "")]
    site.open_jobs = 1
    assert "submitted 1 worker" in site.reconcile()[0]
    assert site.cancelled == ["4_0"]


# What sbatch refuses.


def test_a_refused_submission_is_said_once_and_tried_again_later_with_half_the_number(tmp_path: Path) -> None:
    site = Site(tmp_path, max_workers=8)
    site.open_jobs, site.refusal = 8, "sbatch refuses the worker: Socket timed out on send/recv operation"
    said = site.said_within(300)
    assert len(said) == 1 and "Socket timed out" in said[0] and "tried again" in said[0]
    assert site.submissions[:4] == [8, 4, 2, 1] and set(site.submissions[4:]) == {1}
    assert 6 <= len(site.submissions) <= 9  # after 5, 10, 20, 40, 60, 60 … seconds
    site.refusal = ""
    said = site.said_within(120)
    assert len(site.jobs) == 8 and site.submissions[-4:] == [1, 2, 4, 1]
    assert [text.split(" (")[0] for text in said if "submitted" in text][0] == "submitted 1 worker to SLURM"
    site.refusal = "sbatch refuses the worker: Socket timed out on send/recv operation"
    for job in list(site.jobs):
        site.end(job.id, "CANCELLED", "")
    assert any("Socket timed out" in text for text in site.said_within(60))  # a new trouble is said anew


def test_a_limit_of_submitted_jobs_never_ends_a_run(tmp_path: Path) -> None:
    site = Site(tmp_path, max_workers=8)
    site.open_jobs, site.refusal = 8, BUSY
    assert len(site.said_within(3600)) == 1


def test_a_refusal_for_good_ends_a_run_on_which_nobody_works_and_no_other(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.open_jobs = 1
    site.reconcile()
    site.start("9_0")
    site.open_jobs, site.refusal = 2, "sbatch refuses the worker: Invalid account or account/partition"
    assert len(site.said_within(300, node("9_0", 1))) == 1
    site.jobs.clear()
    with pytest.raises(PoolBroken, match="Invalid account"):
        site.said_within(120)


# Bad nodes.


def test_a_worker_that_fails_is_said_with_its_node_its_code_and_the_last_line_of_its_log(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.open_jobs = 1
    site.reconcile()
    site.end(
        "9_0", "FAILED", "node2", log="starting\nModuleNotFoundError: No module named 'torch'\nsrun: error: node2\n"
    )
    (said,) = site.reconcile()
    assert said == "worker 9_0 failed on node2 (exit code 1): starting | ModuleNotFoundError: No module named 'torch'"


def test_a_worker_that_refuses_says_why_itself(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.open_jobs = 1
    site.reconcile()
    site.run_folder.refuse("9_0", "sees 8 GPUs")
    site.end("9_0", "FAILED", "node2", log="Traceback")
    assert site.reconcile()[0] == "worker 9_0 failed on node2 (exit code 1): sees 8 GPUs"


def test_a_node_is_left_out_after_two_failures_and_the_run_goes_on_with_the_others(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.open_jobs = 3
    said = []
    for _ in range(300):
        said += site.reconcile(after=1.0)
        for job in [job for job in site.jobs if "bad" not in site.excluded and job.state == "PENDING"]:
            site.end(job.id, "FAILED", "bad", "0:53")
    assert any("bad is left out from now on" in text and "SLURM could not open its log" in text for text in said)
    assert len(site.ended) == 3 and len(site.jobs) == 3 and site.excluded == ("bad",)


def test_a_node_that_fails_beside_workers_that_work_is_not_fed_for_ever(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.open_jobs = 3
    site.reconcile()
    site.start("9_0", "9_1")
    nodes = (node("9_0", 1), node("9_1", 1))
    for _ in range(600):
        site.reconcile(*nodes, after=1.0)
        for job in [job for job in site.jobs if job.state == "PENDING" and "bad" not in site.excluded]:
            site.end(job.id, "FAILED", "bad")
    assert len(site.ended) == 2 and site.excluded == ("bad",)


def test_a_worker_that_works_on_a_node_is_no_excuse_for_those_that_fail_on_it(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.open_jobs = 3
    site.reconcile()
    site.start("9_0")  # on the node n
    site.reconcile(node("9_0", 1))
    for _ in range(300):
        for job in [job for job in site.jobs if job.state == "PENDING" and "n" not in site.excluded]:
            site.end(job.id, "FAILED", "n")
        site.reconcile(node("9_0", 1), after=1.0)
    assert len(site.ended) == 2 and site.excluded == ("n",)


def test_workers_that_fail_on_every_node_end_a_run_on_which_nobody_works(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.open_jobs = 3
    began = site.now
    with pytest.raises(PoolBroken, match="workers ended before they joined, on n0, n1, n2; the last: .*no torch"):
        while site.now < 600:
            site.reconcile(after=1.0)
            free = [name for name in ("n0", "n1", "n2", "n3") if name not in site.excluded]
            for job, name in zip(list(site.jobs), free, strict=False):
                site.end(job.id, "FAILED", name, log="no torch")
    assert site.now - began < 60


def test_workers_that_somebody_cancelled_or_preempted_are_no_failures_but_come_back_ever_later(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.open_jobs, submitted = 3, list[float]()
    for _ in range(1000):
        site.reconcile(after=1.0)
        for state, job in zip(("CANCELLED", "PREEMPTED", "CANCELLED"), list(site.jobs), strict=False):
            site.end(job.id, state, "n")
            submitted.append(site.now)
    assert len(site.ended) == len(submitted) > 45 and site.excluded == ()
    waits = [later - earlier for earlier, later in zip(submitted[::3], submitted[3::3], strict=False)]
    assert waits[0] <= 15 and all(60 <= wait <= 95 for wait in waits[5:]), "also seconds between two looks"


def test_workers_that_the_run_takes_back_itself_do_not_make_it_wait(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for _ in range(10):
        site.open_jobs = 2
        site.said_within(6)
        assert len(site.jobs) == 2
        site.open_jobs = 0
        site.said_within(12)
        assert site.jobs == []


def test_a_node_on_which_a_worker_joined_is_trusted_again() -> None:
    failed = FailedStarts()
    assert not failed.add("n", "", 0.0) and failed.add("n", "", 0.0) and failed.excluded(1.0) == ("n",)
    failed.joined("n")
    assert failed.excluded(1.0) == () and failed.in_a_row == 0 and not failed.everywhere


def test_a_node_that_was_bad_for_a_while_is_tried_again_and_left_out_twice_as_long_when_it_still_is() -> None:
    failed, half_an_hour = FailedStarts(), autoscaler.LEFT_OUT_SECONDS
    assert [failed.add("n", "", 0.0), failed.add("n", "", 10.0), failed.add("n", "", 20.0)] == [False, True, False]
    assert failed.excluded(2 * half_an_hour) == ("n",) and failed.excluded(2 * half_an_hour + 21) == ()
    assert failed.add("n", "", 3 * half_an_hour)
    assert failed.excluded(7 * half_an_hour - 1) == ("n",) and failed.excluded(7 * half_an_hour) == ()
    assert not failed.add("", "", 0.0) and not failed.add("", "", 0.0), "which node it was is not known"


def test_a_node_that_is_well_again_gets_workers_while_others_work(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.open_jobs = 2
    site.reconcile()
    site.start("9_0")
    nodes = [node("9_0", 1)]
    for _ in range(4000):
        site.reconcile(*nodes, after=1.0)
        for job in [job for job in site.jobs if job.state == "PENDING" and "bad" not in site.excluded]:
            if site.now < 1000:
                site.end(job.id, "FAILED", "bad")
            else:
                site.jobs = [replace(j, state="RUNNING", nodes="bad") if j == job else j for j in site.jobs]
                nodes.append(node(job.id, 1))
        if site.excluded and site.now > 1000:  # the cluster is full without it: what waits is taken back once
            site.jobs = [job for job in site.jobs if job.state != "PENDING"]
    assert len(site.ended) == 2 and len(nodes) == 2


def test_the_wait_before_the_next_try_grows_to_a_minute_and_begins_anew() -> None:
    retry, waits = Retry(), []
    for _ in range(7):
        retry.failed(100.0)
        waits.append(retry.at - 100.0)
    assert waits == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0]
    retry.succeeded()
    retry.failed(0.0)
    assert retry.at == autoscaler.RETRY_SECONDS[0]


# Workers that never start.


@pytest.mark.parametrize(
    ("reason", "fix"),
    [
        ("PartitionTimeLimit", "lower `minutes`"),
        ("QOSMaxWallDurationPerJobLimit", "lower `minutes`"),
        ("AssocMaxCpuPerJobLimit", "lower `cpus`"),
        ("BadConstraints", "no node fits"),
    ],
)
def test_workers_that_will_never_start_end_a_run_with_the_fix(tmp_path: Path, reason: str, fix: str) -> None:
    site = Site(tmp_path)
    site.open_jobs = 1
    site.reconcile()
    site.wait(reason)
    assert fix in site.reconcile()[0]  # once may be chance
    with pytest.raises(PoolBroken, match=f"{reason}.*{fix}"):
        site.reconcile()


@pytest.mark.parametrize("reason", ["Resources", "Priority", "QOSMaxJobsPerUserLimit", "ReqNodeNotAvail", "Dependency"])
def test_other_reasons_are_waited_for(tmp_path: Path, reason: str) -> None:
    site = Site(tmp_path)
    site.running = 4
    site.open_jobs = 1
    site.reconcile()
    site.wait(reason)
    assert all(f"pending ({reason})" in text for text in site.said_within(600))


def test_workers_that_never_start_do_not_end_a_run_on_which_somebody_works(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.open_jobs = 2
    site.reconcile()
    site.wait("BadConstraints")
    site.start("9_0")
    site.said_within(300, node("9_0", 1))


def test_a_site_that_lets_a_user_run_one_job_is_met_with_gang_mode(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.open_jobs = 1
    site.reconcile()
    site.wait("QOSMaxJobsPerUserLimit")
    with pytest.raises(PoolBroken, match="one job at a time .*mode: gang"):
        site.said_within(60)


def test_jobs_that_exclude_each_other_ask_for_one_worker() -> None:
    plan = plan_of(graph_of([WORKS] * 5)[0])
    groups = {plan.keys[0]: ("g",), plan.keys[1]: ("g",)}
    plan = replace(plan, exclusive=groups, limits={"g": 1}, cpu_jobs=frozenset())
    story: list[Event] = [
        Began(0.0, frozenset()),
        SlotJoined(1.0, "w"),
        SlotJoined(2.0, "v"),
        JobYielded(3.0, plan.keys[0], "w"),
        JobDone(4.0, plan.keys[0], "w"),
        JobDone(5.0, plan.keys[2], "v"),
        JobDone(6.0, plan.keys[1], "w"),
    ]
    state, jobs, counts = State.initial(plan), OpenJobs(), []
    for event in story:
        state, _ = decide(state, event)
        jobs.take(state)
        counts.append(jobs.count())
    assert counts == [4, 4, 4, 4, 4, 3, 2]

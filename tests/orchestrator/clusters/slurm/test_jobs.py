"""Submission and the queue with programs that only pretend; and what the jobs on the nodes decide."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import stat
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import BadInput
from orchestrator.clusters.config import SlurmClusterSpec
from orchestrator.clusters.ray_cluster import NodeUsage
from orchestrator.clusters.slurm import follow, jobs, submit
from orchestrator.clusters.slurm import run_folder as run_folder_module
from orchestrator.clusters.slurm.client import SlurmClient, ask, outside_a_job
from orchestrator.clusters.slurm.follow import HeadGone, NeverStarts, SlurmRun, status_of
from orchestrator.clusters.slurm.run_folder import ALL_WORKERS, Head, HeadMonitor, RunFolder
from orchestrator.clusters.slurm.sbatch import name_of
from orchestrator.clusters.slurm.submit import NotSubmitted
from orchestrator.clusters.versions import difference, versions
from orchestrator.runs.journal import Journal
from orchestrator.runs.pool import PoolBroken
from orchestrator.runs.stop_file import StopFile
from workers.store.store import Store

SPEC = SlurmClusterSpec(kind="slurm", max_workers=10)


class Programs:
    """sbatch, squeue and the others as shell scripts in front of PATH; each writes down how it was called."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        for name in ("sbatch", "squeue", "scancel", "scontrol", "sacct", "srun"):
            self.say(name, "")

    def say(self, name: str, answer: str, code: int = 0) -> None:
        """From now on this program prints the answer and ends with the code."""
        self.write(name, f"cat <<'END'\n{answer}\nEND\nexit {code}")

    def write(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho "$@" >> {self.folder}/{name}.calls\n{body}\n')
        path.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    return Programs(tmp_path / "bin", monkeypatch)


@pytest.fixture
def run_folder(tmp_path: Path) -> RunFolder:
    order = {"run": "r", "cluster": SPEC.model_dump(mode="json"), "store": str(tmp_path / "store")}
    return RunFolder.make(tmp_path / "run_folder", order)


def test_a_submitted_head_has_its_name_its_call_and_private_files(programs: Programs, run_folder: RunFolder) -> None:
    programs.say("sbatch", "Submitted batch job 41")
    assert submit.submit_jobs(run_folder, "head") == ["41"]
    text = (run_folder.jobs / "41_submission.sh").read_text()
    assert "#SBATCH --job-name=pdd-r-head" in text and "#SBATCH --requeue" in text
    assert run_folder.token.read_text() not in text
    for path in run_folder.jobs.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE(run_folder.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(run_folder.token.stat().st_mode) == 0o600


def test_workers_are_arrays_within_the_sites_limit(programs: Programs, run_folder: RunFolder) -> None:
    programs.say("scontrol", "MaxArraySize            = 4")
    programs.write("sbatch", f'echo "Submitted batch job $(wc -l < {programs.folder}/sbatch.calls)"')
    made = submit.submit_jobs(run_folder, "worker", 6)
    assert made == ["1_0", "1_1", "1_2", "1_3", "2_0", "2_1"]
    assert "#SBATCH --array=0-3%4" in (run_folder.jobs / "1_submission.sh").read_text()
    assert "#SBATCH --array=0-1%2" in (run_folder.jobs / "2_submission.sh").read_text()


def test_a_refusal_of_sbatch_is_told_in_its_own_words(programs: Programs, run_folder: RunFolder) -> None:
    programs.write("sbatch", "echo 'sbatch: error: invalid partition specified: gpux' >&2; exit 1")
    with pytest.raises(NotSubmitted, match="sbatch refuses the head: .*invalid partition specified: gpux"):
        submit.submit_jobs(run_folder, "head")


def test_a_job_that_slurm_took_although_sbatch_failed_is_cancelled(programs: Programs, run_folder: RunFolder) -> None:
    held = f"echo '77|{name_of('r', 'head')}|PENDING|None||'"
    programs.write("squeue", f"test -e {programs.folder}/sbatch.calls && {held}; exit 0")
    programs.write("sbatch", "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1")
    with pytest.raises(NotSubmitted, match="timed out"):
        submit.submit_jobs(run_folder, "head")
    assert programs.calls("scancel") == ["--quiet 77"]


def test_a_job_submitted_from_inside_a_job_does_not_inherit_it(
    programs: Programs, run_folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "99")
    monkeypatch.setenv("SLURM_CONF", "/etc/x.conf")
    programs.write("sbatch", f"env > {programs.folder}/seen; echo 'Submitted batch job 5'")
    submit.submit_jobs(run_folder, "head")
    seen = (programs.folder / "seen").read_text()
    assert "SLURM_CONF=/etc/x.conf" in seen and "SLURM_CPUS_PER_TASK" not in seen
    assert os.environ["SLURM_CPUS_PER_TASK"] == "99"


def test_an_answer_that_fails_is_unknown_and_an_empty_one_is_none(programs: Programs) -> None:
    assert SlurmClient().jobs("n") == []
    programs.say("squeue", "slurm_load_jobs error", code=1)
    assert SlurmClient().jobs("n") is None
    assert not SlurmClient().wait_until_gone("n", 0.0)
    programs.say("sacct", "Slurm accounting storage is disabled", code=1)
    assert SlurmClient().used("n") is None
    programs.say("scontrol", "", code=1)
    assert SlurmClient().config() == {} and SlurmClient().partitions() is None
    assert SlurmClient().ends(["7_1"]) == {}


def test_a_program_that_is_absent_or_hangs_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(["there-is-no-such-program"]) is None

    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("squeue", 1)

    monkeypatch.setattr(subprocess, "run", hang)
    assert ask(["squeue"]) is None


def test_what_slurm_set_for_a_job_is_not_passed_on() -> None:
    kept = outside_a_job({"SLURM_JOB_ID": "1", "SLURM_CONF": "c", "HOME": "h", "SUBMITIT_X": "", "RAY_AUTH_TOKEN": "s"})
    assert kept == {"SLURM_CONF": "c", "HOME": "h"}


def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(BadInput, match="chmod 700"):
        RunFolder.make(tmp_path / "open", {})


def test_a_head_is_heard_while_it_beats(run_folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("orchestrator.clusters.slurm.run_folder.time.monotonic", lambda: now[0])
    monitor = HeadMonitor(run_folder)
    assert monitor.listen() is None and not monitor.silent()
    run_folder.announce(Head("a:1", "s1", {}))
    now[0] = 40.0
    assert monitor.listen() == Head("a:1", "s1", {}) and not monitor.silent()
    now[0] = 80.0
    os.utime(run_folder.head_file, (1, 1))  # a clock of another machine, far behind
    assert monitor.listen() is not None and not monitor.silent()
    now[0] = 80.0 + run_folder_module.SILENCE_SECONDS + 1
    assert monitor.listen() is not None and monitor.silent()


def test_versions_that_differ_are_named() -> None:
    ours = versions()
    assert difference(ours, ours) == ""
    assert difference(ours, {**ours, "ray": "1.0"}) == f"ray is {ours['ray']} there and 1.0 on the head"


def test_a_worker_that_sees_other_gpus_than_it_was_given_refuses(
    run_folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setattr("orchestrator.clusters.slurm.jobs.signal.signal", lambda *_: None)
    with pytest.raises(ValueError, match="0 GPUs were asked for"):
        jobs.WorkerJob(str(run_folder.folder))()
    assert "others may be working there" in run_folder.refused()["8_3"]


def test_what_is_pickled_for_a_job_is_a_path_and_nothing_else(run_folder: RunFolder) -> None:
    job = jobs.HeadJob(str(run_folder.folder))
    job.leaving = True
    assert job.__getstate__() == {"folder": str(run_folder.folder), "leaving": False}


# A run seen from a login node.


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def began(store: Store, *events: tuple[str, dict[str, Any]]) -> SlurmRun:
    home = store.run_folder("r")
    with Journal.open(home) as book:
        facts = {"run": "r", "command": "c", "experiments": ["tiny"], "jobs": {"full": 1}}
        book.write("submitted", cluster="slurm", **facts)
        for event, fields in events:
            book.write(event, **fields)
    (home / follow.POINTER).write_text(json.dumps({"mode": "elastic", "folder": str(home / "slurm")}))
    found = SlurmRun.of(store, "r")
    assert found is not None
    return found


ENDED = ("run_ended", {"exit": 0, "why": "1 done", "counts": {}})
STOPPED = ("run_ended", {"exit": 130, "why": "cancelled", "counts": {}})


def test_the_report_hears_what_the_jobs_took_of_slurm_and_nothing_without_accounting(
    programs: Programs, store: Store
) -> None:
    assert follow.uses_of(store, None) == [] and follow.uses_of(store, "elsewhere") == []
    began(store)
    line = "{0}|pdd-r-{0}|COMPLETED|2026-11-24T05:00:00|2026-11-24T05:00:10|60|cpu=1"
    programs.say("sacct", "\n".join(line.format(role) for role in ("head", "worker")))
    took = "1 submitted, 0 requeued, 10 s queued, 60 s run"
    assert follow.uses_of(store, "r") == [f"head: {took}", f"worker: {took}"]
    programs.say("sacct", "Slurm accounting storage is disabled", code=1)
    assert follow.uses_of(store, "r") == []


def test_following_tells_what_happens_and_returns_the_last_word(programs: Programs, store: Store) -> None:
    said: list[str] = []
    run = began(store, ("note", {"text": "hello"}), ENDED)
    assert follow.follow(store, run, said.append)["exit"] == 0
    assert said == ["hello", "ended with 0: 1 done"]


def test_a_stopped_run_whose_head_left_the_queue_has_ended(programs: Programs, store: Store) -> None:
    assert follow.follow(store, began(store, STOPPED), lambda text: None)["exit"] == 130


def test_a_head_that_is_gone_without_a_last_word_is_an_error(
    programs: Programs, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "QUEUE_POLL_SECONDS", 0.0)
    with pytest.raises(HeadGone, match="nothing finished is lost"):
        follow.follow(store, began(store), lambda text: None)


def test_a_queue_that_does_not_answer_does_not_end_a_follower(
    programs: Programs, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "QUEUE_POLL_SECONDS", 0.0)
    monkeypatch.setattr(follow, "QUEUE_EXIT_SECONDS", 0.3)  # nobody says when the jobs have left
    programs.say("squeue", "", code=1)
    run = began(store)
    rounds = [0]

    def count(watch: Callable[[], None]) -> Callable[..., None]:
        def wait(self: object) -> None:
            rounds[0] += 1
            watch(self)  # type: ignore[call-arg]
            if rounds[0] == 3:
                with Journal.open(store.run_folder("r")) as book:
                    book.write(ENDED[0], **ENDED[1])

        return wait

    monkeypatch.setattr(follow._HeadWatch, "wait", count(follow._HeadWatch.wait))  # type: ignore[arg-type]
    assert follow.follow(store, run, lambda text: None)["exit"] == 0
    assert rounds[0] >= 3 and len(programs.calls("squeue")) >= 3


def test_cancelling_a_run_that_waits_takes_its_jobs_out_of_the_queue_and_is_its_last_word(
    programs: Programs, store: Store
) -> None:
    programs.write("squeue", f"echo '3|{name_of('r', 'head')}|PENDING|Priority||'")
    began(store).cancel(store)
    assert [call.split()[-1] for call in programs.calls("scancel")] == ["pdd-r-head", "pdd-r-worker"]
    programs.say("squeue", "")
    found = status_of(store, "r")
    assert (found.state, found.exit, found.why) == ("ended", 130, "cancelled")


def test_a_head_that_shows_signs_of_life_costs_slurm_no_question(
    programs: Programs, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = began(store)
    folder = RunFolder(run.folder)
    folder.folder.mkdir()
    folder.announce(Head("a:1", "s", {}))
    watch, now = follow._HeadWatch(run, lambda text: None), [time.monotonic()]
    monkeypatch.setattr("orchestrator.clusters.slurm.follow.time.sleep", lambda seconds: None)
    monkeypatch.setattr("orchestrator.clusters.slurm.follow.time.monotonic", lambda: now[0])
    programs.write("squeue", f"echo '3|{name_of('r', 'head')}|RUNNING|None|n|'")
    for second in range(120):
        now[0] += 1.0
        os.utime(folder.head_file, (second, second))
        watch.wait()
    assert programs.calls("squeue") == []
    for _ in range(600):  # and one that is silent at most four questions a minute, once it was asked for a while
        now[0] += 1.0
        watch.wait()
    assert 30 <= len(programs.calls("squeue")) <= 45


def test_a_head_that_will_never_start_is_taken_out_of_the_queue_with_the_fix(
    programs: Programs, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "QUEUE_POLL_SECONDS", 0.0)
    programs.write("squeue", f"echo '3|{name_of('r', 'head')}|PENDING|PartitionTimeLimit||'")
    said: list[str] = []
    with pytest.raises(NeverStarts, match="PartitionTimeLimit.*lower `minutes`"):
        follow.follow(store, began(store), said.append)
    assert "pending for ever" in said[0]
    assert [call.split()[-1] for call in programs.calls("scancel")] == ["pdd-r-head", "pdd-r-worker"]
    programs.say("squeue", "")
    assert "PartitionTimeLimit" in status_of(store, "r").why


def test_a_head_that_is_gone_is_told_with_its_last_word_or_the_end_of_its_log(
    programs: Programs, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "QUEUE_POLL_SECONDS", 0.0)
    run = began(store)
    folder = RunFolder(run.folder)
    folder.jobs.mkdir(parents=True)
    (folder.jobs / "41_0_log.out").write_text("no such module: cuda\na setup line failed: module load cuda\n")
    with pytest.raises(HeadGone, match=r"no such module: cuda \| a setup line failed: module load cuda"):
        follow.follow(store, run, lambda text: None)
    folder.fail("the journal is locked")
    with pytest.raises(HeadGone, match="the journal is locked"):
        follow.follow(store, run, lambda text: None)
    found = status_of(store, "r")
    assert found.state == "dead" and found.why.startswith("the head ended: the journal is locked; run the same command")


def test_a_site_without_accounting_says_so_once(
    programs: Programs, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    programs.say("sacct", "Slurm accounting storage is disabled", code=1)
    lines = status_lines(store)
    assert lines == [follow.NO_ACCOUNTING] and len(programs.calls("sacct")) == 1
    assert not [record for record in caplog.records if "sacct" in record.message and record.levelname == "WARNING"]
    programs.say("sacct", "")
    assert status_lines(store) == []  # not known yet


def status_lines(store: Store) -> list[str]:
    return SlurmRun("r", "elastic", store.run_folder("r") / "slurm").sentences()


def test_a_driver_that_drives_hears_the_wish_and_is_not_cancelled(programs: Programs, store: Store) -> None:
    facts = {"run": "r", "command": "", "experiments": [], "store": "", "jobs": {}, "workers": 1}
    run = began(store, ("run_began", {**facts, "versions": {}, "pid": 1, "host": "n"}))
    programs.write("squeue", f"echo '3|{name_of('r', 'head')}|RUNNING|None|n|'")
    run.cancel(store)
    assert programs.calls("scancel") == []


def test_a_file_system_that_is_away_for_a_moment_ends_neither_head_nor_worker(
    run_folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder.announce(Head("h:1", "7-1", {}))
    run_folder.refuse("9_0", "sees 8 GPUs")

    def away(*words: object, **options: object) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as stale:
        for module, name in ((os, "utime"), (os, "stat"), (os, "open"), (os, "unlink"), (io, "open")):
            stale.setattr(module, name, away)
        run_folder.heartbeat()
        run_folder.dismiss("9_0")
        run_folder.withdraw()
        assert not run_folder.dismissed("9_0") and run_folder.head() is None and run_folder.refused() == {}
    assert not run_folder.dismissed("9_0") and run_folder.refused() == {"9_0": "sees 8 GPUs"}
    assert run_folder.head() is not None


def test_a_head_that_moves_while_its_store_is_away_is_requeued_all_the_same(
    run_folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(stop: StopFile, why: str) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    head = jobs.HeadJob(str(run_folder.folder))
    monkeypatch.setattr(StopFile, "write", away)
    head.save(requeued=True)
    assert head.requeued


def test_workers_sent_home_are_welcome_again_when_a_new_head_is_there(run_folder: RunFolder) -> None:
    run_folder.dismiss("8_1")
    assert run_folder.dismissed("8_1") and not run_folder.dismissed("8_2")
    run_folder.dismiss(ALL_WORKERS)
    assert run_folder.dismissed("8_2")
    run_folder.reopen()
    assert run_folder.dismissed("8_1") and not run_folder.dismissed("8_2")


# A head that preemption may cancel.


def head_with_successor(tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> jobs.HeadJob:
    order = {"run": "r", "cluster": SPEC.model_dump(mode="json"), "store": str(tmp_path / "store"), "successor": True}
    made = RunFolder.make(tmp_path / "with", order)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    programs.write("squeue", f"echo '12|{NAME}|RUNNING|None|n|'; echo '13|{NAME}|PENDING|Dependency||'")
    return jobs.HeadJob(str(made.folder))


NAME = name_of("r", "head")


@pytest.mark.parametrize(("state", "preempted"), [("RUNNING", True), ("PREEMPTED", True), ("CANCELLED", False)])
def test_a_head_knows_preemption_from_a_cancellation(
    tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch, state: str, preempted: bool
) -> None:
    head = head_with_successor(tmp_path, programs, monkeypatch)
    programs.say("scontrol", f"JobId=12 JobName=x JobState={state} ExitCode=0:0 NodeList=n BatchHost=n")
    assert head._preempted() is preempted


def test_a_head_that_has_ended_takes_its_successor_along_and_only_that(
    tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    head_with_successor(tmp_path, programs, monkeypatch)._cancel_successor()
    assert programs.calls("scancel") == ["--quiet 13"]


def test_a_successor_waits_for_its_head_to_fail_and_there_is_one(
    tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = head_with_successor(tmp_path, programs, monkeypatch)
    assert submit.submit_successor(head.run_folder, "12") is None  # SLURM has it: the driver was started again
    programs.write("squeue", f"echo '12|{NAME}|RUNNING|None|n|'")
    programs.say("sbatch", "Submitted batch job 13")
    assert submit.submit_successor(head.run_folder, "12") == "13"
    script = (head.run_folder.jobs / "13_submission.sh").read_text()
    assert "#SBATCH --dependency=afternotok:12" in script and "#SBATCH --kill-on-invalid-dep=yes" in script
    programs.write("sbatch", "echo 'sbatch: error: no' >&2; exit 1")
    assert submit.submit_successor(head.run_folder, "12") is None


@pytest.mark.parametrize(("code", "raised"), [(0, None), (3, 3), (130, 130)])
def test_slurm_hears_how_a_run_ended(run_folder: RunFolder, code: int, raised: int | None) -> None:
    job = jobs.WorkerJob(str(run_folder.folder))
    job.__class__ = type("Ends", (jobs.WorkerJob,), {"__call__": lambda self: code})
    if raised is None:
        assert submit.Call(job)() == 0
        return
    with pytest.raises(SystemExit) as ended:
        submit.Call(job)()
    assert ended.value.code == raised


# In an allocation that one has already.


@pytest.fixture
def allocation(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> jobs.AllocationCluster:
    """One of three nodes that ends in an hour; its step has just ended."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    ends = datetime.now() + timedelta(hours=1)
    programs.say("scontrol", f"JobId=7 JobState=RUNNING NumNodes=3 EndTime={ends:%Y-%m-%dT%H:%M:%S}")
    (tmp_path / "home").mkdir()
    cluster = jobs.AllocationCluster(SPEC, tmp_path / "home")
    RunFolder.make(cluster.run_folder.folder, {}).announce(Head("h:1", "7-1", {}))
    cluster._step = subprocess.Popen(["true"])
    cluster._step.wait()
    return cluster


def test_the_driver_of_an_allocation_shows_that_it_lives_and_ends_before_it(
    allocation: jobs.AllocationCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = NodeUsage("n", "node1", {}, 1)
    assert allocation.nodes == 3
    heard = allocation.run_folder.head()
    allocation.reconcile([node])
    assert allocation.run_folder.head() != heard and not (allocation.home / "stop").exists()
    allocation.ends = time.time() + SPEC.lead_seconds - 1
    allocation.reconcile([node])
    assert "the same command goes on in another one" in (allocation.home / "stop").read_text()


def test_an_allocation_whose_workers_have_ended_says_the_last_they_said(allocation: jobs.AllocationCluster) -> None:
    allocation.run_folder.log("7").write_text("working\nno module named x\nsrun: error: node1: exited\n")
    with pytest.raises(PoolBroken, match="no module named x; .*7_0_log.out"):
        allocation.reconcile([])
    allocation.run_folder.refuse("7", "other GPUs")
    with pytest.raises(PoolBroken, match="other GPUs"):
        allocation.reconcile([])


def test_an_allocation_without_an_end_has_none(programs: Programs) -> None:
    programs.say("scontrol", "JobId=7 NumNodes=2 EndTime=Unknown")
    assert SlurmClient().shape("7") == (2, math.inf)

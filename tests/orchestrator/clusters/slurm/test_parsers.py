"""What SLURM answers, as values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.clusters.slurm import parsers
from orchestrator.clusters.slurm.parsers import JobUsage, QueuedJob

SQUEUE = """\
12|pdd-r-head|RUNNING|None|node1|2026-11-24T05:00:00
13_0|pdd-r-worker|PENDING|Resources||2026-11-24T05:00:01
13_1|pdd-r-worker|COMPLETING|None|node2|2026-11-24T05:00:01
7|pdd-other-worker|RUNNING|None|node3|2026-11-24T04:00:00
13_2|pdd-r-worker|CANCELLED|None||2026-11-24T05:00:01
13_3|pdd-r-wor"""


def test_squeue_is_read_by_name_and_a_line_cut_short_is_left_out() -> None:
    found = parsers.read_squeue(SQUEUE, "pdd-r-worker")
    assert [(job.id, job.living, job.there) for job in found] == [
        ("13_0", True, True),
        ("13_1", False, True),
        ("13_2", False, False),
    ]
    assert found[0].sentence() == "13_0 pending (Resources)"
    assert QueuedJob("12", "n", "RUNNING", "None", "node1").sentence() == "12 running on node1"
    assert parsers.read_squeue("", "pdd-r-worker") == []


def test_a_job_that_slurm_put_aside_is_told_with_the_mend() -> None:
    job = QueuedJob("36", "n", "PENDING", "launch failed requeued held")
    assert job.held and job.sentence().endswith("let it go on with: scontrol release 36")
    assert not QueuedJob("36", "n", "PENDING", "Resources").held


SACCT = """\
12_0|pdd-r-worker|NODE_FAIL|2026-11-24T05:00:00|2026-11-24T05:00:10|60|billing=1,cpu=1,gres/gpu=2,node=1
12_0|pdd-r-worker|CANCELLED by 0|2026-11-24T05:02:00|2026-11-24T05:02:05|30|billing=1,cpu=1,gres/gpu=2,node=1
18|pdd-r-worker|CANCELLED|Unknown|Unknown|0|
12|pdd-other-worker|COMPLETED|2026-11-24T05:00:00|2026-11-24T05:00:10|60|cpu=1
13|pdd-r-worker|RUNN"""


def test_sacct_is_read_by_name_with_every_start_of_a_requeued_job() -> None:
    assert parsers.read_sacct(SACCT, "pdd-r-worker") == [
        JobUsage("12_0", "pdd-r-worker", "NODE_FAIL", 10.0, 60.0, 2),
        JobUsage("12_0", "pdd-r-worker", "CANCELLED", 5.0, 30.0, 2),
        JobUsage("18", "pdd-r-worker", "CANCELLED", 0.0, 0.0, 0),
    ]


def test_what_the_starts_of_jobs_took_is_said_with_requeues_and_lost_gpu_hours() -> None:
    used = parsers.read_sacct(SACCT, "pdd-r-worker")
    said = parsers.usage_text([replace(one, seconds=one.seconds * 60) for one in used])
    assert said == "2 submitted, 1 requeued, 15 s queued, 5400 s run, 3.00 GPU-hours (2.00 in starts that failed)"
    one = JobUsage("1", "n", "COMPLETED", 1.0, 9.0, 0)
    assert parsers.usage_text([one]) == "1 submitted, 0 requeued, 1 s queued, 9 s run"


@pytest.mark.parametrize(
    ("text", "largest"),
    [("MaxArraySize            = 1001\nMaxJobCount = 5\n", 1001), ("", 1000), ("MaxArraySize = 0", 1000)],
)
def test_the_largest_array_is_what_the_site_says(text: str, largest: int) -> None:
    assert parsers.largest_array(parsers.read_config(text)) == largest


@pytest.mark.parametrize(
    ("limit", "minutes"), [("1-00:00:00", 1440.0), ("02:30:00", 150.0), ("00:30", 0.5), ("UNLIMITED", None)]
)
def test_time_limits_are_read_as_slurm_writes_them(limit: str, minutes: float | None) -> None:
    assert parsers.minutes_of(limit) == minutes


@pytest.mark.parametrize(
    ("environment", "given", "seen"),
    [
        ({}, 0, []),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0, []),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0, []),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 1, ["1"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"}, 2, ["GPU-1", "GPU-2"]),
        ({"ROCR_VISIBLE_DEVICES": "2,3"}, 2, ["2", "3"]),
    ],
)
def test_a_worker_sees_the_gpus_it_was_given(environment: dict[str, str], given: int, seen: list[str]) -> None:
    assert parsers.visible_gpus(environment, given) == seen


@pytest.mark.parametrize(
    ("environment", "given", "version_mismatch"),
    [
        ({}, 1, "is not set"),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 1, "others may be working there"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, 0, "others may be working there"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, 2, "some are missing"),
    ],
)
def test_a_worker_that_sees_other_gpus_than_it_was_given_says_so(
    environment: dict[str, Any], given: int, version_mismatch: str
) -> None:
    with pytest.raises(ValueError, match=version_mismatch):
        parsers.visible_gpus(environment, given)


ENDS = """\
JobId=12 JobName=pdd-r-worker UserId=a(1) JobState=FAILED Reason=NonZeroExitCode ExitCode=3:0 NodeList=n1 BatchHost=n1
JobId=14 ArrayJobId=13 ArrayTaskId=1 JobState=NODE_FAIL ExitCode=0:15 NodeList=n[2-3] BatchHost=n2
JobId=13 ArrayJobId=13 ArrayTaskId=0 JobState=CANCELLED ExitCode=0:0 NodeList=(null)
JobId=15 ArrayJobId=13 ArrayTa"""


def test_how_jobs_ended_is_read_by_id_with_node_and_cause() -> None:
    ends = parsers.read_job_ends(ENDS)
    assert {job: (end.failed, end.node) for job, end in ends.items()} == {
        "12": (True, "n1"),
        "13_1": (True, "n2"),
        "13_0": (False, ""),
    }
    assert [ends[job].cause() for job in ("12", "13_1")] == ["exit code 3", "signal 15"]
    assert parsers.JobEnd("FAILED", "n1", "0:53").cause() == "SLURM could not open its log"


@pytest.mark.parametrize(
    ("words", "for_good"),
    [
        ("Batch job submission failed: Invalid partition name specified", True),
        ("invalid partition specified: gpux", True),
        ("Batch job submission failed: Invalid account or account/partition combination specified", True),
        ("Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)", True),
        ("Batch job submission failed: Requested node configuration is not available", True),
        ("Memory specification can not be satisfied", True),
        ("QOSMaxWallDurationPerJobLimit: Job violates accounting/QOS policy", True),
        ("QOSMaxSubmitJobPerUserLimit: Job violates accounting/QOS policy", False),
        ("AssocMaxSubmitJobLimit: Job violates accounting/QOS policy (job submit limit, time limits)", False),
        ("Batch job submission failed: Socket timed out on send/recv operation", False),
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", False),
        ("Slurm temporarily unable to accept job, sleeping and retrying", False),
    ],
)
def test_a_refusal_is_for_good_where_asking_again_would_not_help(words: str, for_good: bool) -> None:
    assert parsers.refused_for_good(words) is for_good


def test_the_last_lines_of_a_log_are_what_the_job_itself_said() -> None:
    log = "a\n\nValueError: no such file\nsrun: error: n1: task 0: Exited with exit code 1\n"
    assert parsers.last_lines(log) == "ValueError: no such file" and parsers.last_lines(log, 2).startswith("a | ")
    assert parsers.last_lines("srun: error: no memory\n") == "srun: error: no memory" and parsers.last_lines("") == ""

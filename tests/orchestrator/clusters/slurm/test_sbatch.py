"""What is said to SLURM and what it answers, as values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.clusters.config import SlurmClusterSpec
from orchestrator.clusters.slurm import sbatch
from orchestrator.clusters.slurm.sbatch import Queued, Used

PLAIN = SlurmClusterSpec(kind="slurm")
FULL = SlurmClusterSpec.model_validate(
    {
        "kind": "slurm",
        "partition": "gpu",
        "account": "vision",
        "qos": "long",
        "constraint": "a100",
        "gpus": 2,
        "cpus": 8,
        "memory": "32G",
        "minutes": 600,
        "max_workers": 20,
        "array_throttle": 5,
        "setup": ["module load cuda"],
        "sbatch": {"exclusive": True, "requeue": False},
        "head": {"partition": "cpu", "qos": "short", "cpus": 3, "memory": "4G", "minutes": 2000},
    }
)
SETUP = ["export PYTHONSAFEPATH=1", "export PYTHONPATH='/a folder/code'"]


def test_a_cluster_that_says_nothing_leaves_everything_to_the_site() -> None:
    assert sbatch.parameters(PLAIN, "tiny-1", "worker", Path("/a folder/code")) == {
        "job_name": "pdd-tiny-1-worker",
        "comment": "progressive dataset distillation, run tiny-1: worker",
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": 1,
        "time": 240,
        "signal_delay_s": 120,
        "array_parallelism": 4,
        "setup": ["umask 077", *SETUP],
        "srun_args": ["--kill-on-bad-exit=1"],
        "stderr_to_stdout": True,
        "wckey": None,
        "additional_parameters": {"requeue": True},
    }


def test_every_field_of_a_worker_reaches_submitit() -> None:
    made = sbatch.parameters(FULL, "r", "worker", Path("/a folder/code"))
    told = ("partition", "account", "qos", "constraint", "gpus_per_node", "cpus_per_task", "mem", "time")
    assert [made[name] for name in told] == ["gpu", "vision", "long", "a100", 2, 8, "32G", 600]
    assert made["array_parallelism"] == 5
    assert made["setup"] == ["umask 077", "module load cuda", *SETUP]
    assert made["additional_parameters"] == {"requeue": False, "exclusive": True}


def test_the_head_is_small_and_asks_for_no_gpu() -> None:
    made = sbatch.parameters(FULL, "r", "head", Path("/code"))
    told = ("job_name", "partition", "qos", "account", "cpus_per_task", "mem", "time", "nodes")
    assert [made[name] for name in told] == ["pdd-r-head", "cpu", "short", "vision", 3, "4G", 2000, 1]
    assert not {"gpus_per_node", "constraint"} & made.keys()


def test_a_gang_is_one_job_of_all_nodes_with_a_core_more_for_the_driver() -> None:
    made = sbatch.parameters(FULL, "r", "gang", Path("/code"))
    assert (made["nodes"], made["cpus_per_task"], made["gpus_per_node"]) == (20, 9, 2)


def test_submitit_knows_every_parameter_and_writes_no_secret(tmp_path: Path) -> None:
    slurm = pytest.importorskip("submitit.slurm.slurm")
    made = sbatch.parameters(FULL, "r", "worker", Path("/code"))
    text = slurm._make_sbatch_string(command="python", folder=tmp_path, map_count=3, **made)
    lines = text.splitlines()
    for line in (
        "#SBATCH --job-name=pdd-r-worker",
        "#SBATCH --array=0-2%3",
        "#SBATCH --signal=USR2@120",
        "#SBATCH --exclusive",
        "#SBATCH --gpus-per-node=2",
        "module load cuda",
    ):
        assert line in lines
    assert "wckey" not in text and "TOKEN" not in text.upper()


@pytest.mark.parametrize(("minutes", "lead"), [(1, 30), (3, 90), (240, 120)])
def test_the_lead_before_a_walltime_is_at_most_half_of_it(minutes: int, lead: int) -> None:
    assert sbatch.lead_seconds(PLAIN.model_copy(update={"minutes": minutes}), "worker") == lead


@pytest.mark.parametrize(
    ("count", "largest", "sizes"),
    [(0, 10, []), (3, 10, [3]), (10, 10, [10]), (11, 10, [10, 1]), (5, 2, [2, 2, 1]), (2, 1, [1, 1])],
)
def test_arrays_stay_within_the_sites_limit(count: int, largest: int, sizes: list[int]) -> None:
    assert sbatch.chunks(count, largest) == sizes


@pytest.mark.parametrize(
    ("jobs", "queued", "missing"), [(0, 0, 0), (1, 0, 1), (4, 0, 2), (5, 1, 2), (99, 0, 20), (99, 20, 0), (1, 3, 0)]
)
def test_workers_are_missing_as_far_as_there_is_work_and_leave(jobs: int, queued: int, missing: int) -> None:
    assert sbatch.workers_missing(jobs, FULL, queued) == missing  # two slots a worker, twenty workers at most


SQUEUE = """\
12|pdd-r-head|RUNNING|None|node1|2026-11-24T05:00:00
13_0|pdd-r-worker|PENDING|Resources||2026-11-24T05:00:01
13_1|pdd-r-worker|COMPLETING|None|node2|2026-11-24T05:00:01
7|pdd-other-worker|RUNNING|None|node3|2026-11-24T04:00:00
13_2|pdd-r-worker|CANCELLED|None||2026-11-24T05:00:01
13_3|pdd-r-wor"""


def test_squeue_is_read_by_name_and_a_line_cut_short_is_left_out() -> None:
    found = sbatch.read_squeue(SQUEUE, "pdd-r-worker")
    assert [(job.id, job.living, job.there) for job in found] == [
        ("13_0", True, True),
        ("13_1", False, True),
        ("13_2", False, False),
    ]
    assert found[0].sentence() == "13_0 pending (Resources)"
    assert Queued("12", "n", "RUNNING", "None", "node1").sentence() == "12 running on node1"
    assert sbatch.read_squeue("", "pdd-r-worker") == []


def test_a_job_that_slurm_put_aside_is_told_with_the_mend() -> None:
    job = Queued("36", "n", "PENDING", "launch failed requeued held")
    assert job.held and job.sentence().endswith("let it go on with: scontrol release 36")
    assert not Queued("36", "n", "PENDING", "Resources").held


SACCT = """\
12_0|pdd-r-worker|NODE_FAIL|2026-11-24T05:00:00|2026-11-24T05:00:10|60|billing=1,cpu=1,gres/gpu=2,node=1
12_0|pdd-r-worker|CANCELLED by 0|2026-11-24T05:02:00|2026-11-24T05:02:05|30|billing=1,cpu=1,gres/gpu=2,node=1
18|pdd-r-worker|CANCELLED|Unknown|Unknown|0|
12|pdd-other-worker|COMPLETED|2026-11-24T05:00:00|2026-11-24T05:00:10|60|cpu=1
13|pdd-r-worker|RUNN"""


def test_sacct_is_read_by_name_with_every_start_of_a_requeued_job() -> None:
    assert sbatch.read_sacct(SACCT, "pdd-r-worker") == [
        Used("12_0", "pdd-r-worker", "NODE_FAIL", 10.0, 60.0, 2),
        Used("12_0", "pdd-r-worker", "CANCELLED", 5.0, 30.0, 2),
        Used("18", "pdd-r-worker", "CANCELLED", 0.0, 0.0, 0),
    ]


def test_what_the_starts_of_jobs_took_is_said_with_requeues_and_lost_gpu_hours() -> None:
    used = sbatch.read_sacct(SACCT, "pdd-r-worker")
    said = sbatch.spoken_use([replace(one, seconds=one.seconds * 60) for one in used])
    assert said == "2 submitted, 1 requeued, 15 s queued, 5400 s run, 3.00 GPU-hours (2.00 in starts that failed)"
    assert (
        sbatch.spoken_use([Used("1", "n", "COMPLETED", 1.0, 9.0, 0)]) == "1 submitted, 0 requeued, 1 s queued, 9 s run"
    )


@pytest.mark.parametrize(
    ("text", "largest"),
    [("MaxArraySize            = 1001\nMaxJobCount = 5\n", 1001), ("", 1000), ("MaxArraySize = 0", 1000)],
)
def test_the_largest_array_is_what_the_site_says(text: str, largest: int) -> None:
    assert sbatch.largest_array(sbatch.read_config(text)) == largest


@pytest.mark.parametrize(
    ("limit", "minutes"), [("1-00:00:00", 1440.0), ("02:30:00", 150.0), ("00:30", 0.5), ("UNLIMITED", None)]
)
def test_time_limits_are_read_as_slurm_writes_them(limit: str, minutes: float | None) -> None:
    assert sbatch.minutes_of(limit) == minutes


@pytest.mark.parametrize(
    ("environment", "given", "seen"),
    [
        ({}, 0, []),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0, []),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0, []),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 1, ["1"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"}, 2, ["GPU-1", "GPU-2"]),
    ],
)
def test_a_worker_sees_the_gpus_it_was_given(environment: dict[str, str], given: int, seen: list[str]) -> None:
    assert sbatch.visible_gpus(environment, given) == seen


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
        sbatch.visible_gpus(environment, given)

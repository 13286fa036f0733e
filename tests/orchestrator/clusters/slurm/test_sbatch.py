"""What is said to SLURM, as values."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from orchestrator.clusters.config import SlurmClusterSpec
from orchestrator.clusters.slurm import sbatch

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
        "head": {
            **{"partition": "cpu", "qos": "short", "cpus": 3, "memory": "4G", "minutes": 2000},
            "sbatch": {"nice": 5},
        },
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
    assert [line for line in made["setup"] if "trap" not in line] == [
        *("umask 077", "set -e", "module load cuda", "set +e"),
        *SETUP,
    ]
    assert made["additional_parameters"] == {"requeue": False, "exclusive": True}


def test_the_head_is_small_and_asks_for_no_gpu() -> None:
    made = sbatch.parameters(FULL, "r", "head", Path("/code"))
    told = ("job_name", "partition", "qos", "account", "cpus_per_task", "mem", "time", "nodes")
    assert [made[name] for name in told] == ["pdd-r-head", "cpu", "short", "vision", 3, "4G", 2000, 1]
    assert not {"gpus_per_node", "constraint"} & made.keys()
    assert made["additional_parameters"] == {"requeue": True, "nice": 5}  # not the workers'


def test_a_head_whose_memory_is_open_takes_the_sites_default_and_not_the_workers() -> None:
    spec = PLAIN.model_copy(update={"memory": "200G"})
    assert "mem" not in sbatch.parameters(spec, "r", "head", Path("/code"))
    assert sbatch.parameters(spec, "r", "worker", Path("/code"))["mem"] == "200G"


def test_typed_gpus_and_generic_resources_reach_slurm_as_they_are_written() -> None:
    typed = PLAIN.model_copy(update={"gpus": "a100:2"})
    assert sbatch.parameters(typed, "r", "worker", Path("/code"))["gpus_per_node"] == "a100:2"
    generic = sbatch.parameters(PLAIN.model_copy(update={"gres": "gpu:2"}), "r", "worker", Path("/code"))
    assert generic["gres"] == "gpu:2" and "gpus_per_node" not in generic


@pytest.mark.parametrize(("given", "exclude"), [({}, "bad1,bad2"), ({"exclude": "old[1,3]"}, "old[1,3],bad1,bad2")])
def test_nodes_that_are_avoided_join_those_of_the_user(given: dict[str, str], exclude: str) -> None:
    spec = PLAIN.model_copy(update={"sbatch": given})
    made = sbatch.parameters(spec, "r", "worker", Path("/code"), exclude={"bad2", "bad1"})
    assert made["additional_parameters"]["exclude"] == exclude


@pytest.mark.parametrize(
    ("setup", "code", "log"),
    [
        (["true", "echo loaded"], 0, "loaded\npython"),
        (["echo out", "if true", "then false", "fi", "echo never"], 1, f"out\n{sbatch.SETUP_FAILED} 1: false"),
        (["load() { echo no such module; return 3; }", "load cuda"], 3, f"{sbatch.SETUP_FAILED} 3: "),
        ([], 0, "python"),
    ],
)
def test_a_setup_line_that_fails_ends_the_job_and_is_named(setup: list[str], code: int, log: str) -> None:
    script = "\n".join([*sbatch.checked(setup), "false", "echo python"])  # what follows is not held to it
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == code and log in done.stdout


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

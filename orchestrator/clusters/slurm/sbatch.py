"""What is said to SLURM, as plain values: the names, parameters and sizes of a run's jobs; nothing here runs anything.

A run has at most two names in SLURM's queue, its head's and its workers', and every question is asked by name: a
job id that SLURM has given out again can therefore never be taken for ours.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any, Literal

from orchestrator.clusters.config import SlurmClusterSpec

Role = Literal["head", "worker", "gang"]

MANY_TIMEOUTS = 1_000_000
"""Submitit takes each preemption of a short job for a timeout and would stop requeueing after three."""


def name_of(run: str, role: Role) -> str:
    """The name of a run's jobs of a role in SLURM's queue."""
    return f"pdd-{run}-{role}"


def parameters(spec: SlurmClusterSpec, run: str, role: Role, code: Path) -> dict[str, Any]:
    """Submitit's parameters of a job of this role.

    Args:
        spec: the cluster.
        run: the run's name.
        role: `head` and `worker` of elastic mode, or the one `gang` job.
        code: the folder in which the packages of this project lie.
    """
    small = role == "head"
    return _without_none(
        {
            "job_name": name_of(run, role),
            "comment": f"progressive dataset distillation, run {run}: {role}",
            "partition": (spec.head.partition if small else None) or spec.partition,
            "qos": (spec.head.qos if small else None) or spec.qos,
            "account": spec.account,
            "constraint": None if small else spec.constraint,
            "nodes": spec.max_workers if role == "gang" else 1,
            "ntasks_per_node": 1,
            "cpus_per_task": spec.head.cpus if small else spec.cpus + (1 if role == "gang" else 0),
            "gpus_per_node": None if small or spec.gpus == 0 else spec.gpus,
            "mem": (spec.head.memory if small else None) or spec.memory,
            "time": (spec.head.minutes if small else None) or spec.minutes,
            "signal_delay_s": lead_seconds(spec, role),
            "array_parallelism": spec.array_throttle or spec.max_workers,
            "setup": [
                "umask 077",
                *spec.setup,
                "export PYTHONSAFEPATH=1",
                f"export PYTHONPATH={shlex.quote(str(code))}",
            ],
            "srun_args": ["--kill-on-bad-exit=1"],
            "stderr_to_stdout": True,
            "additional_parameters": {"requeue": True, **spec.sbatch},
        }
    ) | {"wckey": None}  # Submitit's own default would stand in its place


def lead_seconds(spec: SlurmClusterSpec, role: Role) -> int:
    """How long before its walltime a job is told; at most half of it."""
    minutes = (spec.head.minutes if role == "head" else None) or spec.minutes
    return min(spec.lead_seconds, minutes * 30)


def chunks(count: int, largest: int) -> list[int]:
    """`count` jobs as sizes of arrays of at most `largest` tasks.

    MaxArraySize limits the index and not the number, so every array counts from 0.
    """
    return [min(largest, count - first) for first in range(0, count, largest)]


def workers_missing(open_jobs: int, spec: SlurmClusterSpec, in_queue: int) -> int:
    """How many more worker jobs to submit when so many of our jobs are ready or running."""
    wanted = min(spec.max_workers, ceil(open_jobs / spec.slots_per_worker))
    return max(0, wanted - in_queue)


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}

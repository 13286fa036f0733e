"""What is said to SLURM, as plain values: names, parameters and sizes of jobs, and steps; nothing here runs anything.

A run has at most two names in SLURM's queue, its head's and its workers', and every question is asked by name: a
job id that SLURM has given out again can therefore never be taken for ours.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any, Literal

from orchestrator.clusters.config import SlurmClusterSpec

Role = Literal["head", "worker", "gang"]

MANY_TIMEOUTS = 1_000_000
"""Submitit takes each preemption of a short job for a timeout and would stop requeueing after three."""
SETUP_FAILED = "a setup line of cluster.yaml failed with exit code"
"""What stands in a job's log before the code and the command."""


def name_of(run: str, role: Role) -> str:
    """The name of a run's jobs of a role in SLURM's queue."""
    return f"pdd-{run}-{role}"


def parameters(
    spec: SlurmClusterSpec,
    run: str,
    role: Role,
    code: Path,
    exclude: Collection[str] = (),
    dependency: str | None = None,
) -> dict[str, Any]:
    """Submitit's parameters of a job of this role.

    Args:
        spec: the cluster.
        run: the run's name.
        role: `head` and `worker` of elastic mode, or the one `gang` job.
        code: the folder in which the packages of this project lie.
        exclude: nodes on which the job must not run.
        dependency: on which other job it waits, as `sbatch --dependency` has it.
    """
    small = role == "head"
    options = spec.head.sbatch if small else spec.sbatch
    if exclude:
        options = {**options, "exclude": ",".join([*filter(None, [str(options.get("exclude", ""))]), *sorted(exclude)])}
    if dependency:  # SLURM itself takes the job out when it can never start, if we could not
        options = {**options, "kill_on_invalid_dep": "yes"}
    return _without_none(
        {
            "job_name": name_of(run, role),
            "comment": f"progressive dataset distillation, run {run}: {role}",
            "partition": (spec.head.partition if small else None) or spec.partition,
            "qos": (spec.head.qos if small else None) or spec.qos,
            "account": spec.account,
            "constraint": None if small else spec.constraint,
            "dependency": dependency,
            "nodes": spec.max_workers if role == "gang" else 1,
            "ntasks_per_node": 1,
            "cpus_per_task": spec.head.cpus if small else spec.cpus + (1 if role == "gang" else 0),
            "gpus_per_node": None if small or spec.gpus == 0 else spec.gpus,
            "gres": None if small else spec.gres,
            "mem": spec.head.memory if small else spec.memory,
            "time": (spec.head.minutes if small else None) or spec.minutes,
            "signal_delay_s": lead_seconds(spec, role),
            "array_parallelism": spec.array_throttle or spec.max_workers,
            "setup": [
                "umask 077",
                *checked(spec.setup),
                "export PYTHONSAFEPATH=1",
                f"export PYTHONPATH={shlex.quote(str(code))}",
            ],
            "srun_args": ["--kill-on-bad-exit=1"],
            "stderr_to_stdout": True,
            "additional_parameters": {"requeue": True, **options},
        }
    ) | {"wckey": None}  # Submitit's own default would stand in its place


def shared_folder(spec: SlurmClusterSpec, home: Path) -> Path:
    """Where the jobs of a run meet, whose own folder is `home`."""
    return Path(spec.shared_folder).expanduser().resolve() / home.name if spec.shared_folder else home / "slurm"


def checked(setup: Sequence[str]) -> list[str]:
    """The setup lines so that one that fails ends the job and is named in its log."""
    if not setup:
        return []
    report = f'code=$?; [ $code -eq 0 ] || echo "{SETUP_FAILED} $code: $BASH_COMMAND"'
    return [f"trap {shlex.quote(report)} EXIT", "set -e", *setup, "set +e", "trap - EXIT"]


def step(
    spec: SlurmClusterSpec, nodes: int, options: Mapping[str, object], code: Path, words: Sequence[str]
) -> list[str]:
    """The `srun` that runs a module of this project once on each of some nodes, with what a worker gets.

    Args:
        spec: the cluster.
        nodes: how many.
        options: further options by their long names; None leaves one out, True gives it no value.
        code: the folder in which the packages of this project lie.
        words: the module and its arguments.
    """
    shape = {"nodes": nodes, "ntasks": nodes, "ntasks-per-node": 1, "kill-on-bad-exit": 0}
    share = {"gpus-per-node": spec.gpus or None, "gres": spec.gres, "cpus-per-task": spec.cpus}
    flags = [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in {**shape, **share, **options}.items()
        if value is not None
    ]
    script = [
        *checked(spec.setup),
        f"export PYTHONPATH={shlex.quote(str(code))}",
        f"{spec.python or shlex.quote(sys.executable)} -P -m {shlex.join(words)}",
    ]
    return ["srun", *flags, "bash", "-c", "\n".join(script)]


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

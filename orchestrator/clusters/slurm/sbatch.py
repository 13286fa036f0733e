"""What is said to SLURM and what its programs answer, as plain values; nothing here runs anything.

A run has at most two names in SLURM's queue, its head's and its workers', and every question is asked by name: a
job id that SLURM has given out again can therefore never be taken for ours.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import Any, Literal

from orchestrator.clusters.config import SlurmClusterSpec

Role = Literal["head", "worker", "gang"]

MANY_TIMEOUTS = 1_000_000
"""Submitit takes each preemption of a short job for a timeout and would stop requeueing after three."""
LARGEST_ARRAY = 1000
"""Tasks of one array where the site does not say its limit."""

COLUMNS = "%i|%j|%T|%r|%N|%V"
"""Of `squeue`: id, name, state, reason, nodes, time of submission."""

ENDED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)
"""States in which `squeue` may still show a job for some minutes, although nothing of it is left."""


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


@dataclass(frozen=True)
class Queued:
    """A job that SLURM holds; an element of an array is a job of its own."""

    id: str
    name: str
    state: str
    reason: str = ""
    nodes: str = ""
    submitted: str = ""

    @property
    def living(self) -> bool:
        """Whether it runs or will run."""
        return self.state not in ENDED and self.state != "COMPLETING"

    @property
    def there(self) -> bool:
        """Whether anything of it is left."""
        return self.state not in ENDED

    @property
    def held(self) -> bool:
        """Whether SLURM put it aside after a failed start; it waits there until somebody releases it."""
        return self.state == "PENDING" and "launch failed" in self.reason

    def sentence(self) -> str:
        """Where it stands, for people."""
        if self.held:
            return f"{self.id} held ({self.reason}); let it go on with: scontrol release {self.id}"
        if self.state == "PENDING" and self.reason:
            return f"{self.id} pending ({self.reason})"
        return f"{self.id} {self.state.lower()}" + (f" on {self.nodes}" if self.nodes else "")


def read_squeue(text: str, name: str) -> list[Queued]:
    """The jobs of this name in an answer of `squeue --array`; lines cut short are left out."""
    return [
        Queued(*cells)
        for line in text.splitlines()
        if len(cells := [cell.strip() for cell in line.split("|")]) == 6 and cells[1] == name and cells[0]
    ]


@dataclass(frozen=True)
class Used:
    """What one start of a job took, as the accounting remembers it; times in seconds."""

    id: str
    name: str
    state: str
    waited: float
    seconds: float
    gpus: int


FAILED = frozenset({"BOOT_FAIL", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"})
"""States in which a start ended without having saved its work; at most its last checkpoint interval is lost."""


def spoken_use(used: Sequence[Used]) -> str:
    """What the starts of a role's jobs took, for people."""
    jobs = len({one.id for one in used})
    waited, ran = sum(one.waited for one in used), sum(one.seconds for one in used)
    text = f"{jobs} submitted, {len(used) - jobs} requeued, {waited:.0f} s queued, {ran:.0f} s run"
    hours = [(one.seconds * one.gpus / 3600, one.state in FAILED) for one in used]
    if not any(one.gpus for one in used):
        return text
    lost = sum(spent for spent, failed in hours if failed)
    return f"{text}, {sum(spent for spent, _ in hours):.2f} GPU-hours ({lost:.2f} in starts that failed)"


SACCT_COLUMNS = "JobID,JobName,State,Eligible,Start,ElapsedRaw,AllocTRES"


def read_sacct(text: str, name: str) -> list[Used]:
    """The starts of the jobs of this name in an answer of `sacct --parsable2 --noheader --duplicates`."""
    found = []
    for line in text.splitlines():
        cells = line.split("|")
        if len(cells) != 7 or cells[1] != name or not cells[5].isdigit():
            continue
        job, _, state, eligible, start, elapsed, resources = cells
        found.append(
            Used(
                job,
                name,
                state.split()[0] if state else "",
                _between(eligible, start),
                float(elapsed),
                _gpus(resources),
            )
        )
    return found


def read_config(text: str) -> dict[str, str]:
    """The settings in an answer of `scontrol show config`."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}


def largest_array(config: Mapping[str, str]) -> int:
    """The most tasks one array may have on this site."""
    value = config.get("MaxArraySize", "")
    return int(value) if value.isdigit() and int(value) > 0 else LARGEST_ARRAY


def read_partition(text: str) -> dict[str, str]:
    """The fields of one partition in an answer of `scontrol --oneliner show partition`."""
    return dict(part.split("=", 1) for part in text.split() if "=" in part)


def minutes_of(limit: str) -> float | None:
    """A time limit as SLURM writes it ([days-]hours:minutes:seconds) in minutes; None for none."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return days * 1440 + hours * 60 + minutes + seconds / 60


def visible_gpus(environment: Mapping[str, str], given: int) -> list[str]:
    """The GPUs that a worker sees, as CUDA_VISIBLE_DEVICES names them.

    Raises:
        ValueError: they are not as many as it was given.
    """
    value = environment.get("CUDA_VISIBLE_DEVICES")
    if value is None and given == 0:
        return []
    if value is None:
        raise ValueError(
            f"{given} GPUs were asked for, but CUDA_VISIBLE_DEVICES is not set: every process would see all GPUs of "
            "the node; let SLURM set it (GresTypes=gpu, a gres.conf) or ask for no GPU"
        )
    seen = [device for device in value.split(",") if device.strip() and device.strip() != "NoDevFiles"]
    if len(seen) != given:
        raise ValueError(
            f"{given} GPUs were asked for, but CUDA_VISIBLE_DEVICES is {value!r}: "
            + ("others may be working there" if len(seen) > given else "some are missing")
            + "; take the variable out of the setup lines, and ask the site whether SLURM narrows it"
        )
    return seen


def _between(earlier: str, later: str) -> float:
    """Seconds between two of SLURM's times, 0 where one is unknown."""
    try:
        return max(0.0, (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds())
    except ValueError:
        return 0.0


def _gpus(resources: str) -> int:
    found = re.search(r"gres/gpu=(\d+)", resources)
    return int(found.group(1)) if found else 0


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}

"""What SLURM answers, as plain values: the output of its programs, and the GPUs that it shows to a job."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

LARGEST_ARRAY = 1000
"""Tasks of one array where the site does not say its limit."""

SQUEUE_COLUMNS = "%i|%j|%T|%r|%N|%V"
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


@dataclass(frozen=True)
class QueuedJob:
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
        """The job's state for people."""
        if self.held:
            return f"{self.id} held ({self.reason}); let it go on with: scontrol release {self.id}"
        if self.state == "PENDING" and self.reason:
            return f"{self.id} pending ({self.reason})"
        return f"{self.id} {self.state.lower()}" + (f" on {self.nodes}" if self.nodes else "")


def read_squeue(text: str, name: str) -> list[QueuedJob]:
    """The jobs of this name in an answer of `squeue --array`; lines cut short are left out."""
    return [
        QueuedJob(*cells)
        for line in text.splitlines()
        if len(cells := [cell.strip() for cell in line.split("|")]) == 6 and cells[1] == name and cells[0]
    ]


@dataclass(frozen=True)
class JobUsage:
    """What one start of a job took, as the accounting remembers it; times in seconds."""

    id: str
    name: str
    state: str
    waited: float
    seconds: float
    gpus: int


FAILED = frozenset({"BOOT_FAIL", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"})
"""States in which a start ended without having saved its work; at most its last checkpoint interval is lost."""


def usage_text(used: Sequence[JobUsage]) -> str:
    """The sum of what the starts of a role's jobs took, for people."""
    jobs = len({job.id for job in used})
    waited, ran = sum(job.waited for job in used), sum(job.seconds for job in used)
    text = f"{jobs} submitted, {len(used) - jobs} requeued, {waited:.0f} s queued, {ran:.0f} s run"
    hours = [(job.seconds * job.gpus / 3600, job.state in FAILED) for job in used]
    if not any(job.gpus for job in used):
        return text
    lost = sum(spent for spent, failed in hours if failed)
    return f"{text}, {sum(spent for spent, _ in hours):.2f} GPU-hours ({lost:.2f} in starts that failed)"


SACCT_COLUMNS = "JobID,JobName,State,Eligible,Start,ElapsedRaw,AllocTRES"


def read_sacct(text: str, name: str) -> list[JobUsage]:
    """The starts of the jobs of this name in an answer of `sacct --parsable2 --noheader --duplicates`."""
    starts = []
    for line in text.splitlines():
        cells = line.split("|")
        if len(cells) != 7 or cells[1] != name or not cells[5].isdigit():
            continue
        job, _, state, eligible, start, elapsed, resources = cells
        starts.append(
            JobUsage(
                job,
                name,
                state.split()[0] if state else "",
                _between(eligible, start),
                float(elapsed),
                _gpus(resources),
            )
        )
    return starts


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
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
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
    match = re.search(r"gres/gpu=(\d+)", resources)
    return int(match.group(1)) if match else 0

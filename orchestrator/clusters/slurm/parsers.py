"""What SLURM answers, as plain values: the output of its programs, and the GPUs that it shows to a job."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from workers.runtime.visible_cards import CUDA, HIP, ROCR, listed_cards

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


NEVER_STARTS = (
    (
        r"PartitionTimeLimit|(QOS|Assoc)MaxWallDurationPerJobLimit",
        "its walltime is above the limit; lower `minutes` (or `head.minutes`), or name another partition or qos",
    ),
    (r"PartitionNodeLimit", "it asks for more nodes than the partition allows; lower `max_workers`"),
    (
        r"(QOS|Assoc)Max\w*PerJob(Limit)?",
        "it asks for more than one job may have; lower `cpus`, `gpus` or `memory`, in gang mode `max_workers`",
    ),
    (r"QOSMin\w*", "it asks for less than the qos wants; raise `cpus` or `gpus`, or name another `qos`"),
    (r"BadConstraints", "no node fits; look at `constraint`, `cpus`, `memory`, `gpus` and at `exclude` under `sbatch`"),
    (r"InvalidAccount|AccountNotAllowed", "name an `account` that may use the partition"),
    (r"InvalidQOS|QOSNotAllowed", "name a `qos` that your account may use"),
)
"""Reasons for which a job waits that do not go away by waiting, as expressions, each with the fix."""

ONE_USERS_JOBS = r"QOSMaxJobsPerUserLimit|AssocMaxJobsLimit"
"""Reasons that say how many jobs of this user may run at a time."""

REFUSED_FOR_GOOD = re.compile(
    r"invalid (partition|account|qos|generic resource|feature|node name|option)|unrecognized option"
    r"|time limit is invalid|node configuration is not available|specification can ?not be satisfied"
    r"|node count specification|more processors requested|not permitted to use|permission denied"
    r"|MaxWall|PerJob|No such file or directory: 'sbatch'",
    re.IGNORECASE,
)
"""What `sbatch` says where asking again would not help."""


def refused_for_good(words: str) -> bool:
    """Whether these words of `sbatch` mean that it will never take the job as it is."""
    return REFUSED_FOR_GOOD.search(words) is not None


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

    @property
    def never_starts(self) -> str:
        """What to change because SLURM will never start the job as it is; empty if it may."""
        if self.state != "PENDING":
            return ""
        return next((fix for reasons, fix in NEVER_STARTS if re.fullmatch(reasons, self.reason)), "")

    def sentence(self) -> str:
        """The job's state for people."""
        if self.never_starts:
            return f"{self.id} pending for ever ({self.reason}): {self.never_starts}"
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


NO_LOG = "0:53"
"""The exit code that SLURM gives a job whose log it cannot open: the node lacks the folder."""


@dataclass(frozen=True)
class JobEnd:
    """How a job ended, as the controller remembers it for some minutes."""

    state: str
    node: str
    code: str
    """The exit code, or the signal's number behind a colon, as SLURM writes it."""

    @property
    def failed(self) -> bool:
        """Whether the node or the job is to blame, and not somebody who cancelled or preempted it."""
        return self.state in FAILED

    def cause(self) -> str:
        """Its exit code for people; a signal by its number."""
        if self.code == NO_LOG:
            return "SLURM could not open its log"
        code, _, signal = self.code.partition(":")
        return f"signal {signal}" if signal not in ("", "0") else f"exit code {code}"


def read_job_ends(text: str) -> dict[str, JobEnd]:
    """The jobs in an answer of `scontrol --oneliner show job`, by id; an array's elements as `ARRAY_INDEX`."""
    ends = {}
    for line in text.splitlines():
        fields = read_fields(line)
        if "JobId" in fields and "JobState" in fields:
            array, index = fields.get("ArrayJobId"), fields.get("ArrayTaskId")
            job = f"{array}_{index}" if array and index else fields["JobId"]
            node = fields.get("BatchHost") or fields.get("NodeList", "")
            ends[job] = JobEnd(fields["JobState"], "" if node == "(null)" else node, fields.get("ExitCode", "?"))
    return ends


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


def read_fields(line: str) -> dict[str, str]:
    """The fields of one line of `scontrol --oneliner show`."""
    return dict(part.split("=", 1) for part in line.split() if "=" in part)


def read_partitions(text: str) -> dict[str, dict[str, str]]:
    """The fields of the partitions in an answer of `scontrol --oneliner show partition`, by name."""
    partitions = (read_fields(line) for line in text.splitlines())
    return {fields["PartitionName"]: fields for fields in partitions if "PartitionName" in fields}


def last_lines(log: str, count: int = 1) -> str:
    """The last lines of a job's log that say something, on one line; what `srun` adds at the end is left out."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    own = [line for line in lines if not line.startswith(("srun: ", "slurmstepd: "))]
    return " | ".join((own or lines)[-count:])


def minutes_of(limit: str) -> float | None:
    """A time limit as SLURM writes it ([days-]hours:minutes:seconds) in minutes; None for none."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + minutes + seconds / 60


def visible_gpus(environment: Mapping[str, str], given: int) -> list[str]:
    """The GPUs that a worker sees, as CUDA_VISIBLE_DEVICES names them, or what AMD's cards have in its place.

    Raises:
        ValueError: they are not as many as it was given.
    """
    name = next((name for name in (CUDA, ROCR, HIP) if name in environment), CUDA)
    value = environment.get(name)
    if value is None and given == 0:
        return []
    if value is None:
        raise ValueError(
            f"{given} GPUs were asked for, but CUDA_VISIBLE_DEVICES is not set: every process would see all GPUs of "
            "the node; let SLURM set it (GresTypes=gpu, a gres.conf) or ask for no GPU"
        )
    seen = listed_cards({CUDA: value}) or []
    if len(seen) != given:
        raise ValueError(
            f"{given} GPUs were asked for, but {name} is {value!r}: "
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

"""What can happen to a run, and what the driver can be asked to do about it.

Events go into `orchestrator.scheduler.scheduler.decide`, actions come out of it. Both are plain values: an event says
what happened and when (seconds since the run began), an action what the caller must carry out. Neither knows how.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.scheduler.schedule import Schedule

LeaveReason = Literal["crashed", "memory", "preempted", "lost"]
FailReason = Literal["bug", "diverged", "memory", "too_large", "card", "input", "disk", "parent", "crashed"]


@dataclass(frozen=True)
class Event:
    """Something that happened, `at` seconds after the run began."""

    at: float


@dataclass(frozen=True)
class Began(Event):
    """The run began, and these artifacts were whole in the store."""

    cached: frozenset[str]


@dataclass(frozen=True)
class SlotJoined(Event):
    """A worker can take jobs; of slots on the same card, those on the emptiest one get them first.

    A `cpu_only` slot stands beside cards and takes the jobs that need none.
    """

    slot: str
    card: str = ""
    cpu_only: bool = False


@dataclass(frozen=True)
class SlotLeft(Event):
    """A worker is gone, and its job did not end."""

    slot: str
    reason: LeaveReason
    message: str = ""


@dataclass(frozen=True)
class JobEvent(Event):
    """A worker reports on the job in its slot."""

    key: str
    slot: str


@dataclass(frozen=True)
class JobDone(JobEvent):
    """The artifact is stored."""

    seconds: float = 0.0


@dataclass(frozen=True)
class JobFound(JobEvent):
    """The artifact was in the store already: another driver made it."""


@dataclass(frozen=True)
class JobBusy(JobEvent):
    """Another run is making the artifact; it is worth asking again in `retry_after` seconds."""

    retry_after: float


@dataclass(frozen=True)
class JobYielded(JobEvent):
    """The job saved a checkpoint and ended early; a `leaving` worker has no time for another job."""

    leaving: bool = False


@dataclass(frozen=True)
class JobFailed(JobEvent):
    """The job ended without its artifact; for reason "parent", `parent` is the damaged or missing one."""

    reason: FailReason
    message: str = ""
    log: str = ""
    parent: str = ""


@dataclass(frozen=True)
class JobMissing(Event):
    """An artifact that was believed whole is damaged or gone."""

    key: str


@dataclass(frozen=True)
class Replanned(Event):
    """Another schedule replaces the present one: more jobs, other targets, or no more to come (`open`).

    `cached` are those of its new keys that are whole in the store.
    """

    schedule: Schedule
    cached: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Tick(Event):
    """Nothing happened; time went on."""


@dataclass(frozen=True)
class StopAsked(Event):
    """The run is to end: start nothing new, let running jobs save and yield."""

    why: str


@dataclass(frozen=True)
class Start:
    """Run the job in the slot.

    `memory_level` is how often the job ran out of memory: above 0 a method that can compute the same in less memory
    does so (trajectory matching: `engine: adjoint`).
    """

    key: str
    slot: str
    attempt: int
    memory_level: int


@dataclass(frozen=True)
class AskYield:
    """Ask every running job to save a checkpoint and yield."""

    why: str


@dataclass(frozen=True)
class Note:
    """Show a line to the people who watch the run."""

    text: str


@dataclass(frozen=True)
class Finish:
    """End the run with this exit code: 0 all done, 1 error, 3 some jobs failed, 130 stopped on request."""

    exit: Literal[0, 1, 3, 130]
    why: str


Action = Start | AskYield | Note | Finish

"""The state of a run as a value: the jobs, the slots and what they run, and what the last event changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.scheduler.events import Finish
from orchestrator.scheduler.job_status import Change, JobState, Status
from orchestrator.scheduler.schedule import Schedule


@dataclass(frozen=True)
class State:
    """The whole state of a run; two states are equal if they would decide alike."""

    schedule: Schedule
    jobs: Mapping[str, JobState]
    slots: Mapping[str, str | None] = field(default_factory=dict)
    """The key each slot runs, None when idle."""
    cards: Mapping[str, str] = field(default_factory=dict)
    """By slot, the card that it keeps to."""
    cpu_slots: frozenset[str] = frozenset()
    """Slots without a card beside those with one."""
    leaving: frozenset[str] = frozenset()
    """Slots that start nothing more."""
    no_workers_since: float | None = None
    """Since when there has been no slot; infinite once that was reported."""
    stopping: Finish | None = None
    """How the run ends when the last running job is back."""
    finished: Finish | None = None
    changes: tuple[Change, ...] = field(default=(), compare=False)
    """The jobs whose status the last event changed, in the schedule's order."""

    @classmethod
    def initial(cls, schedule: Schedule) -> State:
        """The state before `Began`."""
        return cls(schedule, dict.fromkeys(schedule.keys, JobState()))

    def counts(self) -> dict[Status, int]:
        """How many jobs have each status; every status is there."""
        counted = Counter(job.status for job in self.jobs.values())
        return {status: counted[status] for status in Status}

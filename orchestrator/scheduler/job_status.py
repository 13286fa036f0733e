"""The status of one job in a run, and the transitions between statuses.

The legal transitions are data (`TRANSITIONS`); the scheduler only looks them up, so the table is complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple


class Status(StrEnum):
    """The status of a job; `meaning` explains it to people."""

    meaning: str

    def __new__(cls, value: str, meaning: str = "") -> Status:
        """Attach the sentence to the value."""
        member = str.__new__(cls, value)
        member._value_, member.meaning = value, meaning
        return member

    BLOCKED = "blocked", "waits for a parent"
    READY = "ready", "could start now"
    RUNNING = "running", "is on a worker"
    DONE = "done", "was made by this run"
    CACHED = "cached", "was found in the store"
    FAILED = "failed", "ended without its artifact and is not tried again"
    SKIPPED = "skipped", "depends on a job that failed"
    UNNEEDED = "unneeded", "is not in the store, and nothing that must run needs it"


AVAILABLE = frozenset({Status.DONE, Status.CACHED})
WAITING = frozenset({Status.BLOCKED, Status.READY})
UNFINISHED = WAITING | {Status.RUNNING}
UNSUCCESSFUL = frozenset({Status.FAILED, Status.SKIPPED})


class Transition(StrEnum):
    """What can happen to a job."""

    STORED = "found whole in the store when the run began"
    PRUNED = "nothing that must run needs it"
    NEEDED = "something that must run needs it after all"
    UNBLOCKED = "all its parents are whole"
    BLOCKED_AGAIN = "a parent is no longer whole"
    UPSTREAM_FAILED = "a parent failed"
    STARTED = "given to a slot"
    SUCCEEDED = "its worker stored the artifact"
    FOUND = "another driver stored the artifact meanwhile"
    RETURNED = "came back without artifact or fault"
    GAVE_UP = "its retries are used up"
    LOST = "its artifact turned out damaged or gone"


TRANSITIONS: Mapping[Status, Mapping[Transition, Status]] = {
    Status.BLOCKED: {
        Transition.STORED: Status.CACHED,
        Transition.PRUNED: Status.UNNEEDED,
        Transition.UNBLOCKED: Status.READY,
        Transition.UPSTREAM_FAILED: Status.SKIPPED,
    },
    Status.READY: {
        Transition.STARTED: Status.RUNNING,
        Transition.BLOCKED_AGAIN: Status.BLOCKED,
        Transition.UPSTREAM_FAILED: Status.SKIPPED,
        Transition.PRUNED: Status.UNNEEDED,
    },
    Status.RUNNING: {
        Transition.SUCCEEDED: Status.DONE,
        Transition.FOUND: Status.CACHED,
        Transition.RETURNED: Status.BLOCKED,
        Transition.GAVE_UP: Status.FAILED,
    },
    Status.DONE: {Transition.LOST: Status.BLOCKED, Transition.PRUNED: Status.UNNEEDED},
    Status.CACHED: {Transition.LOST: Status.BLOCKED, Transition.PRUNED: Status.UNNEEDED},
    Status.UNNEEDED: {Transition.NEEDED: Status.BLOCKED},
    Status.FAILED: {},
    Status.SKIPPED: {},
}


class IllegalTransition(Exception):
    """An event cannot happen in this state: a bug of ours, never the user's fault."""


@dataclass(frozen=True)
class JobState:
    """What the run knows about one job."""

    status: Status = Status.BLOCKED
    slot: str | None = None
    since: float = 0.0
    """When it became ready or was started, in seconds since the run began; 0 for the others."""
    not_before: float = 0.0
    attempt: int = 0
    crashes: int = 0
    memory_level: int = 0
    repairs: int = 0
    reason: str = ""
    because: str = ""
    """Of a failed job the message, of a skipped one the key that failed."""
    log: str = ""

    def changed(self, fields: dict[str, Any]) -> JobState:
        """A copy with other values; three times as fast as `dataclasses.replace`, which a large graph feels."""
        copy = object.__new__(JobState)
        vars(copy).update(vars(self) | fields)
        return copy


class Change(NamedTuple):
    """A job whose status an event changed: the status before the event, and the job's state after it."""

    key: str
    old: Status
    job: JobState


GAINS = {
    (old, new): tuple((new in group) - (old in group) for group in (UNFINISHED, UNSUCCESSFUL, WAITING, AVAILABLE))
    for old in Status
    for new in TRANSITIONS[old].values()
}
"""By two statuses, how many more jobs are unfinished, unsuccessful, waiting and available after this transition."""

"""The decision core: what runs next, and what becomes of a job when something happens to it.

Two rules keep this file honest. It does no I/O: no clock, file, Ray or randomness, so a story of events gives
the same decisions every time and a test tells it in a few lines. And the legal moves of a job are data
(`orchestrator.scheduler.job_status`); the code below only looks them up.

Theory of operation
    `decide(state, event)` returns the next state and the actions that the caller must carry out; whatever
    comes of them is told back as another event. An illegal event raises and leaves the state as it was.

    A job runs only if somebody needs it: a target that is not in the store, or a parent without which such a
    job cannot run. The rest is `unneeded`, so an experiment stays finished after its trajectories were thrown
    away. A job that comes back without its artifact (it yielded, its worker went away) goes through
    `blocked`, where the one question "are its parents whole?" is asked again; so a damaged parent is no
    special case.

    An idle slot takes the ready job with the longest chain of work behind it (`orchestrator.scheduler.ready_queue`).

    Each way to fail has its own allowance (`orchestrator.scheduler.schedule.RetryLimits`). Losing a worker to
    preemption or a dead node is nobody's fault and is free; a job that keeps killing its worker is poison and fails; a
    bug or a divergence would only be repeated and fails at once. A failed job takes its descendants with it, its
    siblings go on.

    The work is done by a `Course`, a state that moves. `decide` makes one, lets it take the event and throws it
    away, so its caller has two values to compare and a bad event does no harm. A forecast lets one course take
    thousands of events; it decides by the same lines.

What it leaves out: which slot suits which job. All slots are equal, and one slot runs one job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from orchestrator.scheduler import events
from orchestrator.scheduler.events import Action, Event, FailReason, Finish
from orchestrator.scheduler.job_status import (
    AVAILABLE,
    TRANSITIONS,
    UNFINISHED,
    UNSUCCESSFUL,
    IllegalTransition,
    JobState,
    Status,
    Transition,
)
from orchestrator.scheduler.ready_queue import ReadyQueue
from orchestrator.scheduler.schedule import Schedule

__all__ = [
    "UNSUCCESSFUL",
    "UNFINISHED",
    "TRANSITIONS",
    "AVAILABLE",
    "IllegalTransition",
    "JobState",
    "Status",
    "Transition",
]
__all__ += ["Course", "State", "decide"]

WAIT_FOR_WORKERS = 30.0
"""Seconds without a slot before the run says that it waits; replacing a dead local worker takes about two."""


@dataclass(frozen=True)
class State:
    """The whole state of a run; two states are equal if they would decide alike."""

    plan: Schedule
    jobs: Mapping[str, JobState]
    slots: Mapping[str, str | None] = field(default_factory=dict)
    """The key each slot runs, None when idle."""
    leaving: frozenset[str] = frozenset()
    """Slots that start nothing more."""
    no_workers_since: float | None = None
    """Since when there has been no slot; infinite once that was said."""
    stopping: Finish | None = None
    """How the run ends when the last running job is back."""
    finished: Finish | None = None

    @classmethod
    def initial(cls, plan: Schedule) -> State:
        """The state before `Began`."""
        return cls(plan, dict.fromkeys(plan.keys, JobState()))

    def counts(self) -> dict[Status, int]:
        """How many jobs have each status; every status is there."""
        found = Counter(job.status for job in self.jobs.values())
        return {status: found[status] for status in Status}


def decide(state: State, event: Event) -> tuple[State, tuple[Action, ...]]:
    """The next state and what to do about it.

    Raises:
        IllegalTransition: the event cannot happen in this state, which stays valid.
    """
    course = Course(state)
    actions = course.feed(event)
    return course.state(), actions


class Course:
    """A state that moves from event to event; the one it was made of stays. Of no use after an illegal event."""

    def __init__(self, state: State) -> None:
        self._moving = _Moving(state)

    @property
    def finished(self) -> Finish | None:
        """How the run ended, if it did."""
        return self._moving.finished

    def state(self) -> State:
        """The state now."""
        now = self._moving
        jobs, slots = dict(now.jobs), dict(now.slots)
        return State(now.plan, jobs, slots, now.leaving, now.no_workers_since, now.stopping, now.finished)

    def feed(self, event: Event) -> tuple[Action, ...]:
        """Take one event; returns what to do about it.

        Raises:
            IllegalTransition: the event cannot happen in this state.
        """
        if self.finished:
            raise IllegalTransition(f"{event} after {self.finished}")
        now = self._moving
        now.at, now.actions = event.at, []
        now.take(event)
        now.place()
        now.conclude()
        return tuple(now.actions)


class _Moving:
    """What a course is made of: the state's own copies, which change, and indexes into them."""

    def __init__(self, state: State) -> None:
        self.plan, self.at = state.plan, 0.0
        self.jobs, self.slots = dict(state.jobs), dict(state.slots)
        self.leaving, self.no_workers_since = state.leaving, state.no_workers_since
        self.stopping, self.finished = state.stopping, state.finished
        self.actions: list[Action] = []
        self.index()

    def index(self) -> None:
        """What would take too long to look for at every event: the ready jobs by urgency, and some counts.

        `missing_parents` has, of the jobs that were asked after, how many of their parents are not whole.
        """
        ready = [(key, job.since, job.not_before) for key, job in self.jobs.items() if job.status is Status.READY]
        self.ready = ReadyQueue(self.plan.remaining_path, {key: place for place, key in enumerate(self.jobs)}, ready)
        self.open = sum(job.status in UNFINISHED for job in self.jobs.values())
        self.bad = sum(job.status in UNSUCCESSFUL for job in self.jobs.values())
        self.missing_parents: dict[str, int] = {}

    def take(self, event: Event) -> None:
        match event:
            case events.Began():
                self.begin(event.cached)
            case events.SlotJoined():
                self.join(event.slot)
            case events.SlotLeft():
                self.leave(event)
            case events.JobEvent():
                self.free(event.key, event.slot)
                self.answer(event)
            case events.JobMissing():
                self.lose(event.key)
            case events.Replanned():
                self.replan(event.plan, event.cached)
            case events.StopAsked() if self.stopping is None:
                self.stop(Finish(130, event.why))
            case events.Tick():
                self.report_no_workers()

    def answer(self, event: events.JobEvent) -> None:
        match event:
            case events.JobDone():
                self.move(event.key, Transition.SUCCEEDED)
                self.settle(self.plan.children[event.key])
            case events.JobFound():
                self.move(event.key, Transition.FOUND)
                self.settle(self.plan.children[event.key])
            case events.JobBusy():
                self.give_back(event.key, not_before=event.at + event.retry_after)
            case events.JobYielded():
                self.leaving |= {event.slot} if event.leaving else frozenset()
                self.give_back(event.key, crashes=0, repairs=0)
            case events.JobFailed():
                self.fail(event)

    # One job moves.

    def move(self, key: str, step: Transition, **changes: Any) -> None:
        job = self.jobs[key]
        status = TRANSITIONS[job.status].get(step)
        if status is None:
            raise IllegalTransition(f"{key} is {job.status}; this cannot happen to it: {step.value}")
        since = self.at if status in (Status.READY, Status.RUNNING) else 0.0
        moved = JobState(**(vars(job) | {"status": status, "slot": None, "since": since} | changes))
        self.jobs[key] = moved
        self.open += (status in UNFINISHED) - (job.status in UNFINISHED)
        self.bad += status in UNSUCCESSFUL
        if gained := (status in AVAILABLE) - (job.status in AVAILABLE):
            for child in self.missing_parents.keys() & self.plan.children[key]:
                self.missing_parents[child] -= gained
        if status is Status.READY:
            self.ready.add(key, since, moved.not_before)
        elif job.status is Status.READY:
            self.ready.discard(key)

    def give_back(self, key: str, **changes: Any) -> None:
        self.move(key, Transition.RETURNED, **changes)
        self.settle([key])

    def give_up(self, key: str, reason: FailReason, because: str, log: str = "") -> None:
        self.move(key, Transition.GAVE_UP, reason=reason, because=because, log=log)
        self.settle(self.plan.children[key])
        if not self.plan.retry_limits.keep_going and self.stopping is None:
            self.stop(Finish(3, f"{key} failed, and the run was to stop at the first failure"))

    def free(self, key: str, slot: str) -> None:
        if self.slots.get(slot) != key:
            raise IllegalTransition(f"slot {slot} speaks of {key} but runs {self.slots.get(slot)}")
        self.slots[slot] = None

    # Failures, each kind with its allowance.

    def fail(self, event: events.JobFailed) -> None:
        if event.reason == "memory":
            self.out_of_memory(event.key, event.message, event.log)
        elif event.reason == "parent":
            self.broken_parent(event)
        else:
            self.give_up(event.key, event.reason, event.message, event.log)

    def out_of_memory(self, key: str, message: str, log: str = "") -> None:
        level = self.jobs[key].memory_level + 1
        if level > self.plan.retry_limits.memory:
            self.give_up(key, "memory", message, log)
        else:
            self.note(f"{key} ran out of memory; tried again with its micro-batch divided by {2**level}")
            self.give_back(key, memory_level=level)

    def crash(self, key: str, message: str) -> None:
        crashes, allowed = self.jobs[key].crashes + 1, self.plan.retry_limits.crashes
        if crashes >= allowed:
            self.give_up(key, "crashed", f"its worker died {crashes} times in a row: {message}")
        else:
            self.note(f"{key}: its worker died (crash {crashes} of {allowed}): {message}")
            self.give_back(key, crashes=crashes)

    def broken_parent(self, event: events.JobFailed) -> None:
        repairs = self.jobs[event.key].repairs + 1
        if repairs > self.plan.retry_limits.repairs:
            self.give_up(event.key, "parent", f"a parent is broken again: {event.message}", event.log)
            return
        self.give_back(event.key, repairs=repairs)
        if event.parent in self.jobs:  # else the next attempt finds out which one it is
            self.lose(event.parent)

    def lose(self, key: str) -> None:
        """Make an artifact again if somebody still needs it, unless it is being made already."""
        job = self.jobs[key]
        children = self.plan.children[key]
        needed = key in self.plan.wanted or any(self.jobs[child].status in UNFINISHED for child in children)
        if job.status in AVAILABLE:
            self.note(f"{key} is damaged or gone; {'it is made again' if needed else 'nothing needs it now'}")
            self.move(key, Transition.LOST if needed else Transition.PRUNED, repairs=0)
            self.settle([*(self.require(key) if needed else ()), key, *children])
        elif job.status is Status.UNNEEDED and needed:
            self.settle(self.require(key))

    def require(self, key: str) -> list[str]:
        """Mark what the key needs and what was left out so far; returns those keys."""
        required, waiting = [], [key]
        while waiting:
            here = waiting.pop()
            if self.jobs[here].status is Status.UNNEEDED:
                self.move(here, Transition.NEEDED)
                required.append(here)
            elif here != key:
                continue
            waiting += self.plan.parents[here]
        return required

    # The graph follows.

    def begin(self, cached: frozenset[str]) -> None:
        for key in cached & self.jobs.keys():
            self.move(key, Transition.STORED)
        self.aim()
        self.no_workers_since = None if self.slots else self.at

    def replan(self, plan: Schedule, cached: frozenset[str]) -> None:
        """Go on with another plan. What runs is not disturbed, what failed stays failed."""
        lost = self.jobs.keys() - set(plan.keys)
        if lost:
            raise IllegalTransition(f"a plan may get other targets but not lose jobs: {sorted(lost)}")
        self.plan = plan
        self.jobs = {key: self.jobs.get(key, JobState()) for key in plan.keys}
        self.index()
        for key in cached:
            self.move(key, Transition.STORED)
        self.aim()

    def aim(self) -> None:
        """Let the jobs that are needed wait for their turn, and no others."""
        needed = self.needed()
        for key in self.plan.keys:
            status = self.jobs[key].status
            if status is Status.UNNEEDED and key in needed:
                self.move(key, Transition.NEEDED)
            elif status in (Status.BLOCKED, Status.READY) and key not in needed:
                self.move(key, Transition.PRUNED)
        self.settle(self.plan.keys)

    def needed(self) -> set[str]:
        """The targets that are not whole, and all they hang on down to what is whole."""
        found: set[str] = set()
        waiting = list(self.plan.wanted)
        while waiting:
            key = waiting.pop()
            if key not in found and self.jobs[key].status not in AVAILABLE:
                found.add(key)
                waiting += self.plan.parents[key]
        return found

    def settle(self, keys: Iterable[str]) -> None:
        """Ask blocked and ready jobs again how their parents are; a doomed job passes its fate on."""
        waiting = list(keys)
        while waiting:
            key = waiting.pop()
            if self.jobs[key].status not in (Status.BLOCKED, Status.READY):
                continue
            if self.bad and any(self.jobs[parent].status in UNSUCCESSFUL for parent in self.plan.parents[key]):
                self.move(key, Transition.UPSTREAM_FAILED, because=self.root_failure(key))
                waiting += self.plan.children[key]
            elif self.is_free(key):
                if self.jobs[key].status is Status.BLOCKED:
                    self.move(key, Transition.UNBLOCKED)
            elif self.jobs[key].status is Status.READY:
                self.move(key, Transition.BLOCKED_AGAIN)

    def is_free(self, key: str) -> bool:
        """Whether all its parents are whole."""
        if key not in self.missing_parents:
            self.missing_parents[key] = sum(
                self.jobs[parent].status not in AVAILABLE for parent in self.plan.parents[key]
            )
        return not self.missing_parents[key]

    def root_failure(self, key: str) -> str:
        """The failed job because of which this one is skipped."""
        parent = next(parent for parent in self.plan.parents[key] if self.jobs[parent].status in UNSUCCESSFUL)
        return parent if self.jobs[parent].status is Status.FAILED else self.jobs[parent].because

    # Slots.

    def join(self, slot: str) -> None:
        if slot in self.slots:
            raise IllegalTransition(f"slot {slot} joined twice")
        self.slots[slot] = None
        self.no_workers_since = None

    def leave(self, event: events.SlotLeft) -> None:
        if event.slot not in self.slots:
            raise IllegalTransition(f"slot {event.slot} left without having joined")
        key = self.slots.pop(event.slot)
        self.leaving -= {event.slot}
        self.no_workers_since = self.no_workers_since if self.slots else self.at
        if key is None:
            return
        if event.reason == "crashed":
            self.crash(key, event.message)
        elif event.reason == "memory":
            self.out_of_memory(key, event.message)
        else:
            self.give_back(key)

    def place(self) -> None:
        """Give idle slots the most urgent ready jobs that their groups admit."""
        idle = [slot for slot, key in self.slots.items() if key is None and slot not in self.leaving]
        if self.stopping or not idle:
            return
        exclusive, in_use = self.plan.exclusive, Counter[str]()
        if exclusive:
            in_use.update(group for key in self.slots.values() if key for group in exclusive.get(key, ()))

        def admits(key: str) -> bool:
            groups = exclusive.get(key, ())
            if any(in_use[group] >= self.plan.limits[group] for group in groups):
                return False
            in_use.update(groups)
            return True

        for slot, key in zip(idle, self.ready.pick(self.at, len(idle), admits), strict=False):
            self.start(key, slot)

    def start(self, key: str, slot: str) -> None:
        attempt = self.jobs[key].attempt + 1
        self.move(key, Transition.STARTED, slot=slot, attempt=attempt)
        self.slots[slot] = key
        self.actions.append(events.Start(key, slot, attempt, self.jobs[key].memory_level))

    # The run as a whole.

    def note(self, text: str) -> None:
        self.actions.append(events.Note(text))

    def stop(self, finish: Finish) -> None:
        self.stopping = finish
        self.actions.append(events.AskYield(finish.why))

    def report_no_workers(self) -> None:
        if self.no_workers_since is not None and self.at - self.no_workers_since >= WAIT_FOR_WORKERS:
            self.no_workers_since = inf
            self.note("no worker is alive; the run waits for one to join")

    def conclude(self) -> None:
        running = any(key is not None for key in self.slots.values())
        if running or not (self.stopping or self.all_closed()):
            return
        self.finished = self.verdict() if self.all_closed() else self.stopping
        assert self.finished is not None
        self.actions.append(self.finished)

    def all_closed(self) -> bool:
        return not self.plan.open and not self.open

    def verdict(self) -> Finish:
        tally = Counter(job.status for job in self.jobs.values())
        if tally[Status.FAILED]:
            return Finish(3, f"{tally[Status.FAILED]} failed, {tally[Status.SKIPPED]} skipped")
        return Finish(0, f"{tally[Status.DONE]} done, {tally[Status.CACHED]} cached")

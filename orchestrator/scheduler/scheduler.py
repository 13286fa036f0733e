"""The scheduler: what runs next, and what becomes of a job when something happens to it.

It does no I/O: no clock, file, Ray or randomness, so the same events always lead to the same decisions, and a test
tells a run in a few lines. The legal transitions of a job are data (`orchestrator.scheduler.job_status`).

Theory of operation
    A `Scheduler` moves from event to event: `feed(event)` returns the actions that the caller must carry out, whose
    results are fed back as further events. `decide(state, event)` is the same as a pure function.

    A job runs only if it is needed: it is a target that is not in the store, or a parent without which such a job
    cannot run. The rest is `unneeded`, so an experiment stays finished after its trajectories were deleted. A job that
    comes back without its artifact (it yielded, its worker went away) becomes `blocked` again, and whether its parents
    are available is asked anew; so a damaged parent needs no special case.

    An idle slot takes the ready job with the longest chain of work behind it where the end of the run may wait for that
    chain, else the one that completes a row of a table soonest (`orchestrator.scheduler.ready_queue`). One slot runs
    one job, and those on the emptiest card go first (`orchestrator.scheduler.slots`).

    Each way to fail has its own limit (`orchestrator.scheduler.schedule.RetryLimits`). Losing a worker to preemption or
    a dead node is free; a job that keeps killing its worker fails; a bug or a divergence would only be repeated and
    fails at once. The descendants of a failed job are skipped, its siblings go on.

    An event costs the logarithm of the number of jobs: what is ready, idle or missing is kept up to date.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from math import inf
from types import MappingProxyType
from typing import Any

from orchestrator.scheduler import events
from orchestrator.scheduler.events import Action, Event, FailReason, Finish
from orchestrator.scheduler.groups import Groups
from orchestrator.scheduler.job_status import (
    AVAILABLE,
    GAINS,
    TRANSITIONS,
    UNFINISHED,
    UNSUCCESSFUL,
    WAITING,
    Change,
    IllegalTransition,
    JobState,
    Status,
    Transition,
)
from orchestrator.scheduler.ready_queue import ReadyJobs
from orchestrator.scheduler.schedule import Schedule, behind
from orchestrator.scheduler.slots import emptiest_first
from orchestrator.scheduler.state import State

WAIT_FOR_WORKERS = 30.0
"""Seconds without a slot before the run says that it waits; replacing a dead local worker takes about two."""


def decide(state: State, event: Event) -> tuple[State, tuple[Action, ...]]:
    """The next state and what to do about it.

    Raises:
        IllegalTransition: the event cannot happen in this state, which stays valid.
    """
    scheduler = Scheduler(state)
    actions = scheduler.feed(event)
    return scheduler.state(), actions


class Scheduler:
    """A run's state that moves from event to event.

    The state that it was made of stays as it is. After an `IllegalTransition` the scheduler is of no use.

    Attributes:
        at: seconds since the run began at which the last event happened.
        unfinished, unsuccessful: how many jobs are so.
        missing_parents: by job, how many of its parents are not available; only of jobs that were asked about.
        waiting: milliseconds of work that is not begun yet, whole ones so that sums are exact in any order.
        idle: the slots without a job that may get one.
        share: seconds of work that each slot had before it when jobs were last chosen.
    """

    def __init__(self, state: State) -> None:
        self.schedule, self.at = state.schedule, 0.0
        self.jobs, self.slots, self.cards = dict(state.jobs), dict(state.slots), dict(state.cards)
        self.cpu_slots, self.leaving, self.no_workers_since = state.cpu_slots, state.leaving, state.no_workers_since
        self.stopping, self.finished = state.stopping, state.finished
        self.actions: list[Action] = []
        self.old: dict[str, Status] = {}
        self.changes: tuple[Change, ...] = ()
        self.share = 0.0
        self._index()

    def feed(self, event: Event) -> tuple[Action, ...]:
        """Take one event; returns what to do about it.

        Raises:
            IllegalTransition: the event cannot happen in this state.
        """
        if self.finished:
            raise IllegalTransition(f"{event} after {self.finished}")
        self.at, self.actions, self.old = event.at, [], {}
        self._take(event)
        self._assign_slots()
        self._conclude()
        changes = [
            Change(key, old, self.jobs[key]) for key, old in self.old.items() if self.jobs[key].status is not old
        ]
        if len(changes) > 1:
            changes.sort(key=lambda change: self._position(change.key))
        self.changes = tuple(changes)
        return tuple(self.actions)

    def state(self) -> State:
        """A copy of the state, which later events leave alone."""
        return self._state(dict(self.jobs), dict(self.slots))

    def view(self) -> State:
        """The state without a copy: later events change its jobs and slots."""
        return self._state(MappingProxyType(self.jobs), MappingProxyType(self.slots))

    def _state(self, jobs: Mapping[str, JobState], slots: Mapping[str, str | None]) -> State:
        of_slots = (dict(self.cards), self.cpu_slots, self.leaving, self.no_workers_since)
        return State(self.schedule, jobs, slots, *of_slots, self.stopping, self.finished, self.changes)

    def _index(self) -> None:
        """Build what would take too long to look for at every event."""
        ready = [(key, job.not_before) for key, job in self.jobs.items() if job.status is Status.READY]
        positions = {key: position for position, key in enumerate(self.jobs)}
        self._position = positions.__getitem__
        groups = Groups(self.schedule, filter(None, self.slots.values()))
        self.ready = ReadyJobs(self.schedule, positions, groups, ready, apart=bool(self.cpu_slots))
        self.milliseconds = {key: round(1000 * seconds) for key, seconds in self.schedule.seconds.items()}
        self.waiting = sum(self.milliseconds.get(key, 0) for key, job in self.jobs.items() if job.status in WAITING)
        self.idle = {slot for slot, key in self.slots.items() if key is None and slot not in self.leaving}
        self.unfinished = sum(job.status in UNFINISHED for job in self.jobs.values())
        self.unsuccessful = sum(job.status in UNSUCCESSFUL for job in self.jobs.values())
        self.missing_parents: dict[str, int] = {}

    def _take(self, event: Event) -> None:
        match event:
            case events.Began():
                self._begin(event.cached)
            case events.SlotJoined():
                self._join(event)
            case events.SlotLeft():
                self._leave(event)
            case events.JobEvent():
                self._release(event.key, event.slot)
                self._job_returned(event)
            case events.JobMissing():
                self._lose(event.key)
            case events.Replanned():
                self._replan(event.schedule, event.cached)
            case events.StopAsked() if self.stopping is None:
                self._stop(Finish(130, event.why))
            case events.Tick():
                self._report_no_workers()

    def _job_returned(self, event: events.JobEvent) -> None:
        match event:
            case events.JobDone():
                self._move(event.key, Transition.SUCCEEDED)
                self._settle(self.schedule.children[event.key])
            case events.JobFound():
                self._move(event.key, Transition.FOUND)
                self._settle(self.schedule.children[event.key])
            case events.JobBusy():
                self._give_back(event.key, not_before=event.at + event.retry_after)
            case events.JobYielded():
                if event.leaving:
                    self.leaving |= {event.slot}
                    self.idle.discard(event.slot)
                self._give_back(event.key, crashes=0, repairs=0)
            case events.JobFailed():
                self._fail(event)

    # One job changes its status.

    def _move(self, key: str, transition: Transition, **changes: Any) -> None:
        job = self.jobs[key]
        old = job.status
        status = TRANSITIONS[old].get(transition)
        if status is None:
            raise IllegalTransition(f"{key} is {old}; this cannot happen to it: {transition.value}")
        since = self.at if status is Status.READY or status is Status.RUNNING else 0.0
        moved = job.changed({"status": status, "slot": None, "since": since, **changes})
        self.jobs[key] = moved
        self.old.setdefault(key, old)
        unfinished, unsuccessful, waiting, available = GAINS[old, status]
        self.unfinished += unfinished
        self.unsuccessful += unsuccessful
        if waiting:
            self.waiting += waiting * self.milliseconds.get(key, 0)
        if available:
            for child in self.schedule.children[key]:
                if child in self.missing_parents:
                    self.missing_parents[child] -= available
        if status is Status.READY:
            self.ready.add(key, moved.not_before)
        elif old is Status.READY:
            self.ready.discard(key)

    def _give_back(self, key: str, **changes: Any) -> None:
        self._move(key, Transition.RETURNED, **changes)
        self._settle([key])

    def _give_up(self, key: str, reason: FailReason, because: str, log: str = "") -> None:
        self._move(key, Transition.GAVE_UP, reason=reason, because=because, log=log)
        self._settle(self.schedule.children[key])
        if not self.schedule.retry_limits.keep_going and self.stopping is None:
            self._stop(Finish(3, f"{key} failed, and the run was to stop at the first failure"))

    # Failures, each kind with its limit.

    def _fail(self, event: events.JobFailed) -> None:
        if event.reason == "memory":
            self._out_of_memory(event.key, event.message, event.log)
        elif event.reason == "parent":
            self._broken_parent(event)
        else:
            self._give_up(event.key, event.reason, event.message, event.log)

    def _out_of_memory(self, key: str, message: str, log: str = "") -> None:
        level, allowed = self.jobs[key].memory_level + 1, self.schedule.retry_limits.memory
        if level > allowed:
            self._give_up(key, "memory", message, log)
        else:
            self.actions.append(
                events.Note(f"{key} ran out of memory; tried again ({level} of {allowed}): {message or 'no message'}")
            )
            self._give_back(key, memory_level=level)

    def _crash(self, key: str, message: str) -> None:
        crashes, allowed = self.jobs[key].crashes + 1, self.schedule.retry_limits.crashes
        if crashes >= allowed:
            self._give_up(key, "crashed", f"its worker died {crashes} times in a row: {message}")
        else:
            self.actions.append(events.Note(f"{key}: its worker died (crash {crashes} of {allowed}): {message}"))
            self._give_back(key, crashes=crashes)

    def _broken_parent(self, event: events.JobFailed) -> None:
        repairs = self.jobs[event.key].repairs + 1
        if repairs > self.schedule.retry_limits.repairs:
            return self._give_up(event.key, "parent", f"a parent is broken again: {event.message}", event.log)
        self._give_back(event.key, repairs=repairs)
        if event.parent in self.jobs:  # else the next attempt finds out which one it is
            self._lose(event.parent)

    def _lose(self, key: str) -> None:
        """Make an artifact again if somebody still needs it, unless it is being made already."""
        job = self.jobs[key]
        children = self.schedule.children[key]
        needed = key in self.schedule.wanted or any(self.jobs[child].status in UNFINISHED for child in children)
        if job.status in AVAILABLE:
            self.actions.append(
                events.Note(f"{key} is damaged or gone; {'it is made again' if needed else 'nothing needs it now'}")
            )
            self._move(key, Transition.LOST if needed else Transition.PRUNED, repairs=0)
            self._settle([*(self._require(key) if needed else ()), key, *children])
        elif job.status is Status.UNNEEDED and needed:
            self._settle(self._require(key))

    def _require(self, key: str) -> list[str]:
        """Mark the key and its ancestors as needed, as far as they were unneeded; returns those keys."""
        required, waiting = [], [key]
        while waiting:
            here = waiting.pop()
            if self.jobs[here].status is Status.UNNEEDED:
                self._move(here, Transition.NEEDED)
                required.append(here)
            elif here != key:
                continue
            waiting += self.schedule.parents[here]
        return required

    # What follows in the graph.

    def _begin(self, cached: frozenset[str]) -> None:
        for key in cached & self.jobs.keys():
            self._move(key, Transition.STORED)
        self._prune()
        self.no_workers_since = None if self.slots else self.at

    def _replan(self, schedule: Schedule, cached: frozenset[str]) -> None:
        """Go on with another schedule. What runs is not disturbed, what failed stays failed."""
        dropped = self.jobs.keys() - set(schedule.keys)
        if dropped:
            raise IllegalTransition(f"a plan may get other targets but not lose jobs: {sorted(dropped)}")
        self.schedule = schedule
        self.jobs = {key: self.jobs.get(key, JobState()) for key in schedule.keys}
        self._index()
        for key in cached:
            self._move(key, Transition.STORED)
        self._prune()

    def _prune(self) -> None:
        """Let the jobs that are needed wait for their turn, and no others."""
        schedule, jobs = self.schedule, self.jobs
        needed = behind(schedule.wanted, schedule.parents, lambda key: jobs[key].status in AVAILABLE)
        for key in schedule.keys:
            status = jobs[key].status
            if status is Status.UNNEEDED and key in needed:
                self._move(key, Transition.NEEDED)
            elif status in (Status.BLOCKED, Status.READY) and key not in needed:
                self._move(key, Transition.PRUNED)
        self._settle(self.schedule.keys)

    def _settle(self, keys: Iterable[str]) -> None:
        """Unblock, block or skip each of these jobs as its parents now stand; what is skipped skips its children."""
        waiting = [*keys][::-1]
        while waiting:
            key = waiting.pop()
            if self.jobs[key].status not in (Status.BLOCKED, Status.READY):
                continue
            if self.unsuccessful and (cause := self._root_failure(key)):
                self._move(key, Transition.UPSTREAM_FAILED, because=cause)
                waiting += self.schedule.children[key]
            elif not self._count_missing_parents(key):
                if self.jobs[key].status is Status.BLOCKED:
                    self._move(key, Transition.UNBLOCKED)
            elif self.jobs[key].status is Status.READY:
                self._move(key, Transition.BLOCKED_AGAIN)

    def _count_missing_parents(self, key: str) -> int:
        """How many of a job's parents are not available."""
        if key not in self.missing_parents:
            parents = self.schedule.parents[key]
            self.missing_parents[key] = sum(self.jobs[parent].status not in AVAILABLE for parent in parents)
        return self.missing_parents[key]

    def _root_failure(self, key: str) -> str:
        """The failed job because of which this one cannot run; empty if no parent failed or was skipped."""
        for parent in self.schedule.parents[key]:
            if self.jobs[parent].status in UNSUCCESSFUL:
                return parent if self.jobs[parent].status is Status.FAILED else self.jobs[parent].because
        return ""

    # Slots.

    def _join(self, event: events.SlotJoined) -> None:
        if event.slot in self.slots:
            raise IllegalTransition(f"slot {event.slot} joined twice")
        self.slots[event.slot] = None
        self.cards |= {event.slot: event.card} if event.card else {}
        self.idle.add(event.slot)
        self.no_workers_since = None
        if event.cpu_only:
            self.cpu_slots |= {event.slot}
            self._index()

    def _release(self, key: str, slot: str) -> None:
        if self.slots.get(slot) != key:
            raise IllegalTransition(f"slot {slot} speaks of {key} but runs {self.slots.get(slot)}")
        self.slots[slot] = None
        self.ready.release(key)
        if slot not in self.leaving:
            self.idle.add(slot)

    def _leave(self, event: events.SlotLeft) -> None:
        if event.slot not in self.slots:
            raise IllegalTransition(f"slot {event.slot} left without having joined")
        key, _ = self.slots.pop(event.slot), self.cards.pop(event.slot, None)
        if event.slot in self.cpu_slots:
            self.cpu_slots -= {event.slot}
            self._index()
        self.leaving -= {event.slot}
        self.idle.discard(event.slot)
        self.no_workers_since = self.no_workers_since if self.slots else self.at
        if key is None:
            return
        self.ready.release(key)
        if event.reason == "crashed":
            self._crash(key, event.message)
        elif event.reason == "memory":
            self._out_of_memory(key, event.message)
        else:
            self._give_back(key)

    def _assign_slots(self) -> None:
        """Give idle slots the most urgent ready jobs that their groups admit."""
        if self.stopping or not self.idle or not self.ready:
            return
        self.share = self.waiting / 1000 / max(1, len(self.slots) - len(self.leaving | self.cpu_slots))
        idle = list(self.idle) if len(self.idle) == 1 else emptiest_first(self.idle, self.slots, self.cards)
        for slot, key in self.ready.assign(idle, self.cpu_slots, self.at, self.share):
            self._start(key, slot)

    def _start(self, key: str, slot: str) -> None:
        attempt = self.jobs[key].attempt + 1
        self._move(key, Transition.STARTED, slot=slot, attempt=attempt)
        self.slots[slot] = key
        self.idle.discard(slot)
        self.actions.append(events.Start(key, slot, attempt, self.jobs[key].memory_level))

    # The run as a whole.

    def _stop(self, finish: Finish) -> None:
        self.stopping = finish
        self.actions.append(events.AskYield(finish.why))

    def _report_no_workers(self) -> None:
        if self.no_workers_since is not None and self.at - self.no_workers_since >= WAIT_FOR_WORKERS:
            self.no_workers_since = inf
            self.actions.append(events.Note("no worker is alive; the run waits for one to join"))

    def _conclude(self) -> None:
        """End the run if nothing runs and it is to stop or nothing is left to do."""
        complete = not self.schedule.open and not self.unfinished
        if not (self.stopping or complete) or any(key is not None for key in self.slots.values()):
            return
        self.finished = self._exit_result() if complete else self.stopping
        assert self.finished is not None
        self.actions.append(self.finished)

    def _exit_result(self) -> Finish:
        counted = Counter(job.status for job in self.jobs.values())
        if counted[Status.FAILED]:
            return Finish(3, f"{counted[Status.FAILED]} failed, {counted[Status.SKIPPED]} skipped")
        return Finish(0, f"{counted[Status.DONE]} done, {counted[Status.CACHED]} cached")

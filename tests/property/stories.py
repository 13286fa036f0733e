"""Random stories of a run: a graph, workers that come and go, and any end for every job.

A story checks at every event what it can know from that event alone, so that its cost does not grow with the graph;
the whole state is compared at the end.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from orchestrator.scheduler import events
from orchestrator.scheduler.events import Event, Finish, Start
from orchestrator.scheduler.job_status import AVAILABLE, UNFINISHED, UNSUCCESSFUL, Status
from orchestrator.scheduler.schedule import RetryLimits, Schedule
from orchestrator.scheduler.scheduler import Scheduler
from orchestrator.scheduler.state import State

GROUPS = {"x": 1, "y": 3}


@dataclass(frozen=True)
class Luck:
    """How likely each end of a job is; the rest is done well.

    Attributes:
        bug: it fails for good.
        memory: it runs out of memory.
        parent: it finds a parent damaged.
        yielded: it saves and comes back.
        busy: another run has it.
        found: another run has made it.
        leaves: a worker leaves, with its job or idle.
        stop: the run is asked to end.
    """

    bug: float = 0.0
    memory: float = 0.0
    parent: float = 0.0
    yielded: float = 0.0
    busy: float = 0.0
    found: float = 0.0
    leaves: float = 0.0
    stop: float = 0.0

    @classmethod
    def any(cls, chance: random.Random, jobs: int) -> Luck:
        """Any luck, with few ends for good in large graphs, or nothing would be left of them."""
        rare = min(0.05, 3 / jobs)
        return cls(
            bug=chance.choice([0.0, rare]),
            memory=chance.choice([0.0, 0.05]),
            parent=chance.choice([0.0, 0.1]),
            yielded=chance.choice([0.0, 0.1]),
            busy=chance.choice([0.0, 0.1]),
            found=chance.choice([0.0, 0.1]),
            leaves=chance.choice([0.0, 0.02, 0.1]),
            stop=chance.choice([0.0, 0.0, 0.3 / jobs]),
        )


def random_schedule(chance: random.Random, jobs: int) -> Schedule:
    """A schedule of so many jobs, each with up to three of the jobs before it as parents."""
    keys = tuple(f"k{number}" for number in range(jobs))
    reach = chance.choice([3, 30, jobs])  # chains, or wide graphs
    parents: dict[str, tuple[str, ...]] = {}
    children: dict[str, list[str]] = {key: [] for key in keys}
    for number, key in enumerate(keys):
        near = keys[max(0, number - reach) : number]
        parents[key] = tuple(chance.sample(near, chance.randint(0, min(len(near), 3))))
        for parent in parents[key]:
            children[parent].append(key)
    return Schedule(
        keys,
        parents,
        {key: tuple(those) for key, those in children.items()},
        {key: chance.random() * 100 for key in keys},
        frozenset(key for key in keys if chance.random() < 0.7),
        {key: (chance.choice("xy"),) for key in keys if chance.random() < 0.2},
        GROUPS,
        RetryLimits(keep_going=chance.random() < 0.9),
    )


@dataclass
class Story:
    """One run from its beginning to its end.

    Attributes:
        chance: decides all that happens.
        schedule: the jobs.
        luck: how jobs end.
        workers: how many there are at most at a time.
    """

    chance: random.Random
    schedule: Schedule
    luck: Luck
    workers: int
    at: float = 0.0
    joined: int = 0
    done: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    told: int = 0

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(State.initial(self.schedule))
        self.running: dict[str, str] = {}
        self.slots: list[str] = []
        self.leaving: list[str] = []

    def tell(self) -> Finish:
        """The run, event by event; returns how it ends."""
        cached = frozenset(key for key in self.schedule.keys if self.chance.random() < 0.1)
        self.feed(events.Began(0.0, cached))
        most = 1000 + 60 * len(self.schedule.keys)
        while self.scheduler.finished is None:
            self.at += self.chance.random() * 20
            self.feed(self.next_event())
            assert self.told < most, f"no end in sight: {self.scheduler.view().counts()}"
        self.judge(self.scheduler.finished)
        return self.scheduler.finished

    def next_event(self) -> Event:
        if not self.slots or len(self.slots) < self.workers and self.chance.random() < 0.2:
            self.joined += 1
            self.slots.append(f"w{self.joined}")
            return events.SlotJoined(self.at, self.slots[-1])
        if self.leaving and self.chance.random() < 0.5:
            self.slots.remove(slot := self.leaving.pop())
            return events.SlotLeft(self.at, slot, "preempted")
        if self.chance.random() < self.luck.leaves:
            slot = self.slots.pop(self.chance.randrange(len(self.slots)))
            self.running.pop(slot, None)
            self.leaving = [other for other in self.leaving if other != slot]
            reason = self.chance.choice(["crashed", "lost", "preempted", "memory"])
            return events.SlotLeft(self.at, slot, reason)  # type: ignore[arg-type]
        if self.chance.random() < self.luck.stop:
            return events.StopAsked(self.at, "enough")
        if not self.running:
            return events.Tick(self.at)
        slot = self.chance.choice(list(self.running))
        return self.end_of(self.running.pop(slot), slot)

    def end_of(self, key: str, slot: str) -> Event:
        """How the job in a slot ends."""
        at, luck, parents = self.at, self.luck, self.schedule.parents[key]
        if self.chance.random() < luck.bug:
            return events.JobFailed(at, key, slot, "bug")
        if self.chance.random() < luck.memory:
            return events.JobFailed(at, key, slot, "memory")
        if parents and self.chance.random() < luck.parent:
            parent = self.chance.choice(parents)
            self.lost[parent] += 1
            return events.JobFailed(at, key, slot, "parent", parent=parent)
        if self.chance.random() < luck.yielded:
            if leaving := self.chance.random() < 0.2:
                self.leaving.append(slot)
            return events.JobYielded(at, key, slot, leaving=leaving)
        if self.chance.random() < luck.busy:
            return events.JobBusy(at, key, slot, self.chance.random() * 30)
        self.done[key] += 1
        if self.chance.random() < luck.found:
            return events.JobFound(at, key, slot)
        return events.JobDone(at, key, slot, 1.0)

    def feed(self, event: Event) -> None:
        """Let the scheduler decide, and check what it starts."""
        self.told += 1
        stopping, finished = self.scheduler.stopping, self.scheduler.finished
        for action in self.scheduler.feed(event):
            assert finished is None
            if isinstance(action, Start):
                self.begin(action, stopped=stopping is not None)
            elif isinstance(action, Finish):
                finished = action

    def begin(self, start: Start, stopped: bool) -> None:
        """Check that a job may start, and let it run."""
        jobs = self.scheduler.jobs
        assert not stopped, "nothing starts after a stop"
        assert start.slot in self.slots and start.slot not in self.running, "a slot does one job at a time"
        assert start.slot not in self.leaving, "a worker whose time is up gets no job"
        assert start.key not in self.running.values(), f"{start.key} runs twice at a time"
        assert self.done[start.key] <= self.lost[start.key], f"{start.key} is made again, and nothing was lost"
        assert all(jobs[parent].status in AVAILABLE for parent in self.schedule.parents[start.key])
        self.running[start.slot] = start.key
        groups = self.schedule.exclusive.get(start.key, ())
        for group in groups:
            in_group = [key for key in self.running.values() if group in self.schedule.exclusive.get(key, ())]
            assert len(in_group) <= self.schedule.limits[group]

    def judge(self, finish: Finish) -> None:
        """Check the end: nothing was lost, nothing is left, and the exit code says what happened."""
        jobs = self.scheduler.jobs
        left = {job.status for job in jobs.values()}
        assert not self.running and Status.RUNNING not in left
        assert jobs.keys() == set(self.schedule.keys)
        if finish.exit == 0:
            assert not left & (UNFINISHED | UNSUCCESSFUL)
            assert all(jobs[key].status in AVAILABLE for key in self.schedule.wanted)
        elif finish.exit == 3:
            assert Status.FAILED in left
        else:
            assert finish.exit == 130 and self.luck.stop
        if self.scheduler.stopping is None:
            assert not left & UNFINISHED
        for key, job in jobs.items():
            if job.status is Status.DONE:
                assert self.done[key], f"{key} is called done, and nobody did it"
            if job.status is Status.SKIPPED:
                assert jobs[job.because].status is Status.FAILED
        assert self.scheduler.state() == self.scheduler.view()

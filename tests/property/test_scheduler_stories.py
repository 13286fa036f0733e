"""The scheduler: no order of events loses a job or does it twice, and every run ends.

`PDD_STORIES=10000` tells as many as that, and `PDD_SIMULATED_JOBS=100000` simulates so many jobs; CI does a sample.
"""

from __future__ import annotations

import heapq
import os
import random
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.scheduler import events
from orchestrator.scheduler.job_status import Status
from orchestrator.scheduler.schedule import RetryLimits, Schedule
from orchestrator.scheduler.scheduler import Scheduler
from orchestrator.scheduler.state import State
from tests.property.stories import Luck, Story, random_schedule

STORIES = int(os.environ.get("PDD_STORIES", "300"))
FIRST = int(os.environ.get("PDD_FIRST_STORY", "0"))
SIMULATED_JOBS = int(os.environ.get("PDD_SIMULATED_JOBS", "10000"))
LARGEST = 1000
WORKERS = 1000
SECONDS_PER_JOB = 2e-3
"""Far more than a job takes, and less than it took when each refused job was looked at again at every event."""


def story(seed: int) -> Story:
    """A story of up to a thousand jobs, small ones as often as large ones."""
    chance = random.Random(seed)
    jobs = int(LARGEST ** chance.random())
    return Story(chance, random_schedule(chance, jobs), Luck.any(chance, jobs), chance.choice([1, 2, 8, 64]))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_random_stories_lose_no_job_double_none_and_end() -> None:
    ends = {story(seed).tell().exit for seed in range(FIRST, FIRST + STORIES)}
    assert ends >= {0, 3, 130}


share = st.sampled_from([0.0, 0.1, 0.3])


@given(
    st.randoms(use_true_random=False),
    st.integers(1, 12),
    st.builds(Luck, share, share, share, share, share, share, share, st.sampled_from([0.0, 0.05])),
    st.integers(1, 4),
)
def test_small_stories_of_any_luck_lose_no_job_double_none_and_end(
    chance: random.Random, jobs: int, luck: Luck, workers: int
) -> None:
    Story(chance, random_schedule(chance, jobs), luck, workers).tell()


def in_groups(schedule: Schedule, chance: random.Random, share: float, size: int) -> Schedule:
    """The schedule with this share of its jobs in groups of about so many, of which one or two run at a time."""
    limits = {f"g{number}": chance.choice([1, 2]) for number in range(max(1, int(len(schedule.keys) * share / size)))}
    names = sorted(limits)
    exclusive = {key: (chance.choice(names),) for key in schedule.keys if chance.random() < share}
    return replace(schedule, exclusive=exclusive, limits=limits)


def simulated(schedule: Schedule, workers: int, chance: random.Random) -> tuple[Scheduler, float]:
    """A run on many workers, of which one in fifty jobs kills its own, or runs out of memory, or yields.

    Returns:
        The scheduler at its end, and the seconds of this process that it took.
    """
    began = time.process_time()
    scheduler = Scheduler(State.initial(schedule))
    ends: list[tuple[float, int, str, str]] = []
    joined = 0

    def feed(event: events.Event) -> None:
        for action in scheduler.feed(event):
            if isinstance(action, events.Start):
                heapq.heappush(ends, (event.at + chance.expovariate(0.1), len(ends), action.key, action.slot))

    feed(events.Began(0.0, frozenset()))
    for joined in range(workers):
        feed(events.SlotJoined(0.0, f"w{joined}"))
    while scheduler.finished is None and ends:
        at, _, key, slot = heapq.heappop(ends)
        match chance.randrange(200):
            case 0:
                feed(events.SlotLeft(at, slot, chance.choice(["crashed", "preempted"])))  # type: ignore[arg-type]
                joined += 1
                if scheduler.finished is None:
                    feed(events.SlotJoined(at, f"w{joined}"))
            case 1:
                feed(events.JobFailed(at, key, slot, "memory"))
            case 2:
                feed(events.JobYielded(at, key, slot))
            case 3 if chance.random() < 0.01:
                feed(events.JobFailed(at, key, slot, "bug"))
            case _:
                feed(events.JobDone(at, key, slot, 1.0))
    return scheduler, time.process_time() - began


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("share", "size"), [(0.0, 1), (0.5, 20), (1.0, 200), (0.2, 10**9)], ids=["none", "seeds", "all", "one"]
)
def test_a_simulated_run_of_many_jobs_on_a_thousand_workers_ends(
    share: float, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs, chance = SIMULATED_JOBS, random.Random(1)
    schedule = in_groups(random_schedule(chance, jobs), chance, share, size)
    scheduler, seconds = simulated(schedule, WORKERS, chance)
    counts = {status.value: count for status, count in scheduler.view().counts().items() if count}
    with capsys.disabled():
        groups = f"{len(schedule.exclusive):,} of them in {len(schedule.limits):,} groups"
        print(f"\n{jobs:,} jobs, {groups}, on {WORKERS:,} workers: {seconds:.1f} s of this process, {counts}")
    assert scheduler.finished is not None and scheduler.finished.exit in (0, 3)
    assert not {Status.RUNNING, Status.READY, Status.BLOCKED} & {Status(name) for name in counts}
    assert sum(counts.values()) == jobs
    assert seconds < jobs * SECONDS_PER_JOB


def test_the_retry_limits_of_a_story_are_those_of_a_run() -> None:
    """A story whose jobs always crash ends with each of them failed, and none is started more often than allowed."""
    schedule = random_schedule(random.Random(0), 40)
    scheduler, starts = Scheduler(State.initial(schedule)), 0
    waiting = list(scheduler.feed(events.Began(0.0, frozenset())))
    number = 0
    while scheduler.finished is None:
        number += 1
        waiting = list(scheduler.feed(events.SlotJoined(number, f"w{number}")))
        if any(isinstance(action, events.Start) for action in waiting):
            starts += 1
            scheduler.feed(events.SlotLeft(number, f"w{number}", "crashed"))
    failed = sum(job.status is Status.FAILED for job in scheduler.jobs.values())
    assert failed and starts == failed * RetryLimits().crashes

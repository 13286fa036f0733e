"""The queue that looks only at the first jobs of each group decides as one that looks at all of them does."""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.scheduler import ready_queue
from orchestrator.scheduler.ready_queue import UNRANKED, ReadyQueue
from orchestrator.scheduler.schedule import DUE, Schedule
from tests.property.stories import Luck, Story, random_schedule

STORIES = int(os.environ.get("PDD_STORIES", "300"))


class PlainOrder(ReadyQueue):
    """A queue that sorts all ready jobs at every pick and holds its answer against it."""

    picks = 0

    def __init__(self, *arguments: Any) -> None:
        self.rest: dict[str, float] = {}
        super().__init__(*arguments)

    def add(self, key: str, not_before: float = 0.0) -> None:
        self.rest[key] = not_before
        super().add(key, not_before)

    def pick(self, at: float, count: int, share: float) -> list[str]:
        expected = self.plainly(at, count, share)
        picked = super().pick(at, count, share)
        assert picked == expected
        type(self).picks += bool(picked)
        return picked

    def plainly(self, at: float, count: int, share: float) -> list[str]:
        """The most urgent jobs whose groups have room for them, one after the other."""

        def order(key: str) -> tuple[float, ...]:
            rank = -1 if self.path[key] >= DUE * share else self.rank.get(key, UNRANKED)
            return rank, -self.path[key], self.positions[key]

        in_use, picked = Counter(self.groups.in_use), list[str]()
        for key in sorted((key for key in self.entered if self.rest[key] <= at), key=order):
            groups = self.groups.of.get(key, ())
            if len(picked) < count and all(in_use[group] < self.groups.limits[group] for group in groups):
                in_use.update(groups)
                picked.append(key)
        return picked


def grouped(chance: random.Random, jobs: int) -> Schedule:
    """A random schedule with many groups, or few, of which a job may be in several."""
    limits = {f"g{number}": chance.choice([1, 1, 2, 5]) for number in range(chance.choice([1, 3, 20]))}
    share, most = chance.random(), min(len(limits), chance.choice([1, 1, 3]))
    schedule = random_schedule(chance, jobs)
    exclusive = {
        key: tuple(chance.sample(sorted(limits), chance.randint(1, most)))
        for key in schedule.keys
        if chance.random() < share
    }
    rank = {key: chance.randint(0, 20) for key in schedule.keys if chance.random() < 0.7}
    seconds = {key: chance.random() * 30 for key in schedule.keys}
    return replace(schedule, exclusive=exclusive, limits=limits, rank=rank, seconds=seconds)


@pytest.mark.timeout(3600)
def test_every_decision_of_random_stories_is_that_of_a_plain_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready_queue, "ReadyQueue", PlainOrder)
    for seed in range(STORIES):
        chance = random.Random(seed)
        jobs = int(300 ** chance.random())
        Story(chance, grouped(chance, jobs), Luck.any(chance, jobs), chance.choice([1, 2, 8, 64])).tell()
    assert PlainOrder.picks > 10 * STORIES


def test_a_queue_that_forgets_a_group_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(PlainOrder):
        def release(self, key: str) -> None:
            self.groups.release(key)

    monkeypatch.setattr(ready_queue, "ReadyQueue", Forgetful)
    chance = random.Random(1)
    schedule = replace(random_schedule(chance, 30), exclusive={f"k{number}": ("x",) for number in range(30)})
    with pytest.raises(AssertionError, match="assert"):
        Story(chance, schedule, Luck(), 2).tell()

from __future__ import annotations

import random
from collections import Counter

import pytest

from orchestrator.scheduler.groups import Groups
from orchestrator.scheduler.ready_queue import UNRANKED, ReadyQueue
from orchestrator.scheduler.schedule import DUE, FIRST_COME, Schedule

FEW_LEFT, MUCH_LEFT = 0.0, 1e9
"""Seconds of work for each slot: with few left every job is due, with much none is."""


def queue(
    path: dict[str, float],
    rank: dict[str, int] | None = None,
    ready: str = "",
    exclusive: dict[str, tuple[str, ...]] | None = None,
    limits: dict[str, int] | None = None,
    due: float = DUE,
) -> ReadyQueue:
    """Ready jobs, named by letters, in the order of the plan that `path` has."""
    places = {key: place for place, key in enumerate(path)}
    none = dict.fromkeys(path, ())
    groups = {"exclusive": exclusive or {}, "limits": limits or {}}
    schedule = Schedule(tuple(path), none, none, path, frozenset(), rank=rank or {}, due=due, **groups)
    return ReadyQueue(schedule, places, Groups(schedule, ()), [(key, 0.0) for key in ready or path])


def everything(queue: ReadyQueue, at: float = 0.0, share: float = FEW_LEFT) -> list[str]:
    return queue.pick(at, 100, share)


def test_of_due_jobs_the_longest_chain_comes_first_and_equal_ones_in_order_of_the_plan() -> None:
    assert everything(queue({"a": 1, "b": 2, "c": 2, "d": 3})) == ["d", "b", "c", "a"]


def test_of_the_others_the_first_row_comes_first_and_who_serves_none_last() -> None:
    path = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 5.0}
    rank = {"a": 0, "c": 1, "d": 0}
    assert everything(queue(path, rank), share=MUCH_LEFT) == ["d", "a", "c", "e", "b"]
    assert everything(queue(path, rank)) == ["e", "d", "c", "b", "a"]


def test_a_chain_is_due_when_it_is_long_beside_the_work_of_each_slot() -> None:
    path, rank = {"long": 30.0, "row": 1.0}, {"row": 0, "long": 1}
    assert queue(path, rank).pick(0, 1, 30.1 / DUE) == ["row"]
    assert queue(path, rank).pick(0, 1, 29.9 / DUE) == ["long"]


def test_first_come_first_served_looks_at_neither_chains_nor_rows() -> None:
    jobs = queue({"a": 1, "b": 3, "c": 2, "d": 4}, {"a": 0}, "c", {"c": ("g",), "b": ("g",)}, {"g": 1}, FIRST_COME)
    for key in "dab":
        jobs.add(key)
    assert everything(jobs) == ["c", "d", "a"]
    jobs.release("c")
    assert everything(jobs, share=MUCH_LEFT) == ["b"]


def test_only_as_many_are_taken_out_as_are_asked_for() -> None:
    jobs = queue({"a": 1, "b": 2, "c": 3})
    assert jobs.pick(0, 2, FEW_LEFT) == ["c", "b"]
    assert everything(jobs) == ["a"] and everything(jobs) == []


def test_who_finds_its_group_full_waits_for_a_release() -> None:
    jobs = queue({"a": 1, "b": 3, "c": 2, "d": 4}, exclusive={"b": ("g",), "c": ("g",)}, limits={"g": 1})
    assert everything(jobs) == ["d", "b", "a"] and everything(jobs) == []
    jobs.release("d")
    assert everything(jobs) == []
    jobs.release("b")
    assert everything(jobs, share=MUCH_LEFT) == ["c"]


def test_a_group_takes_as_many_as_its_limit_the_most_urgent_first_also_those_that_come_while_it_is_full() -> None:
    path = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    jobs = queue(path, ready="ac", exclusive=dict.fromkeys(path, ("g",)), limits={"g": 2})
    assert everything(jobs) == ["c", "a"]
    jobs.add("b")
    jobs.add("d")
    jobs.release("a")
    assert everything(jobs) == ["d"]
    jobs.discard("b")
    jobs.release("c")
    assert everything(jobs) == []


def test_who_is_in_two_groups_waits_for_both() -> None:
    exclusive = {"a": ("g",), "b": ("h",), "c": ("g", "h")}
    jobs = queue({"a": 9, "b": 8, "c": 7}, exclusive=exclusive, limits={"g": 1, "h": 1})
    assert everything(jobs) == ["a", "b"]
    jobs.release("a")
    assert everything(jobs) == []
    jobs.release("b")
    assert everything(jobs) == ["c"]


def test_of_many_that_wait_for_a_group_a_release_looks_at_few() -> None:
    count = 2000
    path = {f"k{number}": float(number) for number in range(count)}
    jobs = queue(path, exclusive=dict.fromkeys(path, ("g",)), limits={"g": 1})
    looked_at = 0
    take = jobs._take

    def counting(order: int) -> tuple[str, tuple[str, ...]]:
        nonlocal looked_at
        looked_at += 1
        return take(order)

    jobs._take = counting  # type: ignore[method-assign]
    for number in reversed(range(count)):
        assert jobs.pick(0, 5, FEW_LEFT) == [f"k{number}"]
        jobs.release(f"k{number}")
    assert looked_at <= 8 * count


def test_who_may_not_start_yet_is_passed_over_until_then() -> None:
    jobs = queue({"a": 2, "b": 1, "c": 1}, ready="c")
    jobs.add("a", not_before=1000.0)
    assert everything(jobs, 999) == ["c"] and everything(jobs, 999) == []
    jobs.add("b", not_before=1.0)
    assert everything(jobs, 1000) == ["a", "b"]


def test_who_left_and_came_back_is_there_once() -> None:
    jobs = queue({"a": 1, "b": 2})
    jobs.discard("b")
    assert jobs.pick(0, 0, FEW_LEFT) == []
    jobs.add("b")
    assert everything(jobs) == ["b", "a"]


@pytest.mark.parametrize("seed", range(30))
def test_any_story_gives_the_order_of_a_plain_sort(seed: int) -> None:
    chance = random.Random(seed)
    path = {f"k{number}": float(chance.randint(0, 900)) for number in range(40)}
    rank = {key: chance.randint(0, 9) for key in path if chance.random() < 0.8}
    limits = {"x": 1, "y": 3, "z": 2}
    exclusive = {key: tuple(chance.sample("xyz", chance.choice([1, 1, 2]))) for key in path if chance.random() < 0.6}
    places = {key: place for place, key in enumerate(path)}
    jobs, ready, running = queue(path, rank, "", exclusive, limits), dict.fromkeys(path, 0.0), list[str]()
    at = 0.0
    for _ in range(300):
        at += chance.randint(0, 60)
        key = chance.choice(list(path))
        if key in running:
            jobs.release(key)
            running.remove(key)
        elif key in ready and chance.random() < 0.5:
            jobs.discard(key)
            del ready[key]
        elif key not in ready:
            ready[key] = at + chance.choice([0, 0, 700]) if at else 0.0
            jobs.add(key, ready[key])
        share, count = float(chance.choice([0, 300, 1500, 1e9])), chance.randint(0, 2)

        def order(key: str, share: float = share) -> tuple[float, ...]:
            due = path[key] >= DUE * share
            return (-1 if due else rank.get(key, UNRANKED), -path[key], places[key])

        expected = list[str]()
        for key in sorted((key for key in ready if ready[key] <= at), key=order):
            in_use = Counter(group for other in [*running, *expected] for group in exclusive.get(other, ()))
            if len(expected) < count and all(in_use[group] < limits[group] for group in exclusive.get(key, ())):
                expected.append(key)
        assert jobs.pick(at, count, share) == expected
        running += expected
        for key in expected:
            del ready[key]

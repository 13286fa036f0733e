from __future__ import annotations

import random

import pytest

from orchestrator.scheduler.ready_queue import DUE, UNRANKED, ReadyQueue

FEW_LEFT, MUCH_LEFT = 0.0, 1e9
"""Seconds of work for each slot: with few left every job is due, with much none is."""


def queue(path: dict[str, float], rank: dict[str, int] | None = None, ready: str = "") -> ReadyQueue:
    """Ready jobs, named by letters, in the order of the plan that `path` has."""
    places = {key: place for place, key in enumerate(path)}
    return ReadyQueue(path, places, rank, [(key, 0.0) for key in ready or path])


def everything(queue: ReadyQueue, at: float = 0.0, share: float = FEW_LEFT) -> list[str]:
    return queue.pick(at, 100, share, lambda key: True)


def test_of_due_jobs_the_longest_chain_comes_first_and_equal_ones_in_order_of_the_plan() -> None:
    assert everything(queue({"a": 1, "b": 2, "c": 2, "d": 3})) == ["d", "b", "c", "a"]


def test_of_the_others_the_first_row_comes_first_and_who_serves_none_last() -> None:
    path = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 5.0}
    rank = {"a": 0, "c": 1, "d": 0}
    assert everything(queue(path, rank), share=MUCH_LEFT) == ["d", "a", "c", "e", "b"]
    assert everything(queue(path, rank)) == ["e", "d", "c", "b", "a"]


def test_a_chain_is_due_when_it_is_long_beside_the_work_of_each_slot() -> None:
    path, rank = {"long": 30.0, "row": 1.0}, {"row": 0, "long": 1}
    assert queue(path, rank).pick(0, 1, 30.1 / DUE, lambda key: True) == ["row"]
    assert queue(path, rank).pick(0, 1, 29.9 / DUE, lambda key: True) == ["long"]


def test_only_as_many_are_taken_out_as_are_asked_for() -> None:
    jobs = queue({"a": 1, "b": 2, "c": 3})
    assert jobs.pick(0, 2, FEW_LEFT, lambda key: True) == ["c", "b"]
    assert everything(jobs) == ["a"] and everything(jobs) == []


def test_who_is_refused_stays_and_is_asked_again() -> None:
    jobs = queue({"a": 1, "b": 2})
    assert jobs.pick(0, 2, FEW_LEFT, lambda key: key == "a") == ["a"]
    assert everything(jobs, share=MUCH_LEFT) == ["b"]


def test_who_may_not_start_yet_is_passed_over_until_then() -> None:
    jobs = queue({"a": 2, "b": 1}, ready="b")
    jobs.add("a", not_before=1000.0)
    assert jobs.pick(999, 2, FEW_LEFT, lambda key: key == "a") == []
    assert everything(jobs, 1000) == ["a", "b"]


def test_who_left_and_came_back_is_there_once() -> None:
    jobs = queue({"a": 1, "b": 2})
    jobs.discard("b")
    assert jobs.pick(0, 1, FEW_LEFT, lambda key: False) == []
    jobs.add("b")
    assert everything(jobs) == ["b", "a"]


@pytest.mark.parametrize("seed", range(20))
def test_any_story_gives_the_order_of_a_plain_sort(seed: int) -> None:
    chance = random.Random(seed)
    path = {f"k{number}": float(chance.randint(0, 900)) for number in range(40)}
    rank = {key: chance.randint(0, 9) for key in path if chance.random() < 0.8}
    places = {key: place for place, key in enumerate(path)}
    jobs, ready = ReadyQueue(path, places, rank), dict[str, float]()
    at = 0.0
    for _ in range(300):
        at += chance.randint(0, 60)
        key = chance.choice(list(path))
        if key in ready and chance.random() < 0.5:
            jobs.discard(key)
            del ready[key]
        elif key not in ready:
            ready[key] = at + chance.choice([0, 0, 700]) if at else 0.0
            jobs.add(key, ready[key])
        share = float(chance.choice([0, 300, 1500, 1e9]))
        admitted = {key for key in ready if chance.random() < 0.5}

        def order(key: str, share: float = share) -> tuple[float, ...]:
            due = path[key] >= DUE * share
            return (-1 if due else rank.get(key, UNRANKED), -path[key], places[key])

        awake = sorted((key for key in ready if ready[key] <= at), key=order)
        expected = [key for key in awake if key in admitted][: chance.randint(0, 2)]
        assert jobs.pick(at, len(expected), share, admitted.__contains__) == expected
        for key in expected:
            del ready[key]

from __future__ import annotations

import random

import pytest

from orchestrator.scheduler.ready_queue import AGEING_AFTER, ReadyQueue


def queue(path: dict[str, float], **since: float) -> ReadyQueue:
    """Ready jobs, named by letters, in the order of the plan that `path` has."""
    places = {key: place for place, key in enumerate(path)}
    return ReadyQueue(path, places, [(key, at, 0.0) for key, at in since.items()])


def everything(urgency: ReadyQueue, at: float) -> list[str]:
    return urgency.pick(at, 100, lambda key: True)


def test_the_longest_chain_comes_first_and_equal_ones_in_order_of_the_plan() -> None:
    assert everything(queue({"a": 1, "b": 2, "c": 2, "d": 3}, a=0, b=0, c=0, d=0), 0) == ["d", "b", "c", "a"]


def test_only_as_many_are_taken_out_as_are_asked_for() -> None:
    urgency = queue({"a": 1, "b": 2, "c": 3}, a=0, b=0, c=0)
    assert urgency.pick(0, 2, lambda key: True) == ["c", "b"]
    assert everything(urgency, 0) == ["a"] and everything(urgency, 0) == []


def test_who_waited_ten_minutes_gains_a_second_for_each_further_one() -> None:
    """`a` has a chain of 10 s and waits from 0, `b` one of 15 s and waits from 700."""
    path = {"a": 10.0, "b": 15.0}
    assert everything(queue(path, a=0, b=600), AGEING_AFTER + 4) == ["b", "a"]
    assert everything(queue(path, a=0, b=600), AGEING_AFTER + 5) == ["a", "b"]


def test_who_is_refused_stays_and_is_asked_again() -> None:
    urgency = queue({"a": 1, "b": 2}, a=0, b=0)
    assert urgency.pick(0, 2, lambda key: key == "a") == ["a"]
    assert everything(urgency, AGEING_AFTER + 1) == ["b"]


def test_who_may_not_start_yet_is_passed_over_until_then_and_ages_meanwhile() -> None:
    urgency = queue({"a": 1, "b": 2})
    urgency.add("a", 0.0, not_before=1000.0)
    urgency.add("b", 990.0)
    assert urgency.pick(999, 1, lambda key: False) == []
    assert everything(urgency, 1000) == ["a", "b"]


def test_who_left_and_came_back_is_there_once() -> None:
    urgency = queue({"a": 1, "b": 2}, a=0, b=0)
    urgency.discard("b")
    assert urgency.pick(0, 1, lambda key: False) == []
    urgency.add("b", 5.0)
    assert everything(urgency, 5) == ["b", "a"]


@pytest.mark.parametrize("seed", range(20))
def test_any_story_gives_the_order_of_a_plain_sort(seed: int) -> None:
    chance = random.Random(seed)
    path = {f"k{number}": float(chance.randint(0, 900)) for number in range(40)}
    places = {key: place for place, key in enumerate(path)}
    urgency, ready = ReadyQueue(path, places), dict[str, tuple[float, float]]()
    at = 0.0
    for _ in range(300):
        at += chance.randint(0, 60)
        key = chance.choice(list(path))
        if key in ready and chance.random() < 0.5:
            urgency.discard(key)
            del ready[key]
        elif key not in ready:
            ready[key] = (at, at + chance.choice([0, 0, 700]))
            urgency.add(key, *ready[key])
        admitted = {key for key in ready if chance.random() < 0.5}
        awake = [key for key in ready if ready[key][1] <= at]
        gain = {key: max(0.0, at - AGEING_AFTER - ready[key][0]) for key in awake}
        plain = sorted(awake, key=lambda key: (-path[key] - gain[key], places[key]))
        expected = [key for key in plain if key in admitted][: chance.randint(0, 2)]
        assert urgency.pick(at, len(expected), admitted.__contains__) == expected
        for key in expected:
            del ready[key]

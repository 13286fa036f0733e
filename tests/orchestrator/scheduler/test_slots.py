"""Slots on the emptiest card get the first jobs, and jobs that need no card leave the cards to others."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.scheduler import events
from orchestrator.scheduler.scheduler import Scheduler
from orchestrator.scheduler.slots import emptiest_first
from orchestrator.scheduler.state import State
from tests.orchestrator.fakes import graph_of, plan_of

CARDS = {"a": "h/0", "b": "h/1", "c": "h/0", "d": "h/1"}


def test_second_slots_of_a_card_come_after_the_first_of_all() -> None:
    assert emptiest_first({"a", "c", "b", "d"}, dict.fromkeys("acbd"), CARDS) == ["a", "b", "c", "d"]
    assert emptiest_first({"c", "b", "d"}, {"a": "k", "c": None, "b": None, "d": None}, CARDS) == ["b", "c", "d"]


def test_slots_without_cards_keep_their_order() -> None:
    assert emptiest_first({"y", "x"}, {"x": None, "w": "k", "y": None}, {}) == ["x", "y"]


def test_two_jobs_for_four_slots_go_to_two_cards_whatever_the_order_of_joining() -> None:
    graph, keys = graph_of(range(2))
    scheduler = Scheduler(State.initial(plan_of(graph)))
    for slot in "acbd":
        scheduler.feed(events.SlotJoined(0.0, slot, CARDS[slot])) if slot != "a" else None
    scheduler.feed(events.SlotJoined(0.0, "a", CARDS["a"]))
    actions = scheduler.feed(events.Began(0.0, frozenset()))
    slots = [action.slot for action in actions if isinstance(action, events.Start)]
    assert {CARDS[slot] for slot in slots} == {"h/0", "h/1"} and len(slots) == len(keys)
    assert Scheduler(scheduler.state()).cards == CARDS


def test_a_slot_that_leaves_takes_its_card_along() -> None:
    graph, _ = graph_of(range(2))
    scheduler = Scheduler(State.initial(plan_of(graph)))
    scheduler.feed(events.SlotJoined(0.0, "a", "h/0"))
    scheduler.feed(events.SlotLeft(1.0, "a", "lost"))
    assert scheduler.cards == {}


def cards_and_a_core(count: int) -> tuple[Scheduler, list[str]]:
    """A run of so many independent jobs, the first three of which need no card, on two cards and a slot without one."""
    graph, keys = graph_of(range(count))
    schedule = replace(plan_of(graph), cpu_jobs=frozenset(keys[:3]))
    scheduler = Scheduler(State.initial(schedule))
    scheduler.feed(events.SlotJoined(0.0, "core", cpu_only=True))
    for slot, card in {"a": "h/0", "b": "h/1"}.items():
        scheduler.feed(events.SlotJoined(0.0, slot, card))
    return scheduler, keys


def starts(actions: tuple[events.Action, ...]) -> dict[str, str]:
    return {action.slot: action.key for action in actions if isinstance(action, events.Start)}


def test_jobs_that_need_no_card_run_beside_the_cards_while_others_wait() -> None:
    scheduler, keys = cards_and_a_core(7)
    began = starts(scheduler.feed(events.Began(0.0, frozenset())))
    assert began == {"core": keys[0], "a": keys[3], "b": keys[4]}
    assert starts(scheduler.feed(events.JobDone(1.0, keys[3], "a"))) == {"a": keys[5]}
    assert starts(scheduler.feed(events.JobDone(2.0, keys[0], "core"))) == {"core": keys[1]}
    assert starts(scheduler.feed(events.JobDone(3.0, keys[4], "b"))) == {"b": keys[6]}


def test_a_card_for_which_nothing_waits_takes_them_and_a_core_takes_nothing_else() -> None:
    scheduler, keys = cards_and_a_core(4)
    assert starts(scheduler.feed(events.Began(0.0, frozenset()))) == {"core": keys[0], "a": keys[3], "b": keys[1]}
    assert starts(scheduler.feed(events.JobYielded(1.0, keys[3], "a", leaving=True))) == {}
    assert starts(scheduler.feed(events.JobDone(1.0, keys[0], "core"))) == {"core": keys[2]}
    assert starts(scheduler.feed(events.JobDone(2.0, keys[2], "core"))) == {}
    assert starts(scheduler.feed(events.JobDone(3.0, keys[1], "b"))) == {"b": keys[3]}


def test_without_a_core_beside_them_cards_take_all_jobs_in_one_order() -> None:
    scheduler, keys = cards_and_a_core(7)
    scheduler.feed(events.SlotLeft(0.0, "core", "lost"))
    assert starts(scheduler.feed(events.Began(0.0, frozenset()))) == {"a": keys[0], "b": keys[1]}
    again = Scheduler(scheduler.state())
    assert starts(again.feed(events.SlotJoined(1.0, "new", cpu_only=True))) == {"new": keys[2]}
    assert starts(again.feed(events.SlotLeft(2.0, "new", "crashed"))) == {}
    assert starts(again.feed(events.JobDone(3.0, keys[0], "a"))) == {"a": keys[2]}
    assert again.state() == Scheduler(again.state()).state()

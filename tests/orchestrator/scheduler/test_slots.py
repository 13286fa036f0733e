"""Of slots that share cards those on the emptiest card get the first jobs."""

from __future__ import annotations

from orchestrator.scheduler import events
from orchestrator.scheduler.scheduler import Scheduler, State
from orchestrator.scheduler.slots import emptiest_first
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

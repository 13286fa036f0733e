from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.scheduler import events
from orchestrator.scheduler.events import Action, AskYield, Event, Finish, Note, Start
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
from orchestrator.scheduler.schedule import RetryLimits, Schedule
from orchestrator.scheduler.scheduler import Scheduler, decide
from orchestrator.scheduler.state import State


def plan_of(
    parents: Mapping[str, str], wanted: str = "", path: Mapping[str, float] | None = None, **fields: Any
) -> Schedule:
    """A plan from e.g. {"a": "", "b": "a"}, keys being single letters; all are wanted unless told."""
    keys = tuple(parents)
    children = {key: tuple(child for child in keys if key in parents[child]) for key in keys}
    return Schedule(
        keys=keys,
        parents={key: tuple(parents[key]) for key in keys},
        children=children,
        remaining_path=path or dict.fromkeys(keys, 1.0),
        wanted=frozenset(wanted or keys),
        **fields,
    )


def tell(plan: Schedule, *story: Event) -> tuple[State, tuple[Action, ...]]:
    """The state after a story, and what its last event led to."""
    state, actions = State.initial(plan), tuple[Action, ...]()
    for event in story:
        state, actions = decide(state, event)
    return state, actions


def statuses(state: State) -> str:
    """Each key with its status, e.g. "a:done b:ready"."""
    return " ".join(f"{key}:{job.status}" for key, job in state.jobs.items())


def began(*cached: str, at: float = 0) -> events.Began:
    return events.Began(at, frozenset(cached))


CHAIN = plan_of({"a": "", "b": "a"})


# The table.


def test_every_status_has_a_meaning_and_a_row_in_the_table() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert all(status.meaning for status in Status)
    assert Status("ready") is Status.READY


def test_every_status_can_be_reached_and_what_failed_stays_so() -> None:
    reached = {status for row in TRANSITIONS.values() for status in row.values()}
    assert reached == set(Status)
    assert all(not TRANSITIONS[status] for status in UNSUCCESSFUL)
    assert {step for row in TRANSITIONS.values() for step in row} == set(Transition)


def test_nothing_is_whole_without_having_run_or_been_found() -> None:
    into_whole = {(old, step) for old, row in TRANSITIONS.items() for step, new in row.items() if new in AVAILABLE}
    assert into_whole == {
        (Status.BLOCKED, Transition.STORED),
        (Status.RUNNING, Transition.SUCCEEDED),
        (Status.RUNNING, Transition.FOUND),
    }


# The plain life of a job.


def test_a_chain_runs_one_job_after_the_other() -> None:
    state, actions = tell(CHAIN, began(), events.SlotJoined(1, "w"))
    assert actions == (Start("a", "w", 1, 0),)
    assert state == State(
        CHAIN,
        {"a": JobState(Status.RUNNING, slot="w", since=1, attempt=1), "b": JobState(Status.BLOCKED)},
        slots={"w": "a"},
    )

    state, actions = decide(state, events.JobDone(5, "a", "w", 4.0))
    assert actions == (Start("b", "w", 1, 0),)
    assert state == State(
        CHAIN,
        {
            "a": JobState(Status.DONE, attempt=1),
            "b": JobState(Status.RUNNING, slot="w", since=5, attempt=1),
        },
        slots={"w": "b"},
    )

    state, actions = decide(state, events.JobDone(6, "b", "w", 1.0))
    assert actions == (Finish(0, "2 done, 0 cached"),)
    assert state.finished == actions[0]
    assert statuses(state) == "a:done b:done"


def test_a_run_of_which_all_is_stored_ends_at_once() -> None:
    _, actions = tell(CHAIN, began("a", "b"))
    assert actions == (Finish(0, "0 done, 2 cached"),)


def test_an_empty_plan_ends_at_once() -> None:
    assert tell(plan_of({}), began())[1] == (Finish(0, "0 done, 0 cached"),)


def test_a_stored_parent_does_not_run_again() -> None:
    state, actions = tell(CHAIN, began("a"), events.SlotJoined(1, "w"))
    assert actions == (Start("b", "w", 1, 0),)
    assert statuses(state) == "a:cached b:running"


def test_a_parent_whose_wanted_descendants_are_stored_is_not_needed() -> None:
    plan = plan_of({"a": "", "b": "a", "c": "b"}, wanted="c")
    assert statuses(tell(plan, began("c"))[0]) == "a:unneeded b:unneeded c:cached"
    assert statuses(tell(plan, began("b"))[0]) == "a:unneeded b:cached c:ready"
    assert statuses(tell(plan, began("a"))[0]) == "a:cached b:ready c:blocked"


def test_an_artifact_found_meanwhile_frees_its_children() -> None:
    state, actions = tell(CHAIN, began(), events.SlotJoined(0, "w"), events.JobFound(1, "a", "w"))
    assert statuses(state) == "a:cached b:running"
    assert actions == (Start("b", "w", 1, 0),)


def test_a_busy_job_is_asked_for_again_after_the_time_it_named() -> None:
    plan = plan_of({"a": ""})
    state, actions = tell(plan, began(), events.SlotJoined(0, "w"), events.JobBusy(1, "a", "w", 10.0))
    assert (actions, statuses(state)) == ((), "a:ready")
    assert decide(state, events.Tick(10.9))[1] == ()
    assert decide(state, events.Tick(11.0))[1] == (Start("a", "w", 2, 0),)


def test_a_job_that_yields_may_do_so_for_ever() -> None:
    state, actions = tell(plan_of({"a": ""}), began(), events.SlotJoined(0, "w"))
    for attempt in range(2, 50):
        state, actions = decide(state, events.JobYielded(attempt, "a", "w"))
        assert actions == (Start("a", "w", attempt, 0),)


def test_a_worker_whose_time_is_up_gets_no_other_job() -> None:
    state, actions = tell(CHAIN, began(), events.SlotJoined(0, "w"), events.JobYielded(1, "a", "w", leaving=True))
    assert (actions, statuses(state)) == ((), "a:ready b:blocked")
    state, actions = decide(state, events.SlotLeft(2, "w", "preempted"))
    assert (actions, state.leaving) == ((), frozenset())
    assert decide(state, events.SlotJoined(3, "v"))[1] == (Start("a", "v", 2, 0),)


# The order.


def test_the_longest_remaining_chain_goes_first_and_ties_follow_the_plan() -> None:
    plan = plan_of(dict.fromkeys("abcd", ""), path={"a": 5, "b": 9, "c": 9, "d": 7})
    state, _ = tell(plan, began())
    started = []
    for slot in "wxyz":
        state, actions = decide(state, events.SlotJoined(0, slot))
        started += [action.key for action in actions if isinstance(action, Start)]
    assert started == ["b", "c", "d", "a"]


def test_with_few_slots_rows_go_first_until_the_end_waits_for_a_long_job() -> None:
    """Ten rows of 10 s and a bound of 30 s on one slot: the bound goes as soon as it is 0.4 of what is left."""
    rows = "abcdefghij"
    times = {"z": 30.0} | dict.fromkeys(rows, 10.0)
    rank = {key: place for place, key in enumerate([*rows, "z"])}
    plan = plan_of(dict.fromkeys(times, ""), path=times, seconds=times, rank=rank)
    state, actions = tell(plan, began(), events.SlotJoined(0, "w"))
    order = []
    while start := next((action for action in actions if isinstance(action, Start)), None):
        order.append(start.key)
        state, actions = decide(state, events.JobDone(0, start.key, "w"))
    assert "".join(order) == "abcdefzghij"


def test_with_many_slots_the_longest_chain_goes_first() -> None:
    times = {"a": 10.0, "b": 20.0, "z": 30.0}
    plan = plan_of(dict.fromkeys(times, ""), path=times, seconds=times, rank={"a": 0, "b": 1, "z": 2})
    joins = [events.SlotJoined(0, slot) for slot in "uvwxy"]
    stories = [tell(plan, *joins[:count], began()) for count in (1, 2, 3, 4, 5)]
    started = [[action.key for action in actions if isinstance(action, Start)] for _, actions in stories]
    assert started == [["z"], ["z", "b"], ["z", "b", "a"], ["z", "b", "a"], ["z", "b", "a"]]


def test_only_so_many_of_a_group_run_at_once_and_others_pass_by() -> None:
    plan = plan_of(
        dict.fromkeys("abc", ""),
        path={"a": 3, "b": 2, "c": 1},
        exclusive={"a": ("distil",), "b": ("distil",)},
        limits={"distil": 1},
    )
    state, actions = tell(plan, began(), events.SlotJoined(0, "w"), events.SlotJoined(0, "v"))
    assert statuses(state) == "a:running b:ready c:running"
    state, actions = decide(state, events.JobDone(1, "c", "v"))
    assert actions == ()
    state, actions = decide(state, events.JobDone(2, "a", "w"))
    assert actions == (Start("b", "w", 1, 0),)


# Failures.


@pytest.mark.parametrize("reason", ["bug", "diverged", "input", "disk"])
def test_what_would_only_fail_again_is_not_tried_again_and_its_descendants_are_skipped(reason: Any) -> None:
    plan = plan_of({"a": "", "b": "a", "c": "b", "d": ""})
    state, actions = tell(
        plan, began(), events.SlotJoined(0, "w"), events.JobFailed(1, "a", "w", reason, "no", "a.log")
    )
    assert actions == (Start("d", "w", 1, 0),)
    assert state.jobs["a"] == JobState(Status.FAILED, attempt=1, reason=reason, because="no", log="a.log")
    assert state.jobs["b"] == state.jobs["c"] == JobState(Status.SKIPPED, because="a")
    _, actions = decide(state, events.JobDone(2, "d", "w"))
    assert actions == (Finish(3, "1 failed, 2 skipped"),)


def test_without_keep_going_the_first_failure_stops_the_run() -> None:
    plan = plan_of(dict.fromkeys("abc", ""), retry_limits=RetryLimits(keep_going=False))
    story = [began(), events.SlotJoined(0, "w"), events.SlotJoined(0, "v")]
    state, actions = tell(plan, *story, events.JobFailed(1, "a", "w", "bug"))
    assert [type(action) for action in actions] == [AskYield]
    assert statuses(state) == "a:failed b:running c:ready"
    state, actions = decide(state, events.JobYielded(2, "b", "v"))
    assert actions == (Finish(3, "a failed, and the run was to stop at the first failure"),)


def test_what_ran_out_of_memory_is_tried_again_twice_and_then_fails() -> None:
    state, _ = tell(plan_of({"a": ""}), began(), events.SlotJoined(0, "w"))
    levels = []
    for at in (1, 2):
        state, actions = decide(state, events.JobFailed(at, "a", "w", "memory"))
        levels += [action.memory_level for action in actions if isinstance(action, Start)]
        assert isinstance(actions[0], Note) and f"tried again ({at} of 2)" in actions[0].text
    assert levels == [1, 2]
    state, _ = decide(state, events.JobFailed(3, "a", "w", "memory", "too big"))
    assert state.jobs["a"].reason == "memory"
    assert statuses(state) == "a:failed"


def test_a_worker_killed_for_memory_counts_as_out_of_memory() -> None:
    state, _ = tell(plan_of({"a": ""}), began(), events.SlotJoined(0, "w"), events.SlotLeft(1, "w", "memory"))
    assert (state.jobs["a"].memory_level, state.jobs["a"].crashes) == (1, 0)


def test_the_third_crash_in_a_row_makes_a_job_poison() -> None:
    state, _ = tell(plan_of({"a": ""}), began())
    for at in (1, 2, 3):
        state, _ = decide(state, events.SlotJoined(at, f"w{at}"))
        assert statuses(state) == "a:running"
        state, _ = decide(state, events.SlotLeft(at, f"w{at}", "crashed", "SIGSEGV"))
    assert statuses(state) == "a:failed"
    assert state.jobs["a"].reason == "crashed"
    assert "3 times in a row: SIGSEGV" in state.jobs["a"].because


def test_a_checkpoint_between_two_crashes_starts_the_count_again() -> None:
    state, _ = tell(plan_of({"a": ""}), began())
    for at in range(1, 9):
        state, _ = decide(state, events.SlotJoined(at, f"w{at}"))
        if at % 2:
            state, _ = decide(state, events.JobYielded(at, "a", f"w{at}"))
        state, _ = decide(state, events.SlotLeft(at, f"w{at}", "crashed"))
    assert statuses(state) == "a:ready"


@pytest.mark.parametrize("reason", ["preempted", "lost"])
def test_losing_workers_is_never_held_against_a_job(reason: Any) -> None:
    state, _ = tell(plan_of({"a": ""}), began())
    for at in range(1, 30):
        state, actions = decide(state, events.SlotJoined(at, f"w{at}"))
        assert actions == (Start("a", f"w{at}", at, 0),)
        state, actions = decide(state, events.SlotLeft(at, f"w{at}", reason))
        assert (actions, state.jobs["a"].crashes) == ((), 0)


def test_an_idle_worker_may_leave() -> None:
    state, actions = tell(CHAIN, began(), events.SlotJoined(0, "w"), events.SlotJoined(0, "v"))
    state, actions = decide(state, events.SlotLeft(1, "v", "crashed"))
    assert (actions, state.slots) == ((), {"w": "a"})


# Damage.


def test_a_damaged_parent_is_made_again_and_then_the_child() -> None:
    state, actions = tell(
        CHAIN, began("a"), events.SlotJoined(0, "w"), events.JobFailed(1, "b", "w", "parent", "bad", "", "a")
    )
    assert [type(action) for action in actions] == [Note, Start]
    assert actions[1] == Start("a", "w", 1, 0)
    assert statuses(state) == "a:running b:blocked"
    state, actions = decide(state, events.JobDone(2, "a", "w"))
    assert actions == (Start("b", "w", 2, 0),)


def test_what_a_damaged_artifact_hangs_on_is_needed_after_all() -> None:
    plan = plan_of({"a": "", "b": "a", "c": "b"}, wanted="c")
    state, actions = tell(
        plan, began("b"), events.SlotJoined(0, "w"), events.JobFailed(1, "c", "w", "parent", "", "", "b")
    )
    assert actions[1] == Start("a", "w", 1, 0)
    assert statuses(state) == "a:running b:blocked c:blocked"


def test_a_missing_artifact_sends_its_waiting_children_back_and_leaves_a_running_one_alone() -> None:
    plan = plan_of({"a": "", "b": "a", "c": "a"})
    state, _ = tell(plan, began("a"), events.SlotJoined(0, "w"), events.JobMissing(1, "a"))
    assert statuses(state) == "a:ready b:running c:blocked"
    state, actions = decide(state, events.JobDone(2, "b", "w"))
    assert actions == (Start("a", "w", 1, 0),)


def test_a_missing_artifact_that_nothing_needs_is_not_made_again() -> None:
    plan = plan_of({"a": "", "b": "a", "c": "b", "d": ""}, wanted="cd")
    story = [began("a", "b"), events.SlotJoined(0, "w"), events.JobMissing(1, "a")]
    state, actions = tell(plan, *story)
    assert statuses(state) == "a:unneeded b:cached c:running d:ready"
    assert isinstance(actions[0], Note)


def test_two_children_that_report_the_same_damage_have_it_repaired_once() -> None:
    plan = plan_of({"a": "", "b": "a", "c": "a"})
    story = [began("a"), events.SlotJoined(0, "w"), events.SlotJoined(0, "v")]
    state, actions = tell(plan, *story, events.JobFailed(1, "b", "w", "parent", "", "", "a"))
    assert actions[1] == Start("a", "w", 1, 0)
    state, actions = decide(state, events.JobFailed(2, "c", "v", "parent", "", "", "a"))
    assert (actions, statuses(state)) == ((), "a:running b:blocked c:blocked")


def test_a_parent_that_breaks_again_and_again_fails_its_child_in_the_end() -> None:
    state, _ = tell(CHAIN, began("a"), events.SlotJoined(0, "w"))
    for at in range(3):
        state, _ = decide(state, events.JobFailed(at, "b", "w", "parent", "rot", "", "a"))
        state, _ = decide(state, events.JobDone(at, "a", "w"))
        assert statuses(state) == "a:done b:running"
    state, actions = decide(state, events.JobFailed(9, "b", "w", "parent", "rot", "", "a"))
    assert state.jobs["b"].reason == "parent"
    assert actions == (Finish(3, "1 failed, 0 skipped"),)


def test_a_parent_that_cannot_be_made_again_takes_its_children_along() -> None:
    story = [began("a"), events.SlotJoined(0, "w"), events.JobFailed(1, "b", "w", "parent", "", "", "a")]
    state, actions = tell(CHAIN, *story, events.JobFailed(2, "a", "w", "bug"))
    assert statuses(state) == "a:failed b:skipped"
    assert actions == (Finish(3, "1 failed, 1 skipped"),)


# Stopping and waiting.


def test_after_a_stop_nothing_starts_and_the_run_ends_when_all_are_back() -> None:
    state, actions = tell(CHAIN, began(), events.SlotJoined(0, "w"), events.StopAsked(1, "SIGINT"))
    assert actions == (AskYield("SIGINT"),)
    state, actions = decide(state, events.SlotJoined(2, "v"))
    assert actions == ()
    assert decide(state, events.StopAsked(2, "again"))[1] == ()
    _, actions = decide(state, events.JobYielded(3, "a", "w"))
    assert actions == (Finish(130, "SIGINT"),)


def test_a_stop_with_nothing_running_ends_at_once() -> None:
    _, actions = tell(CHAIN, began(), events.StopAsked(1, "cancelled"))
    assert actions == (AskYield("cancelled"), Finish(130, "cancelled"))


def test_a_stop_that_comes_as_the_last_job_ends_does_not_spoil_the_result() -> None:
    story = [began("a"), events.SlotJoined(0, "w"), events.StopAsked(1, "SIGINT")]
    assert tell(CHAIN, *story, events.JobDone(2, "b", "w"))[1] == (Finish(0, "1 done, 1 cached"),)


def test_a_run_without_workers_says_once_that_it_waits() -> None:
    state, _ = tell(CHAIN, began())
    said = []
    for at in range(1, 100):
        state, actions = decide(state, events.Tick(at))
        said += [(at, type(action)) for action in actions]
    assert said == [(30, Note)]
    state, _ = decide(state, events.SlotJoined(100, "w"))
    state, _ = decide(state, events.SlotLeft(101, "w", "lost"))
    assert [type(action) for action in decide(state, events.Tick(131))[1]] == [Note]


# What cannot happen.


@pytest.mark.parametrize(
    "impossible",
    [
        events.JobDone(1, "b", "w"),
        events.JobDone(1, "a", "x"),
        events.JobFailed(1, "b", "w", "bug"),
        events.SlotJoined(1, "w"),
        events.SlotLeft(1, "x", "lost"),
        began("a", at=1),
    ],
)
def test_an_illegal_event_leaves_the_state_untouched(impossible: Event) -> None:
    state, _ = tell(CHAIN, began(), events.SlotJoined(0, "w"))
    copy = replace(state, jobs=dict(state.jobs), slots=dict(state.slots))
    with pytest.raises(IllegalTransition):
        decide(state, impossible)
    assert state == copy
    assert decide(state, events.JobDone(2, "a", "w"))[1] == (Start("b", "w", 1, 0),)


def test_nothing_happens_after_the_end() -> None:
    state, _ = tell(CHAIN, began("a", "b"))
    with pytest.raises(IllegalTransition):
        decide(state, events.Tick(1))


def test_a_plan_is_checked() -> None:
    with pytest.raises(AssertionError, match="stands before one of its parents"):
        plan_of({"b": "a", "a": ""})
    with pytest.raises(AssertionError):
        plan_of({"a": ""}, exclusive={"a": ("distil",)})


# Any story.


class Fate:
    """A run of a random graph in which anything may happen to a job; checks every promise at every step."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.plan = self.random_plan()
        self.state, self.at, self.slots_so_far = State.initial(self.plan), 0.0, 0
        self.scheduler = Scheduler(self.state)
        self.done: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()

    def random_plan(self) -> Schedule:
        keys = tuple(f"k{i}" for i in range(self.random.randint(1, 25)))
        parents = {
            key: tuple(self.random.sample(keys[:i], self.random.randint(0, min(i, 3)))) for i, key in enumerate(keys)
        }
        exclusive = {key: (self.random.choice("xy"),) for key in keys if self.random.random() < 0.5}
        return Schedule(
            keys,
            parents,
            {key: tuple(child for child in keys if key in parents[child]) for key in keys},
            {key: self.random.random() * 100 for key in keys},
            frozenset(key for key in keys if self.random.random() < 0.6),
            exclusive,
            {"x": 1, "y": 2},
            RetryLimits(keep_going=self.random.random() < 0.8),
        )

    def live(self) -> Finish:
        self.feed(began(*(key for key in self.plan.keys if self.random.random() < 0.2)))
        for _ in range(5000):
            if self.state.finished:
                return self.state.finished
            self.at += self.random.random() * 50
            self.feed(self.next_event())
        raise AssertionError(f"no end in sight: {statuses(self.state)}")

    def next_event(self) -> Event:
        busy = [(slot, key) for slot, key in self.state.slots.items() if key]
        if len(self.state.slots) < 3 and self.random.random() < 0.3 or not self.state.slots:
            self.slots_so_far += 1
            return events.SlotJoined(self.at, f"w{self.slots_so_far}")
        if self.random.random() < 0.01:
            return events.StopAsked(self.at, "enough")
        if self.random.random() < 0.05:
            reason = self.random.choice(["crashed", "lost", "preempted", "memory"])
            return events.SlotLeft(self.at, self.random.choice(list(self.state.slots)), reason)  # type: ignore[arg-type]
        if not busy or self.random.random() < 0.1:
            return events.Tick(self.at)
        return self.answer(*self.random.choice(busy))

    def answer(self, slot: str, key: str) -> Event:
        at, dice, parents = self.at, self.random.random(), self.plan.parents[key]
        if dice < 0.55:
            self.done[key] += 1
            return events.JobDone(at, key, slot, 1.0)
        if dice < 0.6:
            return events.JobFound(at, key, slot)
        if dice < 0.7:
            return events.JobBusy(at, key, slot, self.random.random() * 100)
        if dice < 0.8:
            return events.JobYielded(at, key, slot, leaving=self.random.random() < 0.2)
        if dice < 0.88 and parents:
            parent = self.random.choice(parents)
            self.lost[parent] += 1
            return events.JobFailed(at, key, slot, "parent", "", "", parent)
        if dice < 0.95:
            return events.JobFailed(at, key, slot, "memory")
        return events.JobFailed(at, key, slot, "bug", "no luck")

    def feed(self, event: Event) -> None:
        stopping, before = self.state.stopping, self.state.jobs
        self.state, actions = decide(self.state, event)
        assert self.scheduler.feed(event) == actions, "a run that goes on would decide otherwise than one taken up"
        changes = [(key, before[key].status, job) for key, job in self.state.jobs.items()]
        assert list(self.scheduler.changes) == [change for change in changes if change[1] is not change[2].status]
        assert self.state.changes == self.scheduler.changes
        for action in actions:
            if isinstance(action, Start):
                assert stopping is None
                parents = self.plan.parents[action.key]
                assert all(self.state.jobs[parent].status in AVAILABLE for parent in parents)
                assert self.state.slots[action.slot] == action.key
        self.check()

    def check(self) -> None:
        jobs, running = self.state.jobs, [key for key in self.state.slots.values() if key]
        assert len(running) == len(set(running))
        assert set(running) == {key for key, job in jobs.items() if job.status is Status.RUNNING}
        in_use = Counter(group for key in running for group in self.plan.exclusive.get(key, ()))
        assert all(in_use[group] <= limit for group, limit in self.plan.limits.items())
        for key, job in jobs.items():
            parents = {jobs[parent].status for parent in self.plan.parents[key]}
            assert (job.status is Status.READY) <= (parents <= AVAILABLE)
            assert (job.status is Status.BLOCKED) <= (not parents <= AVAILABLE and not parents & UNSUCCESSFUL)
            assert (job.status is Status.BLOCKED) <= (Status.UNNEEDED not in parents)
            assert self.done[key] <= 1 + self.lost[key]

    def judge(self, finish: Finish) -> None:
        assert self.scheduler.state() == self.state
        left = {job.status for job in self.state.jobs.values()}
        assert Status.RUNNING not in left
        if finish.exit == 0:
            assert not left & (UNFINISHED | UNSUCCESSFUL)
            assert all(self.state.jobs[key].status in AVAILABLE for key in self.plan.wanted)
        if finish.exit == 3:
            assert Status.FAILED in left
        if self.state.stopping is None:
            assert not left & UNFINISHED


@pytest.mark.parametrize("block", range(10))
def test_whatever_happens_the_promises_hold_and_the_run_ends(block: int) -> None:
    for seed in range(block * 100, block * 100 + 100):
        fate = Fate(seed)
        fate.judge(fate.live())


def test_the_same_story_gives_the_same_decisions() -> None:
    first, second = Fate(7), Fate(7)
    assert first.live() == second.live()
    assert first.state == second.state


def wide_schedule(count: int) -> Schedule:
    """One job on which all others hang."""
    keys = tuple(f"k{i}" for i in range(count))
    return Schedule(
        keys,
        {key: keys[:1] if key != keys[0] else () for key in keys},
        {key: keys[1:] if key == keys[0] else () for key in keys},
        {key: float(i % 97) for i, key in enumerate(keys)},
        frozenset(keys),
    )


def seconds_an_event(count: int, events_fed: int = 400) -> float:
    """What an event costs the scheduler of so many jobs."""
    scheduler = Scheduler(State.initial(wide_schedule(count)))
    scheduler.feed(began("k0"))
    scheduler.feed(events.SlotJoined(0, "w"))
    began_at = time.process_time()
    for at in range(events_fed):
        running = scheduler.slots["w"]
        assert running is not None
        scheduler.feed(events.JobDone(at, running, "w"))
        assert scheduler.view().changes
    return (time.process_time() - began_at) / events_fed


def test_the_cost_of_an_event_does_not_grow_with_the_number_of_jobs() -> None:
    small = min(seconds_an_event(1_000) for _ in range(3))
    large = min(seconds_an_event(20_000) for _ in range(3))
    assert large < 5 * small, f"{large * 1e6:.0f} us an event of 20,000 jobs, {small * 1e6:.0f} us of 1,000"


def test_a_view_follows_the_scheduler_and_a_state_does_not() -> None:
    scheduler = Scheduler(State.initial(CHAIN))
    scheduler.feed(began("a"))
    view, state = scheduler.view(), scheduler.state()
    assert view == state and statuses(view) == "a:cached b:ready"
    scheduler.feed(events.SlotJoined(1, "w"))
    assert (statuses(view), statuses(state)) == ("a:cached b:running", "a:cached b:ready")


def test_changes_name_what_the_last_event_changed_in_the_schedules_order() -> None:
    scheduler = Scheduler(State.initial(plan_of({"a": "", "b": "a", "c": "", "d": "b"}, wanted="ab")))
    scheduler.feed(began("c"))
    assert [(key, old, job.status) for key, old, job in scheduler.changes] == [
        ("a", Status.BLOCKED, Status.READY),
        ("c", Status.BLOCKED, Status.CACHED),
        ("d", Status.BLOCKED, Status.UNNEEDED),
    ]
    scheduler.feed(events.SlotJoined(0, "w"))
    scheduler.feed(events.JobYielded(1, "a", "w"))  # it goes on at once, in the same event
    assert scheduler.changes == ()


# A plan that is replaced while the run goes on.


def chain_of(wanted: str, keys: str = "abc", **fields: Any) -> Schedule:
    """a, b after a, c after b, ...; only `wanted` are targets."""
    parents = {key: keys[place - 1 : place] if place else "" for place, key in enumerate(keys)}
    return replace(plan_of(parents, **fields), wanted=frozenset(wanted))


def replanned(plan: Schedule, *cached: str, at: float = 1.0) -> events.Replanned:
    return events.Replanned(at, plan, frozenset(cached))


def test_an_open_plan_without_targets_starts_nothing_and_does_not_end() -> None:
    state, actions = tell(chain_of("", open=True), began(), events.SlotJoined(0, "s"))
    assert actions == ()
    assert statuses(state) == "a:unneeded b:unneeded c:unneeded"
    assert state.finished is None


def test_new_targets_are_started_with_what_they_hang_on() -> None:
    state, actions = tell(
        chain_of("", open=True), began("a"), events.SlotJoined(0, "s"), replanned(chain_of("b", open=True))
    )
    assert actions == (Start("b", "s", 1, 0),)
    assert statuses(state) == "a:cached b:running c:unneeded"


def test_jobs_that_are_not_needed_any_more_are_left_out_but_not_disturbed_at_work() -> None:
    both = plan_of({"a": "", "b": "", "c": ""}, open=True)
    state, actions = tell(both, began(), events.SlotJoined(0, "s"), replanned(replace(both, wanted=frozenset())))
    assert statuses(state) == "a:running b:unneeded c:unneeded"
    state, actions = decide(state, events.JobDone(2.0, "a", "s"))
    assert statuses(state) == "a:done b:unneeded c:unneeded" and actions == ()


def test_a_closed_plan_ends_the_run_when_its_targets_are_there() -> None:
    state, actions = tell(
        chain_of("a", open=True),
        began(),
        events.SlotJoined(0, "s"),
        events.JobDone(1.0, "a", "s"),
        replanned(chain_of("a")),
    )
    assert actions == (Finish(0, "1 done, 0 cached"),)


def test_a_plan_grows_by_jobs_of_which_some_are_whole() -> None:
    state, actions = tell(
        chain_of("a", "a", open=True),
        began(),
        events.SlotJoined(0, "s"),
        replanned(chain_of("ad", "abcd", open=True), "b"),
    )
    assert statuses(state) == "a:running b:cached c:ready d:blocked"


def test_a_job_that_failed_stays_so_under_every_plan() -> None:
    state, _ = tell(
        chain_of("a", open=True),
        began(),
        events.SlotJoined(0, "s"),
        events.JobFailed(1.0, "a", "s", "diverged", "NaN"),
        replanned(chain_of("c", open=True)),
    )
    assert statuses(state) == "a:failed b:skipped c:skipped"
    assert state.jobs["c"].because == "a"


def test_a_plan_may_not_lose_jobs() -> None:
    with pytest.raises(IllegalTransition, match=r"not lose jobs: \['c'\]"):
        tell(chain_of("", open=True), began(), replanned(chain_of("", "ab", open=True)))


def test_a_stop_ends_a_run_whose_plan_is_open() -> None:
    _, actions = tell(chain_of("", open=True), began(), events.StopAsked(1.0, "cancelled"))
    assert actions[-1] == Finish(130, "cancelled")

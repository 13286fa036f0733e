from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from rich.console import Console

from jobs.experiment import Plan
from orchestrator.runs.progress import (
    Bar,
    Progress,
    best_so_far,
    between_lines,
    short,
    snapshot,
    summary,
)
from orchestrator.runs.time_left import Pace, Running, shortest, time_left
from orchestrator.runs.timeline import clock_time
from orchestrator.scheduler.job_status import Change, JobState, Status
from orchestrator.scheduler.schedule import Schedule as CorePlan
from orchestrator.scheduler.state import State
from tests.orchestrator.results.test_cells import cell_of, demo_plan, put
from workers.store.claims import Claim
from workers.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def keys(plan: Plan, kind: str, stage: int | None = None) -> list[str]:
    return [job.key for job in plan.graph if job.kind == kind and stage in (None, getattr(job.spec, "stage", None))]


def claim(key: str, done: float, note: str, claimed_at: float = 100.0) -> Claim:
    return Claim(key, "run", "owner", "host", 1, "", claimed_at, claimed_at, done, note)


def statuses(plan: Plan, changed: Mapping[str, Status]) -> dict[str, Status]:
    return dict.fromkeys(plan.graph.jobs, Status.BLOCKED) | dict(changed)


def state_of(plan: Plan, jobs: Mapping[str, JobState | Status]) -> State:
    core = CorePlan.of(plan.graph, plan.wanted(), lambda job: 1.0)
    states = {key: JobState(value) if isinstance(value, Status) else value for key, value in jobs.items()}
    changes = tuple(Change(key, Status.BLOCKED, job) for key, job in states.items())
    return State(core, dict.fromkeys(core.keys, JobState()) | states, {"w0": None, "w1": None}, changes=changes)


@dataclass
class Screen:
    """A console that is no terminal, and a clock that is moved by hand."""

    out: io.StringIO = field(default_factory=io.StringIO)
    now: float = 0.0

    def progress(
        self, plan: Plan, store: Store, *, live: bool = False, quiet: bool = False, term: str = "xterm"
    ) -> Progress:
        env = {"TERM": term}
        console = Console(file=self.out, force_terminal=live, width=120, color_system=None, _environ=env)
        return Progress(
            plan, store, quiet=quiet, console=console, clock=lambda: self.now, wall=lambda: 100.0 + self.now
        )

    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()


def test_bars_stand_in_pipeline_order() -> None:
    plan = demo_plan()
    moment = snapshot(plan, statuses(plan, {}), [], elapsed=0.0, now=0.0)
    assert [(bar.kind, bar.stage, bar.total) for bar in moment.bars] == [
        ("dataset", 0, 1),
        ("select", 0, 2),
        ("experts", 1, 2),
        ("distil", 1, 1),
        ("experts", 2, 2),
        ("distil", 2, 1),
        ("evaluate", 0, 12),
        ("full", 0, 4),
    ]


def test_a_bar_grows_with_what_its_running_jobs_have_done() -> None:
    plan = demo_plan()
    first, second = keys(plan, "experts", 1)
    seen = statuses(plan, {first: Status.DONE, second: Status.RUNNING})
    moment = snapshot(plan, seen, [claim(second, 0.5, "expert 1 epoch 2")], elapsed=9.0, now=112.0)
    assert moment.bars[2] == Bar("experts", 1, total=2, whole=1, running=1, failed=0, share=0.75)
    (running,) = moment.running
    assert (running.key, running.done, running.note, running.seconds) == (
        second,
        0.5,
        "expert 1 epoch 2",
        12.0,
    )


def test_a_job_of_another_driver_shows_as_running_and_a_stale_claim_does_not() -> None:
    plan = demo_plan()
    (data,) = keys(plan, "dataset")
    first, second = keys(plan, "experts", 1)
    seen = statuses(plan, {data: Status.CACHED, first: Status.READY, second: Status.DONE})
    claims = [claim(first, 0.2, ""), claim(second, 0.9, ""), claim("full-elsewhere-0", 0.1, "")]
    assert [one.key for one in snapshot(plan, seen, claims, elapsed=0.0, now=100.0).running] == [first]


def test_jobs_that_nobody_needs_are_not_counted() -> None:
    plan = demo_plan()
    seen = dict.fromkeys(plan.graph.jobs, Status.CACHED)
    seen |= dict.fromkeys(keys(plan, "experts"), Status.UNNEEDED)
    moment = snapshot(plan, seen, [], elapsed=0.0, now=0.0)
    assert moment.whole == moment.total == len(plan.graph) - 4
    assert "experts" not in {bar.kind for bar in moment.bars}


def test_eta_is_the_chain_when_there_are_slots_enough_and_the_work_otherwise() -> None:
    plan = demo_plan()
    chain = [keys(plan, "distil", 1)[0], keys(plan, "experts", 2)[0], keys(plan, "distil", 2)[0]]
    seconds = dict.fromkeys(chain, 10.0) | dict.fromkeys(keys(plan, "full"), 5.0)
    assert shortest(plan.graph, seconds, slots=8) == 30.0
    assert shortest(plan.graph, seconds, slots=1) == 50.0


def test_eta_takes_off_what_running_jobs_have_done() -> None:
    plan = demo_plan()
    (key,) = keys(plan, "distil", 1)
    half = [Running(key, done=0.75, seconds=7.5)]
    assert time_left(plan.graph, {key: 10.0}, half, Pace(), slots=2, at=7.5) == pytest.approx(2.5)


def test_eta_is_nothing_without_work_and_unknown_without_workers() -> None:
    plan = demo_plan()
    assert shortest(plan.graph, {}, slots=0) == 0.0
    assert shortest(plan.graph, {keys(plan, "full")[0]: 1.0}, slots=0) is None


def test_the_best_so_far_is_a_mean_and_never_full_data() -> None:
    plan = demo_plan()
    random, second = cell_of(plan, "Random", "convnet"), cell_of(plan, "PDD+MTT", "resnet10", 2)
    full = cell_of(plan, "Full data", "convnet", 0)
    known = dict(zip(random.jobs + second.jobs + full.jobs, (95.0, 60.0, 80.0, 82.0, 99.0, 99.0), strict=True))
    assert best_so_far(plan.cells, known) == "81.0 % (PDD+MTT, stage 2 of 2, resnet10, n = 2)"
    assert best_so_far(plan.cells, {}) == ""


def test_a_summary_says_what_is_done_what_runs_and_what_is_left() -> None:
    plan = demo_plan()
    (data,), (first,) = keys(plan, "dataset"), keys(plan, "distil", 1)
    seen = statuses(plan, {data: Status.DONE, first: Status.RUNNING, keys(plan, "full")[0]: Status.FAILED})
    note = "iteration 120/200, loss 0.430, held-out 91.2%"
    moment = snapshot(
        plan,
        seen,
        [claim(first, 0.6, note)],
        elapsed=1.0,
        now=100.0,
        slots=1,
        seconds=lambda job: 10.0,
        best="81.0 %",
    )
    assert summary(moment) == (f"1/25 jobs; 1 failed; {short(first)}: {note}; 1 running; best 81.0 %; about 3:44 left")


@pytest.mark.parametrize(("seconds", "text"), [(42.4, "42 s"), (59.7, "1:00"), (187, "3:07"), (3787, "1:03:07")])
def test_times_read_like_a_clock(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


def test_a_log_gets_a_line_every_two_seconds_at_first_and_one_a_minute_in_the_end() -> None:
    assert [between_lines(elapsed) for elapsed in (0, 60, 600, 36000)] == [2.0, 2.0, 20.0, 60.0]


def test_a_finished_stage_is_told_with_its_time_and_held_out_accuracy(store: Store) -> None:
    plan, screen = demo_plan(), Screen()
    (first,) = keys(plan, "distil", 1)
    put(store, plan, first, {"validation_accuracy": 91.94}, seconds=12.34)
    with screen.progress(plan, store) as progress:
        progress.update(state_of(plan, {first: Status.RUNNING}), [])
        screen.now = 34.2
        progress.update(state_of(plan, {first: Status.DONE}), [])
    assert f"[  34 s] {short(first)} done in 12.3 s (held-out 91.9 %); 1/25 jobs" in screen.lines()


def test_summaries_keep_their_distance_and_evaluations_are_not_told_one_by_one(store: Store) -> None:
    plan, screen = demo_plan(), Screen()
    evaluations = keys(plan, "evaluate")
    for key in evaluations:
        put(store, plan, key, {"accuracy": 50.0})
    with screen.progress(plan, store) as progress:
        for number in range(len(evaluations)):
            screen.now = number * 0.5
            progress.update(state_of(plan, dict.fromkeys(evaluations[:number], Status.DONE)), [])
    assert [line[:15] for line in screen.lines()] == ["[   0 s] 0/25 j", "[   2 s] 4/25 j", "[   4 s] 8/25 j"]


def test_only_the_jobs_that_an_event_changed_are_looked_at_again(store: Store) -> None:
    plan, screen = demo_plan(), Screen()
    first, second = keys(plan, "distil", 1) + keys(plan, "distil", 2)
    with screen.progress(plan, store) as progress:
        progress.update(state_of(plan, {}), [])
        unmarked = replace(state_of(plan, {first: JobState(Status.FAILED, reason="bug")}), changes=())
        progress.update(unmarked, [])
        assert not [line for line in screen.lines() if "FAILED" in line]
        progress.update(state_of(plan, {second: JobState(Status.FAILED, reason="bug")}), [])
    assert [line.split()[3] for line in screen.lines() if "FAILED" in line] == [second]


def test_a_schedule_that_grew_is_looked_at_wholly(store: Store) -> None:
    plan, screen = demo_plan(), Screen()
    (first,) = keys(plan, "distil", 1)
    whole = state_of(plan, {first: JobState(Status.FAILED, reason="bug")})
    smaller = replace(whole, jobs={key: job for key, job in whole.jobs.items() if key != first}, changes=())
    with screen.progress(plan, store, quiet=True) as progress:
        progress.update(smaller, [])
        progress.update(replace(whole, changes=()), [])
    assert [line.split()[3] for line in screen.lines()] == [first]


def test_a_failure_is_told_once_with_reason_message_and_log(store: Store) -> None:
    plan, screen = demo_plan(), Screen()
    (first,) = keys(plan, "distil", 1)
    failed = JobState(Status.FAILED, reason="diverged", because="Diverged: the loss\nis NaN [at 3]", log="logs/a.log")
    with screen.progress(plan, store) as progress:
        for _ in range(3):
            progress.update(state_of(plan, {first: failed}), [])
    told = [line for line in screen.lines() if "FAILED" in line]
    assert told == [f"[   0 s] {first} FAILED (diverged): Diverged: the loss is NaN [at 3]; log: logs/a.log"]


def test_quiet_tells_failures_and_nothing_else(store: Store) -> None:
    plan, screen = demo_plan(), Screen()
    first, second = keys(plan, "experts", 1)
    with screen.progress(plan, store, quiet=True, live=True) as progress:
        progress.say("two workers joined")
        progress.update(state_of(plan, {first: Status.DONE}), [])
        screen.now = 60.0
        progress.update(state_of(plan, {first: Status.DONE, second: JobState(Status.FAILED, reason="bug")}), [])
    assert len(screen.lines()) == 1 and f"{second} FAILED (bug)" in screen.lines()[0]


def test_what_is_said_stands_on_one_line_however_long(store: Store) -> None:
    plan, screen = demo_plan(), Screen()
    with screen.progress(plan, store) as progress:
        progress.say("word " * 60 + "[end]")
    (line,) = screen.lines()
    assert line.endswith("word [end]")


def test_the_live_screen_shows_stages_notes_and_the_best_accuracy(store: Store) -> None:
    plan, screen = demo_plan(), Screen()
    cell = cell_of(plan, "PDD+MTT", "convnet", 1)
    for key in cell.jobs:
        put(store, plan, key, {"accuracy": 77.0})
    (running,) = keys(plan, "distil", 2)
    state = state_of(plan, dict.fromkeys(cell.jobs, Status.DONE) | {running: Status.RUNNING})
    with screen.progress(plan, store, live=True) as progress:
        progress.update(state, [claim(running, 0.6, "iteration 120/200")])
    text = screen.out.getvalue()
    for words in (
        "stage 1  experts",
        "stage 2  experts",
        "iteration 120/200",
        "60%",
        "best so far: 77.0 %",
        "2/25 jobs",
    ):
        assert words in text


@pytest.mark.parametrize(("term", "animated"), [("dumb", False), ("unknown", False), ("xterm", True)])
def test_a_terminal_that_cannot_animate_gets_plain_lines(store: Store, term: str, animated: bool) -> None:
    plan, screen = demo_plan(), Screen()
    (data,) = keys(plan, "dataset")
    with screen.progress(plan, store, live=True, term=term) as progress:
        progress.update(state_of(plan, {data: Status.DONE}), [])
        progress.say("two workers joined")
    assert ("\x1b[" in screen.out.getvalue()) == animated
    assert animated or screen.lines() == ["[   0 s] 1/25 jobs", "[   0 s] two workers joined"]


def test_the_live_screen_is_drawn_at_most_four_times_a_second_unless_a_job_ended(store: Store) -> None:
    plan, screen = demo_plan(), Screen()
    (data,) = keys(plan, "dataset")
    with screen.progress(plan, store, live=True) as progress:
        drawn = []
        for now, status in (
            (0.0, Status.READY),
            (0.1, Status.RUNNING),
            (0.2, Status.DONE),
            (0.3, Status.DONE),
        ):
            screen.now = now
            before = len(screen.out.getvalue())
            progress.update(state_of(plan, {data: status}), [])
            drawn.append(len(screen.out.getvalue()) > before)
    assert drawn == [True, False, True, False]

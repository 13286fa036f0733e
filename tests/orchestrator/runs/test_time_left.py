"""The time left: what is learned from jobs that are done or late, and the error in a replay of recorded runs."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median

import pytest

from orchestrator.runs.time_left import Pace, Running, time_left
from tests.orchestrator.results.test_cells import demo_plan
from tests.orchestrator.runs.recorded_runs import FOLDER, RecordedRun

RUNS = sorted(FOLDER.glob("*.json"))
CHANGING = "a load that came and went"
ENDING = 1.5
"""Seconds below which people read `about 1 s left`."""


def pace_of(pace: Pace, kind: str, at: float = 0.0, horizon: float = math.inf) -> float:
    return pace.of([kind], at, horizon)[kind]


def test_a_kind_that_takes_twice_as_long_is_expected_to_do_so_again() -> None:
    pace = Pace()
    for number in range(30):
        pace.learn("distil", 20.0, 10.0, 20.0 * number)
    assert pace_of(pace, "distil") == pytest.approx(2.0)
    assert pace_of(pace, "evaluate") == pytest.approx(2.0), "of a kind that is not known yet, what all kinds show"


def test_kinds_are_told_apart() -> None:
    pace = Pace()
    for number in range(20):
        pace.learn("distil", 40.0, 10.0, 41.0 * number)
        pace.learn("evaluate", 1.0, 1.0, 41.0 * number)
    assert pace_of(pace, "distil") > 3.5
    assert pace_of(pace, "evaluate") < 2.0


def test_the_next_minute_is_told_by_the_last_one_and_the_next_hour_by_the_last_hour() -> None:
    pace = Pace()
    for number in range(60):
        pace.learn("distil", 40.0 if number < 50 else 10.0, 10.0, 60.0 * number)
    now = 60.0 * 59
    assert pace_of(pace, "distil", now, 300.0) < 1.5, "the load of the machine is gone"
    assert pace_of(pace, "distil", now, 36000.0) > 3.5, "it may come again"


def test_one_odd_job_does_not_change_what_is_expected_of_the_others() -> None:
    pace = Pace()
    for took in (1.0, 1.0, 60.0, 1.0, 1.0):
        pace.learn("evaluate", took, 1.0, 0.0)
    assert pace_of(pace, "evaluate") == pytest.approx(1.0)


def test_the_first_job_of_a_worker_loads_code_and_tells_nothing_of_the_others_unless_it_was_long() -> None:
    pace = Pace()
    pace.start("dataset-digits-0123456789abcdef", "w0", 0.0)
    pace.end("dataset-digits-0123456789abcdef", 5.0, 0.1)
    assert pace_of(pace, "dataset") == 1.0
    pace.start("distil-mtt-0123456789abcdef", "w0", 5.0)
    pace.end("distil-mtt-0123456789abcdef", 25.0, 10.0)
    assert pace_of(pace, "distil") == 2.0
    pace.start("distil-mtt-0123456789abcdee", "w1", 0.0)
    pace.end("distil-mtt-0123456789abcdee", 900.0, 100.0)
    assert pace_of(pace, "distil") > 2.0


def test_a_job_that_came_back_tells_nothing() -> None:
    pace = Pace()
    for slot in ("w0", "w0"):
        pace.start("distil-mtt-0123456789abcdef", slot, 0.0)
        pace.end("distil-mtt-0123456789abcdef", 90.0, None)
    assert pace_of(pace, "distil") == 1.0


def test_the_share_that_a_workers_first_job_has_done_is_not_taken_for_its_pace() -> None:
    """Six seconds of loading code and the first tenth are not a job of a minute, nor are all others."""
    plan = demo_plan()
    first, second = (job.key for job in plan.graph if job.kind == "experts" and getattr(job.spec, "stage", 0) == 1)
    pace = Pace()
    pace.start(first, "w0", 0.0)
    left = time_left(plan.graph, {first: 2.0, second: 2.0}, [Running(first, 0.1, "", 6.0)], pace, slots=1, at=6.0)
    assert left is not None and left < 20.0


def test_a_job_that_is_late_tells_of_those_that_wait_for_their_turn() -> None:
    plan = demo_plan()
    first, second = (job.key for job in plan.graph if job.kind == "experts" and getattr(job.spec, "stage", 0) == 1)
    expected = {first: 10.0, second: 10.0}
    in_time = time_left(plan.graph, expected, [Running(first, seconds=5.0)], warm(), slots=1, at=0.0)
    late = time_left(plan.graph, expected, [Running(first, seconds=60.0)], warm(), slots=1, at=0.0)
    assert in_time == pytest.approx(15.0)
    assert late is not None and late > 35.0


def test_a_slow_job_is_believed_and_one_that_goes_on_from_a_checkpoint_is_not_taken_for_a_fast_one() -> None:
    plan = demo_plan()
    key = next(job.key for job in plan.graph if job.kind == "distil")

    def left(done: float, seconds: float) -> float:
        return time_left(plan.graph, {key: 10.0}, [Running(key, done, "", seconds)], warm(), slots=1, at=0.0) or 0.0

    assert left(0.5, 50.0) == pytest.approx(50.0)
    assert left(0.5, 5.0) == pytest.approx(5.0)
    assert left(0.9, 0.1) == pytest.approx(1.0)


def test_idle_loaded_resumed_and_slow_runs_are_recorded() -> None:
    said = " ".join(RecordedRun.read(path).about for path in RUNS)
    assert len(RUNS) >= 14
    assert all(word in said for word in ("idle", "loaded", "resumed", "data set", CHANGING))


def test_at_half_time_the_time_left_is_off_by_less_than_a_fifth_in_the_median() -> None:
    runs = [RecordedRun.read(path) for path in RUNS]
    assert median(error(run, 0.5) for run in runs) < 0.2
    assert median(error(run, 0.5) for run in runs if CHANGING not in run.about) < 0.2


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_nobody_is_told_for_more_than_ten_seconds_that_it_ends_now(path: Path) -> None:
    longest = so_far = 0.0
    run = RecordedRun.read(path)
    for _, left in run.moments(step := max(0.5, run.seconds / 1000)):
        so_far = so_far + step if left is not None and 0 < left < ENDING else 0.0
        longest = max(longest, so_far)
    assert longest <= 10.0


def warm() -> Pace:
    """A pace that knows no job, and workers that have done one before those of the demo plan."""
    pace = Pace()
    for job in demo_plan().graph:
        pace.start("dataset-digits-0123456789abcdef", "w0", 0.0)
        pace.start(job.key, "w0", 0.0)
    return pace


def error(run: RecordedRun, share: float) -> float:
    """How far the time left is off at a share of a run, by what was left."""
    told = run.told(share * run.seconds)
    assert told is not None
    return abs(told / ((1 - share) * run.seconds) - 1)

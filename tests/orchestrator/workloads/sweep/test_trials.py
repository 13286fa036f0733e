from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from jobs.documents import validate
from jobs.errors import BadInput
from jobs.graph import Job
from jobs.specs import DistilSpec
from jobs.sweep import Sweep, Values, listed
from orchestrator.planning.requests import Request, resolve
from orchestrator.runs import driver
from orchestrator.runs.driver import Outcome, RunInfo
from orchestrator.runs.journal import Journal, read
from orchestrator.runs.pool import InProcessPool
from orchestrator.runs.records import Record
from orchestrator.scheduler.schedule import RetryLimits
from orchestrator.scheduler.state import State
from orchestrator.workloads.sweep.mailbox import StageMetrics, StageRequest, TrialFailed, TrialMailbox
from orchestrator.workloads.sweep.trials import Trials, jobs_up_to, make_trial
from workers.store.store import Audit, Store

BASE: dict[str, Any] = {
    "name": "base",
    "dataset": "digits",
    "scale": "tiny",
    "networks": 1,
    "architectures": ["convnet"],
    "arms": [{"method": "mtt", "ipc_per_stage": 1, "prefixes": "last"}],
}
BY_STAGES = {"stages": {"path": "arms.0.stages", "grid": [1, 2, 3]}}
RUN = "s"
GOOD, POOR = 60.0, 10.0


def sweep_of(space: Mapping[str, Any] = BY_STAGES, **fields: Any) -> Sweep:
    return validate(Sweep, {"name": "s", "base": BASE, "space": space, **fields}, "s.yaml")


class Artifacts:
    """A store whose artifacts are small files that `execute` below writes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def keys(self) -> list[str]:
        return [path.name.removesuffix(".made") for path in self.root.glob("*.made")]

    def has(self, key: str) -> bool:
        return (self.root / f"{key}.made").exists()

    def audit(self, keys: Collection[str]) -> Audit:
        return Audit(frozenset(key for key in keys if self.has(key)), {})

    def manifest(self, key: str) -> Any:
        return SimpleNamespace(**json.loads((self.root / f"{key}.made").read_text()))


def execute(document: Mapping[str, Any], root: str, run: str, memory_level: int) -> dict[str, Any]:
    """Make a job's artifact: stage i is 1 percent better; an image step size of 1 is poor, one of 2 diverges."""
    job = Job.from_json(document)
    spec = job.spec
    extra: dict[str, float | None] = {}
    if isinstance(spec, DistilSpec):
        if spec.image.lr == 2:
            return {"status": "failed", "key": job.key, "seconds": 1.0, "reason": "diverged", "message": "NaN"}
        accuracy = (POOR if spec.image.lr == 1 else GOOD) + spec.stage + spec.seed
        extra = {"iteration": 1, "step_size": None, "first_loss": 1.0, "loss": 1 / accuracy}
        extra["validation_accuracy"] = accuracy
    (Path(root) / f"{job.key}.made").write_text(json.dumps({"extra": extra, "seconds": 1.0}))
    return {"status": "done", "key": job.key, "seconds": 1.0}


class Waited(Exception):
    pass


def give_up() -> None:
    raise Waited


class ToySearch:
    """What Tune does, without its processes: trials in turn, `at_once` of them, ended below a held-out accuracy."""

    def __init__(self, mailbox: TrialMailbox, trials: Sequence[Values], at_once: int = 2, least: float = 0.0) -> None:
        self.mailbox, self.least = mailbox, least
        self.waiting, self.at_once = list(trials), at_once
        self.stages: list[tuple[Values, int]] = []
        self.stopped = False

    def ended(self) -> bool:
        while self.waiting and len(self.stages) < self.at_once:
            self.stages.append((self.waiting.pop(0), 1))
        self.stages = [(values, after) for values, stage in self.stages if (after := self.goes_on(values, stage))]
        return not self.stages and not self.waiting

    def goes_on(self, values: Values, stage: int) -> int:
        """The stage that the trial is at; 0 when it is over."""
        try:
            resolve = self.mailbox.ask(StageRequest(values, stage), give_up)
        except Waited:
            return stage
        except TrialFailed:
            return 0
        return 0 if resolve.last or resolve.metrics["held_out"] < self.least else stage + 1

    def stop(self) -> None:
        self.stopped = True


def run(
    root: Path,
    sweep: Sweep,
    values: Sequence[Values] | None = None,
    watch: Callable[[Any], None] = lambda state: None,
    known: bool = True,
    spent: tuple[float, float] = (0.0, 0.0),
    clock: Callable[[], float] = time.monotonic,
    **search: Any,
) -> tuple[Outcome, Trials]:
    """One session of a sweep with fake work in this process."""
    values = listed(sweep, "s.yaml") if values is None else values
    mailbox, store = TrialMailbox(root / "mailbox"), cast(Store, Artifacts(root))
    mailbox.begin_again()
    with Journal.open(root / RUN, clock) as journal:
        trials = Trials(
            sweep,
            lambda number, one: make_trial(sweep, BASE, "s.yaml", number, one),
            mailbox,
            store,
            journal,
            ToySearch(mailbox, values, **search),
        )
        made = [trials.make(number, one) for number, one in enumerate(values, start=1)] if known else []
        schedule = trials.begin(made, RetryLimits(), *spent)
        pool = InProcessPool(str(root), RUN, "tests.orchestrator.workloads.sweep.test_trials.execute")

        def on_change(state: State) -> None:
            trials.pay(state)
            watch(state)

        outcome = driver.run(
            schedule, trials.plan.graph, pool, journal, store, on_change, about=RunInfo(RUN), schedule_source=trials
        )
        trials.break_off()
    return outcome, trials


def records(root: Path, event: str) -> list[Record]:
    return [record for record in read(root / RUN / "journal.jsonl") if record["event"] == event]


def states(trials: Trials) -> list[str]:
    return [f"{one.state} {one.stage}/{len(one.trial.stages)}" for one in trials.standings.values()]


def test_trials_that_differ_in_their_stages_alone_cost_what_the_longest_costs(tmp_path: Path) -> None:
    outcome, trials = run(tmp_path, sweep_of())
    assert outcome.exit == 0
    assert states(trials) == ["done 1/1", "done 2/2", "done 3/3"]
    started = Counter(record["kind"] for record in records(tmp_path, "job_started"))
    longest = Counter(job.kind for job in trials.winners()[0].trial.plan.graph)
    assert started == longest == {"dataset": 1, "experts": 6, "distil": 3, "evaluate": 1}


def test_only_the_winners_are_evaluated_on_test_images(tmp_path: Path) -> None:
    _, trials = run(tmp_path, sweep_of(winners=2))
    assert [one.trial.values["stages"] for one in trials.winners()] == [3, 2]
    evaluated = {record["key"] for record in records(tmp_path, "job_started") if record["kind"] == "evaluate"}
    assert evaluated == {key for one in trials.winners() for cell in one.trial.plan.cells for key in cell.jobs}
    last = records(tmp_path, "trial_reported")[-1]["seq"]
    assert all(record["seq"] > last for record in records(tmp_path, "job_started") if record["kind"] == "evaluate")


def test_with_the_mode_min_the_smallest_metric_wins(tmp_path: Path) -> None:
    _, trials = run(
        tmp_path, sweep_of({"lr": {"path": "distil.image.lr", "grid": [1.0, 0.5]}}, metric="loss", mode="min")
    )
    assert [one.trial.values["lr"] for one in trials.winners()] == [0.5]


def test_metrics_are_means_over_the_seeds_of_the_stage_just_finished(tmp_path: Path) -> None:
    sweep = sweep_of()
    trial = make_trial(sweep, BASE | {"seeds": [0, 4]}, "s.yaml", 1, {"stages": 2})
    assert [len(keys) for keys in trial.stages] == [2, 2]
    mailbox = TrialMailbox(tmp_path / "mailbox")
    with Journal.open(tmp_path / RUN) as journal:
        trials = Trials(
            sweep, lambda *_: trial, mailbox, cast(Store, Artifacts(tmp_path)), journal, ToySearch(mailbox, [])
        )
        for job in trial.plan.graph:
            execute(job.to_json(), str(tmp_path), RUN, 0)
        accuracies = [GOOD + 2 + seed for seed in (0, 4)]
        assert trials._metrics(trial, 2) == {
            "held_out": statistics.fmean(accuracies),
            "loss": pytest.approx(statistics.fmean(1 / one for one in accuracies)),
            "ipc_total": 2.0,
        }


SPACE_WITH_A_POOR_ONE = {
    "lr": {"path": "distil.image.lr", "grid": [0.5, 1.0]},
    "stages": {"path": "arms.0.stages", "grid": [3]},
}


def test_a_trial_that_is_ended_early_starts_nothing_more_and_leaves_a_prefix_for_run(tmp_path: Path) -> None:
    outcome, trials = run(tmp_path, sweep_of(SPACE_WITH_A_POOR_ONE, scheduler={"name": "asha"}), least=50.0)
    assert outcome.exit == 0
    assert states(trials) == ["done 3/3", "stopped 1/3"]
    poor = list(trials.standings.values())[1].trial
    made = {job.key for job in poor.plan.graph if trials.store.has(job.key)}
    assert made == {job.key for job in jobs_up_to(poor, 1)}
    asked = resolve(
        Request(
            experiments=("tiny",), settings=("arms=[{method: mtt, stages: 3, ipc_per_stage: 1}]", "distil.image.lr=1.0")
        )
    )
    assert made < {job.key for job in asked.plan.graph}


def test_a_job_that_fails_ends_its_trial_and_no_other(tmp_path: Path) -> None:
    sweep = sweep_of({"lr": {"path": "distil.image.lr", "grid": [2.0, 0.5]}})
    outcome, trials = run(tmp_path, sweep)
    assert outcome.exit == 3
    assert states(trials) == ["failed 0/1", "done 1/1"]
    assert next(iter(trials.standings.values())).why == "NaN"
    assert [one.trial.number for one in trials.winners()] == [2]


class Killed(BaseException):
    pass


def test_a_sweep_that_was_killed_goes_on_where_it_was_to_the_same_result(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    _, expected = run(whole, sweep_of(SPACE_WITH_A_POOR_ONE, scheduler={"name": "asha"}), least=50.0)

    def kill(state: Any) -> None:
        if len(records(cut, "job_done")) == 6:
            raise Killed

    with pytest.raises(Killed):
        run(cut, sweep_of(SPACE_WITH_A_POOR_ONE, scheduler={"name": "asha"}), least=50.0, watch=kill)
    assert len(records(cut, "trial_reported")) == 2  # the first stage of either
    outcome, trials = run(cut, sweep_of(SPACE_WITH_A_POOR_ONE, scheduler={"name": "asha"}), least=50.0)
    assert outcome.exit == 0
    assert states(trials) == states(expected)
    assert [one.reported for one in trials.standings.values()] == [one.reported for one in expected.standings.values()]
    done = Counter(record["key"] for record in records(cut, "job_done"))
    assert set(done.values()) == {1}
    assert done.keys() == {record["key"] for record in records(whole, "job_done")}


def test_a_finished_sweep_asks_for_nothing_again(tmp_path: Path) -> None:
    run(tmp_path, sweep_of())
    jobs = len(records(tmp_path, "job_started"))
    outcome, trials = run(tmp_path, sweep_of())
    assert outcome.exit == 0 and states(trials) == ["done 1/1", "done 2/2", "done 3/3"]
    assert len(records(tmp_path, "job_started")) == jobs
    assert len(records(tmp_path, "trial_reported")) == 1 + 2 + 3


def test_the_budget_of_gpu_hours_ends_the_search_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    hours = 5.5 / 3600  # every job takes a second
    outcome, trials = run(tmp_path, sweep_of(budget={"gpu_hours": hours}), at_once=1)
    assert outcome.exit == 0
    assert states(trials) == ["done 1/1", "unfinished 1/2", "unfinished 0/3"]
    assert "the budget of 0.00152778 GPU-hours is used up; best: trial 1" in records(tmp_path, "note")[-1]["text"]
    assert cast(ToySearch, trials.search).stopped
    outcome, trials = run(tmp_path, sweep_of(budget={"gpu_hours": 1.0}), at_once=1)
    assert states(trials) == ["done 1/1", "done 2/2", "done 3/3"]


def test_what_earlier_sessions_paid_counts(tmp_path: Path) -> None:
    _, trials = run(tmp_path, sweep_of(budget={"gpu_hours": 1.0}), spent=(3600.0, 0.0))
    assert states(trials) == ["unfinished 0/1", "unfinished 0/2", "unfinished 0/3"]
    assert not records(tmp_path, "job_started")


def test_the_budget_of_wall_time_ends_the_search_and_the_winners_are_still_evaluated(tmp_path: Path) -> None:
    """An hour passes with each finished job; the first trial's stage takes four jobs, so the second comes too late."""

    def hours() -> float:
        return 3600.0 * len(records(tmp_path, "job_done"))

    sweep = sweep_of(budget={"wall_hours": 4.0})
    outcome, trials = run(tmp_path, sweep, clock=hours, at_once=1)
    assert outcome.exit == 0 and states(trials) == ["done 1/1", "unfinished 0/2", "unfinished 0/3"]
    assert "the budget of 4 h is used up; best: trial 1" in records(tmp_path, "note")[-1]["text"]
    assert cast(ToySearch, trials.search).stopped
    assert Counter(one["kind"] for one in records(tmp_path, "job_done"))["evaluate"] == 1
    _, trials = run(tmp_path, sweep, at_once=1)  # the clock of another launch begins at 0
    assert states(trials) == ["done 1/1", "done 2/2", "done 3/3"]


def test_wall_time_counts_that_of_earlier_drivers_of_the_same_launch(tmp_path: Path) -> None:
    _, trials = run(tmp_path, sweep_of(budget={"wall_hours": 1.0}), spent=(0.0, 3600.0))
    assert states(trials) == ["unfinished 0/1", "unfinished 0/2", "unfinished 0/3"]
    assert not records(tmp_path, "job_started")


def test_trials_that_nobody_knew_beforehand_are_made_as_they_come(tmp_path: Path) -> None:
    outcome, trials = run(tmp_path, sweep_of(), [{"stages": 2}, {"stages": 0}, {"stages": 1}], known=False)
    assert outcome.exit == 0
    assert [one.trial.values for one in trials.winners()] == [{"stages": 2}]
    assert sorted(states(trials)) == ["done 1/1", "done 2/2"]  # no stages at all was answered with a refusal
    refused = cast(StageMetrics, TrialMailbox(tmp_path / "mailbox").answer_to(StageRequest({"stages": 0}, 1).trial, 1))
    assert "arms.0.stages is 0: must be at least 1" in refused.failed


def test_a_job_is_as_urgent_as_the_longest_trial_that_needs_it(tmp_path: Path) -> None:
    sweep = sweep_of()
    mailbox = TrialMailbox(tmp_path / "mailbox")
    with Journal.open(tmp_path / RUN) as journal:
        store = cast(Store, Artifacts(tmp_path))
        trials = Trials(sweep, lambda *_: pytest.fail(), mailbox, store, journal, ToySearch(mailbox, []))
        made = [make_trial(sweep, BASE, "s.yaml", number, {"stages": number}) for number in (1, 2, 3)]
        paths = trials.begin(made, RetryLimits()).remaining_path
    first, second, third = (paths[keys[0]] for keys in made[2].stages)
    assert first > second > third
    assert trials.schedule.open and not trials.schedule.wanted


def test_64_trials_are_no_more_than_jobs_in_the_queue(tmp_path: Path) -> None:
    space = {
        "lr": {"path": "distil.image.lr", "log_uniform": [0.01, 0.9]},
        "stages": {"path": "arms.0.stages", "choice": [1, 2]},
    }
    sweep = sweep_of(space, searcher="random", samples=64)
    outcome, trials = run(tmp_path, sweep, at_once=64)
    assert outcome.exit == 0
    assert len(trials.standings) == 64
    assert {one.state for one in trials.standings.values()} == {"done"}


@pytest.mark.parametrize(
    ("base", "space", "field", "fix"),
    [
        ({}, {"stagez": {"path": "arms.0.stagez", "grid": [1]}}, "arms.0.stagez", "unknown field; known here"),
        (
            {},
            {"lr": {"path": "distil.image.rate", "grid": [1.0]}},
            "set.distil.image.rate",
            "unknown field; known here",
        ),
        ({}, {"lr": {"path": "distil.iterations", "grid": [1.5]}}, "set.distil.iterations", "integer"),
        ({}, {"ipc": {"path": "arms.0.ipc_per_stage", "grid": [10**6]}}, "arms.0.ipc_per_stage", "ask for fewer"),
        ({"arms": [{"method": "mtt"}, {"method": "full"}]}, BY_STAGES, "base.arms", "keep one arm"),
        ({"arms": [{"method": "full"}]}, BY_STAGES, "base.arms.0.method", "that distils"),
        ({"set": {"distil.choice.by": "last"}}, BY_STAGES, "metric", "set that to validation, or let `loss` decide"),
    ],
)
def test_values_that_make_no_experiment_are_refused_with_the_mend(
    base: dict[str, Any], space: dict[str, Any], field: str, fix: str
) -> None:
    sweep = sweep_of(space)
    (values, *_) = listed(sweep, "s.yaml")
    with pytest.raises(BadInput) as caught:
        make_trial(sweep, BASE | base, "s.yaml", 1, values)
    assert caught.value.field == field
    assert fix in caught.value.fix
    assert caught.value.place.startswith("s.yaml")


def test_a_dimension_of_the_recipe_wins_over_what_the_base_says_of_it() -> None:
    sweep = sweep_of({"lr": {"path": "distil.image.lr", "grid": [0.5]}})
    base = BASE | {"set": {"distil.image.lr": 7.0}}
    base["arms"] = [BASE["arms"][0] | {"set": {"distil.image.lr": 8.0}}]
    trial = make_trial(sweep, base, "s.yaml", 1, {"lr": 0.5})
    (distil,) = (job.spec for job in trial.plan.graph if isinstance(job.spec, DistilSpec))
    assert distil.image.lr == 0.5

"""The trials of a sweep on the driver's side: what each one needs, what it came to, and what the run does next.

A trial is an experiment and asks for one stage at a time (`orchestrator.workloads.sweep.mailbox`). What it asked for
becomes a target of the run's plan; when the stage's sets are whole the trial gets their metrics, and whoever searches
may end it there. So a trial that is ended early has nothing running that would have to be taken back, its finished
stages stay in the store, and jobs that several trials ask for are there once, because the graph has each key once.

A job's place in the order comes from the whole chain of the trials that it belongs to, stages not yet asked for
included. When the search is over, the winners' evaluations on test images become the last targets, and the plan closes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import yaml

from jobs.documents import set_path, validate
from jobs.errors import BadInput
from jobs.experiment import Experiment, Plan
from jobs.graph import Job
from jobs.outcomes import DistilOutcome
from jobs.recipe_numbers import Recipe
from jobs.specs import DistilSpec
from jobs.sweep import Sweep, Values
from orchestrator.planning import durations
from orchestrator.planning.requests import assign, resolve_experiment
from orchestrator.runs.journal import Journal
from orchestrator.scheduler.job_status import AVAILABLE, UNSUCCESSFUL, Status
from orchestrator.scheduler.schedule import Schedule
from orchestrator.scheduler.state import State
from orchestrator.workloads.sweep.mailbox import StageMetrics, StageRequest, TrialMailbox, spoken, trial_id
from workers.store.store import Store

HOUR = 3600.0


class Search(Protocol):
    """Whoever proposes trials and ends them."""

    def ended(self) -> bool:
        """Whether it has come to its end; no trial will ask for anything more."""

    def stop(self) -> None:
        """Break it off; what it knows is kept for the next time."""


@dataclass(frozen=True)
class Trial:
    """One experiment of a sweep; `stages` are the keys of its `distil` jobs over all seeds, by stage."""

    number: int
    values: Values
    experiment: Experiment
    plan: Plan
    stages: tuple[tuple[str, ...], ...]

    @property
    def id(self) -> str:
        """Its name on the mailbox."""
        return trial_id(self.values)

    @property
    def ipc_per_stage(self) -> int:
        """New images per class of each stage."""
        return self.experiment.arms[0].ipc_per_stage or 0

    def label(self) -> str:
        """The number and the values, for people."""
        return f"trial {self.number}: {spoken(self.values)}"


def make_trial(
    sweep: Sweep, base: Mapping[str, Any], place: str, number: int, values: Values, store: str | None = None
) -> Trial:
    """The trial's experiment and graph, checked.

    Args:
        sweep: what it is a trial of.
        base: the experiment that the sweep changes.
        place: where the sweep stands.
        number: the trial's, 1-based.
        values: the sweep's values of this trial.
        store: where the facts of datasets are remembered.

    Raises:
        BadInput: the values make no experiment, or one that does not report the sweep's metric.
    """
    where = f"{place} (trial {number}: {spoken(values)})"
    raw: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(base)))
    raw["name"] = f"{sweep.name}-{number}"
    for name, value in values.items():
        path = sweep.path(name)
        if "." in path and path.split(".")[0] in set(Recipe.model_fields) - {"dataset"}:
            set_path(raw, f"arms.0.set.{path}", value, where)  # wins over what the base says of it
        else:
            assign(raw, path, value, where)
    experiment = validate(Experiment, raw, where)
    if len(experiment.arms) != 1:
        raise BadInput(place, "base.arms", len(experiment.arms), "keep one arm; arms are compared by `run`")
    plan = resolve_experiment(experiment, where, store)
    stages = _stages(plan)
    if not stages:
        raise BadInput(where, "base.arms.0.method", experiment.arms[0].method, "name a method that distils")
    by = _choice(plan, stages)
    if sweep.metric == "held_out" and by != "validation":
        fix = f"not reported with distil.choice.by = {by}; set that to validation, or let `loss` decide"
        raise BadInput(where, "metric", "held_out", fix)
    return Trial(number, values, experiment, plan, stages)


def _stages(plan: Plan) -> tuple[tuple[str, ...], ...]:
    last = [cell for cell in plan.cells if cell.stage == cell.stages]
    chains = dict.fromkeys(plan.graph[key].parents.get("sets", ()) for cell in last for key in cell.jobs)
    sets = [chain for chain in chains if chain and all(plan.graph[key].kind == "distil" for key in chain)]
    return tuple(zip(*sets, strict=True)) if sets else ()


def _choice(plan: Plan, stages: Sequence[Sequence[str]]) -> str:
    spec = plan.graph[stages[0][0]].spec
    assert isinstance(spec, DistilSpec)
    return spec.choice.by


@dataclass
class TrialState:
    """How far a trial is. `state` is running, done, stopped (early), failed, or unfinished (the sweep was ended)."""

    trial: Trial
    reported: list[StageMetrics] = field(default_factory=list)
    state: str = "running"
    why: str = ""

    @property
    def stage(self) -> int:
        """The last stage that was reported."""
        return len(self.reported)

    def score(self, metric: str) -> float | None:
        """The metric after the last stage reported."""
        return self.reported[-1].metrics[metric] if self.reported else None


class Trials:
    """The plan that grows with the trials' requests; a `orchestrator.runs.driver.ScheduleSource`.

    Args:
        sweep: the metric, the budget, how many winners.
        make: the trial of a number and its values; raises BadInput.
        mailbox: where requests come from.
        store: where metrics are read.
        journal: where reports are written down; also the sweep's clock.
        search: whoever proposes and ends trials.
        say: tells people one line.
    """

    def __init__(
        self,
        sweep: Sweep,
        make: Callable[[int, Values], Trial],
        mailbox: TrialMailbox,
        store: Store,
        journal: Journal,
        search: Search,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.sweep, self.make, self.mailbox, self.store = sweep, make, mailbox, store
        self.journal, self.search, self.say = journal, search, say
        self.standings: dict[str, TrialState] = {}
        self.plan = Plan()
        """The graph of all trials, without their cells."""
        self.schedule = Schedule.of(self.plan.graph, (), lambda job: 0.0, open=True)
        self.cut_short = ""
        """Why the search was broken off, if it was."""
        self._open: dict[str, StageRequest] = {}
        self._stale = False
        self._paid, self._driven = 0.0, 0.0

    def begin(self, trials: Iterable[Trial], retry_limits: Any, paid: float = 0.0, driven: float = 0.0) -> Schedule:
        """The first plan: all jobs of the trials known beforehand, and no target yet.

        `paid` and `driven` are the seconds that earlier sessions have spent of the budget's GPU-hours and wall-hours.
        """
        self._paid, self._driven = paid, driven
        self.schedule = replace(self.schedule, retry_limits=retry_limits)
        for trial in trials:
            self._admit(trial)
        self._redraw()
        return self.schedule

    # What the driver asks.

    def replanned(self, state: State) -> Schedule | None:
        """Hear the trials, answer them, and say what the run goes on with if that changed."""
        if not self.schedule.open:
            return None
        before = self.schedule
        for request in self.mailbox.new_requests():
            self._hear(request)
        if self._stale:
            self._redraw()
        for request in list(self._open.values()):
            self._answer(request, state)
        if spent := self._spent():
            self.cut_short = spent
            self.search.stop()
        if self.cut_short or self.search.ended():
            self._close()
        else:
            wanted = frozenset(key for request in self._open.values() for key in self._keys(request))
            if wanted != self.schedule.wanted:
                self.schedule = replace(self.schedule, wanted=wanted)
        return self.schedule if self.schedule is not before else None

    def pay(self, state: State) -> None:
        """Count the time of the jobs that the last event brought; to be called after every event."""
        for key, _, job in state.changes:
            if job.status is Status.DONE:
                self._paid += self.store.manifest(key).seconds

    def break_off(self) -> None:
        """The run ended before the search did."""
        if self.schedule.open:
            self.cut_short = "the search was broken off"
            self._close()

    def winners(self) -> list[TrialState]:
        """The best finished trials, the best first; of equals the earlier."""
        done = [one for one in self.standings.values() if one.state == "done"]
        sign = -1.0 if self.sweep.mode == "max" else 1.0
        ranked = sorted(done, key=lambda one: (sign * (one.score(self.sweep.metric) or 0.0), one.trial.number))
        return ranked[: self.sweep.winners]

    # Trials come.

    def _hear(self, request: StageRequest) -> None:
        if request.trial not in self.standings:
            try:
                self._admit(self.make(len(self.standings) + 1, request.values))
            except BadInput as error:
                self.mailbox.answer(request, StageMetrics({}, failed=str(error)))
                return
        self.standings[request.trial].state = "running"
        self._open[request.trial] = request

    def _admit(self, trial: Trial) -> None:
        """Merge a trial's graph; what an earlier session reported of it is still true."""
        merge(self.plan, trial.plan)
        standing = self.standings[trial.id] = TrialState(trial)
        while (metrics := self.mailbox.answer_to(trial.id, standing.stage + 1)) is not None:
            standing.reported.append(metrics)
            standing.state = "done" if metrics.last else "stopped"
        self._stale = True

    def _redraw(self) -> None:
        """The plan of the graph as it is now."""
        estimated = durations.estimate_durations(self.plan.graph, self.store)
        self.schedule = Schedule.of(
            self.plan.graph,
            self.schedule.wanted,
            estimated.of,
            exclusive=dict(self.plan.exclusive),
            limits=dict(self.plan.limits),
            retry_limits=self.schedule.retry_limits,
            open=True,
        )
        self._stale = False

    # Trials are answered.

    def _keys(self, request: StageRequest) -> tuple[str, ...]:
        return self.standings[request.trial].trial.stages[request.stage - 1]

    def _answer(self, request: StageRequest, state: State) -> None:
        """Answer if the stage is whole, or cannot become so."""
        keys, standing = self._keys(request), self.standings[request.trial]
        statuses = {state.jobs[key].status if key in state.jobs else Status.BLOCKED for key in keys}
        if statuses & UNSUCCESSFUL:
            root_failure = next(state.jobs[key] for key in keys if state.jobs[key].status in UNSUCCESSFUL)
            cause = root_failure if root_failure.status is Status.FAILED else state.jobs[root_failure.because]
            standing.state, standing.why = "failed", cause.because
            self.mailbox.answer(request, StageMetrics({}, failed=cause.because or "a job failed"))
        elif statuses <= AVAILABLE:
            self._report(request, standing)
        else:
            return
        del self._open[request.trial]

    def _report(self, request: StageRequest, standing: TrialState) -> None:
        trial = standing.trial
        answer = StageMetrics(self._metrics(trial, request.stage), last=request.stage == len(trial.stages))
        standing.reported.append(answer)
        standing.state = "done" if answer.last else "stopped"  # until it asks again
        fields = {"values": request.values, "stages": len(trial.stages), "metrics": dict(answer.metrics)}
        self.journal.write("trial_reported", trial=trial.number, stage=request.stage, **fields)
        self.mailbox.answer(request, answer)
        said = ", ".join(f"{name} {value:.4g}" for name, value in answer.metrics.items() if name != "ipc_total")
        self.say(f"{trial.label()}: stage {request.stage} of {len(trial.stages)}: {said}")

    def _metrics(self, trial: Trial, stage: int) -> dict[str, float]:
        """Means over seeds; and the images per class so far, the other unit of a rung."""
        sets = [DistilOutcome.from_extra(self.store.manifest(key).extra) for key in trial.stages[stage - 1]]
        metrics = {"loss": statistics.fmean(outcome.loss for outcome in sets)}
        held_out = [outcome.held_out for outcome in sets if outcome.held_out is not None]
        if len(held_out) == len(sets):
            metrics["held_out"] = statistics.fmean(held_out)
        return {**metrics, "ipc_total": float(stage * trial.ipc_per_stage)}

    # The end.

    def _spent(self) -> str:
        """Which part of the budget is used up."""
        budget, hours = self.sweep.budget, (self._driven + self.journal.elapsed()) / HOUR
        if budget.wall_hours is not None and hours >= budget.wall_hours:
            return f"the budget of {budget.wall_hours:g} h is used up"
        if budget.gpu_hours is None or self._paid < budget.gpu_hours * HOUR:
            return ""
        return f"the budget of {budget.gpu_hours:g} GPU-hours is used up"

    def _close(self) -> None:
        """Nothing more is tried; what is left is to evaluate the winners."""
        nobody_ends_trials = self.sweep.scheduler.name == "none"  # then it was about to ask for its next stage
        for standing in self.standings.values():
            if standing.state == "running" or (standing.state == "stopped" and nobody_ends_trials):
                standing.state = "unfinished"
        self._open.clear()
        winners = self.winners()
        wanted = frozenset(key for one in winners for key in one.trial.plan.wanted())
        self.schedule = replace(self.schedule, wanted=wanted, open=False)
        names = ", ".join(f"trial {one.trial.number}" for one in winners) or "none"
        text = f"{self.cut_short or 'the search is over'}; best: {names}"
        self.journal.write("note", text=text)
        self.say(text)


def merge(into: Plan, plan: Plan) -> None:
    """Add a plan's jobs and limits to another one; of equal jobs the first stays."""
    for key, job in plan.graph.jobs.items():
        into.graph.jobs.setdefault(key, job)
        into.sources.setdefault(key, plan.sources[key])
    for key, groups in plan.exclusive.items():
        into.exclusive[key] = tuple(dict.fromkeys([*into.exclusive.get(key, ()), *groups]))
    into.limits.update(plan.limits)


def jobs_up_to(trial: Trial, stage: int) -> list[Job]:
    """The jobs behind the first `stage` stages of a trial."""
    keys = [key for keys in trial.stages[:stage] for key in keys]
    needed = trial.plan.graph.ancestors(keys)
    return [job for job in trial.plan.graph if job.key in needed]

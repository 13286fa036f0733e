"""Ray Tune under a sweep: it proposes trials, hears their metrics after every stage, and ends the poor ones.

Tune runs in a process of its own on our Ray cluster, and each of its trials in another, all on the driver's host and
without a CPU or GPU of their own. They compute nothing: a trial asks for a stage at the mailbox and reports what comes
back, so workers stay free for jobs at any number of trials, and a trial is one light process that Tune uses again for
the next trial.

Tune's state lies in the run's folder (`tune/`, with TensorBoard's event files of every trial) and is taken up by
`Tuner.restore`: finished trials stay finished, unfinished ones begin again and read their earlier stages off the
mailbox. Two things Tune forgets are put right here. A restored scheduler knows nothing of the trials before, so it is
told their reports again; and state that cannot be read is no loss, because every stage lies in the store. Tune's state
is pickled, as all of Tune is: the run's folder is ours alone (0700), and so is everything in it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.errors import BadInput
from jobs.sweep import ATTEMPTS, Dimension, Sweep, Values
from orchestrator.clusters.ray_cluster import Cluster, brief
from orchestrator.runs.pool import PoolBroken
from orchestrator.workloads.sweep.mailbox import StageRequest, TrialMailbox, folder_of, trial_id

FOLDER = "tune"
MAILBOX = "trials"
HEAD = "node:__internal_head__"
"""A resource that Ray gives to the head's node, once; a share of it keeps a process there."""
SHARE = 0.0001
STATE_SECONDS = "2"
"""How often Tune writes its state; what a kill loses of it is asked for again and answered at once."""


def check_searcher(sweep: Sweep, place: str) -> None:
    """Refuse a searcher whose library is not there.

    Raises:
        BadInput: Optuna is not installed.
    """
    if sweep.searcher == "optuna" and importlib.util.find_spec("optuna") is None:
        raise BadInput(place, "searcher", "optuna", "install it (pip install optuna), or write random")


class TuneCluster:
    """A cluster on which Tune runs beside the workers; a `Cluster` and a `orchestrator.workloads.sweep.trials.Search`.

    Args:
        cluster: where the workers are.
        folder: the run's folder; visible on the head's host.
        sweep: what is searched, and how.
        trials: the values of all trials, None if the searcher learns them.
        at_once: trials under way at a time.
        longest: the rung that no trial goes beyond.
    """

    def __init__(
        self, cluster: Cluster, folder: Path, sweep: Sweep, trials: Sequence[Values] | None, at_once: int, longest: int
    ) -> None:
        self._cluster = cluster
        self._order = (str(folder.resolve()), sweep.model_dump(mode="json"), trials, at_once, longest)
        self._ray: Any = None
        self._tune: Any = None
        self._end: Any = None

    def open(self) -> Any:
        """Open the cluster and start Tune on it."""
        self._ray = self._cluster.open()
        placement = {"num_cpus": 0, "resources": {HEAD: SHARE}, "max_restarts": 0}
        self._tune = self._ray.remote(TuneProcess).options(**placement).remote()
        self._end = self._tune.run.remote(*self._order)
        return self._ray

    def ended(self) -> bool:
        """Whether Tune has nothing more to try.

        Raises:
            PoolBroken: Tune failed, or its process died.
        """
        kept, _ = self._ray.wait([self._end], timeout=0)
        try:
            self._ray.get(kept)
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise PoolBroken(f"Ray Tune failed: {type(cause).__name__}: {brief(cause)}") from error
        return bool(kept)

    def stop(self) -> None:
        """End Tune's process, and its trials with it; its state stays."""
        if self._tune is not None:
            self._ray.kill(self._tune)
            self._tune = None

    def close(self) -> None:
        """End Tune and close the cluster."""
        self.stop()
        self._cluster.close()

    def __getattr__(self, name: str) -> Any:
        """All else is the cluster's."""
        return getattr(self._cluster, name)


class TuneProcess:
    """The process in which Tune runs."""

    def __init__(self) -> None:
        os.umask(0o077)
        os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = STATE_SECONDS
        os.environ["TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S"] = "0"

    def run(
        self, folder: str, document: Mapping[str, Any], trials: Sequence[Values] | None, at_once: int, longest: int
    ) -> None:
        """Search until every trial is finished, from Tune's own state if there is any."""
        sweep, path = Sweep.model_validate(document), Path(folder) / FOLDER
        trainable = _trainable(Path(folder) / MAILBOX)
        if not _took_up(path, trainable):
            shutil.rmtree(path, ignore_errors=True)
            _new(path, trainable, sweep, trials, at_once, longest).fit()


def _took_up(path: Path, trainable: Any) -> bool:
    """Search to the end from Tune's state; False if there is none that can be read."""
    from ray import tune

    if not list(path.glob("experiment_state-*.json")):  # killed before the first was written
        return False
    try:
        tune.Tuner.restore(str(path), trainable, resume_unfinished=True, restart_errored=True).fit()
    except Exception:  # a kill left the state half-written; Tune names no class for that
        return False
    return True


def _new(path: Path, trainable: Any, sweep: Sweep, trials: Sequence[Values] | None, at_once: int, longest: int) -> Any:
    from ray import tune

    space, searcher, samples = {"values": tune.grid_search(list(trials or ()))}, None, 1
    if trials is None:
        space, searcher, samples = {}, _learner(sweep), min(sweep.samples, sweep.budget.trials or sweep.samples)
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=sweep.metric,
            mode=sweep.mode,
            scheduler=_scheduler(sweep, path.parent / MAILBOX, longest),
            search_alg=searcher,
            num_samples=samples,
            max_concurrent_trials=at_once,
            reuse_actors=True,
            trial_name_creator=lambda trial: folder_of(trial.config["values"]),
            trial_dirname_creator=lambda trial: folder_of(trial.config["values"]),
        ),
        run_config=tune.RunConfig(
            name=path.name,
            storage_path=str(path.parent),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


def _trainable(folder: Path) -> Any:
    """What a trial does in its process: one stage is one step."""
    from ray import tune

    class SweepTrial(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            os.umask(0o077)
            self.mailbox, self.values, self.stage = TrialMailbox(folder), config["values"], 0

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            self.stage += 1
            answer = self.mailbox.ask(StageRequest(self.values, self.stage))
            return {**answer.metrics, "stage": self.stage, "done": answer.last}

    return tune.with_resources(SweepTrial, {"cpu": 0, HEAD: SHARE})


def _scheduler(sweep: Sweep, folder: Path, longest: int) -> Any:
    """Who ends trials early, None for nobody; Tune passes metric and mode on to it."""
    from ray.tune import schedulers

    spec = sweep.scheduler
    unit = {"time_attr": spec.rung, "grace_period": spec.grace}
    if spec.name == "asha":
        kind = _remembering(schedulers.AsyncHyperBandScheduler, folder)
        return kind(max_t=max(longest, spec.grace), reduction_factor=spec.reduction, stop_last_trials=False, **unit)
    if spec.name == "median":
        return _remembering(schedulers.MedianStoppingRule, folder)(min_samples_required=spec.minimum, **unit)
    return None


def _remembering(kind: Any, folder: Path) -> Any:
    """The scheduler that is told what finished trials reported before Tune was restored."""

    class Remembering(kind):  # type: ignore[misc]
        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            super().on_trial_add(tune_controller, trial)
            mailbox, name, stage = TrialMailbox(folder), trial_id(trial.config["values"]), 1
            while trial.is_finished() and (answer := mailbox.answer_to(name, stage)) is not None and not answer.failed:
                super().on_trial_result(tune_controller, trial, {**answer.metrics, "stage": stage})
                stage += 1

    return Remembering


def _learner(sweep: Sweep) -> Any:
    """Optuna, asked again for what breaks a constraint."""
    from ray import tune
    from ray.tune.search import Searcher
    from ray.tune.search.optuna import OptunaSearch

    space = {name: _domain(one, tune) for name, one in sweep.space.items()}
    optuna = OptunaSearch(
        space=OptunaSearch.convert_search_space(space), metric=sweep.metric, mode=sweep.mode, seed=sweep.seed
    )

    class Feasible(Searcher):
        def __init__(self) -> None:
            super().__init__(metric=sweep.metric, mode=sweep.mode)
            self.names: dict[str, str] = {}

        def suggest(self, trial_id: str) -> dict[str, Any] | None:
            for attempt in range(ATTEMPTS):
                name = f"{trial_id}-{attempt}"
                values: Values = optuna.suggest(name) or {}
                if sweep.allows(values):
                    self.names[trial_id] = name
                    return {"values": {one: values[one] for one in sweep.space}}
                optuna.on_trial_complete(name, error=True)
            return None

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            if trial_id in self.names:
                optuna.on_trial_result(self.names[trial_id], result)

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            if trial_id in self.names:  # not one that was under way when an earlier session was killed
                optuna.on_trial_complete(self.names.pop(trial_id), result, error)

        def save(self, checkpoint_path: str) -> None:
            optuna.save(checkpoint_path)

        def restore(self, checkpoint_path: str) -> None:
            optuna.restore(checkpoint_path)

    return Feasible()


def _domain(one: Dimension, tune: Any) -> Any:
    if one.range is None:
        return tune.choice(list(one.options))
    low, high = one.range
    if one.whole:
        bounds = (round(low), round(high) + 1)  # Tune leaves the upper one out
        return tune.randint(*bounds) if one.uniform else tune.lograndint(*bounds)
    return tune.uniform(low, high) if one.uniform else tune.loguniform(low, high)

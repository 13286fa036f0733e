"""A batch of experts: networks trained on real data, kept as trajectories.

Stage 1 starts from random weights. Stage i > 1 makes the transition first (paper section 4.1, facts 5.2):
each expert starts where its own chain stands, which is snapshot 0 of its stage i-1 trajectory trained on the
union S_1..S_{i-1} (without conditioning on S_{i-1} alone, facts 5.6) at the step size learned with S_{i-1}; that
network is snapshot 0 here, and training goes on with real data. The optimiser of the link and that of the real
training are both fresh.

Two departures from the reference, neither of which changes a result: snapshots are copies (there they alias
the live weights on a CPU), and no test accuracy is computed along the way.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.keys import kind_of
from jobs.outcomes import ExpertsOutcome
from jobs.specs import ExpertsSpec
from workers.data import dataset as datasets
from workers.data import synthetic_set
from workers.data.dataset import Dataset, Split
from workers.runtime.context import JobContext
from workers.store import trajectories
from workers.store.checkpoints import PART
from workers.tasks import forgetting
from workers.training.networks import Network, flatten, load_flat
from workers.training.students import build_network, fit, trainer_for
from workers.training.trainer import EpochStats, accuracy
from workers.training.transition import learned_from, link

Trajectory = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""Snapshots [epochs + 1, parameters] and correctness [epochs, images] of one expert."""


def train_experts(context: JobContext, folder: Path) -> ExpertsOutcome:
    """Train the experts of the batch one after another, keeping each finished one in a checkpoint."""
    spec = _spec(context)
    data = datasets.load(context.store, context.parent("dataset"), context.device)
    real = forgetting.partitioned(context, data, spec.partition).train
    finished = [_finished(context, number) for number in range(spec.count)]
    for number, known in enumerate(finished):
        if known is None:
            finished[number] = _train_expert(context, data, real, number)
            _keep(context, number, finished[number])
        context.report((number + 1) / spec.count, f"expert {spec.first + number}")
    done = [one for one in finished if one is not None]
    trajectories.write(folder, [one[0] for one in done], [one[1] for one in done])
    return _held_out_accuracy(context, data, done)


def start_of(context: JobContext, data: Dataset, number: int) -> Network:
    """The network from which expert `number` of this batch starts on real data: theta_i of its chain."""
    spec = _spec(context)
    name = spec.first + number
    network = build_network(spec.network, data.shape, data.classes, context.generator("init", name), context.device)
    if spec.stage == 1:
        return network
    assert spec.transition is not None
    before = context.parent("chain")
    chain = trajectories.Trajectories([context.store.path(before, trajectories.TRAJECTORIES)])
    row = name if kind_of(before) == "imported" else number  # an import is one artifact of all experts, not a batch
    load_flat(network, chain.parameters(row, 0).to(context.device))
    earlier = learned_from(synthetic_set.newest(context.store, context.parents("sets")), spec.transition)
    generator = context.generator("transition", name)
    link(network, earlier, spec.transition, generator, lambda: context.yield_if_asked("during a transition"))
    return network


def _train_expert(context: JobContext, data: Dataset, real: Split, number: int) -> Trajectory:
    spec = _spec(context)
    network = start_of(context, data, number)
    snapshots = [flatten(network).cpu().numpy()]
    correctness: list[NDArray[np.bool_]] = []

    def keep(epoch: int, seen: EpochStats) -> None:
        assert seen.correct is not None
        snapshots.append(flatten(network).cpu().numpy())
        correctness.append(seen.correct.numpy())
        share = (number + (epoch + 1) / spec.real.epochs) / spec.count
        context.report_progress(share, f"expert {spec.first + number} epoch {epoch + 1} loss {seen.loss:.3f}")

    trainer = trainer_for(network, spec.real, context.generator("real", spec.first + number))
    fit(trainer, real.images, real.labels, spec.real, on_epoch=keep, correctness=True)
    return np.stack(snapshots), np.stack(correctness)


def _held_out_accuracy(context: JobContext, data: Dataset, done: list[Trajectory]) -> ExpertsOutcome:
    """Mean held-out accuracy (percent) at the first and the last snapshot; for people, steers nothing."""
    split = data.validation if len(data.validation) else data.train
    network = build_network(
        _spec(context).network, data.shape, data.classes, context.generator("probe"), context.device
    )
    means = {}
    for name, row in (("start_accuracy", 0), ("end_accuracy", -1)):
        total = 0.0
        for snapshots, _ in done:
            load_flat(network, torch.from_numpy(snapshots[row]).to(context.device))
            total += accuracy(network, split.images, split.labels)
        means[name] = total / len(done)
    return ExpertsOutcome(**means)


def _spec(context: JobContext) -> ExpertsSpec:
    assert isinstance(context.job.spec, ExpertsSpec)
    return context.job.spec


def _keep(context: JobContext, number: int, made: Trajectory | None) -> None:
    assert made is not None
    if _spec(context).count > 1:
        context.checkpoints.save(f"{context.job.key}{PART}{number}", {"snapshots": made[0], "correctness": made[1]}, {})


def _finished(context: JobContext, number: int) -> Trajectory | None:
    found = context.checkpoints.load(f"{context.job.key}{PART}{number}") if _spec(context).count > 1 else None
    return None if found is None else (found[0]["snapshots"], found[0]["correctness"])


def drop_checkpoints(context: JobContext) -> None:
    """Forget the finished experts' checkpoints once the batch of experts is in the store."""
    for number in range(_spec(context).count):
        context.checkpoints.drop(f"{context.job.key}{PART}{number}")

"""What a synthetic set is worth: train a random network on it and test it (facts 5.5 and 9).

Progressive: one network is trained on S_1, then on S_1+S_2, and so on to the union, weights and momentum
carried over, each link at its own learned step size with its own learning-rate drop. Union: one training on
the final union, at the step size of the last set (ours: the paper only says that no single one suits the union).
Sequential: S_1 alone, then S_2 alone, and so on. The network's weights are random and independent for every index, as
the paper says; the reference code starts all of them from one stored expert, which is `start: expert`.

In class-incremental learning (Table 7) the sets of all phases so far are put together stage by stage
(`workers.tasks.class_incremental`), and the test asks about the classes seen so far.

The test split is read here and in `full`, and nowhere else unless the reference's choice is asked for by
name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs.datasets import are_uneven
from jobs.outcomes import NetworkOutcome
from jobs.specs import EvaluateSpec, FullSpec, Mode
from workers.data import dataset as datasets
from workers.data import synthetic_set
from workers.data.dataset import Dataset, Split
from workers.data.synthetic_set import SyntheticSet
from workers.runtime.context import JobContext
from workers.store import trajectories
from workers.tasks import class_incremental
from workers.training.networks import Network, load_flat
from workers.training.students import build_network, fit, trainer_for
from workers.training.trainer import EpochStats, accuracy, balanced_accuracy

RESULT = "result.parquet"


def links(sets: Sequence[SyntheticSet], mode: Mode) -> list[SyntheticSet]:
    """What the network is trained on, one after another: the three modes of Table 3."""
    if mode == "union":
        return [synthetic_set.union(sets)]
    if mode == "sequential":
        return list(sets)
    return [synthetic_set.union(sets[: stage + 1]) for stage in range(len(sets))]


def evaluate(context: JobContext, folder: Path) -> NetworkOutcome:
    """Train through the links and test after each; the accuracy (percent) after the last is the result.

    With `best_of` above 1 it is the best of so many tests during the last link (a choice on test images).
    """
    spec = context.job.spec
    assert isinstance(spec, EvaluateSpec)
    data = datasets.load(context.store, context.parent("dataset"), context.device)
    sets, test = _sets(context, spec), data.test
    if spec.phases:
        sets = class_incremental.by_stage(sets, spec.phases, data.classes)
        test = class_incremental.of_classes(test, spec.phases)
    chain = links(sets, spec.mode)
    network = _network(context, spec, data)
    rates = [spec.training.lr if spec.training.lr is not None else link.step_size for link in chain]
    trainer = trainer_for(network, spec.training, context.generator("train"), lr=rates[0])
    curve: list[float] = []
    best, tested = -math.inf, _tested_epochs(spec)
    for number, (link, rate) in enumerate(zip(chain, rates, strict=True)):

        def beat(epoch: int, number: int = number) -> None:
            nonlocal best
            context.report_progress((number + (epoch + 1) / spec.training.epochs) / len(chain), f"link {number + 1}")
            if number + 1 == len(chain) and epoch + 1 in tested:
                best = max(best, accuracy(network, test.images, test.labels))

        images, labels = link.training_data(spec.training.temperature)
        fit(trainer, images.to(context.device), labels.to(context.device), spec.training, lr=rate, progress=beat)
        curve.append(accuracy(network, test.images, test.labels))
    balanced = _balanced(network, test) if curve[-1] >= best else None
    curve[-1] = max(best, curve[-1])
    return _result(folder, curve, balanced)


def _tested_epochs(spec: EvaluateSpec) -> set[int]:
    """The numbers of passes over the last link after which the network is tested, apart from the test at the end."""
    passes = spec.training.epochs + spec.training.extra_epoch
    return {number * passes // spec.best_of for number in range(1, spec.best_of)}


def train_full(context: JobContext, folder: Path) -> NetworkOutcome:
    """Train one network on the whole training split: the bound printed beside a table."""
    spec = context.job.spec
    assert isinstance(spec, FullSpec)
    data = datasets.load(context.store, context.parent("dataset"), context.device)
    network = build_network(spec.network, data.shape, data.classes, context.generator("init"), context.device)

    def beat(epoch: int, seen: EpochStats) -> None:
        context.report_progress((epoch + 1) / spec.training.epochs, f"epoch {epoch + 1} loss {seen.loss:.3f}")

    trainer = trainer_for(network, spec.training, context.generator("train"))
    fit(trainer, data.train.images, data.train.labels, spec.training, on_epoch=beat)
    curve = [accuracy(network, data.test.images, data.test.labels)]
    return _result(folder, curve, _balanced(network, data.test))


def _sets(context: JobContext, spec: EvaluateSpec) -> list[SyntheticSet]:
    """The sets by stage, phase by phase if there are phases, each chain as its last stage left it."""
    keys, chains = context.parents("sets"), max(1, len(spec.phases))
    size = len(keys) // chains
    parts = (keys[number * size : (number + 1) * size] for number in range(chains))
    return [one for part in parts for one in synthetic_set.newest(context.store, part)]


def _network(context: JobContext, spec: EvaluateSpec, data: Dataset) -> Network:
    network = build_network(spec.network, data.shape, data.classes, context.generator("init"), context.device)
    if spec.start == "expert":
        path = context.store.path(context.parent("experts"), trajectories.TRAJECTORIES)
        load_flat(network, trajectories.Trajectories([path]).parameters(0, 0).to(context.device))
    return network


def _balanced(network: Network, test: Split) -> float | None:
    """The balanced accuracy (percent) on a test split of uneven classes; None where the accuracy says the same."""
    if not are_uneven(torch.bincount(test.labels).tolist()):
        return None
    return balanced_accuracy(network, test.images, test.labels)


def _result(folder: Path, curve: list[float], balanced: float | None) -> NetworkOutcome:
    pq.write_table(pa.table({"link": range(1, len(curve) + 1), "accuracy": curve}), folder / RESULT)
    return NetworkOutcome(accuracy=curve[-1], curve=tuple(curve), balanced_accuracy=balanced)

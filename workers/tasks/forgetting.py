"""Forgetting scores: how often an image was classified rightly and then wrongly (Toneva et al., ICLR 2019).

An event is a presentation that is wrong when the previous presentation of the same image was right; the first
presentation cannot be one. Right or wrong is seen on the training batch itself before its update, augmented
and in training mode, which is the correctness stream every expert leaves behind; so scores come free with the
experts, or from networks trained here for the purpose.

An image that was never right has no event. Under the paper's wording its count is therefore 0, the easiest;
Toneva et al. count it as the number of epochs, the hardest. That is a setting (`never_learned`), because it
moves such images from the first partition to beyond the last.

A *partition* are the images whose scores lie in one interval. Under Table 6 a stage sees no others: neither its experts
nor its matching nor the images it starts from (the published code filters the last alone; facts 5.7).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from jobs.errors import BadInput
from jobs.outcomes import ForgettingOutcome
from jobs.specs import ForgettingSpec, NeverLearned
from workers.data import dataset as datasets
from workers.data.dataset import Dataset, Split
from workers.data.stored_images import subset
from workers.runtime.context import JobContext
from workers.store import trajectories
from workers.training.students import build_network, fit, trainer_for
from workers.training.trainer import EpochStats

COUNTS = "counts.parquet"


def count_events(right: NDArray[np.bool_], never_learned: NeverLearned) -> NDArray[np.int64]:
    """Forgetting events of each image.

    Args:
        right: bool [epochs, images], one row a presentation.
        never_learned: how an image without a right row counts: 0, or the number of epochs.

    Returns:
        int64 [images].
    """
    events: NDArray[np.int64] = (right[:-1] & ~right[1:]).sum(axis=0, dtype=np.int64)
    if never_learned == "epochs":
        events[~right.any(axis=0)] = len(right)
    return events


def score(context: JobContext, folder: Path) -> ForgettingOutcome:
    """Sum the counts over the experts' streams, or over networks trained here when there are no experts."""
    spec = context.job.spec
    assert isinstance(spec, ForgettingSpec)
    batches = context.parents("experts")
    streams = (
        [
            stream
            for key in batches
            for stream in trajectories.read_correctness(context.store.path(key, trajectories.CORRECTNESS))
        ]
        if batches
        else [_stream(context, spec, run) for run in range(spec.runs)]
    )
    counts = np.sum([count_events(stream, spec.never_learned) for stream in streams], axis=0)
    never = float((counts == 0).mean())
    if spec.levels is not None:
        data = datasets.load(context.store, context.parent("dataset"), context.device)
        counts = levels_of(counts, data.train.labels.cpu().numpy(), spec.levels)
    write_counts(folder / COUNTS, counts)
    return ForgettingOutcome(streams=len(streams), never_forgotten=never)


def levels_of(counts: NDArray[np.int64], labels: NDArray[np.int64], levels: int) -> NDArray[np.int64]:
    """The rank of each image by its count in its class, in equal levels; of equal counts the first image is lower.

    Args:
        counts: int64 [images].
        labels: int64 [images].
        levels: how many levels there are.

    Returns:
        int64 [images], in [0, levels).
    """
    found = np.empty_like(counts)
    for label in np.unique(labels):
        (images,) = np.nonzero(labels == label)
        order = images[np.argsort(counts[images], kind="stable")]
        found[order] = np.arange(len(order)) * levels // len(order)
    return found


def write_counts(path: Path, counts: NDArray[np.int64]) -> None:
    """One row per training image, in the order of the dataset artifact's training split."""
    pq.write_table(pa.table({"image": np.arange(len(counts)), "count": counts}), path)


def read_counts(path: Path) -> NDArray[np.int64]:
    """The counts by training image: int64 [images]."""
    counts: NDArray[np.int64] = pq.read_table(path, columns=["count"]).column("count").to_numpy()
    return counts


def partitioned(context: JobContext, data: Dataset, partition: tuple[int, int] | None, least: int = 0) -> Dataset:
    """The dataset with only those training images whose scores lie in a partition; the whole without one.

    Args:
        context: of a job that has the scores as a parent, if there is a partition.
        data: the whole dataset.
        partition: scores in [low, high).
        least: images that each class must keep.

    Raises:
        BadInput: there are none, or a class has fewer than `least`.
    """
    if partition is None:
        return data
    counts = read_counts(context.store.path(context.parent("forgetting"), COUNTS))
    inside = torch.from_numpy((counts >= partition[0]) & (counts < partition[1])).to(data.train.labels.device)
    labels = data.train.labels[inside]
    fewest = int(torch.bincount(labels, minlength=data.classes).min())
    if not len(labels):
        raise BadInput(
            context.job.key, "partition", partition, "no training image has such a forgetting score; widen it"
        )
    if fewest < least:
        fix = f"a class has {fewest} training images with such forgetting scores and {least} are needed; widen it"
        raise BadInput(context.job.key, "partition", partition, fix)
    return replace(data, train=Split(subset(data.train.images, inside), labels))


def share_below(context: JobContext, partition: tuple[int, int] | None) -> float | None:
    """Share of the training images (percent) that stages up to this partition have seen: Table 6's "data used"."""
    if partition is None:
        return None
    counts = read_counts(context.store.path(context.parent("forgetting"), COUNTS))
    return 100 * float((counts < partition[1]).mean())


def _stream(context: JobContext, spec: ForgettingSpec, run: int) -> NDArray[np.bool_]:
    data = datasets.load(context.store, context.parent("dataset"), context.device)
    network = build_network(spec.network, data.shape, data.classes, context.generator("init", run), context.device)
    rows: list[NDArray[np.bool_]] = []

    def keep(epoch: int, seen: EpochStats) -> None:
        assert seen.correct is not None
        rows.append(seen.correct.numpy())
        context.report_progress((run + (epoch + 1) / spec.training.epochs) / spec.runs, f"run {run} epoch {epoch + 1}")

    trainer = trainer_for(network, spec.training, context.generator("real", run))
    fit(trainer, data.train.images, data.train.labels, spec.training, on_epoch=keep, correctness=True)
    return np.stack(rows)

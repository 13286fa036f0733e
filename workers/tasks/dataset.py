"""Preparing a data set: read the source, cut the splits, fit the transform.

The held-out validation split is cut from the training split, stratified, by a permutation seeded with the spec's
`split_seed` alone, so every job of every experiment holds out the same images. ZCA and measured statistics are fitted
on what is left for training: nothing held out, and nothing of the test split, reaches an expert.

A phase of class-incremental learning is an artifact of the same form with the images of its classes alone, taken from
the whole data set's. It has the transform of the whole, so that sets of all phases live in one space; at published
constants that tells a phase nothing about classes to come, whereas ZCA and measured statistics have seen them (ours).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.errors import BadInput
from jobs.outcomes import DatasetOutcome
from jobs.specs import DatasetSpec
from workers.data import preprocess, sources
from workers.data.dataset import SPLITS, TRANSFORM, read_split, write_split
from workers.data.remembered import Memory
from workers.runtime.context import JobContext


def prepare(context: JobContext, folder: Path) -> DatasetOutcome:
    """Read the source, cut the splits, fit the transform, write the artifact.

    Which images are kept is chosen first; no other is decoded, and those of one split are in memory at a time.

    Raises:
        BadInput: the source is not (or no longer) the one the run was planned with.
    """
    spec = context.job.spec
    assert isinstance(spec, DatasetSpec)
    if spec.subset:
        return _take_phase(context, folder, spec.subset)
    source = _source(context, spec)
    facts = sources.inspect(source, Memory.beside(context.store.root))
    if facts.fingerprint != spec.fingerprint:
        raise BadInput(
            context.job.key,
            "dataset.path",
            spec.path,
            "its content changed since the run was planned; plan again",
        )
    opened = sources.open_checked(source)
    train, test = opened.train.labels, opened.test.labels
    rng = np.random.Generator(np.random.PCG64(spec.split_seed))
    held, kept = _hold_out(train, spec.validation_per_class, spec.train_per_class, rng)
    tested, _ = _hold_out(test, spec.test_per_class or len(test), None, rng)
    shape = (facts.channels, facts.height, facts.width)
    images = opened.train.pictures.pixels(shape, kept)
    transform = preprocess.make(spec.normalise, torch.from_numpy(images))
    write_split(folder / "train.arrow", images, train[kept], facts.class_names)
    del images
    for name, split, numbers in (("validation", opened.train, held), ("test", opened.test, tested)):
        pixels = split.pictures.pixels(shape, numbers)
        write_split(folder / f"{name}.arrow", pixels, split.labels[numbers], facts.class_names)
    kind = "zca" if isinstance(transform, preprocess.Zca) else "affine"
    np.savez(folder / TRANSFORM, kind=np.array(kind), **preprocess.arrays(transform))  # type: ignore[arg-type]
    return DatasetOutcome(train=len(kept), validation=len(held), test=len(tested))


def _source(context: JobContext, spec: DatasetSpec) -> sources.Source:
    """The source that a spec names; what is read of it is reported as the job's progress."""
    return sources.Source(
        layout=spec.layout,
        path=Path(spec.path) if spec.path else None,
        image_field=spec.image_field,
        label_field=spec.label_field,
        test=spec.test,
        size=spec.size,
        place=context.job.key,
        report=lambda done, total: context.report_progress(done / total, f"{done:,} of {total:,} images of a split"),
    )


def _take_phase(context: JobContext, folder: Path, subset: Sequence[int]) -> DatasetOutcome:
    """Write the images of these classes (ascending) of the parent dataset, labels counted from 0."""
    whole = context.parent("dataset")
    sizes = {}
    for name in SPLITS:
        images, labels, names = read_split(context.store.path(whole, f"{name}.arrow"))
        own = torch.isin(labels, torch.tensor(subset))
        counted = torch.searchsorted(torch.tensor(subset), labels[own])
        kept = tuple(names[label] for label in subset)
        write_split(folder / f"{name}.arrow", images[own].numpy(), counted.numpy(), kept)
        sizes[name] = len(counted)
    shutil.copyfile(context.store.path(whole, TRANSFORM), folder / TRANSFORM)
    return DatasetOutcome(**sizes)


def _hold_out(
    labels: NDArray[np.int64],
    held_per_class: int | Sequence[int],
    used_per_class: int | None,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose the images to hold out, at random in each class.

    Args:
        labels: int64 [N], the label of every image.
        held_per_class: how many to hold out, of each class or by class.
        used_per_class: how many images of each class are used at all; None uses all.
        rng: draws one permutation for each class.

    Returns:
        Indices int64 of the held-out and of the kept images, each ascending.
    """
    classes = int(labels.max()) + 1
    numbers = [held_per_class] * classes if isinstance(held_per_class, int) else held_per_class
    held_out, kept = [], []
    for label, number in zip(range(classes), numbers, strict=True):
        order = rng.permutation(np.flatnonzero(labels == label))[:used_per_class]
        held_out.append(order[:number])
        kept.append(order[number:])
    return np.sort(np.concatenate(held_out)), np.sort(np.concatenate(kept))

"""The dataset artifact: splits as uint8 Arrow with their normalisation, and the same as resident tensors.

The held-out validation split is cut from the training split, stratified, by a permutation seeded with the
spec's `split_seed` alone, so every job of every experiment holds out the same images. ZCA and measured
statistics are fitted on what is left for training: nothing held out, and nothing of the test split, reaches
an expert.

A phase of class-incremental learning is an artifact of the same form with the images of its classes alone, taken from
the whole dataset's. It has the transform of the whole, so that sets of all phases live in one space; at published
constants that tells a phase nothing about classes to come, whereas ZCA and measured statistics have seen them (ours).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.errors import BadInput
from jobs.outcomes import DatasetOutcome
from jobs.specs import DatasetSpec
from workers.data import preprocess, sources
from workers.runtime.context import JobContext
from workers.store.store import Store

SPLITS = ("train", "validation", "test")
TRANSFORM = "transform.npz"


@dataclass(frozen=True)
class Split:
    """Normalised images float32 [n, C, H, W] and labels int64 [n], resident on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """The three splits, the transform into the training space, and the classes."""

    train: Split
    validation: Split
    test: Split
    transform: preprocess.Affine | preprocess.Zca
    class_names: tuple[str, ...]

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def prepare(context: JobContext, folder: Path) -> DatasetOutcome:
    """Read the source, cut the splits, fit the transform, write the artifact.

    Raises:
        BadInput: the source is not (or no longer) the one the run was planned with.
    """
    spec = context.job.spec
    assert isinstance(spec, DatasetSpec)
    if spec.subset:
        return _take_phase(context, folder, spec.subset)
    source = sources.Source(
        layout=spec.layout,
        path=Path(spec.path) if spec.path else None,
        image_field=spec.image_field,
        label_field=spec.label_field,
        place=context.job.key,
    )
    found = sources.inspect(source).fingerprint
    if found != spec.fingerprint:
        raise BadInput(
            context.job.key,
            "dataset.path",
            spec.path,
            "its content changed since the run was planned; plan again",
        )
    context.report_progress(0.1, "reading")
    arrays = sources.read(source)
    rng = np.random.Generator(np.random.PCG64(spec.split_seed))
    held, kept = _hold_out(arrays.train_labels, spec.validation_per_class, spec.train_per_class, rng)
    tested, _ = _hold_out(arrays.test_labels, spec.test_per_class or len(arrays.test_labels), None, rng)
    context.report_progress(0.5, "fitting the transform")
    transform = preprocess.make(spec.normalise, torch.from_numpy(arrays.train_images[kept]))
    _write_split(folder / "train.arrow", arrays.train_images[kept], arrays.train_labels[kept], arrays.class_names)
    _write_split(folder / "validation.arrow", arrays.train_images[held], arrays.train_labels[held], arrays.class_names)
    _write_split(folder / "test.arrow", arrays.test_images[tested], arrays.test_labels[tested], arrays.class_names)
    kind = "zca" if isinstance(transform, preprocess.Zca) else "affine"
    np.savez(folder / TRANSFORM, kind=np.array(kind), **preprocess.arrays(transform))  # type: ignore[arg-type]
    return DatasetOutcome(train=len(kept), validation=len(held), test=len(tested))


def _take_phase(context: JobContext, folder: Path, subset: Sequence[int]) -> DatasetOutcome:
    """Write the images of these classes (ascending) of the parent dataset, labels counted from 0."""
    whole = context.parent("dataset")
    sizes = {}
    for name in SPLITS:
        images, labels, names = read_split(context.store.path(whole, f"{name}.arrow"))
        own = torch.isin(labels, torch.tensor(subset))
        counted = torch.searchsorted(torch.tensor(subset), labels[own])
        kept = tuple(names[label] for label in subset)
        _write_split(folder / f"{name}.arrow", images[own].numpy(), counted.numpy(), kept)
        sizes[name] = len(counted)
    shutil.copyfile(context.store.path(whole, TRANSFORM), folder / TRANSFORM)
    return DatasetOutcome(**sizes)


def load(store: Store, key: str, device: torch.device) -> Dataset:
    """The artifact as resident tensors; the last two used in a process stay in memory.

    Raises:
        Damaged: its files are not what they were, whether or not they were read before.
    """
    store.check(key)
    return _load(store.root, key, device)


@lru_cache(maxsize=2)
def _load(root: Path, key: str, device: torch.device) -> Dataset:
    store = Store(root)
    transform = read_transform(store.path(key, TRANSFORM))
    splits = {name: read_split(store.path(key, f"{name}.arrow")) for name in SPLITS}
    resident = {
        name: Split(transform.forward(images).to(device), labels.to(device))
        for name, (images, labels, _) in splits.items()
    }
    return Dataset(**resident, transform=transform, class_names=splits["train"][2])


def read_transform(path: Path) -> preprocess.Affine | preprocess.Zca:
    """The transform of an artifact's `transform.npz`."""
    with np.load(path, allow_pickle=False) as file:
        values = dict(file)
    return preprocess.from_arrays(str(values.pop("kind")), values)


def _hold_out(
    labels: NDArray[np.int64], held_per_class: int, used_per_class: int | None, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices held out and kept, each ascending: per class a permutation, its first held, `used` in all."""
    held, kept = [], []
    for label in range(int(labels.max()) + 1):
        order = rng.permutation(np.flatnonzero(labels == label))[:used_per_class]
        held.append(order[:held_per_class])
        kept.append(order[held_per_class:])
    return np.sort(np.concatenate(held)), np.sort(np.concatenate(kept))


def _write_split(
    path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], class_names: tuple[str, ...]
) -> None:
    shape = images.shape[1:]
    size = int(np.prod(shape))
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(images).ravel()), size)
    metadata = {"shape": ",".join(map(str, shape)), "classes": "\n".join(class_names)}
    table = pa.table({"pixels": pixels, "label": labels}).replace_schema_metadata(metadata)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_split(path: Path) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images uint8 [n, C, H, W], labels int64 [n] and the names of the classes in a split's Arrow file."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all().combine_chunks()
        shape = tuple(int(number) for number in table.schema.metadata[b"shape"].split(b","))
        names = tuple(table.schema.metadata[b"classes"].decode().split("\n"))
        if not len(table):
            return torch.empty((0, *shape), dtype=torch.uint8), torch.empty(0, dtype=torch.int64), names
        pixels = table.column("pixels").chunk(0).flatten().to_numpy().reshape(-1, *shape).copy()
        labels = table.column("label").to_numpy().copy()
    return torch.from_numpy(pixels), torch.from_numpy(labels), names

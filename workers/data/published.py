"""The files in which the published code keeps expert trajectories and distilled images: read, checked and written.

    replay_buffer_<n>.pt             a list of trajectories, each a list of epochs, each a list of parameter tensors
    images_best.pt                   images float [n, C, H, W] of the training space
    labels_best.pt                   labels int [n], or logits float [n, classes]
    lr_best.pt                       a number: the step size that was learned with them (PDD's code; written, not read)

They are pickles of strangers, so they are opened by torch's restricted unpickler alone, which builds tensors, lists and
numbers and refuses everything else. Trajectories are mapped into memory and read one at a time, so a file may be
larger than that; files of torch below 1.6 cannot be mapped and are read whole. Refused are what does not look like the
layout, tensors that claim more numbers than their file has, numbers that are not finite, and trajectories whose
snapshots are all the same, as code that ran on a CPU without copying them left them (facts 4.1).

Left out: whether the numbers suit an experiment (`jobs.imported`), and where they go (`workers.tasks.imported`).
"""

from __future__ import annotations

import hashlib
import math
import pickle
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.errors import BadInput
from jobs.kinds import ImportedSpec
from workers.data.synthetic_set import SyntheticSet
from workers.store.files import sha256_of

TRAJECTORIES_PER_FILE = 10
"""As the published code saves them."""
_SET_FILES = 2


@dataclass(frozen=True)
class PublishedExperts:
    """Trajectories of one network, by file; their tensors lie in the files until they are looked at."""

    paths: tuple[Path, ...]
    buffers: tuple[list[Any], ...]
    shapes: tuple[tuple[int, ...], ...]
    epochs: int

    def __len__(self) -> int:
        return sum(len(buffer) for buffer in self.buffers)

    def snapshots(self) -> Iterator[NDArray[np.float32]]:
        """Each trajectory as float32 [epochs + 1, parameters], one in memory at a time.

        Raises:
            BadInput: one does not look like the first one, or holds what no training leaves.
        """
        for path, buffer in zip(self.paths, self.buffers, strict=True):
            for number, trajectory in enumerate(buffer):
                yield self._snapshots(trajectory, str(path), f"trajectory {number}")

    def _snapshots(self, trajectory: object, place: str, name: str) -> NDArray[np.float32]:
        epochs = _list(trajectory, place, name)
        if len(epochs) != self.epochs + 1:
            fix = f"all trajectories must have {self.epochs + 1} snapshots, as the first one has"
            raise BadInput(place, name, f"{len(epochs)} snapshots", fix)
        rows = np.stack([self._row(epoch, place, f"{name}, epoch {at}") for at, epoch in enumerate(epochs)])
        if not np.isfinite(rows).all():
            raise BadInput(place, name, "NaN or infinite", "leave this file out; its training diverged")
        if np.array_equal(rows[0], rows[-1]):
            fix = "its snapshots are views of one network (saved from a CPU without a copy); train these experts again"
            raise BadInput(place, name, "the same at its first and its last epoch", fix)
        return rows

    def _row(self, epoch: object, place: str, name: str) -> NDArray[np.float32]:
        tensors = [_tensor(each, place, name) for each in _list(epoch, place, name)]
        if (shapes := _shapes(tensors)) != self.shapes:
            fix = f"all must be of one network, whose parameters have the shapes {_words(self.shapes)}"
            raise BadInput(place, f"{name}, shapes", _words(shapes), fix)
        return np.concatenate([tensor.float().numpy().ravel() for tensor in tensors])


def digest_of(paths: Sequence[Path]) -> str:
    """The digest of what files hold, in their order."""
    return hashlib.sha256("\n".join(sha256_of(path) for path in paths).encode()).hexdigest()


def inspect(paths: Sequence[Path], step_size: float | None = None, normalise: str = "") -> ImportedSpec:
    """Find out what files hold, without reading all of it.

    Args:
        paths: buffers of trajectories in any order, or the images and then the labels of a set.
        step_size: that was learned with the set.
        normalise: what its images were normalised with.

    Raises:
        BadInput: a file is not there, or is not what the published code writes.
    """
    if step_size is not None and not 0 < step_size < math.inf:
        raise BadInput("command line", "--step-size", step_size, "must be a number above 0")
    paths = [path.expanduser().absolute() for path in paths]
    first = _load(paths[0])
    if isinstance(first, Tensor):
        return _inspect_set(paths, step_size, normalise)
    for name, value in (("--step-size", step_size), ("--normalise", normalise or None)):
        if value is not None:
            raise BadInput("command line", name, value, "leave it out; trajectories have none")
    paths.sort(key=_in_order)
    experts = open_experts(paths)
    return ImportedSpec(
        what="experts",
        source=digest_of(paths),
        count=len(experts),
        shapes=experts.shapes,
        epochs=experts.epochs,
        files=tuple(map(str, paths)),
    )


def _inspect_set(paths: Sequence[Path], step_size: float | None, normalise: str) -> ImportedSpec:
    if len(paths) != _SET_FILES:
        fix = "a set is two files: images_best.pt, then labels_best.pt"
        raise BadInput(str(paths[0]), "files", [path.name for path in paths], fix)
    found = open_set(paths)
    return ImportedSpec(
        what="set",
        source=digest_of(paths),
        count=len(found),
        shapes=(tuple(found.images.shape[1:]),),
        classes=int(found.labels.max()) + 1,
        soft_labels=found.logits is not None,
        step_size=step_size,
        normalise=normalise,
        files=tuple(map(str, paths)),
    )


def open_experts(paths: Sequence[Path]) -> PublishedExperts:
    """Open buffers of trajectories; the first snapshot of all says of which network they are.

    Raises:
        BadInput: a file is not there, or is no list of trajectories.
    """
    buffers = tuple(_list(_load(path), str(path), "content") for path in paths)
    place, name = str(paths[0]), "trajectory 0"
    first = _list(buffers[0][0], place, name)
    if len(first) < 2:
        raise BadInput(place, name, f"{len(first)} snapshot", "must have the start and one epoch or more")
    tensors = [_tensor(each, place, f"{name}, epoch 0") for each in _list(first[0], place, f"{name}, epoch 0")]
    return PublishedExperts(tuple(paths), buffers, _shapes(tensors), len(first) - 1)


def open_set(paths: Sequence[Path]) -> SyntheticSet:
    """The images and labels of two files, class by class; the step size is not in them.

    Soft labels are logits; the class of an image is that of its largest one.

    Raises:
        BadInput: they are not images float [n, C, H, W] and labels int [n] or float [n, classes], as many of a class.
    """
    (images_path, labels_path), (images, labels) = paths, (_load(path) for path in paths)
    images = _tensor(images, str(images_path), "images")
    if images.dim() != 4 or not len(images):
        raise BadInput(str(images_path), "images", _words([images.shape]), "must be [n, channels, height, width]")
    if not bool(torch.isfinite(images).all()):
        raise BadInput(str(images_path), "images", "NaN or infinite", "leave this set out; its distillation diverged")
    logits = _logits(labels, len(images), str(labels_path))
    labels = _classes(labels, len(images), str(labels_path)) if logits is None else logits.argmax(1)
    counts = torch.bincount(labels).tolist() if int(labels.min()) >= 0 else [-1]
    if min(counts) < 1 or min(counts) != max(counts) or len(counts) < 2:
        fix = "must be classes from 0 without a gap, two or more, with as many images each"
        raise BadInput(str(labels_path), "labels", f"images by class: {counts[:20]}", fix)
    order = torch.argsort(labels, stable=True)
    soft = None if logits is None else logits[order]
    return SyntheticSet(images[order].float().contiguous(), labels[order], None, logits=soft)


def _logits(labels: object, count: int, place: str) -> Tensor | None:
    """Soft labels float32 [count, classes]; None for hard ones."""
    if not isinstance(labels, Tensor) or labels.dim() != 2:
        return None
    logits = _tensor(labels, place, "labels").float()
    if len(logits) != count or not bool(torch.isfinite(logits).all()):
        fix = f"must be finite logits [{count}, classes], one row for each image"
        raise BadInput(place, "labels", _words([logits.shape]), fix)
    return logits


def _classes(labels: object, count: int, place: str) -> Tensor:
    """Hard labels int64 [count]."""
    if not isinstance(labels, Tensor) or labels.shape != (count,) or labels.dtype not in _WHOLE:
        shown = f"{labels.dtype} {_words([labels.shape])}" if isinstance(labels, Tensor) else type(labels).__name__
        fix = f"must be one whole number for each of the {count} images, or logits [{count}, classes]"
        raise BadInput(place, "labels", shown, fix)
    return labels.long()


def write_experts(folder: Path, snapshots: Iterator[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Path]:
    """Write trajectories as the published code does, ten to a file.

    Args:
        folder: where the files go; their numbers go on after those that are there.
        snapshots: one float32 tensor [epochs + 1, parameters] per expert.
        shapes: of the parameters, in their order.

    Returns:
        The files.
    """
    sizes = [int(np.prod(shape)) for shape in shapes]
    files: list[Path] = []
    buffer: list[list[list[Tensor]]] = []

    def save() -> None:
        files.append(folder / f"replay_buffer_{len(files)}.pt")
        torch.save(buffer, files[-1])
        buffer.clear()

    for trajectory in snapshots:
        buffer.append(
            [
                [part.view(shape).clone() for part, shape in zip(row.split(sizes), shapes, strict=True)]
                for row in trajectory
            ]
        )
        if len(buffer) == TRAJECTORIES_PER_FILE:
            save()
    if buffer:
        save()
    return files


def write_set(folder: Path, images: Tensor, labels: Tensor, step_size: float | None) -> list[Path]:
    """Write a set as the published code does.

    Args:
        folder: where the files go.
        images: float32 [n, C, H, W] in the training space.
        labels: int64 [n], or soft ones: logits float32 [n, classes].
        step_size: learned with it; without one there is no lr_best.pt.

    Returns:
        The files.
    """
    contents: dict[str, Any] = {"images_best.pt": images.contiguous().clone(), "labels_best.pt": labels.clone()}
    if step_size is not None:
        contents["lr_best.pt"] = step_size
    for name, content in contents.items():
        torch.save(content, folder / name)
    return [folder / name for name in contents]


_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _load(path: Path) -> Any:
    """What a file holds, if it is tensors, lists and numbers only.

    Raises:
        BadInput: it is not there, is damaged, or names code to be run.
    """
    if not path.is_file():
        raise BadInput(str(path), "file", path.name, "is not there; name files of the published code")
    path.open("rb").close()  # whether it may be read; later errors are those of its content
    try:
        return _restricted(path)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        value = named[1] if named else "no tensors, lists and numbers"
        fix = "it names code to be run, or is damaged, and was not opened; fetch it again from somebody whom you trust"
        raise BadInput(str(path), "pickle", value, fix) from None
    except Exception as error:  # whatever a damaged file makes of the reader
        reason = str(error).strip().splitlines() or [type(error).__name__]
        fix = "is no file of torch.save, or is damaged; fetch it again"
        raise BadInput(str(path), "content", reason[0], fix) from None


def _restricted(path: Path) -> Any:
    """A file's content by torch's restricted unpickler, tensors mapped into memory where the format allows it."""
    with warnings.catch_warnings(action="ignore"):  # of pickles by other programs
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)


def _list(value: object, place: str, name: str) -> list[Any]:
    if not isinstance(value, list | tuple) or not value:
        fix = "must be a list that is not empty: a file of trajectories, of epochs, of tensors; or else two tensors"
        raise BadInput(place, name, type(value).__name__ if value else value, fix)
    return list(value)


def _tensor(value: object, place: str, name: str) -> Tensor:
    """The value as a tensor of floats that has all its numbers in its file."""
    plain = isinstance(value, Tensor) and value.layout == torch.strided and value.is_floating_point()
    if not isinstance(value, Tensor) or not plain:
        shown = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise BadInput(place, name, shown, "must be a dense tensor of floats")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        fix = "claims more numbers than its file has; fetch it again from somebody whom you trust"
        raise BadInput(place, name, _words([value.shape]), fix)
    return value.detach()


def _shapes(tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in tensors)


def _words(shapes: Sequence[Sequence[int]]) -> str:
    return ", ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)


def _in_order(path: Path) -> list[tuple[int, str]]:
    """Sorts replay_buffer_10 behind replay_buffer_2."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", path.name)]

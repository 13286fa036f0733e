"""Reading a dataset, whatever its layout: first the facts that tell whether it can be used, then the arrays.

`inspect` is what the driver calls before it plans anything: it finds out the layout, applies every check, and
describes the content in a few numbers and a fingerprint, without decoding images. `read` is what the
`dataset` job calls: the same checks, then all pixels. A dataset with a name (cifar10) may lie on disk in its
own layout, as Parquet or as class folders; `auto` takes whatever is there, if only one thing is.

The fingerprint stands for the content: the bytes of every file that is read, their names relative to the
dataset's own folder, the layout and the columns. It does not depend on where the folder lies, who owns it or
when it was written, nor on files that are not read. It is over the files as they are: unpacking a .gz changes
it.

Left out: normalisation (`workers.data.preprocess`), cutting off a validation split, and keeping the result (the
store).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from workers.data.array_files import (
    CIFAR_FOLDERS,
    DEBIAN_FASHION_MNIST,
    IDX_FOLDERS,
    Bytes,
    Labels,
    Opened,
    Shape,
    Source,
    find_cifar,
    find_idx,
    open_cifar,
    open_digits,
    open_idx,
)
from workers.data.image_files import in_threads, is_class_tree, is_tiny_archive, open_folder, open_tiny
from workers.data.parquet_files import open_parquet, parquet_files

__all__ = ["LAYOUTS", "LICENCES", "Arrays", "Facts", "Source", "fingerprint_files", "inspect", "read"]

_GENERAL = ("folder", "parquet")
_FETCH = {
    "mnist": "fetch the four idx files of MNIST, e.g. with torchvision's MNIST(download=True)",
    "fashion-mnist": "install Debian's package dataset-fashion-mnist, or use torchvision's FashionMNIST",
    "cifar10": "unpack 'CIFAR-10 python version' from the CIFAR page there, or put its Parquet files there",
    "cifar100": "unpack 'CIFAR-100 python version' from the CIFAR page there, or put its Parquet files there",
    "tiny-imagenet": "unpack the Stanford archive tiny-imagenet-200 there",
    "parquet": "name a folder with train and test in Parquet files",
    "folder": "name a folder with train/<class>/ and test/<class>/",
    "auto": "name the folder of the dataset",
}
"""What to do about a path that is not there or holds something else, by layout."""
LAYOUTS = ("digits", *_FETCH)
LICENCES = {
    "digits": "CC BY 4.0 (UCI, optical recognition of digits), by way of scikit-learn (BSD-3-Clause)",
    "mnist": "CC BY-SA 3.0",
    "fashion-mnist": "MIT",
    "cifar10": "none stated; see the terms of the source, the CIFAR page of the University of Toronto",
    "cifar100": "none stated; see the terms of the source, the CIFAR page of the University of Toronto",
    "tiny-imagenet": "the terms of ImageNet: non-commercial research and education only",
}
_UNKNOWN_LICENCE = "unknown, the owner's"


@dataclass(frozen=True)
class Facts:
    """What the driver needs to know of a dataset: the layout found on disk, image shape, images per class."""

    layout: str
    channels: int
    height: int
    width: int
    class_names: tuple[str, ...]
    train_per_class: tuple[int, ...]
    test_per_class: tuple[int, ...]
    fingerprint: str
    licence: str


@dataclass(frozen=True, eq=False)
class Arrays:
    """A dataset in memory: images uint8 [N, C, H, W], labels int64 [N] indexing `class_names`."""

    train_images: Bytes
    train_labels: Labels
    test_images: Bytes
    test_labels: Labels
    class_names: tuple[str, ...]


def inspect(source: Source) -> Facts:
    """Check a dataset and describe it; labels and picture headers are read, no picture is decoded.

    Raises: BadInput: the dataset is not there, is damaged, or cannot be trained on; the message says what to
    fix.
    """
    opened = _open(source)
    class_names = _class_names(source, opened)
    channels, height, width = _shape(source, opened)
    train_per_class, test_per_class = (
        tuple(np.bincount(split.labels, minlength=len(class_names)).tolist()) for split in (opened.train, opened.test)
    )
    return Facts(
        layout=opened.layout,
        channels=channels,
        height=height,
        width=width,
        class_names=class_names,
        train_per_class=train_per_class,
        test_per_class=test_per_class,
        fingerprint=_fingerprint(opened),
        licence=LICENCES.get(source.layout) or LICENCES.get(opened.layout, _UNKNOWN_LICENCE),
    )


def read(source: Source) -> Arrays:
    """Check a dataset and decode it.

    Raises:
        BadInput: as `inspect` does, and for a picture that turns out to be damaged when decoded.
    """
    opened = _open(source)
    class_names = _class_names(source, opened)
    shape = _shape(source, opened)
    return Arrays(
        train_images=opened.train.pictures.pixels(shape),
        train_labels=opened.train.labels,
        test_images=opened.test.pictures.pixels(shape),
        test_labels=opened.test.labels,
        class_names=class_names,
    )


def fingerprint_files(paths: Iterable[Path], root: Path) -> str:
    """The sha256, in hex, over the files' content and their names relative to `root`; their order is free."""

    def digest(path: Path) -> tuple[str, str]:
        with path.open("rb") as stream:
            return path.relative_to(root).as_posix(), hashlib.file_digest(stream, "sha256").hexdigest()

    return _sha256(sorted(in_threads(digest, paths)))


def _fingerprint(opened: Opened) -> str:
    if opened.root is not None:
        content = fingerprint_files(opened.files, opened.root)
    else:
        splits = (opened.train, opened.test)
        arrays = [array for s in splits for array in (s.pictures.pixels(s.pictures.shape()), s.labels)]
        content = _sha256([hashlib.sha256(array.tobytes()).hexdigest() for array in arrays])
    return _sha256([opened.layout, *opened.columns, content])


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _open(source: Source) -> Opened:
    if source.layout not in LAYOUTS:
        raise source.refusal(f"name one of {', '.join(LAYOUTS)}", field="dataset.layout", value=source.layout)
    if source.layout == "digits":
        return open_digits(source)
    try:
        return _recognise(source, _existing_path(source))()
    except OSError as error:
        raise source.refusal(f"make it readable: {error}") from error


def _existing_path(source: Source) -> Path:
    default = DEBIAN_FASHION_MNIST if source.layout == "fashion-mnist" else None
    path = source.path or default
    if path is None or not path.exists():
        raise source.refusal(f"{_FETCH[source.layout]}, and give its path", value=path and str(path))
    return path


def _recognise(source: Source, path: Path) -> Callable[[], Opened]:
    """The one way to open what lies at `path` that suits the layout asked for."""
    if source.layout in _GENERAL:
        return partial({"folder": open_folder, "parquet": open_parquet}[source.layout], source, path)
    found = _layouts_at(source, path)
    if source.layout == "auto":
        if len(found) == 1:
            return next(iter(found.values()))
        guess = f"it may be {' or '.join(found)}" if found else "nothing known is there"
        raise source.refusal(f"name its layout, one of {', '.join(LAYOUTS[:-1])}: {guess}")
    for layout in (source.layout, *_GENERAL):
        if layout in found:
            return found[layout]
    raise source.refusal(_FETCH[source.layout] + (f"; it holds {' or '.join(found)}" if found else ""))


def _layouts_at(source: Source, path: Path) -> dict[str, Callable[[], Opened]]:
    """Every layout `path` may have, with the way to open it; bare idx files may be either of their kind."""
    found: dict[str, Callable[[], Opened]] = {}
    for name in IDX_FOLDERS:
        if folder := find_idx(path, name):
            found[name] = partial(open_idx, source, name, folder)
    for name in CIFAR_FOLDERS:
        if folder := find_cifar(path, name):
            found[name] = partial(open_cifar, source, name, folder)
    for root in (path / "tiny-imagenet-200", path):
        if is_tiny_archive(root) or (source.layout == "tiny-imagenet" and is_class_tree(root)):
            found.setdefault("tiny-imagenet", partial(open_tiny, source, root))
    if is_class_tree(path):
        found["folder"] = partial(open_folder, source, path)
    if parquet_files(path):
        found["parquet"] = partial(open_parquet, source, path)
    return found


def _class_names(source: Source, opened: Opened) -> tuple[str, ...]:
    """The class names, counting labels if there are none, once both splits are known to have every class.

    The training labels must be 0..K-1 without a gap, because a label is an index into the network's outputs.
    """
    trained, tested = np.unique(opened.train.labels).tolist(), np.unique(opened.test.labels).tolist()
    for split, labels in (("train", trained), ("test", tested)):
        if not labels:
            raise source.refusal(f"put images into the {split} split: it is empty")
        if labels[0] < 0:
            raise source.refusal(f"label every {split} image, or leave that file out: there is label {labels[0]}")
    count = len(opened.class_names) or trained[-1] + 1
    if trained[-1] >= count:
        raise source.refusal(f"name every class: label {trained[-1]} is beyond the {count} class names")
    names = opened.class_names or tuple(map(str, range(count)))
    absent = next((i for i in range(count) if i >= len(trained) or trained[i] != i), None)
    if absent is not None:
        raise source.refusal(
            f"use the labels 0 to {count - 1} without a gap: no train image has {_label(absent, names)}"
        )
    for label in tested:
        if label >= count:
            raise source.refusal(f"give train and test the same classes: only test has label {label}")
    if untested := sorted(set(trained) - set(tested)):
        raise source.refusal(f"add test images: none has {_label(untested[0], names)}")
    if count < 2:
        raise source.refusal(f"use at least two classes: there is only {_label(0, names)}")
    return names


def _label(label: int, names: tuple[str, ...]) -> str:
    return f"label {label}" if names[label] == str(label) else f"label {label} ({names[label]})"


def _shape(source: Source, opened: Opened) -> Shape:
    """The shape of all images; RGB as soon as either split has colour."""
    train, test = opened.train.pictures.shape(), opened.test.pictures.shape()
    if train[1:] != test[1:]:
        sizes = [f"{height}x{width}" for _, height, width in (train, test)]
        raise source.refusal(f"resize the images to one size: those of train are {sizes[0]}, of test {sizes[1]}")
    return max(train[0], test[0]), *train[1:]

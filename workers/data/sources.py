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
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from jobs.datasets import DATASETS
from jobs.plugins import FORM, is_plug_in
from workers.data.layouts import Bytes, Labels, Opened, Reader, Shape, Source, Split
from workers.data.readers.array_files import NPZ
from workers.data.readers.class_folders import FOLDER, flat_hint
from workers.data.readers.image_paths import name_below, passed_over, seen_at, special_file
from workers.data.readers.metadata_files import METADATA
from workers.data.readers.parquet_files import PARQUET, SAVED
from workers.data.readers.pictures import in_threads, with_size
from workers.data.remembered import Memory, name_of, tree_state
from workers.runtime.plugins import object_named
from workers.store.files import sha256_of

__all__ = ["LAYOUTS", "Arrays", "Facts", "Source", "fingerprint_files", "inspect", "open_checked", "read"]

_GENERAL = {"folder": FOLDER, "parquet": PARQUET, "saved": SAVED, "metadata": METADATA, "npz": NPZ}
"""Layouts in which any data set may lie."""
_FETCH = {
    "parquet": "name a folder with train and test in Parquet files",
    "folder": "name a folder with train/<class>/ and test/<class>/",
    "saved": "name a folder that `save_to_disk` of the `datasets` library has written",
    "metadata": "name a folder of images with metadata.csv or metadata.jsonl",
    "npz": "name an .npz file with train_images, train_labels, test_images and test_labels",
    "auto": "name the folder of the dataset",
}
"""What to do about a path that is not there or holds something else, by layout."""
LAYOUTS = (*DATASETS, *_FETCH)
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
    notes: tuple[str, ...] = ()
    """What people should know of how it was read."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The facts as they were before `asdict` and JSON."""
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**fields)


@dataclass(frozen=True, eq=False)
class Arrays:
    """A dataset in memory: images uint8 [N, C, H, W], labels int64 [N] indexing `class_names`."""

    train_images: Bytes
    train_labels: Labels
    test_images: Bytes
    test_labels: Labels
    class_names: tuple[str, ...]


def inspect(source: Source, memory: Memory | None = None) -> Facts:
    """Check a dataset and describe it; labels and picture headers are read, no picture is decoded.

    Args:
        source: where the user says the images are.
        memory: where its facts may be remembered; they are taken from there if no file has changed since.

    Raises:
        BadInput: the dataset is not there, is damaged, or cannot be trained on; the message says what to fix.
    """
    state = None if memory is None else _state(source)
    if memory is None or state is None:
        return _inspect(source)
    known = memory.recall(_name(source, source.layout), state)
    if known is not None:
        return Facts.from_json(known)
    facts = _inspect(source)
    if _state(source) == state:
        for layout in dict.fromkeys((source.layout, facts.layout)):  # the job asks for the layout that was found
            same = replace(facts, licence=_licence(layout, facts.layout))
            memory.remember(_name(source, layout), state, asdict(same))
    return facts


def _name(source: Source, layout: str) -> str:
    """What the facts of a source are remembered by, if that layout is asked for."""
    words = (source.image_field, source.label_field, source.test, source.size)
    return name_of(layout, os.path.abspath(_path(source) or ""), *words)


def _state(source: Source) -> str | None:
    """The state of what lies at the path; None where nothing does, or a reader from outside decides what is read."""
    if is_plug_in(source.layout) or (path := _path(source)) is None or not path.exists():
        return None
    return tree_state(path.absolute())


def _inspect(source: Source) -> Facts:
    opened = open_checked(source)
    channels, height, width = _shape(source, opened)
    train_per_class, test_per_class = (
        tuple(np.bincount(split.labels, minlength=len(opened.class_names)).tolist())
        for split in (opened.train, opened.test)
    )
    cut = {f"test {source.test_share:g}"} if source.test_share is not None else set()
    marks = cut | {mark for split in (opened.train, opened.test) for mark in split.pictures.marks()}
    return Facts(
        layout=opened.layout,
        channels=channels,
        height=height,
        width=width,
        class_names=opened.class_names,
        train_per_class=train_per_class,
        test_per_class=test_per_class,
        fingerprint=_fingerprint(opened, sorted(marks)),
        licence=_licence(source.layout, opened.layout),
        notes=(*opened.notes, *_passed_over(source, opened)),
    )


def _passed_over(source: Source, opened: Opened) -> tuple[str, ...]:
    """What to say of files that lie among one's own images and are not read."""
    path = source.path if opened.layout in _GENERAL else None
    return passed_over(path, opened.files) if path is not None and path.is_dir() else ()


def open_checked(source: Source) -> Opened:
    """A dataset opened but not decoded, with a name for every class, once its labels are known to make sense.

    Raises:
        BadInput: as `inspect` does, but for the pictures, which are not looked at.
    """
    opened = _open(source)
    if source.size is not None:
        train, test = (with_size(split, source.size) for split in (opened.train, opened.test))
        opened = replace(opened, train=train, test=test)
    return replace(opened, class_names=_class_names(source, opened))


def read(source: Source) -> Arrays:
    """Check a dataset and decode all of it.

    Raises:
        BadInput: as `inspect` does, and for a picture that turns out to be damaged when decoded.
    """
    opened = open_checked(source)
    shape = _shape(source, opened)
    return Arrays(
        train_images=_all_pixels(opened.train, shape),
        train_labels=opened.train.labels,
        test_images=_all_pixels(opened.test, shape),
        test_labels=opened.test.labels,
        class_names=opened.class_names,
    )


def _all_pixels(split: Split, shape: Shape) -> Bytes:
    return split.pictures.pixels(shape, np.arange(len(split.labels)))


def fingerprint_files(paths: Iterable[Path], root: Path, known: Mapping[Path, str] = MappingProxyType({})) -> str:
    """The sha256, in hex, over the files' content and their names relative to `root`; their order is free.

    Args:
        paths: the files.
        root: a folder above all of them.
        known: the sha256 of those that were read already.
    """
    files = list(paths)
    unknown = [path for path in files if path not in known]
    digests = {**known, **dict(zip(unknown, in_threads(sha256_of, unknown), strict=True))}
    return _sha256(sorted((name_below(root, path), digests[path]) for path in files))


def _fingerprint(opened: Opened, marks: Iterable[str] = ()) -> str:
    if opened.root is not None:
        content = fingerprint_files(opened.files, opened.root, opened.digests())
    else:
        splits = (opened.train, opened.test)
        arrays = [array for s in splits for array in (_all_pixels(s, s.pictures.shape()), s.labels)]
        content = _sha256([hashlib.sha256(array.tobytes()).hexdigest() for array in arrays])
    return _sha256([opened.layout, *opened.columns, *marks, content])


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _licence(*layouts: str) -> str:
    """The licence of the first data set with a name."""
    return next((DATASETS[name].licence for name in layouts if name in DATASETS), _UNKNOWN_LICENCE)


def _open(source: Source) -> Opened:
    opened = _open_layout(source)
    if source.test is not None and opened.layout not in _GENERAL:
        fix = f"leave it out: {opened.layout} has a test split of its own"
        raise source.refusal(fix, field="dataset.test", value=source.test)
    return opened


def _open_layout(source: Source) -> Opened:
    if is_plug_in(source.layout):
        return _open_with(_plug_in(source), source)
    if source.layout not in LAYOUTS:
        known = f"name one of {', '.join(LAYOUTS)}, or the import path of a reader, {FORM}"
        raise source.refusal(known, field="dataset.layout", value=source.layout)
    if source.layout in DATASETS and DATASETS[source.layout].bundled:
        if source.path is not None:
            raise source.refusal(DATASETS[source.layout].fetch)
        return _reader(source.layout).open(source, Path())
    try:
        return _recognise(source, _existing_path(source))()
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        fix = f"make it readable, or name a folder with images alone ({where}{error.strerror or error})"
        raise source.refusal(fix) from error


def _reader(name: str) -> Reader:
    """The reader of a data set's own layout."""
    reader: Reader = object_named(DATASETS[name].reader)
    return reader


def _plug_in(source: Source) -> Reader:
    try:
        reader = object_named(source.layout)
    except ImportError as error:
        raise source.refusal(f"make it importable: {error}", field="dataset.name", value=source.layout) from error
    if not isinstance(reader, Reader):
        fix = f"name a workers.data.layouts.Reader, not a {type(reader).__name__}"
        raise source.refusal(fix, field="dataset.name", value=source.layout)
    return reader


def _open_with(reader: Reader, source: Source) -> Opened:
    """The data set that a reader from outside finds; its layout is the reader's import path."""
    path = _existing_path(source)
    found = reader.find(source, path)
    if found is None:
        raise source.refusal(f"name the folder of the dataset: {source.layout} finds nothing there")
    return replace(reader.open(source, found), layout=source.layout)


def _fetch(layout: str) -> str:
    if is_plug_in(layout):
        return "name the folder of the dataset"
    return DATASETS[layout].fetch if layout in DATASETS else _FETCH[layout]


def _path(source: Source) -> Path | None:
    """Where the data set is looked for; None if that must be said."""
    default = DATASETS[source.layout].default_path if source.layout in DATASETS else ""
    return source.path or (Path(default) if default else None)


def _existing_path(source: Source) -> Path:
    path = _path(source)
    if path is None or not path.exists():
        missing = "" if path is None else "nothing is there: "
        raise source.refusal(f"{missing}{_fetch(source.layout)}, and give its path", value=path and str(path))
    if (special := special_file(path)) is not None:
        raise source.refusal("remove it: it is a pipe, a socket or a device, and no file", value=str(special))
    return path


def _recognise(source: Source, path: Path) -> Callable[[], Opened]:
    """The one way to open what lies at `path` that suits the layout asked for."""
    if source.layout in _GENERAL:
        if source.layout not in ("folder", "metadata") and _GENERAL[source.layout].find(source, path) is None:
            raise source.refusal(f"{_fetch(source.layout)}; there is nothing of this kind, {seen_at(path)}")
        return partial(_GENERAL[source.layout].open, source, path)
    found = _layouts_at(source, path)
    if source.layout == "auto":
        if len(found) == 1:
            return next(iter(found.values()))
        if not found and (hint := flat_hint(path)):
            raise source.refusal(hint)
        guess = f"it may be {' or '.join(found)}" if found else f"nothing known is there, {seen_at(path)}"
        raise source.refusal(f"{guess}; name its layout, one of {', '.join(LAYOUTS[:-1])}")
    for layout in (source.layout, *_GENERAL):
        if layout in found:
            return found[layout]
    raise source.refusal(_fetch(source.layout) + (f"; it holds {' or '.join(found)}" if found else ""))


def _layouts_at(source: Source, path: Path) -> dict[str, Callable[[], Opened]]:
    """Every layout `path` may have, with the way to open it; bare idx files may be either of their kind."""
    readers = {name: _reader(name) for name, info in DATASETS.items() if info.reader} | _GENERAL
    found = {name: reader.find(source, path) for name, reader in readers.items()}
    return {name: partial(readers[name].open, source, at) for name, at in found.items() if at is not None}


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

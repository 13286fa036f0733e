"""A prepared data set: its three splits as uint8 Arrow files with their transform, and the same as resident tensors.

`workers.tasks.dataset` makes one of them from a source.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.data import preprocess
from workers.data.stored_images import Images, StoredImages
from workers.runtime.transfer import moved_together
from workers.store.store import Store

SPLITS = ("train", "validation", "test")
TRANSFORM = "transform.npz"


@dataclass(frozen=True)
class Split:
    """Normalised images [n, C, H, W] and labels int64 [n], resident on one device."""

    images: Images
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


def rows_by_class(labels: Tensor, classes: int) -> list[Tensor]:
    """For each class the indices int64 of its rows, ascending, on the labels' device, for which is waited once."""
    seen = labels.cpu()
    return moved_together([torch.nonzero(seen == label).flatten() for label in range(classes)], labels.device)


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
    if isinstance(transform, preprocess.Affine):
        transform = transform.to(device)
    splits, names = dict[str, Split](), tuple[str, ...]()
    for name in SPLITS:
        images, labels, names = read_split(store.path(key, f"{name}.arrow"))
        splits[name] = Split(_resident(images, transform, device), labels.to(device))
    return Dataset(**splits, transform=transform, class_names=names)


def _resident(images: Tensor, transform: preprocess.Affine | preprocess.Zca, device: torch.device) -> Images:
    """Images uint8 [n, C, H, W] on the device: as bytes, with a transform that is there too, or whitened."""
    if isinstance(transform, preprocess.Zca):
        return transform.forward(images).to(device)
    return StoredImages(images.to(device), transform)


def read_transform(path: Path) -> preprocess.Affine | preprocess.Zca:
    """The transform of an artifact's `transform.npz`."""
    with np.load(path, allow_pickle=False) as file:
        values = dict(file)
    return preprocess.from_arrays(str(values.pop("kind")), values)


def write_split(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], class_names: tuple[str, ...]) -> None:
    """Write one split as an Arrow file.

    Args:
        path: where to.
        images: uint8 [n, C, H, W].
        labels: int64 [n].
        class_names: in the order of the labels.
    """
    shape = images.shape[1:]
    size = int(np.prod(shape))
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(images).ravel()), size)
    metadata = {"shape": ",".join(map(str, shape)), **_names_to_metadata(class_names)}
    table = pa.table({"pixels": pixels, "label": labels}).replace_schema_metadata(metadata)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_split(path: Path) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images uint8 [n, C, H, W], labels int64 [n] and the names of the classes in a split's Arrow file."""
    with pa.OSFile(str(path)) as source:
        table = pa.ipc.open_file(source).read_all().combine_chunks()
        shape = tuple(int(number) for number in table.schema.metadata[b"shape"].split(b","))
        names = _names_from_metadata(table.schema.metadata)
        if not len(table):
            return torch.empty((0, *shape), dtype=torch.uint8), torch.empty(0, dtype=torch.int64), names
        pixels = table.column("pixels").chunk(0).flatten().to_numpy().reshape(-1, *shape)
        labels = table.column("label").to_numpy().copy()
    with warnings.catch_warnings():  # the memory is Arrow's own and says that it is read only
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(pixels), torch.from_numpy(labels), names


def _names_to_metadata(class_names: Sequence[str]) -> dict[str, str]:
    """Names by line, as data sets have always been stored; as JSON where a name has several lines."""
    if any("\n" in name for name in class_names):
        return {"class_names": json.dumps(list(class_names))}
    return {"classes": "\n".join(class_names)}


def _names_from_metadata(metadata: Mapping[bytes, bytes]) -> tuple[str, ...]:
    if b"class_names" in metadata:
        return tuple(json.loads(metadata[b"class_names"]))
    return tuple(metadata[b"classes"].decode().split("\n"))

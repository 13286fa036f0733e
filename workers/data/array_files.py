"""What every dataset layout opens into, and the layouts whose files hold the pixels as they are.

A layout is a way of laying a dataset out on disk. Opening one yields the labels and a promise of the pixels,
so that checking a dataset costs little and only reading it costs a decode. Here live the nouns shared by all
layouts and the three layouts without image compression: scikit-learn's digits, the idx files of the MNIST
family, and the Python pickles of CIFAR. Compressed pictures (Parquet, class folders, Tiny-ImageNet) are in
`workers.data.image_files`; which layout a path has, and whether its labels make sense, is decided in
`workers.data.sources`.

The CIFAR archives are pickles from outside, and a pickle may name any function to call. They are read by an
unpickler that resolves exactly three names, those that rebuild a numpy array; all else is refused before it
runs.
"""

from __future__ import annotations

import gzip
import math
import pickle
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jobs.errors import BadInput

Bytes = NDArray[np.uint8]
Labels = NDArray[np.int64]
Shape = tuple[int, int, int]
"""Channels, height, width."""

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its four files."""

IDX_FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
"""torchvision's folder of each dataset kept as idx files."""
CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
"""The folder each CIFAR archive unpacks into."""

_IDX_NAMES = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": tuple("T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")),
}
_IDX_MAGIC = {3: 0x00000803, 1: 0x00000801}
_CIFAR_FILES = {
    "cifar10": (
        [f"data_batch_{n}" for n in range(1, 6)],
        "test_batch",
        "batches.meta",
        "labels",
        "label_names",
    ),
    "cifar100": (["train"], "test", "meta", "fine_labels", "fine_label_names"),
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the user says the images are.

    `layout` is one of `workers.data.sources.LAYOUTS`; `path` a folder or file, None for what needs none. The two
    fields name Parquet columns and are ignored by layouts without columns. `place` is the file or option the
    user wrote this in; every refusal starts with it.
    """

    layout: str
    place: str
    path: Path | None = None
    image_field: str | None = None
    label_field: str | None = None

    def refusal(self, fix: str, *, field: str = "dataset.path", value: object = None) -> BadInput:
        """The error for something wrong with this source; `value` is the path when nothing else is given."""
        shown = value if value is not None else self.path and str(self.path)
        return BadInput(self.place, field, shown, fix)


class Pictures(Protocol):
    """The images of one split, not yet decoded."""

    def shape(self) -> Shape:
        """The shape all images share, found without decoding; raises BadInput if they share none."""

    def pixels(self, shape: Shape) -> Bytes:
        """All images decoded, uint8 [N, C, H, W]; `shape` may ask for RGB where the files are grey."""


@dataclass(frozen=True)
class Split:
    """The labels, int64 [N], and the pictures of one split, in the same order."""

    labels: Labels
    pictures: Pictures


@dataclass(frozen=True)
class Opened:
    """A dataset opened but not decoded.

    `layout` is what was found on disk. `class_names` is empty when nothing on disk says them. `files` are all
    the files that decide the content, `root` the folder their names are relative to, `columns` the Parquet
    columns read.
    """

    layout: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    root: Path | None
    files: tuple[Path, ...]
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawPictures:
    """Images that were stored as plain pixels, uint8 [N, C, H, W]."""

    array: Bytes

    def shape(self) -> Shape:
        """Channels, height and width of the stored array."""
        _, channels, height, width = self.array.shape
        return channels, height, width

    def pixels(self, shape: Shape) -> Bytes:
        """The stored array."""
        return self.array


def open_digits(source: Source) -> Opened:
    """scikit-learn's 1797 digits of 8x8, whose ink of 0..16 becomes 0..255 by rounding x * 255 / 16.

    They come without a test split. Counting within each class in the order of the file, every fourth image is
    a test image: 25 %, stratified, the same for everyone, and no random generator to agree about.
    """
    from sklearn.datasets import load_digits

    if source.path is not None:
        raise source.refusal("leave the path out: the digits come with scikit-learn")
    ink, labels = load_digits(return_X_y=True)
    images = np.rint(ink * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = labels.astype(np.int64)
    testing = every_fourth_of_class(labels)
    train, test = (Split(labels[chosen], RawPictures(images[chosen])) for chosen in (~testing, testing))
    return Opened("digits", train, test, tuple("0123456789"), None, ())


def every_fourth_of_class(labels: Labels) -> NDArray[np.bool_]:
    """True where an example is number 3, 7, 11, ... among those of its class, counted from 0."""
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        chosen[np.flatnonzero(labels == label)[3::4]] = True
    return chosen


def find_folder(path: Path, candidates: Iterable[str], sign: str) -> Path | None:
    """The first of the folders `path/candidate` that holds a file matching the glob `sign`."""
    folders = (path / candidate for candidate in candidates)
    return next((folder for folder in folders if any(folder.glob(sign))), None)


def find_idx(path: Path, name: str) -> Path | None:
    """The folder with the idx files of mnist or fashion-mnist: `path` or torchvision's folder below it."""
    inside = IDX_FOLDERS[name]
    return find_folder(path, (f"{inside}/raw", inside, "raw", "."), "train-labels*idx1-ubyte*")


def find_cifar(path: Path, name: str) -> Path | None:
    """The folder with the pickles of cifar10 or cifar100: `path` itself or the archive's folder below it."""
    return find_folder(path, (CIFAR_FOLDERS[name], "."), _CIFAR_FILES[name][2])


def open_idx(source: Source, name: str, folder: Path) -> Opened:
    """The four idx files, plain or gzipped, under torchvision's, Debian's or the original names."""
    files = {
        (split, part): _idx_file(source, folder, split, part)
        for split in ("train", "t10k")
        for part in ("images-idx3", "labels-idx1")
    }

    def split(word: str) -> Split:
        images = read_idx(source, files[word, "images-idx3"], dimensions=3)[:, None]
        labels = read_idx(source, files[word, "labels-idx1"], dimensions=1).astype(np.int64)
        if len(images) != len(labels):
            raise source.refusal(
                f"fetch the files anew: {len(images)} images but {len(labels)} labels",
                value=str(files[word, "images-idx3"]),
            )
        return Split(labels, RawPictures(images))

    return Opened(name, split("train"), split("t10k"), _IDX_NAMES[name], folder, tuple(files.values()))


def _idx_file(source: Source, folder: Path, split: str, part: str) -> Path:
    stems = (f"{split}-{part}-ubyte", f"{split}-{part.replace('-', '.')}-ubyte")
    found = (folder / f"{stem}{ending}" for stem in stems for ending in ("", ".gz"))
    file = next((path for path in found if path.is_file()), None)
    if file is None:
        raise source.refusal(f"put {stems[0]} (or {stems[0]}.gz) beside the others", value=str(folder))
    return file


def read_idx(source: Source, file: Path, dimensions: int) -> Bytes:
    """The bytes of one idx file in its own shape; the format is LeCun's: magic, sizes (big-endian), data."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise source.refusal(f"fetch the file anew: it does not unpack ({error})", value=str(file)) from error
    start = 4 * (1 + dimensions)
    if len(content) < start or int.from_bytes(content[:4], "big") != _IDX_MAGIC[dimensions]:
        raise source.refusal(f"fetch the file anew: no idx file of {dimensions} dimension(s)", value=str(file))
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    data = np.frombuffer(content, dtype=np.uint8, offset=start)
    if data.size != math.prod(sizes):
        raise source.refusal(f"fetch the file anew: {data.size} bytes of data, not {sizes}", value=str(file))
    return data.reshape(sizes).copy()  # writable, as torch wants its arrays


def open_cifar(source: Source, name: str, folder: Path) -> Opened:
    """The Python archive of CIFAR-10 or CIFAR-100 (fine labels): rows of 3072 bytes, channel by channel."""
    batches, test_batch, meta, label_key, names_key = _CIFAR_FILES[name]

    def split(words: list[str]) -> Split:
        parts = [_cifar_batch(source, folder / word, label_key) for word in words]
        images = np.concatenate([rows for rows, _ in parts]).reshape(-1, 3, 32, 32)
        return Split(np.concatenate([labels for _, labels in parts]), RawPictures(images))

    class_names = read_pickle(source, folder / meta).get(names_key)
    if not isinstance(class_names, list) or not all(isinstance(word, str) for word in class_names):
        raise source.refusal(f"unpack the archive anew: no list {names_key}", value=str(folder / meta))
    files = tuple(folder / word for word in (*batches, test_batch, meta))
    return Opened(name, split(batches), split([test_batch]), tuple(class_names), folder, files)


def _cifar_batch(source: Source, file: Path, label_key: str) -> tuple[Bytes, Labels]:
    batch = read_pickle(source, file)
    rows, labels = np.asarray(batch.get("data")), np.asarray(batch.get(label_key))
    if rows.dtype != np.uint8 or labels.dtype.kind not in "iu" or rows.shape != (len(labels), 3072):
        raise source.refusal(
            f"unpack the archive anew: expected n {label_key} and data [n, 3072] of bytes", value=str(file)
        )
    return rows, labels.astype(np.int64)


def read_pickle(source: Source, file: Path) -> dict[str, Any]:
    """The dictionary in a CIFAR pickle, keys as text; it holds arrays, numbers, text and containers only."""
    if not file.is_file():
        raise source.refusal(f"unpack the whole archive: {file.name} is missing", value=str(file.parent))
    try:
        with file.open("rb") as stream:
            content = _ArrayUnpickler(stream).load()
        named = content.items()
    except Exception as error:  # a damaged pickle can raise anything
        raise source.refusal(
            f"fetch the archive's Python version anew: not a pickle of plain arrays ({error})",
            value=str(file),
        ) from error
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in named}


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays and calls nothing else; Python 2 wrote the archives, hence latin1."""

    # numpy keeps this function in a private module that was renamed; every array knows it, though.
    _rebuild = np.empty(0).__reduce__()[0]
    _known: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _rebuild,
        ("numpy._core.multiarray", "_reconstruct"): _rebuild,
    }

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        """The three names an array needs.

        Raises:
            pickle.UnpicklingError: for every other name.
        """
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._known[module, name]

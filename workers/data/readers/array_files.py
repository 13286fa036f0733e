"""The layouts whose files hold the pixels as they are: scikit-learn's digits, idx files, CIFAR's pickles, `.npz`.

Compressed pictures (Parquet, class folders, Tiny-ImageNet) are in `workers.data.readers.pictures`; which layout a path
has, and whether its labels make sense, is decided in `workers.data.sources`.

The CIFAR archives are pickles from outside, and a pickle may name any function to call. They are read by an
unpickler that resolves exactly three names, those that rebuild a numpy array; all else is refused before it
runs.
"""

from __future__ import annotations

import gzip
import math
import pickle
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from jobs.datasets import DATASETS
from workers.data.layouts import Bytes, Labels, Opened, RawPictures, Reader, Source, Split, cut_test
from workers.data.readers.labels import numbered
from workers.data.readers.splits import choose

_IDX_MAGIC = {3: 0x00000803, 1: 0x00000801}
LARGEST_IDX = 1 << 30
"""Bytes of data in the largest idx file that is read; the largest of the MNIST family has half as many."""
HIGHEST_RATIO = 200
"""Bytes of images for each packed byte of an `.npz` file above that size; photographs have up to three."""


def open_digits(source: Source, path: Path | None = None) -> Opened:
    """scikit-learn's 1797 digits of 8x8, whose ink of 0..16 becomes 0..255 by rounding x * 255 / 16.

    They come without a test split. Counting within each class in the order of the file, every fourth image is
    a test image: 25 %, stratified, the same for everyone, and no random generator to agree about.
    """
    if source.path is not None:
        raise source.refusal("leave the path out: the digits come with scikit-learn")
    table = _digits_table()
    images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, -1].astype(np.int64)
    testing = every_fourth_of_class(labels)
    train, test = (Split(labels[chosen], RawPictures(images[chosen])) for chosen in (~testing, testing))
    return Opened("digits", train, test, tuple("0123456789"), None, ())


def _digits_table() -> NDArray[np.float64]:
    """The ink of each digit and its label, [1797, 65]: from scikit-learn's file, since its import takes a second."""
    package = find_spec("sklearn")
    file = Path(package.origin).parent / "datasets/data/digits.csv.gz" if package and package.origin else None
    if file is not None and file.is_file():
        with gzip.open(file, "rt") as lines:
            return np.loadtxt(lines, delimiter=",")
    from sklearn.datasets import load_digits

    ink, labels = load_digits(return_X_y=True)
    return np.column_stack([ink, labels])


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


def find_idx(folder: str, source: Source, path: Path) -> Path | None:
    """The folder with idx files: `path`, or torchvision's folder (`MNIST`, `FashionMNIST`) below it.

    Args:
        folder: the name of torchvision's folder.
        source: where the user says the images are.
        path: the same, as a path that exists.
    """
    return find_folder(path, (f"{folder}/raw", folder, "raw", "."), "train-labels*idx1-ubyte*")


@dataclass(frozen=True)
class Cifar:
    """The names of files and fields in an archive of CIFAR-10 or CIFAR-100."""

    name: str
    folder: str
    """What the archive unpacks into."""
    batches: tuple[str, ...]
    test_batch: str
    meta: str
    label_key: str
    names_key: str


def find_cifar(archive: Cifar, source: Source, path: Path) -> Path | None:
    """The folder with the archive's pickles: `path` itself or the archive's folder below it."""
    return find_folder(path, (archive.folder, "."), archive.meta)


def open_idx(name: str, source: Source, folder: Path) -> Opened:
    """The four idx files, plain or gzipped, under torchvision's, Debian's or the original names.

    Args:
        name: the data set's, in `jobs.datasets`.
        source: where the user says the images are.
        folder: where the files lie.
    """
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

    return Opened(name, split("train"), split("t10k"), DATASETS[name].class_names, folder, tuple(files.values()))


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
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            sizes = _idx_sizes(source, file, stream.read(4 * (1 + dimensions)), dimensions)
            data = np.frombuffer(stream.read(math.prod(sizes) + 1), dtype=np.uint8)  # one more, to see whether it ends
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise source.refusal(f"fetch the file anew: it does not unpack ({error})", value=str(file)) from error
    if data.size != math.prod(sizes):
        found = f"{data.size} bytes" if data.size < math.prod(sizes) else "more bytes"
        raise source.refusal(f"fetch the file anew: {found} of data, not {sizes}", value=str(file))
    return data.reshape(sizes).copy()  # writable, as torch wants its arrays


def _idx_sizes(source: Source, file: Path, header: bytes, dimensions: int) -> list[int]:
    """The sizes in the header of an idx file, so that no more is unpacked than there should be."""
    if len(header) < 4 * (1 + dimensions) or int.from_bytes(header[:4], "big") != _IDX_MAGIC[dimensions]:
        raise source.refusal(f"fetch the file anew: no idx file of {dimensions} dimension(s)", value=str(file))
    sizes = [int.from_bytes(header[at : at + 4], "big") for at in range(4, len(header), 4)]
    if math.prod(sizes) > LARGEST_IDX:
        fix = f"fetch the file anew: its header says {sizes}, more than the {LARGEST_IDX >> 20} MiB that are read"
        raise source.refusal(fix, value=str(file))
    return sizes


def open_cifar(archive: Cifar, source: Source, folder: Path) -> Opened:
    """The Python archive of CIFAR-10 or CIFAR-100 (fine labels): rows of 3072 bytes, channel by channel."""

    def split(words: Sequence[str]) -> Split:
        parts = [_cifar_batch(source, folder / word, archive.label_key) for word in words]
        images = np.concatenate([rows for rows, _ in parts]).reshape(-1, 3, 32, 32)
        return Split(np.concatenate([labels for _, labels in parts]), RawPictures(images))

    meta = folder / archive.meta
    class_names = read_pickle(source, meta).get(archive.names_key)
    if not isinstance(class_names, list) or not all(isinstance(word, str) for word in class_names):
        raise source.refusal(f"unpack the archive anew: no list {archive.names_key}", value=str(meta))
    files = tuple(folder / word for word in (*archive.batches, archive.test_batch, archive.meta))
    return Opened(archive.name, split(archive.batches), split([archive.test_batch]), tuple(class_names), folder, files)


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


_NPZ_SPLITS = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train")),
    "validation": (("val_images", "val_labels"), ("x_val", "y_val")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}
"""Names of the arrays of each split: MedMNIST's, and those of Keras."""


def npz_files(path: Path) -> list[Path]:
    """The `.npz` files at a path that have images of a training split."""
    files = [path] if path.is_file() else sorted(path.glob("*.npz"))
    return [file for file in files if file.suffix == ".npz" and _npz_splits(file).get("train")]


def _npz_splits(file: Path) -> dict[str, tuple[str, str]]:
    """By split, the names of its images and labels."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):  # the last of a version of zip to come
        return {}
    found = {split: [pair for pair in pairs if names >= set(pair)] for split, pairs in _NPZ_SPLITS.items()}
    return {split: pairs[0] for split, pairs in found.items() if pairs}


def open_npz(source: Source, path: Path) -> Opened:
    """The arrays of one `.npz` file: images uint8 [N, H, W] or [N, H, W, 1 or 3], and one label each."""
    files = npz_files(path)
    if len(files) > 1:
        raise source.refusal(f"choose one of these files: {' or '.join(f'path: {file}' for file in files)}")
    (file,) = files
    names = _npz_splits(file)
    chosen = choose(source, names, "the arrays train_images, train_labels, test_images and test_labels")
    splits = {chosen.train, chosen.test or chosen.train}
    for split in splits:
        _refuse_unusable(source, file, names[split])
    arrays = {split: _npz_arrays(source, file, names[split]) for split in splits}
    parts = [arrays[chosen.train], arrays[chosen.test or chosen.train]]
    try:
        labelled = numbered(parts[0][1], parts[1][1], ())
    except ValueError as error:
        raise source.refusal(str(error), value=str(file)) from error
    train, test = Split(labelled.train, RawPictures(parts[0][0])), Split(labelled.test, RawPictures(parts[1][0]))
    if chosen.test is None:
        train, test = cut_test(train, source.test_share or 0.0)
    columns = tuple(name for split in dict.fromkeys((chosen.train, chosen.test)) if split for name in names[split])
    return Opened("npz", train, test, labelled.class_names, file.parent, (file,), columns, labelled.notes)


def _refuse_unusable(source: Source, file: Path, names: tuple[str, str]) -> None:
    """Judge the images and labels of one split by their headers, before anything is unpacked."""
    try:
        with zipfile.ZipFile(file) as archive:
            (shape, dtype), (label_shape, label_dtype) = (_npy_header(archive, name) for name in names)
            packed = archive.getinfo(f"{names[0]}.npy")
    except Exception as error:  # a damaged archive can raise anything
        raise source.refusal(f"fetch the file anew: it does not unpack ({error})", value=str(file)) from error
    if dtype != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))):
        fix = f"save {names[0]} as bytes [n, height, width] or [n, height, width, 1 or 3]"
        raise source.refusal(f"{fix}, not {dtype} {list(shape)}", value=str(file))
    if not math.prod(shape):
        raise source.refusal(f"give the images pixels: {names[0]} is {list(shape)}", value=str(file))
    if math.prod(label_shape) != shape[0] or label_dtype.kind not in "iufbU":
        fix = f"give every image one label: {names[1]} is {label_dtype} {list(label_shape)} for {shape[0]} images"
        raise source.refusal(fix, value=str(file))
    if math.prod(shape) > LARGEST_IDX and math.prod(shape) > HIGHEST_RATIO * packed.compress_size:
        fix = f"fetch the file anew: {names[0]} is {list(shape)} in {packed.compress_size:,} bytes, which no images are"
        raise source.refusal(fix, value=str(file))


def _npz_arrays(source: Source, file: Path, names: tuple[str, str]) -> tuple[Bytes, NDArray[Any]]:
    """Images [N, C, H, W] and labels [N] of one split."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            images, labels = (arrays[name] for name in names)
    except Exception as error:  # as in `_refuse_unusable`
        raise source.refusal(f"fetch the file anew: it does not unpack ({error})", value=str(file)) from error
    channels_first = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(channels_first), labels.reshape(-1)


def _npy_header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and type of an array in an archive, whose numbers are not unpacked."""
    with archive.open(f"{name}.npy") as stream:
        major = npy.read_magic(stream)[0]
        shape, _, dtype = (npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0)(stream)
    return shape, dtype


_CIFAR10 = Cifar(
    name="cifar10",
    folder="cifar-10-batches-py",
    batches=tuple(f"data_batch_{n}" for n in range(1, 6)),
    test_batch="test_batch",
    meta="batches.meta",
    label_key="labels",
    names_key="label_names",
)
_CIFAR100 = Cifar(
    name="cifar100",
    folder="cifar-100-python",
    batches=("train",),
    test_batch="test",
    meta="meta",
    label_key="fine_labels",
    names_key="fine_label_names",
)
DIGITS = Reader(find=lambda source, path: None, open=open_digits)
MNIST = Reader(partial(find_idx, "MNIST"), partial(open_idx, "mnist"))
FASHION_MNIST = Reader(partial(find_idx, "FashionMNIST"), partial(open_idx, "fashion-mnist"))
CIFAR10 = Reader(partial(find_cifar, _CIFAR10), partial(open_cifar, _CIFAR10))
CIFAR100 = Reader(partial(find_cifar, _CIFAR100), partial(open_cifar, _CIFAR100))
NPZ = Reader(lambda source, path: path if npz_files(path) else None, open_npz)

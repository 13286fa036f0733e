"""Compressed pictures, and the layouts that keep them as files: class folders and the Tiny-ImageNet archive.

Wherever compressed pictures lie, here or in Parquet (`workers.data.parquet_files`), a split of them is
`EncodedPictures`: a sequence of named encoded images. Checking one reads the header of every picture (and the
checksums, where the format has them) but decodes none; a picture cut short behind a sound header is therefore found by
the decode alone, and refused then. Both name the file or the row.

Decided here: a dataset is grey only if every picture is, so one grey JPEG among colour ones becomes RGB,
never the other way round. Pictures are not resized: whoever distils them should choose how. They are turned as their
EXIF data says, which the fingerprint then tells. Sixteen-bit and floating-point pictures are refused instead of being
clipped. Hidden files, and files that are no pictures, are not there.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from jobs.errors import BadInput
from workers.data.layouts import Bytes, Opened, Reader, Shape, Source, Split, cut_test

_In = TypeVar("_In")
_Out = TypeVar("_Out")
Encoded = tuple[str, bytes | Path | None]
"""A picture's name, for errors, and its bytes or the file that holds them; None if they are missing."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
_GREY_MODES = frozenset({"1", "L", "LA"})
_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
LARGEST_PICTURE = 4096 * 4096
"""Pixels of the largest picture that is read."""
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each orientation of EXIF; 1 is upright."""
_SIDEWAYS = {_TURNS[number] for number in (5, 6, 7, 8)}
_WORDNET_ID = re.compile(r"n\d+")
_TRAIN_FOLDERS = ("train", "training")
_TEST_FOLDERS = ("test", "testing", "val", "valid", "validation", "dev", "eval")


def in_threads(work: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """`map` in threads, in order; for work that waits for a disk or lets go of the interpreter.

    Threads take sixty-four items at a time, or handing out the work would cost more than a small image does.
    """
    rest = iter(items)
    batches = iter(lambda: list(islice(rest, 64)), [])
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        for results in pool.map(lambda batch: [work(item) for item in batch], batches):
            yield from results


@dataclass(frozen=True)
class EncodedPictures:
    """`count` compressed images; each call of `encoded` walks over them anew. `colour` turns grey to RGB."""

    source: Source
    count: int
    encoded: Callable[[], Iterable[Encoded]]
    colour: bool = False

    def shape(self) -> Shape:
        """Read every header; see `workers.data.layouts.Pictures`."""
        return self._survey[0]

    def marks(self) -> tuple[str, ...]:
        """Whether any picture is turned as its EXIF data says."""
        return ("exif",) if self._survey[1] else ()

    @cached_property
    def _survey(self) -> tuple[Shape, bool]:
        """The shape that all pictures share, and whether any is to be turned."""
        first: tuple[int, int] | None = None
        colour, turned = self.colour, False
        for name, header in in_threads(self._header, self.encoded()):
            first = first or header.size
            colour, turned = colour or header.mode in _COLOUR_MODES, turned or header.turn is not None
            if header.size != first:
                raise self.source.refusal(
                    f"resize the images to one size: {name} is {_times(header.size)}, the first one {_times(first)}"
                )
        width, height = first or (0, 0)
        return (3 if colour else 1, height, width), turned

    def pixels(self, shape: Shape) -> Bytes:
        """Decode every picture; see `workers.data.layouts.Pictures`."""
        pixels = np.empty((self.count, *shape), dtype=np.uint8)
        mode = "RGB" if shape[0] == 3 else "L"

        def decode(numbered: tuple[int, Encoded]) -> None:
            index, encoded = numbered
            pixels[index] = self._try(encoded, lambda picture: _channels_first(picture, mode))

        for _ in in_threads(decode, enumerate(self.encoded())):
            pass
        return pixels

    def _header(self, encoded: Encoded) -> tuple[str, Header]:
        name, header = encoded[0], self._try(encoded, _checked_header)
        if header.mode not in _GREY_MODES | _COLOUR_MODES:
            raise self.source.refusal(f"save the images with 8 bits per channel: {name} has mode {header.mode}")
        return name, header

    def _try(self, encoded: Encoded, work: Callable[[Image.Image], _Out]) -> _Out:
        name, content = encoded
        if content is None:
            raise self.source.refusal(f"store the image's bytes in the Parquet file: {name} has none")
        try:
            with Image.open(BytesIO(content) if isinstance(content, bytes) else content) as picture:
                self._require_size(name, picture.size)
                return work(picture)
        except BadInput:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise self._too_large(f"{name} is far larger") from error
        except Exception as error:  # decoders raise whatever the damage leads them to
            raise self.source.refusal(f"replace {name}, which is no readable image ({error})") from error

    def _require_size(self, name: str, size: tuple[int, int]) -> None:
        if size[0] * size[1] > LARGEST_PICTURE:
            raise self._too_large(f"{name} has {_times(size)}")

    def _too_large(self, which: str) -> BadInput:
        fix = f"resize the images: {which}; a picture may have {LARGEST_PICTURE:,} pixels at most, as 4096x4096 has"
        return self.source.refusal(fix)


@dataclass(frozen=True)
class Header:
    """What the header of a picture says: width and height as people see it, the mode, and how it is to be turned."""

    size: tuple[int, int]
    mode: str
    turn: Image.Transpose | None


def _checked_header(picture: Image.Image) -> Header:
    (width, height), mode, turn = picture.size, picture.mode, turn_of(picture)
    picture.verify()
    return Header((height, width) if turn in _SIDEWAYS else (width, height), mode, turn)


def turn_of(picture: Image.Image) -> Image.Transpose | None:
    """How a picture must be turned to be seen as it was taken: orientation in EXIF data, read with the header.

    TIFF files have it elsewhere, and Pillow turns them itself.
    """
    data = picture.info.get("exif")
    if not data or picture.format == "TIFF":
        return None
    exif = Image.Exif()
    exif.load(data)
    return _TURNS.get(exif.get(_ORIENTATION, 1))


def _channels_first(picture: Image.Image, mode: str) -> Bytes:
    turn = turn_of(picture)
    pixels = np.asarray((picture if turn is None else picture.transpose(turn)).convert(mode))  # [H, W] or [H, W, 3]
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _times(size: tuple[int, int]) -> str:
    width, height = size
    return f"{height}x{width}"


def is_tiny_archive(path: Path) -> bool:
    """Whether `path` has Tiny-ImageNet's `train/<wnid>/images`, and not merely classes with a folder of that name."""
    classes = {images.parent.name for images in path.glob("train/*/images")}
    listed = (path / "wnids.txt").is_file() or (path / "val" / "val_annotations.txt").is_file()
    return bool(classes) and (listed or all(_WORDNET_ID.fullmatch(name) for name in classes))


def is_class_tree(path: Path) -> bool:
    """Whether `path` has pictures in `train/<class>` or below it."""
    train = split_folder(path, _TRAIN_FOLDERS)
    return train is not None and any(True for folder in folders_in(train) for _ in pictures_below(folder))


def folders_in(path: Path) -> list[Path]:
    """The folders in `path` by name, hidden ones left out; none if `path` is no folder."""
    return _visible(path, Path.is_dir)


def images_in(path: Path) -> list[Path]:
    """The pictures directly in `path` by name; none if `path` is no folder."""
    return _visible(path, lambda file: file.suffix.lower() in IMAGE_SUFFIXES)


def images_below(path: Path) -> list[Path]:
    """The pictures in `path` and all folders below it, ordered by their names and those of their folders."""
    return sorted(pictures_below(path))


def pictures_below(path: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The pictures in `path` and all folders below it, links followed, but never in a circle."""
    here = path.resolve()
    if here in above:
        return
    yield from images_in(path)
    for folder in folders_in(path):
        yield from pictures_below(folder, above | {here})


def _visible(path: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(child for child in path.iterdir() if not child.name.startswith(".") and wanted(child))


def _split_of_files(source: Source, root: Path, files: Sequence[tuple[Path, int]], colour: bool) -> Split:
    labels = np.array([label for _, label in files], dtype=np.int64)
    encoded: list[Encoded] = [(str(path.relative_to(root)), path) for path, _ in files]
    return Split(labels, EncodedPictures(source, len(files), lambda: encoded, colour))


def open_folder(source: Source, root: Path) -> Opened:
    """`train/<class>` and `test/<class>` with pictures at any depth; classes by name.

    The splits may have other usual names, in capitals too. With `dataset.test: 0.2` the test split is cut from the
    training split, or from class folders without a split.
    """
    share = source.test_share
    train = split_folder(root, _TRAIN_FOLDERS) or (root if share is not None else None)
    test = split_folder(root, (source.test.lower(),) if source.test else _TEST_FOLDERS) if share is None else None
    trained = {} if train is None else _class_folders(source, train)
    if not trained or (test is None and share is None):
        raise source.refusal(_no_split(root))
    classes, tested = sorted(trained), {} if test is None else _class_folders(source, test)
    if strangers := sorted(tested.keys() - trained.keys()):
        assert test is not None
        raise source.refusal(
            f"give train and test the same classes: {test.name} has {strangers[0]!r}, which train has not"
        )
    found = [
        [
            (path, label)
            for label, name in enumerate(classes)
            for folder in folders.get(name, ())
            for path in images_below(folder)
        ]
        for folders in (trained, tested)
    ]
    splits = [_split_of_files(source, root, files, colour=False) for files in found]
    files = tuple(path for split in found for path, _ in split)
    if share is not None:
        splits = list(cut_test(splits[0], share))
    return Opened("folder", splits[0], splits[1], tuple(classes), root, files)


def _no_split(root: Path) -> str:
    fix = "make the folders train/<class>/ and test/<class>/ in it and put the images there"
    return f"{fix}; {hint}" if (hint := flat_hint(root)) else fix


def flat_hint(root: Path) -> str:
    """What to say of class folders without a test split; '' where there are none."""
    train = split_folder(root, _TRAIN_FOLDERS)
    classes = sum(any(True for _ in pictures_below(folder)) for folder in folders_in(train or root))
    what = "no test split" if train else "no split"
    return f"there are {classes} folders of images, {what}: cut one off with dataset.test: 0.2" if classes > 1 else ""


def split_folder(root: Path, names: Sequence[str]) -> Path | None:
    """The folder of a split by the first of its usual names that is there, in small letters or capitals."""
    there = {folder.name.lower(): folder for folder in reversed(folders_in(root))}
    return next((there[name] for name in names if name in there), None)


def _class_folders(source: Source, split: Path) -> dict[str, list[Path]]:
    """The folders of each class; one name in two forms of Unicode, composed or not, is one class."""
    folders: dict[str, list[Path]] = {}
    for folder in folders_in(split):
        try:
            folder.name.encode()
        except UnicodeEncodeError as error:
            fix = f"rename the folder {os.fsencode(folder.name)!r} in {split.name}: its name is not UTF-8"
            raise source.refusal(fix) from error
        folders.setdefault(unicodedata.normalize("NFC", folder.name), []).append(folder)
    return folders


def open_tiny(source: Source, root: Path) -> Opened:
    """Tiny-ImageNet as its archive unpacks, or with `val` rearranged into class folders; tested on `val`.

    Classes are the sorted WordNet ids. In the archive the folder `val/images` holds all classes at once, so
    there the labels come from `val_annotations.txt`; taking that folder for a class would label all of them
    alike.
    """
    wnids = [folder.name for folder in folders_in(root / "train")]
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    train_files = [(path, labels[wnid]) for wnid in wnids for path in _images_of(root / "train" / wnid)]
    annotations = root / "val" / "val_annotations.txt"
    rearranged = [folder for folder in folders_in(root / "val") if folder.name in labels]
    used: tuple[Path, ...] = ()
    if rearranged:
        test_files = [(path, labels[folder.name]) for folder in rearranged for path in _images_of(folder)]
    elif annotations.is_file():
        test_files, used = _annotated(source, annotations, labels), (annotations,)
    else:
        raise source.refusal("unpack the whole archive: val/ has neither val_annotations.txt nor val/<wnid>/ folders")
    train, test = (_split_of_files(source, root, files, colour=True) for files in (train_files, test_files))
    files = (*(path for path, _ in train_files + test_files), *used)
    return Opened("tiny-imagenet", train, test, tuple(wnids), root, files)


def _images_of(folder: Path) -> list[Path]:
    return images_in(folder / "images") or images_in(folder)


def _annotated(source: Source, annotations: Path, labels: dict[str, int]) -> list[tuple[Path, int]]:
    """The validation pictures by class, then name: the order the rearranged folders have too."""
    lines = (line.split("\t") for line in annotations.read_text(encoding="utf-8").splitlines() if line.strip())
    said = {line[0]: line[1] if len(line) > 1 else "" for line in lines}
    present = {path.name: path for path in images_in(annotations.parent / "images")}
    if unknown := sorted(set(said.values()) - labels.keys()):
        raise source.refusal(f"give train and val the same classes: {annotations.name} has {unknown[0]!r}, train not")
    if odd := sorted(said.keys() ^ present.keys()):
        raise source.refusal(f"unpack the archive anew: {odd[0]} is not both in val/images and in {annotations.name}")
    return sorted(
        ((present[name], labels[wnid]) for name, wnid in said.items()),
        key=lambda pair: (pair[1], pair[0].name),
    )


def find_tiny(source: Source, path: Path) -> Path | None:
    """The folder of the archive: `tiny-imagenet-200` in `path`, or `path` itself; by name also without `images/`."""
    named = source.layout == "tiny-imagenet"
    roots = (path / "tiny-imagenet-200", path)
    return next((root for root in roots if is_tiny_archive(root) or (named and is_class_tree(root))), None)


TINY_IMAGENET = Reader(find_tiny, open_tiny)


def find_folder(source: Source, path: Path) -> Path | None:
    """`path` if it holds class folders, by splits or, where the test split is to be cut off, without."""
    if is_tiny_archive(path):
        return None
    return path if is_class_tree(path) or (source.test_share is not None and flat_hint(path)) else None


FOLDER = Reader(find_folder, open_folder)

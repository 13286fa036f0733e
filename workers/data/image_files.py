"""Compressed pictures, and the layouts that keep them as files: class folders and the Tiny-ImageNet archive.

Wherever compressed pictures lie, here or in Parquet (`workers.data.parquet_files`), a split of them is
`EncodedPictures`: a sequence of named encoded images. Checking one reads the header of every picture (and the
checksums, where the format has them) but decodes none; a picture cut short behind a sound header is therefore found by
the decode alone, and refused then. Both name the file or the row.

Decided here: a dataset is grey only if every picture is, so one grey JPEG among colour ones becomes RGB,
never the other way round. Pictures are not resized: whoever distils them should choose how. Sixteen-bit and
floating-point pictures are refused instead of being clipped. Hidden files, and files that are no pictures,
are not there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from workers.data.layouts import Bytes, Opened, Reader, Shape, Source, Split

_In = TypeVar("_In")
_Out = TypeVar("_Out")
Encoded = tuple[str, bytes | Path | None]
"""A picture's name, for errors, and its bytes or the file that holds them; None if they are missing."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
_GREY_MODES = frozenset({"1", "L", "LA"})
_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
_TEST_FOLDERS = ("test", "val", "valid", "validation")


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
        first: tuple[int, int] | None = None
        colour = self.colour
        for name, size, mode in in_threads(self._header, self.encoded()):
            first = first or size
            colour = colour or mode in _COLOUR_MODES
            if size != first:
                raise self.source.refusal(
                    f"resize the images to one size: {name} is {_times(size)}, the first one {_times(first)}"
                )
        width, height = first or (0, 0)
        return 3 if colour else 1, height, width

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

    def _header(self, encoded: Encoded) -> tuple[str, tuple[int, int], str]:
        size, mode = self._try(encoded, _checked_header)
        if mode not in _GREY_MODES | _COLOUR_MODES:
            raise self.source.refusal(f"save the images with 8 bits per channel: {encoded[0]} has mode {mode}")
        return encoded[0], size, mode

    def _try(self, encoded: Encoded, work: Callable[[Image.Image], _Out]) -> _Out:
        name, content = encoded
        if content is None:
            raise self.source.refusal(f"store the image's bytes in the Parquet file: {name} has none")
        try:
            with Image.open(BytesIO(content) if isinstance(content, bytes) else content) as picture:
                return work(picture)
        except Exception as error:  # decoders raise whatever the damage leads them to
            raise self.source.refusal(f"replace {name}, which is no readable image ({error})") from error


def _checked_header(picture: Image.Image) -> tuple[tuple[int, int], str]:
    size, mode = picture.size, picture.mode
    picture.verify()
    return size, mode


def _channels_first(picture: Image.Image, mode: str) -> Bytes:
    pixels = np.asarray(picture.convert(mode))  # [H, W] or [H, W, 3]
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _times(size: tuple[int, int]) -> str:
    width, height = size
    return f"{height}x{width}"


def is_tiny_archive(path: Path) -> bool:
    """Whether `path` has Tiny-ImageNet's `train/<wnid>/images`."""
    return any(path.glob("train/*/images"))


def is_class_tree(path: Path) -> bool:
    """Whether `path` has `train/<class>/<image>`."""
    return any(images_in(folder) for folder in folders_in(path / "train"))


def folders_in(path: Path) -> list[Path]:
    """The folders in `path` by name, hidden ones left out; none if `path` is no folder."""
    return _visible(path, Path.is_dir)


def images_in(path: Path) -> list[Path]:
    """The pictures directly in `path` by name; none if `path` is no folder."""
    return _visible(path, lambda file: file.suffix.lower() in IMAGE_SUFFIXES)


def _visible(path: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(child for child in path.iterdir() if not child.name.startswith(".") and wanted(child))


def _split_of_files(source: Source, root: Path, files: Sequence[tuple[Path, int]], colour: bool) -> Split:
    labels = np.array([label for _, label in files], dtype=np.int64)
    encoded: list[Encoded] = [(str(path.relative_to(root)), path) for path, _ in files]
    return Split(labels, EncodedPictures(source, len(files), lambda: encoded, colour))


def open_folder(source: Source, root: Path) -> Opened:
    """`train/<class>/*` and `test/<class>/*` (or val, valid, validation); classes sorted by name."""
    classes = [folder.name for folder in folders_in(root / "train")]
    test = next((root / word for word in _TEST_FOLDERS if (root / word).is_dir()), None)
    if not classes or test is None:
        raise source.refusal("make the folders train/<class>/ and test/<class>/ in it and put the images there")
    strangers = [folder.name for folder in folders_in(test) if folder.name not in classes]
    if strangers:
        raise source.refusal(
            f"give train and test the same classes: {test.name} has {strangers[0]!r}, which train has not"
        )
    found = [
        [(path, label) for label, name in enumerate(classes) for path in images_in(folder / name)]
        for folder in (root / "train", test)
    ]
    train, tested = (_split_of_files(source, root, files, colour=False) for files in found)
    files = tuple(path for split in found for path, _ in split)
    return Opened("folder", train, tested, tuple(classes), root, files)


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
FOLDER = Reader(lambda source, path: path if is_class_tree(path) else None, open_folder)

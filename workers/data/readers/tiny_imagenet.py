"""The Tiny-ImageNet archive: class folders of its own form, whose validation labels stand in a text file."""

from __future__ import annotations

import re
from pathlib import Path

from workers.data.layouts import Opened, Reader, Source
from workers.data.readers.image_paths import folders_in, images_in, is_class_tree
from workers.data.readers.pictures import digests_of, split_of_files

_WORDNET_ID = re.compile(r"n\d+")


def is_tiny_archive(path: Path) -> bool:
    """Whether `path` has Tiny-ImageNet's `train/<wnid>/images`, and not merely classes with a folder of that name."""
    classes = {images.parent.name for images in path.glob("train/*/images")}
    listed = (path / "wnids.txt").is_file() or (path / "val" / "val_annotations.txt").is_file()
    return bool(classes) and (listed or all(_WORDNET_ID.fullmatch(name) for name in classes))


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
    train, test = (split_of_files(source, root, files, colour=True) for files in (train_files, test_files))
    files = (*(path for path, _ in train_files + test_files), *used)
    return Opened("tiny-imagenet", train, test, tuple(wnids), root, files, digests=digests_of(train, test))


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

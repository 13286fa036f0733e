"""Where pictures lie: the folders and the picture files below a path. What is hidden, or no picture, is not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from workers.data.readers import splits

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})


def is_class_tree(path: Path) -> bool:
    """Whether `path` has pictures in `train/<class>` or below it."""
    train = split_folder(path, splits.TRAIN)
    return train is not None and any(True for folder in folders_in(train) for _ in pictures_below(folder))


def split_folder(root: Path, names: Sequence[str]) -> Path | None:
    """The folder of a split by the first of its usual names that is there, in small letters or capitals."""
    there = {folder.name.lower(): folder for folder in reversed(folders_in(root))}
    return next((there[name] for name in names if name in there), None)


def folders_in(path: Path) -> list[Path]:
    """The folders in `path` by name, hidden ones left out; none if `path` is no folder."""
    return _visible(path, lambda entry: entry.is_dir())


def images_in(path: Path) -> list[Path]:
    """The pictures directly in `path` by name; none if `path` is no folder."""
    return _visible(path, lambda entry: os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES)


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


def name_below(root: Path, path: Path) -> str:
    """The name of a file relative to a folder above it; `relative_to` takes ten times as long."""
    text, above = str(path), os.path.join(root, "")
    return text.removeprefix(above) if text.startswith(above) else path.relative_to(root).as_posix()


def _visible(path: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> list[Path]:
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        return [path / name for name in sorted(e.name for e in entries if not e.name.startswith(".") and wanted(e))]

"""Where pictures lie: the folders and the picture files below a path. What is hidden, or no picture, is not there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path

from workers.data.readers import splits

MOST_LOOKED_AT = 10_000
"""Files that are counted to say what lies in a folder."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


def is_class_tree(path: Path) -> bool:
    """Whether `path` has pictures in `train/<class>` or below it."""
    return bool(training_folders(path))


def training_folders(path: Path) -> list[Path]:
    """The folders with the usual names of a training split that hold class folders; one of pictures is a class."""
    named = split_folders(path, splits.TRAIN)
    return [train for train in named if any(True for folder in folders_in(train) for _ in pictures_below(folder))]


def split_folders(root: Path, names: Sequence[str]) -> list[Path]:
    """The folders with one of these names in small letters or capitals, in the order of the names."""
    return [folder for name in names for folder in reversed(folders_in(root)) if folder.name.lower() == name]


def folders_in(path: Path) -> list[Path]:
    """The folders in `path` by name, hidden ones left out; none if `path` is no folder."""
    return _visible(path, lambda entry: entry.is_dir())


def images_in(path: Path) -> list[Path]:
    """The pictures directly in `path` by name; none if `path` is no folder."""
    return _visible(path, lambda entry: entry.name.lower().endswith(IMAGE_SUFFIXES))


def images_below(path: Path) -> list[Path]:
    """The pictures in `path` and all folders below it, ordered by their names and those of their folders."""
    return sorted(pictures_below(path)) if folders_in(path) else images_in(path)  # which are sorted


def pictures_below(path: Path, visited: set[Path] | None = None) -> Iterator[Path]:
    """The pictures in `path` and all folders below it, links followed, each folder once however many links lead there.

    Args:
        path: the folder.
        visited: folders that are left out; those that were entered are added.
    """
    visited = set() if visited is None else visited
    here = path.resolve()
    if here in visited:
        return
    visited.add(here)
    yield from images_in(path)
    for folder in folders_in(path):
        yield from pictures_below(folder, visited)


def special_file(path: Path) -> Path | None:
    """A pipe, a socket or a device at or below a path, which might be read for ever; None if there is none."""
    if not path.is_dir():
        return path if path.exists() and not path.is_file() else None
    with os.scandir(path) as entries:
        others = [entry for entry in entries if not entry.name.startswith(".") and not entry.is_file()]
    inner = (special_file(path / entry.name) for entry in others if not (entry.is_symlink() and entry.is_dir()))
    return next((special for special in inner if special is not None), None)


def name_below(root: Path, path: Path) -> str:
    """The name of a file relative to a folder above it; `relative_to` takes ten times as long."""
    text, above = str(path), f"{root}{os.sep}"
    return text[len(above) :] if text.startswith(above) else path.relative_to(root).as_posix()


def passed_over(root: Path, used: Collection[Path]) -> tuple[str, ...]:
    """One line that counts the files below a folder that are not used; none if all are. Hidden ones do not count."""
    names = set(map(str, used))
    others = [name for name in _files_below(root) if name not in names]
    return (f"passed over: {_counted(len(others), 'file')} ({_kinds(others)})",) if others else ()


def seen_at(path: Path) -> str:
    """What lies at a path, in a few words."""
    if not path.is_dir():
        return f"it is a {path.suffix or 'file without an ending'}"
    folders, files = folders_in(path), list(islice(_files_below(path), MOST_LOOKED_AT))
    more = "more than " if len(files) == MOST_LOOKED_AT else ""
    names = ", ".join([*(folder.name for folder in folders[:5]), *(["..."] if len(folders) > 5 else [])])
    what = f"{_counted(len(folders), 'folder')}{_in_brackets(names)}"
    return f"it has {what} and in all {more}{_counted(len(files), 'file')}{_in_brackets(_kinds(files))}"


def _files_below(folder: Path) -> Iterator[str]:
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(here, name) for name in sorted(files) if not name.startswith("."))


def _kinds(files: Sequence[str]) -> str:
    """How many files have which ending, the most first."""
    endings = Counter(os.path.splitext(name)[1].lower() or os.path.basename(name) for name in files)
    shown = [f"{count:,} {ending}" for ending, count in endings.most_common(4)]
    rest = len(files) - sum(count for _, count in endings.most_common(4))
    return ", ".join([*shown, *([f"{rest:,} others"] if rest else [])])


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _visible(path: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> list[Path]:
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        return [path / name for name in sorted(e.name for e in entries if not e.name.startswith(".") and wanted(e))]

"""Class folders: one folder for each class, below the folders of the splits or, with a share for testing, without.

Pictures may lie at any depth in the folder of their class.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from workers.data.layouts import Opened, Reader, Source, cut_test
from workers.data.readers import splits
from workers.data.readers.image_paths import (
    folders_in,
    images_below,
    is_class_tree,
    pictures_below,
    split_folders,
    training_folders,
)
from workers.data.readers.metadata_files import is_labelled_by_metadata
from workers.data.readers.pictures import digests_of, split_of_files
from workers.data.readers.tiny_imagenet import is_tiny_archive


def open_folder(source: Source, root: Path) -> Opened:
    """`train/<class>` and `test/<class>` with pictures at any depth; classes by name.

    The splits may have other usual names, in capitals too. With `dataset.test: 0.2` the test split is cut from the
    training split, or from class folders without a split.
    """
    share = source.test_share
    empty = split_folders(root, splits.TRAIN) if share is None else [root]
    train = _the_one(source, training_folders(root)) or next(iter(empty), None)
    test = _test_folder(source, root) if share is None else None
    trained = {} if train is None else _class_folders(source, train)
    if not trained or (test is None and share is None):
        raise source.refusal(_no_split(root))
    classes, tested = sorted(trained), {} if test is None else _class_folders(source, test)
    if strangers := sorted(tested.keys() - trained.keys()):
        assert test is not None
        raise source.refusal(
            f"give train and test the same classes: {test.name} has {strangers[0]!r}, which train has not"
        )
    labelled = [
        [
            (path, label)
            for label, name in enumerate(classes)
            for folder in folders.get(name, ())
            for path in images_below(folder)
        ]
        for folders in (trained, tested)
    ]
    parts = [split_of_files(source, root, files, colour=False) for files in labelled]
    digests = digests_of(*parts)
    if share is not None:
        parts = list(cut_test(parts[0], share))
    files = tuple(path for files in labelled for path, _ in files)
    return Opened("folder", parts[0], parts[1], tuple(classes), root, files, digests=digests)


def _test_folder(source: Source, root: Path) -> Path | None:
    """The folder of the test split by the first of its names that is there."""
    by_name = (split_folders(root, [name]) for name in splits.words_for_test(source.test))
    return _the_one(source, next((folders for folders in by_name if folders), []))


def _the_one(source: Source, folders: Sequence[Path]) -> Path | None:
    """The only folder of a split; None if there is none.

    Raises:
        BadInput: there are two, such as Train beside train, and only one of them would be read.
    """
    if len(folders) > 1:
        names = " and ".join(folder.name for folder in folders)
        raise source.refusal(f"keep one of {names}, which are folders of the same split, and move the other away")
    return next(iter(folders), None)


def _no_split(root: Path) -> str:
    fix = "make the folders train/<class>/ and test/<class>/ in it and put the images there"
    return f"{fix}; {hint}" if (hint := flat_hint(root)) else fix


def flat_hint(root: Path) -> str:
    """What to say of class folders without a test split; '' where there are none."""
    train = next(iter(training_folders(root)), None)
    classes = sum(any(True for _ in pictures_below(folder)) for folder in folders_in(train or root))
    what = "no test split" if train else "no split"
    return f"there are {classes} folders of images, {what}: cut one off with dataset.test: 0.2" if classes > 1 else ""


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


def find_folder(source: Source, path: Path) -> Path | None:
    """`path` if it holds class folders, by splits or, where the test split is to be cut off, without."""
    if is_tiny_archive(path) or is_labelled_by_metadata(path):
        return None
    return path if is_class_tree(path) or (source.test_share is not None and flat_hint(path)) else None


FOLDER = Reader(find_folder, open_folder)

"""Pictures in a folder with their labels in `metadata.csv` or `metadata.jsonl`, as `datasets` has it for image folders.

Each line names a picture relative to the file's own folder, in `file_name`, and has its label in another column. The
folders that the pictures lie in tell their splits. Folders of several classes go before such a file.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.data.layouts import Opened, Reader, Source, cut_test
from workers.data.readers import labels
from workers.data.readers.image_paths import folders_in, name_below, pictures_below, split_folders
from workers.data.readers.pictures import digests_of, split_of_files
from workers.data.readers.splits import NAMES, TRAIN, choose, split_of

_NAMES = ("metadata.csv", "metadata.jsonl")
_SPLITS = frozenset(word for words in NAMES.values() for word in words)
_FILE = "file_name"
_LABELS = ("label", "fine_label", "class")
_Row = tuple[Path, Any]
"""A picture and the value of its label."""


def metadata_files(path: Path) -> list[Path]:
    """The metadata in a folder, or in those of its splits."""
    splits = [folder for folder in folders_in(path) if folder.name.lower() in _SPLITS]
    return [file for folder in (path, *splits) for name in _NAMES if (file := folder / name).is_file()]


def is_labelled_by_metadata(path: Path) -> bool:
    """Whether there are pictures with metadata, and not in folders of several classes."""
    files = metadata_files(path)
    if not any(True for file in files for _ in pictures_below(file.parent)):
        return False
    train = next(iter(split_folders(path, TRAIN)), None)
    folders = [folder for folder in folders_in(train or path) if train or folder.name.lower() not in _SPLITS]
    return sum(any(True for _ in pictures_below(folder)) for folder in folders) < 2


def open_metadata(source: Source, root: Path) -> Opened:
    """The pictures that the metadata names; the sorted set of labels are the classes, unless they count from 0."""
    files = metadata_files(root)
    if not files:
        raise source.refusal(f"put {' or '.join(_NAMES)} beside the pictures, with a column {_FILE}")
    rows: dict[str, list[_Row]] = {}
    for file in files:
        label = _label_column(source, file)
        for picture, value in _rows(source, root, file, label):
            rows.setdefault(_split(root, picture), []).append((picture, value))
    _refuse_twice(source, root, rows)
    chosen = choose(source, rows, "train/metadata.csv and test/metadata.csv")
    parts = [rows[chosen.train], rows[chosen.test or chosen.train]]
    values = np.split(_values([value for part in parts for _, value in part]), [len(parts[0])])
    try:
        labelled = labels.numbered(values[0], values[1], ())
    except ValueError as error:
        raise source.refusal(str(error), field="dataset.label_field", value=source.label_field) from error
    train, test = (
        split_of_files(source, root, [(row[0], int(number)) for row, number in zip(part, numbers, strict=True)], False)
        for part, numbers in zip(parts, (labelled.train, labelled.test), strict=True)
    )
    digests = digests_of(train) if chosen.test is None else digests_of(train, test)
    if chosen.test is None:
        train, test = cut_test(train, source.test_share or 0.0)
        parts = parts[:1]
    used = (*(path for part in parts for path, _ in part), *files)
    return Opened("metadata", train, test, labelled.class_names, root, used, (label,), labelled.notes, digests=digests)


def _split(root: Path, picture: Path) -> str:
    """The split of the first folder with the plain name of one, else of the first whose name has a word for one."""
    folders = picture.parent.relative_to(root).parts
    plain = [folder for folder in folders if folder.lower() in _SPLITS]
    return next((split for name in (*plain, *folders) if (split := split_of(PurePath(name)))), "")


def _refuse_twice(source: Source, root: Path, rows: dict[str, list[_Row]]) -> None:
    """Refuse a picture in two lines, which would count twice, or in two classes."""
    seen: set[Path] = set()
    for picture, _ in (row for split in rows.values() for row in split):
        if picture in seen:
            raise source.refusal(f"name every picture once in the metadata: {name_below(root, picture)} is there twice")
        seen.add(picture)


def _label_column(source: Source, file: Path) -> str:
    """The column of the labels: the one asked for, else the first of the usual ones."""
    names = [name for name in next(_lines(source, file), {}) if name is not None]  # as CSV names what is too much
    wanted = (source.label_field,) if source.label_field else _LABELS
    column = next((name for name in wanted if name in names), None)
    if column is None or _FILE not in names:
        fix = f"give {file.name} the columns {_FILE} and {wanted[0]}; it has {', '.join(names) or 'none'}"
        raise source.refusal(fix, field="dataset.label_field", value=source.label_field)
    return column


def _rows(source: Source, root: Path, file: Path, label: str) -> Iterator[_Row]:
    for number, line in enumerate(_lines(source, file), start=1):
        name = str(line.get(_FILE) or "")
        picture = file.parent / name
        if name.startswith("/") or ".." in picture.parts or not picture.is_file():
            fix = f"put the picture there: line {number} of {name_below(root, file)} names {line.get(_FILE)!r}"
            raise source.refusal(fix)
        if line.get(label) in (None, ""):
            fix = f"give every picture a label: line {number} of {name_below(root, file)} has none"
            raise source.refusal(fix, field="dataset.label_field", value=label)
        if not isinstance(line[label], str | int | float):
            fix = f"write labels as numbers or words: line {number} of {name_below(root, file)} has {line[label]!r}"
            raise source.refusal(fix, field="dataset.label_field", value=label)
        yield picture, line[label]


def _lines(source: Source, file: Path) -> Iterator[dict[str, Any]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            if file.suffix == ".csv":
                yield from csv.DictReader(stream)
            else:
                yield from (dict(json.loads(line)) for line in stream if line.strip())
    except (ValueError, TypeError, csv.Error) as error:
        raise source.refusal(f"fix {file.name}, which cannot be read ({error})") from error


def _values(values: list[Any]) -> NDArray[Any]:
    """Labels as an array: of integers where all of them are, also in the text of a CSV file.

    Texts stay words where two of them are one number, as 01 and 1 are.
    """
    texts = set(map(str, values))
    if all(re.fullmatch(r"-?\d{1,18}", text) for text in texts) and len(set(map(int, texts))) == len(texts):
        return np.array([int(value) for value in values], dtype=np.int64)
    kinds = {type(value) for value in values}
    return np.array(values) if kinds <= {int, float} or kinds == {bool} else np.array(list(map(str, values)))


METADATA = Reader(lambda source, path: path if is_labelled_by_metadata(path) else None, open_metadata)

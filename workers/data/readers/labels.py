"""From the values of a label column to labels 0..K-1: numbers, words, truth values, and classes that are left out.

Integers that count the classes 0..K-1 are taken as they are. Of all others the sorted set of training values are the
classes, as the names of folders are: words, whole floats, truth values, integers that start at 1 or have gaps, and the
labels of a filtered data set whose schema still names every class.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.data.layouts import Labels

_TOO_LARGE = 2**62
"""Where numbers are no labels any more; floats have lost their last digits long before."""


@dataclass(frozen=True)
class Labelled:
    """Labels int64 of both splits, the names of their classes ('()' if nothing names them), and what to say of them."""

    train: Labels
    test: Labels
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def numbered(train: NDArray[Any], test: NDArray[Any], names: Sequence[str]) -> Labelled:
    """The labels of two splits.

    Args:
        train: the values of the training split, of integers, whole floats, truth values or words.
        test: those of the test split.
        names: the class names in the schema, if any; they are those of integers alone.

    Returns:
        The labels. Integers that cannot be labels (negative ones, or beyond the names) come back as they are.

    Raises:
        ValueError: a number is not whole or too large, the splits have labels of other types, or the test split has
            a value that no training image has.
    """
    train, test = _plain(train), _plain(test)
    if (train.dtype.kind == "U") != (test.dtype.kind == "U"):
        kinds = ["words" if values.dtype.kind == "U" else "numbers" for values in (train, test)]
        raise ValueError(f"write the labels of both splits alike: those of train are {kinds[0]}, of test {kinds[1]}")
    present, names = np.unique(train), names if train.dtype.kind == "i" else ()
    if train.dtype.kind == "i" and not _can_be_mapped(train, test, names):
        return Labelled(train, test, tuple(names))
    if strangers := sorted(set(test.tolist()) - set(present.tolist())):
        raise ValueError(f"give train and test the same classes: only test has label {strangers[0]!r}")
    labels = np.searchsorted(present, train), np.searchsorted(present, test)
    kept = tuple(names[value] for value in present) if names else tuple(map(str, present.tolist()))
    left_out = [name for number, name in enumerate(names) if number not in set(present.tolist())]
    notes: tuple[str, ...] = ()
    if left_out:
        notes = (f"{len(left_out)} of {len(names)} classes have no image and are left out: {_few(left_out)}",)
    elif train.dtype.kind == "i":
        notes = (f"the labels do not count from 0, or have gaps: the classes are {_few(kept)}",)
    return Labelled(labels[0], labels[1], kept, notes)


def _can_be_mapped(train: Labels, test: Labels, names: Sequence[str]) -> bool:
    """Whether integers are not 0..K-1 yet, and neither hidden (-1) nor beyond the names."""
    if not len(train) or not len(test) or min(train.min(), test.min()) < 0:
        return False
    if names and max(train.max(), test.max()) >= len(names):
        return False
    return len(np.unique(train)) != (len(names) or int(train.max()) + 1)


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    """Integers as int64, whole floats too; words in one form of Unicode."""
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and (values == np.round(values)).all()):
            raise ValueError("write labels as whole numbers or words: some of them have fractions")
    if values.dtype.kind in "iuf":
        if len(values) and max(-float(values.min()), float(values.max())) >= _TOO_LARGE:
            raise ValueError(f"write labels as smaller numbers, or as words: some of them are {_TOO_LARGE:,} or more")
        return values.astype(np.int64)
    if values.dtype.kind == "b":
        return values
    return np.array([unicodedata.normalize("NFC", str(word)) for word in values], dtype=str)


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"

"""What every layout of a data set opens into, and what a reader of a layout is.

A layout is a way of laying a data set out on disk. Opening one yields the labels and a promise of the pixels, so that
checking a data set costs little and only reading it costs a decode. A reader from outside of this project is an object
with the two functions of `Reader`, named by its import path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from jobs.errors import BadInput

Bytes = NDArray[np.uint8]
Labels = NDArray[np.int64]
Shape = tuple[int, int, int]
"""Channels, height, width."""


def _nobody(done: int, total: int) -> None:
    return None


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
    test: str | None = None
    """The split to test on by its name, or the share of the training split that is cut off for it, such as 0.2."""
    size: int | None = None
    """The side in pixels that all pictures are brought to; None takes them as they are."""
    report: Callable[[int, int], object] = _nobody
    """Told while pictures are read: how many of a split so far, and how many it has."""

    @property
    def test_share(self) -> float | None:
        """The share to cut off for testing; None where a split is named, or nothing is said.

        Raises:
            BadInput: it is no share.
        """
        try:
            share = float(self.test or "")
        except ValueError:
            return None
        if not 0 < share < 1:
            fix = "give a share between 0 and 1, or the name of a split"
            raise self.refusal(fix, field="dataset.test", value=self.test)
        return share

    def refusal(self, fix: str, *, field: str = "dataset.path", value: object = None) -> BadInput:
        """The error for something wrong with this source; `value` is the path when nothing else is given."""
        shown = value if value is not None else self.path and str(self.path)
        return BadInput(self.place, field, shown, fix)


class Pictures(Protocol):
    """The images of one split, not yet decoded."""

    def shape(self) -> Shape:
        """The shape all images share, found without decoding; raises BadInput if they share none."""

    def pixels(self, shape: Shape, numbers: Labels) -> Bytes:
        """The images of these numbers, which ascend, decoded: uint8 [n, C, H, W].

        Of no other image the pixels are needed. `shape` may ask for RGB where the files are grey.
        """

    def marks(self) -> tuple[str, ...]:
        """What decoding does that the bytes of the files alone do not tell; enters the fingerprint."""


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
    notes: tuple[str, ...] = ()
    """What people should know of how it was read."""
    digests: Callable[[], Mapping[Path, str]] = dict
    """The sha256 of those files that finding the shapes of the pictures reads whole, so that none is read twice."""


@dataclass(frozen=True)
class RawPictures:
    """Images that were stored as plain pixels, uint8 [N, C, H, W]."""

    array: Bytes

    def shape(self) -> Shape:
        """Channels, height and width of the stored array."""
        _, channels, height, width = self.array.shape
        return channels, height, width

    def pixels(self, shape: Shape, numbers: Labels) -> Bytes:
        """These images of the stored array."""
        return self.array[numbers]

    def marks(self) -> tuple[str, ...]:
        """None: the pixels are taken as they are."""
        return ()


@dataclass(frozen=True)
class ChosenPictures:
    """Some of the images of a split, by their numbers int64 [n], which ascend."""

    whole: Pictures
    numbers: Labels

    def shape(self) -> Shape:
        """That of all images of the split."""
        return self.whole.shape()

    def pixels(self, shape: Shape, numbers: Labels) -> Bytes:
        """These of the chosen images decoded."""
        return self.whole.pixels(shape, self.numbers[numbers])

    def marks(self) -> tuple[str, ...]:
        """Those of the split."""
        return self.whole.marks()


def share_of_class(labels: Labels, share: float) -> NDArray[np.bool_]:
    """Which images of a split are cut off for testing: evenly spaced among those of each class, bool [N].

    A quarter is every fourth of a class: number 3, 7, 11 and so on, counted from 0.
    """
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        (own,) = np.nonzero(labels == label)
        before = np.floor(np.arange(len(own) + 1) * share + 1e-9)
        chosen[own[before[1:] > before[:-1]]] = True
    return chosen


def cut_test(whole: Split, share: float) -> tuple[Split, Split]:
    """The training and the test split that one split becomes."""
    chosen = share_of_class(whole.labels, share)
    numbers = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    return (
        Split(whole.labels[numbers[0]], ChosenPictures(whole.pictures, numbers[0])),
        Split(whole.labels[numbers[1]], ChosenPictures(whole.pictures, numbers[1])),
    )


@dataclass(frozen=True)
class Reader:
    """How a layout is recognised and read."""

    find: Callable[[Source, Path], Path | None]
    """The folder or file with the data set at a path or below it; None if this layout is not there."""
    open: Callable[[Source, Path], Opened]
    """Opens what `find` found; raises BadInput where it is damaged or incomplete."""

"""Data sets: what is known of those with a name, and what a plan must know of any.

`DATASETS` says all there is to say about a data set by its name: shape, classes, counts, published statistics,
licence, where to get it, and which object of `workers.data` reads the files of its own layout. To add one, add an
entry, and a module with a reader if its files are neither Parquet nor class folders. A data set of one's own needs no
entry: it is named by the import path of its reader, `package.module:Name`.

Where a data set is absent its entry stands in, with a fingerprint that no real copy has: what is planned with it can be
priced but never run, and a copy that comes later gets keys of its own.

Left out: the images (`workers.data.sources`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and deviation of [0, 1] pixels, by channel."""


class Facts(Protocol):
    """What a plan must know of a data set; `workers.data.sources.inspect` finds it out, this package only reads it."""

    @property
    def layout(self) -> str:
        """The way it lies on disk."""

    @property
    def channels(self) -> int:
        """1 or 3."""

    @property
    def height(self) -> int:
        """Of an image in pixels."""

    @property
    def width(self) -> int:
        """Of an image in pixels."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels."""

    @property
    def train_per_class(self) -> tuple[int, ...]:
        """Training images of each class, before any is held out."""

    @property
    def fingerprint(self) -> str:
        """Digest of the content."""


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """A data set with a name; as `Facts` it holds the published numbers, and a fingerprint of no real copy."""

    name: str
    channels: int
    size: int
    """Side of the square images in pixels."""
    class_names: tuple[str, ...]
    train_per_class: tuple[int, ...]
    licence: str
    fetch: str
    """What to do where it is not there."""
    reader: str = ""
    """Import path of the `workers.data.layouts.Reader` of its own layout; '' if it comes as Parquet or folders only."""
    bundled: bool = False
    """Whether it is there without a path."""
    default_path: str = ""
    """Where it is looked for when no path is given."""
    normalisations: Mapping[str, Statistics] = field(default_factory=dict)
    """Published statistics by the name that recipes use in `dataset.normalise`."""
    hub_licence: str = "unknown"
    """As the Hugging Face Hub spells it."""
    may_travel: bool = False
    """Whether the licence lets everybody pass test images on."""
    torchvision: str = ""
    """The class in `torchvision.datasets`, for programs that fetch the test images themselves, as CIFAR's do."""

    @property
    def layout(self) -> str:
        """That of the same name."""
        return self.name

    @property
    def height(self) -> int:
        """Of an image in pixels."""
        return self.size

    @property
    def width(self) -> int:
        """Of an image in pixels."""
        return self.size

    @property
    def fingerprint(self) -> str:
        """Of no real copy."""
        return f"published-facts-of-{self.name}"


def _numbered(classes: int) -> tuple[str, ...]:
    return tuple(f"class {number}" for number in range(classes))


_CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_DIGITS = tuple("0123456789")
_CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_CIFAR_LICENCE = "none stated; see the terms of the source, the CIFAR page of the University of Toronto"
_CIFAR_FETCH = "unpack '{} python version' from the CIFAR page there, or put its Parquet files there"

DATASETS: Mapping[str, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo(
            name="digits",
            channels=1,
            size=8,
            class_names=_DIGITS,
            train_per_class=(134, 137, 133, 138, 136, 137, 136, 135, 131, 135),
            licence="CC BY 4.0 (UCI, optical recognition of digits), by way of scikit-learn (BSD-3-Clause)",
            hub_licence="cc-by-4.0",
            may_travel=True,
            fetch="leave the path out: the digits come with scikit-learn",
            reader="workers.data.readers.array_files:DIGITS",
            bundled=True,
        ),
        DatasetInfo(
            name="mnist",
            channels=1,
            size=28,
            class_names=_DIGITS,
            train_per_class=(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
            normalisations={"mnist": ((0.1307,), (0.3081,))},  # DC, IDC
            licence="CC BY-SA 3.0",
            hub_licence="cc-by-sa-3.0",
            may_travel=True,
            fetch="fetch the four idx files of MNIST, e.g. with torchvision's MNIST(download=True)",
            reader="workers.data.readers.array_files:MNIST",
        ),
        DatasetInfo(
            name="fashion-mnist",
            channels=1,
            size=28,
            class_names=_CLOTHES,
            train_per_class=(6000,) * 10,
            normalisations={"fashion-mnist": ((0.2861,), (0.3530,))},  # DC, IDC
            licence="MIT",
            hub_licence="mit",
            may_travel=True,
            fetch="install Debian's package dataset-fashion-mnist, or use torchvision's FashionMNIST",
            reader="workers.data.readers.array_files:FASHION_MNIST",
            default_path="/usr/share/datasets/fashion-mnist",
        ),
        DatasetInfo(
            name="cifar10",
            channels=3,
            size=32,
            class_names=_CIFAR_CLASSES,
            train_per_class=(5000,) * 10,
            normalisations={"cifar10": _CIFAR10_STATISTICS},  # every code base
            licence=_CIFAR_LICENCE,
            fetch=_CIFAR_FETCH.format("CIFAR-10"),
            reader="workers.data.readers.array_files:CIFAR10",
            torchvision="CIFAR10",
        ),
        DatasetInfo(
            name="cifar100",
            channels=3,
            size=32,
            class_names=_numbered(100),
            train_per_class=(500,) * 100,
            normalisations={
                "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),  # DC, DSA, DM; its own
                "cifar100-reference": _CIFAR10_STATISTICS,  # what MTT, IDC, CAFE and both halves of PDD take
            },
            licence=_CIFAR_LICENCE,
            fetch=_CIFAR_FETCH.format("CIFAR-100"),
            reader="workers.data.readers.array_files:CIFAR100",
            torchvision="CIFAR100",
        ),
        DatasetInfo(
            name="svhn",
            channels=3,
            size=32,
            class_names=_DIGITS,
            train_per_class=(4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
            normalisations={"svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))},  # DC, IDC
            licence="none stated for other than non-commercial use; see the SVHN page of Stanford University",
            hub_licence="other",
            fetch="put the Parquet files of its cropped digits there",
        ),
        DatasetInfo(
            name="tiny-imagenet",
            channels=3,
            size=64,
            class_names=_numbered(200),
            train_per_class=(500,) * 200,
            normalisations={
                "tiny-imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # MTT, DC, DREAM; ImageNet's
                "tiny-imagenet-idc": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),  # PDD's IDC half
            },
            licence="the terms of ImageNet: non-commercial research and education only",
            hub_licence="other",
            fetch="unpack the Stanford archive tiny-imagenet-200 there",
            reader="workers.data.readers.tiny_imagenet:TINY_IMAGENET",
        ),
    )
}
"""Data sets by name, in the order in which their layouts are looked for."""

NORMALISATIONS: Mapping[str, Statistics] = {
    name: statistics for info in DATASETS.values() for name, statistics in info.normalisations.items()
}
"""Published statistics by name, of all data sets."""


FEW_HELD_OUT = 50
"""Held-out images in all below which their accuracy is too coarse to choose an iterate by; people are told then."""
UNEVEN = 2
"""Classes whose sizes differ by more than this factor are uneven: a balanced accuracy stands beside the accuracy."""


def split(facts: Facts, validation_fraction: float, train_per_class: int | None) -> tuple[list[int], list[int]]:
    """How many images of each class the held-out split takes from the training split, and how many it leaves.

    Args:
        facts: the data set.
        validation_fraction: the share of each class to hold out, in [0, 1); at least one image unless it is 0.
        train_per_class: images of each class that are used at all; None uses all.

    Returns:
        By class, the held-out images and the training images that are left, which may be none.
    """
    available = [min(n, train_per_class or n) for n in facts.train_per_class]
    held_out = [max(1, int(n * validation_fraction)) if validation_fraction else 0 for n in available]
    return held_out, [n - held for n, held in zip(available, held_out, strict=True)]


def are_uneven(images: Iterable[int]) -> bool:
    """Whether the largest class has more than twice the images of the smallest; classes without images aside."""
    sizes = [count for count in images if count]
    return bool(sizes) and max(sizes) > UNEVEN * min(sizes)

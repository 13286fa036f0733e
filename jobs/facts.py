"""What must be known of a dataset before a graph can be made, and what can be asked of such a dataset.

`workers.data.sources.inspect` finds the facts out; this package only reads them, so any object with these fields
will do. Left out: the images.
"""

from __future__ import annotations

from typing import Protocol


class Facts(Protocol):
    """The facts, as fields that are only read."""

    @property
    def layout(self) -> str:
        """The way it lies on disk."""

    @property
    def channels(self) -> int:
        """1 or 3."""

    @property
    def height(self) -> int:
        """LearnableImages."""

    @property
    def width(self) -> int:
        """LearnableImages."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels."""

    @property
    def train_per_class(self) -> tuple[int, ...]:
        """Training images of each class, before any is held out."""

    @property
    def fingerprint(self) -> str:
        """Digest of the content."""


def split(facts: Facts, validation_fraction: float, train_per_class: int | None) -> tuple[int, list[int]]:
    """Held-out images per class, and the training images each class keeps.

    The smallest class decides, so that every class gives the held-out split equally many.
    """
    available = [min(n, train_per_class or n) for n in facts.train_per_class]
    validation = max(1, int(min(available) * validation_fraction)) if validation_fraction else 0
    return validation, [n - validation for n in available]


def first_map(channels: int, size: int) -> int:
    """Side of a ConvNet's first map: 28x28 images of one channel are padded to 32x32 (facts 1.1)."""
    return 32 if (channels, size) == (1, 28) else size


def deepest_convnet(facts: Facts) -> int:
    """How many times the map can be halved before it vanishes."""
    return first_map(facts.channels, facts.height).bit_length() - 1

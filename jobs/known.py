"""What everybody knows of the field's datasets: enough to plan with one that is not on this machine.

A plan needs a dataset's shape and counts and nothing of its pixels. Where the dataset is absent these published facts
stand in, with a fingerprint that no real copy has: what is planned with them can be priced but never run, and a copy
that comes later gets keys of its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownFacts:
    """The facts of `jobs.facts.Facts`, from a dataset's own publication."""

    layout: str
    channels: int
    height: int
    width: int
    class_names: tuple[str, ...]
    train_per_class: tuple[int, ...]

    @property
    def fingerprint(self) -> str:
        """Of no real copy."""
        return f"published-facts-of-{self.layout}"


def _even(layout: str, channels: int, size: int, classes: int | tuple[str, ...], train: int) -> KnownFacts:
    names = tuple(f"class {number}" for number in range(classes)) if isinstance(classes, int) else classes
    return KnownFacts(layout, channels, size, size, names, (train,) * len(names))


_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_MNIST_COUNTS = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)

KNOWN = {
    facts.layout: facts
    for facts in (
        _even("cifar10", 3, 32, _CIFAR10, 5000),
        _even("cifar100", 3, 32, 100, 500),
        _even("tiny-imagenet", 3, 64, 200, 500),
        _even("fashion-mnist", 1, 28, 10, 6000),
        KnownFacts("mnist", 1, 28, 28, tuple("0123456789"), _MNIST_COUNTS),
    )
}
"""By the name of the layout."""

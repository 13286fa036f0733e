"""Outcomes: the small numbers that each kind of job leaves in the manifest of its artifact, under `extra`.

A worker builds the outcome of its job and stores `to_extra()`; whoever reads a manifest takes `from_extra` of the
class, or `of(kind, extra)` where the kind is not known beforehand. Accuracies are in percent, as in tables.

To add a number to a kind, add a field that is None by default: it is stored only where a job sets it, so artifacts
that were made before can still be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from pydantic import TypeAdapter, ValidationError

from jobs.errors import Damaged


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Base of the outcomes."""

    stored_when_none: ClassVar[frozenset[str]] = frozenset()
    """Fields that are stored as null; all others of None are left out."""

    @property
    def held_out(self) -> float | None:
        """Accuracy (percent) on held-out images, if the kind measures one."""
        return None

    def to_extra(self) -> dict[str, Any]:
        """The JSON object that a manifest stores."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        kept = {name: value for name, value in values.items() if value is not None or name in self.stored_when_none}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}

    @classmethod
    def from_extra(cls, extra: Mapping[str, Any]) -> Self:
        """The outcome that a manifest stored; numbers of later versions are passed over.

        Raises:
            Damaged: a number is absent, or is not a number.
        """
        try:
            outcome: Self = TypeAdapter(cls).validate_python(dict(extra))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(map(str, first["loc"]))
            raise Damaged(f"manifest: extra.{name}: {first['msg']}: quarantine the artifact and run again") from None
        return outcome


@dataclass(frozen=True, kw_only=True)
class DatasetOutcome(Outcome):
    """Images in each split of a prepared data set."""

    train: int
    validation: int
    test: int


@dataclass(frozen=True, kw_only=True)
class ExpertsOutcome(Outcome):
    """Mean held-out accuracy (percent) of the experts of a batch, at their first and their last snapshot."""

    start_accuracy: float
    end_accuracy: float

    @property
    def held_out(self) -> float | None:
        """That of the last snapshots."""
        return self.end_accuracy


@dataclass(frozen=True, kw_only=True)
class ForgettingOutcome(Outcome):
    """How many networks were watched, and the share of images in [0, 1] that none of them ever forgot."""

    streams: int
    never_forgotten: float


@dataclass(frozen=True, kw_only=True)
class SelectOutcome(Outcome):
    """How many real images were chosen."""

    images: int


@dataclass(frozen=True, kw_only=True)
class DistilOutcome(Outcome):
    """One stage of distillation: which iterate was kept, its step size, and the matching loss at both ends."""

    stored_when_none: ClassVar[frozenset[str]] = frozenset({"step_size"})

    iteration: int
    """The iterate that was kept; the last is the number of iterations."""
    step_size: float | None
    """The learned step size of the kept iterate; None for methods that learn none."""
    loss: float
    first_loss: float
    validation_accuracy: float | None = None
    """Of the kept iterate, where the held-out split chose it."""
    test_accuracy: float | None = None
    """Of the kept iterate, where the test split chose it, as the reference does."""
    data_used: float | None = None
    """Share of the training images (percent) that stages up to this partition have seen (Table 6)."""

    @property
    def held_out(self) -> float | None:
        """That of the kept iterate."""
        return self.validation_accuracy


@dataclass(frozen=True, kw_only=True)
class NetworkOutcome(Outcome):
    """Test accuracy (percent) of one trained network, in the end and after each link of its training."""

    accuracy: float
    curve: tuple[float, ...]
    balanced_accuracy: float | None = None
    """The mean over classes of the accuracy in each, where the classes of the test split are uneven."""


@dataclass(frozen=True, kw_only=True)
class ImportedOutcome(Outcome):
    """How many experts or images were read from the files of others."""

    count: int


OUTCOMES: Mapping[str, type[Outcome]] = {
    "dataset": DatasetOutcome,
    "experts": ExpertsOutcome,
    "forgetting": ForgettingOutcome,
    "select": SelectOutcome,
    "distil": DistilOutcome,
    "evaluate": NetworkOutcome,
    "full": NetworkOutcome,
    "imported": ImportedOutcome,
}
"""The class of outcome by the kind of job."""


def of(kind: str, extra: Mapping[str, Any]) -> Outcome:
    """The outcome of a job of this kind, from its manifest.

    Raises:
        KeyError: there is no such kind.
        Damaged: as `Outcome.from_extra` does.
    """
    return OUTCOMES[kind].from_extra(extra)

"""What learns in a synthetic set, and how: the specs of its pixels' optimiser and of its soft labels."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from jobs.fields import Count, Fraction, Frozen, Index, Positive

LabelSource = Literal["classes", "experts", "target"]
"""Where soft labels come from; see `LabelSpec`."""


class ImageOptimiserSpec(Frozen):
    """The optimiser of the synthetic pixels; SGD with momentum 0.5 is the published one."""

    later: ClassVar[frozenset[str]] = frozenset({"halve_at"})

    name: Literal["sgd", "adam"] = "sgd"
    lr: Positive
    momentum: Fraction = 0.5
    final_lr: Positive | None = None
    """Where the learning rate ends on a straight line over the stage; None keeps it constant (published)."""
    halve_at: tuple[Index, ...] = Field(default=(), strict=False)
    """Iterations, from 0, from which on the learning rate is half of what it was before (CAFE)."""


class LabelSpec(Frozen):
    """The soft labels of a stage's new images: logits float32 [n, classes], read as softmax(logits / temperature).

    Their `source` is the image's class, `scale` * (one-hot - 1 / classes), or the experts of the stage: the mean of the
    last logits of those that classify the image rightly, or of all if none does (DATM). With `learning` they learn with
    the images from there on, with an optimiser of their own; without it they stay. A `target` gives them anew in each
    iteration: the expert as it is at the epoch that is matched (TESLA). Sets of earlier stages keep theirs.
    """

    source: LabelSource = "experts"
    scale: Positive = 10.0
    """Of `classes` alone: how far the logit of the image's class stands above the others."""
    teachers: Count | None = None
    """Of `experts` alone: how many of them are asked; None is all."""
    learning: ImageOptimiserSpec | None = None
    temperature: Positive = 1.0

    @model_validator(mode="after")
    def _given_or_learned(self) -> LabelSpec:
        if self.source == "target" and self.learning is not None:
            raise PydanticCustomError("labels", "a target gives labels anew in each iteration; leave learning out")
        return self

    @property
    def words(self) -> str:
        """Where the labels come from, for people."""
        if self.source == "target":
            return "given by the expert at the epoch that was matched last"
        source = "the logits of the stage's experts" if self.source == "experts" else "the images' classes"
        return f"learned with the images, from {source} on" if self.learning else f"from {source}"

"""What methods have in common that match real and synthetic images class by class.

Which rows belong to a class, a batch of its real images, one augmentation for both sides, and the end of a stage whose
numbers leave the finite ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jobs.errors import Diverged
from workers.methods.base import LearnableImages
from workers.training.augmentation import Augmentation


def rows_by_class(labels: Tensor, classes: int) -> list[Tensor]:
    """For each class the indices int64 of its rows, ascending, on the labels' device."""
    return [torch.nonzero(labels == label).flatten() for label in range(classes)]


def random_rows(members: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """At most `size` of a class's rows, drawn without replacement and anew every time."""
    chosen = torch.randperm(len(members), generator=generator)[:size]
    return members[chosen.to(members.device)]


def siamese(
    augmentation: Augmentation | None, real: Tensor, synthetic: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Both batches [n, C, H, W] under one draw, shared by all of their images."""
    if augmentation is None:
        return real, synthetic
    height, width = real.shape[2:]
    draw = augmentation.draw(1, (height, width), generator, siamese=True)
    return augmentation.apply(real, draw), augmentation.apply(synthetic, draw)


def require_finite(learnable: LearnableImages, iteration: int, loss: float) -> float:
    """The loss, if it and the images are finite numbers.

    Raises:
        Diverged: they are not.
    """
    if not (math.isfinite(loss) and bool(learnable.new.isfinite().all())):
        fix = "lower distil.image.lr"
        raise Diverged(f"iteration {iteration}: matching loss {loss:g} or the images are not finite: {fix}")
    return loss

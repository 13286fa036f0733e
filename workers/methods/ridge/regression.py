"""Kernel ridge regression from synthetic images to real ones: what FRePo and RFAD share.

With features F_s [n, d] of the synthetic images, F_t [m, d] of real ones and targets Y_s [n, classes],

    predictions = F_t F_s^T (F_s F_s^T + ridge * tr(F_s F_s^T) / n * I)^-1 Y_s,

which is what a linear classifier fitted to the synthetic images by least squares says about the real ones. Everything
from the features on is in float64: with a ridge of 1e-6 of the kernel's mean diagonal, float32 leaves too few digits.

Targets are one-hot less 1 / classes. With soft labels that start from classes they are the logits, divided by the scale
with which those started, so that both begin alike; where the labels learn, they follow the same gradient as the images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.errors import BadInput
from workers.data.multi_formation import decode
from workers.methods.base import LearnableImages, Stage

Embed = Callable[[Tensor], Tensor]
"""Features [n, d] of images [n, C, H, W]."""
Error = Callable[[Tensor, Tensor], Tensor]
"""How far predictions float64 [m, classes] are from the classes int64 [m] of their images; []."""


def centred_targets(labels: Tensor, classes: int) -> Tensor:
    """One-hot targets less their mean, float64 [n, classes], for labels int64 [n]; each row sums to 0."""
    return torch.eye(classes, dtype=torch.float64, device=labels.device)[labels] - 1 / classes


def predictions(synthetic: Tensor, targets: Tensor, real: Tensor, ridge: float) -> Tensor:
    """What ridge regression on the synthetic images predicts for the real ones: float64 [m, classes].

    Args:
        synthetic: their features, [n, d]; differentiated.
        targets: float64 [n, classes]; differentiated.
        real: their features, [m, d].
        ridge: as a share of the mean of the kernel's diagonal.

    Returns:
        The predictions; not a number where the features leave no kernel to invert.
    """
    fitted = synthetic.double()
    kernel = fitted @ fitted.T
    diagonal = fitted.square().sum() / len(fitted)
    penalty = ridge * diagonal * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    factor, failed = torch.linalg.cholesky_ex(kernel + penalty)
    predicted = (real.double() @ fitted.T) @ torch.cholesky_solve(targets, factor)
    return torch.where(failed > 0, torch.nan, predicted)


def squared_error(predicted: Tensor, labels: Tensor) -> Tensor:
    """Half the squared distance of predictions [m, classes] from the targets of labels [m], in the mean; []."""
    return 0.5 * (predicted - centred_targets(labels, predicted.shape[1])).square().sum(1).mean()


@dataclass(frozen=True)
class Regression:
    """The ridge regression of a stage.

    Attributes:
        stage: its images and classes.
        batch: real images that are predicted, of all classes together.
        ridge: see `predictions`.
    """

    stage: Stage
    batch: int
    ridge: float

    def __post_init__(self) -> None:
        labels = self.stage.spec.labels
        if labels is not None and labels.source != "classes":
            place = f"stage {self.stage.spec.stage} of {self.stage.spec.method}"
            raise BadInput(place, "distil.labels.source", labels.source, "write classes: targets start from them")

    def targets(self, labels: Tensor, logits: Tensor | None) -> Tensor:
        """Those of all training images of the union, float64 [n * factor * factor, classes].

        Labels are int64 [n], logits their soft form, float32 [n, classes], if they have one.
        """
        spec = self.stage.spec
        if logits is None or spec.labels is None:
            targets = centred_targets(labels, self.stage.classes)
        else:
            targets = logits.double() / spec.labels.scale
        return targets.repeat_interleave(spec.factor**2, 0) if spec.factor > 1 else targets

    def step(
        self,
        learnable: LearnableImages,
        embed: Embed,
        error: Error,
        iteration: int,
        generator: torch.Generator,
        others: Sequence[Tensor] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Predict a batch of real images, and make one step on the images, and on their labels if these learn.

        Args:
            learnable: the images of the stage, and the earlier ones.
            embed: the features.
            error: of the predictions.
            iteration: counted from 0.
            generator: of the batch.
            others: tensors behind `error` whose gradients are wanted.

        Returns:
            The error [] and the gradients of the others.
        """
        train, spec = self.stage.train, self.stage.spec
        chosen = torch.randperm(len(train.labels), generator=generator)[: self.batch]
        chosen = chosen.to(train.labels.device, non_blocking=True)
        with torch.no_grad():
            real = embed(train.images[chosen])
        union, logits = learnable.union.requires_grad_(), learnable.logits
        learning = logits is not None and spec.labels is not None and spec.labels.learning is not None
        inputs = [union, *([logits.requires_grad_()] if logits is not None and learning else []), *others]
        targets = self.targets(learnable.labels, logits)
        predicted = predictions(embed(decode(union, spec.factor)), targets, real, self.ridge)
        loss = error(predicted, train.labels[chosen])
        gradients = list(torch.autograd.grad(loss, inputs))
        learnable.step(gradients[0], iteration, gradients[1] if learning else None)
        return loss.detach(), gradients[1 + learning :]

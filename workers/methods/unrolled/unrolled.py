"""Unrolled training: DD (Wang et al. 2018) and RaT-BPTT (Feng, Vedantam & Kempe, ICLR 2024); facts 7.8.

A network is trained on the synthetic images for some steps, and its cross-entropy on real images is the loss; the
gradient goes back through the steps to the images, and to the sizes of the steps where those learn. DD and RaT-BPTT
differ in how far it goes:

* DD: through all steps, of plain gradient descent, each with a step size of its own that learns with the images.
* RaT-BPTT: training ends after a random number of steps, and the gradient goes back through the last `window` of them
  alone. A window of the same place would only ever teach images for that age of a network, and the whole graph makes
  gradients that explode. Its inner steps are Adam's, of a fixed size.

Under PDD the network comes from its chain, inner batches are drawn from the whole union, and only new images move.

OUR simplifications: one network an iteration (DD: the mean over several); the images of a step are a chunk of a random
order of the union, or all of it (DD: each step has images of its own); RaT-BPTT's clipping by a running mean of the
gradient's norm is left to Adam, which moves the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from jobs.errors import Diverged
from jobs.fields import Frozen
from jobs.methods import UnrolledSettings
from workers.methods.base import Arrays, LearnableImages, Method, Stage, draw_without_replacement
from workers.methods.by_class import require_finite
from workers.methods.learned import Learned
from workers.methods.trajectory.trajectory_matching import InnerBatch, Student, batches_on
from workers.training.networks import flatten, unflatten
from workers.training.students import augmentation_of

SHARES, FLOOR = (0.9, 0.999), 1e-6
"""Of Adam's inner steps: what is kept of the two means, and the least root of the second, which keeps the derivative of
a step finite where a gradient is zero."""


@dataclass(frozen=True)
class Inner:
    """A network in training: parameters [P], Adam's means [P], and how many steps were made."""

    theta: Tensor
    mean: Tensor
    square: Tensor
    steps: int = 0

    @classmethod
    def at(cls, theta: Tensor) -> Inner:
        """Before the first step."""
        return cls(theta, torch.zeros_like(theta), torch.zeros_like(theta))

    def detached(self) -> Inner:
        """The same without a graph."""
        return Inner(self.theta.detach(), self.mean.detach(), self.square.detach(), self.steps)


def descend(inner: Inner, gradient: Tensor, size: Tensor) -> Inner:
    """A plain step: theta - size * gradient.

    Args:
        inner: before the step.
        gradient: of the loss, float [P].
        size: of the step, float [].
    """
    return Inner(inner.theta - size * gradient, inner.mean, inner.square, inner.steps + 1)


def descend_by_adam(inner: Inner, gradient: Tensor, size: Tensor) -> Inner:
    """A step of Adam, differentiable in the gradient and the size.

    Args:
        inner: before the step.
        gradient: of the loss, float [P].
        size: of the step, float [].
    """
    first, second = SHARES
    steps = inner.steps + 1
    mean = first * inner.mean + (1 - first) * gradient
    square = second * inner.square + (1 - second) * gradient.square()
    root = (square / (1 - second**steps) + FLOOR**2).sqrt()
    return Inner(inner.theta - size * mean / (1 - first**steps) / root, mean, square, steps)


STEPS: dict[str, Callable[[Inner, Tensor, Tensor], Inner]] = {"sgd": descend, "adam": descend_by_adam}


@dataclass(frozen=True)
class Outcome:
    """The loss and its gradients with respect to the images [n, C, H, W] and the step sizes [N]."""

    loss: Tensor
    images: Tensor
    sizes: Tensor


def outcome(
    student: Student,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    sizes: Tensor,
    batches: Sequence[InnerBatch],
    real: tuple[Tensor, Tensor],
    window: int,
    optimiser: str = "sgd",
) -> Outcome:
    """How well a network does on real images when it has been trained on synthetic ones.

    Args:
        student: network and augmentation of the inner steps.
        start: its parameters before, float [P].
        images: synthetic, float [n, C, H, W].
        labels: int64 [n].
        sizes: of the N steps, float [N].
        batches: one for each step.
        real: images [m, C, H, W] and labels int64 [m].
        window: how many of the last steps are differentiated.
        optimiser: of the inner steps, a name in `STEPS`.
    """
    step, first = STEPS[optimiser], len(batches) - window
    images, sizes = images.detach().requires_grad_(), sizes.detach().requires_grad_()
    inner = Inner.at(start.detach())
    with torch.enable_grad():
        for number, batch in enumerate(batches):
            frozen = number < first
            theta = inner.theta.detach().requires_grad_() if frozen or number == first else inner.theta
            loss = student.loss(theta, images.detach() if frozen else images, labels, batch)
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=not frozen)
            inner = step(Inner(theta, inner.mean, inner.square, inner.steps), gradient, sizes[number])
            inner = inner.detached() if frozen else inner
        logits = functional_call(student.module, unflatten(inner.theta, student.module), (real[0],))
        loss = F.cross_entropy(logits, real[1])
        to_images, to_sizes = torch.autograd.grad(loss, (images, sizes))
    return Outcome(loss.detach(), to_images, to_sizes)


class StepSizes:
    """The sizes of the inner steps, positive through a softplus, and the Adam by which they learn."""

    def __init__(self, settings: UnrolledSettings, device: torch.device) -> None:
        size = settings.step_size_init
        raw = size + math.log(-math.expm1(-size))  # the inverse of the softplus
        self.raw = Learned.by_adam(
            torch.full((settings.syn_steps,), raw).to(device), settings.lr_step_size, (0.5, 0.999)
        )
        self.learn = settings.lr_step_size > 0

    @property
    def values(self) -> Tensor:
        """The sizes, float [N]."""
        return F.softplus(self.raw.values)

    def step(self, gradient: Tensor) -> None:
        """One step along the gradient with respect to the sizes."""
        if self.learn:
            self.raw.step(gradient * torch.sigmoid(self.raw.values))


class UnrolledTraining(Method):
    """DD or RaT-BPTT in one stage; see `workers.methods.base.Method`."""

    Settings = UnrolledSettings

    def __init__(self, stage: Stage, settings: Frozen) -> None:
        super().__init__(stage, settings)
        assert isinstance(settings, UnrolledSettings)
        self._settings = settings
        self._student = Student(stage.network, augmentation_of(settings.augmentation))
        self._sizes = StepSizes(settings, stage.device)
        self._image_order: list[int] = []

    @property
    def step_size(self) -> float | None:
        """The mean of the sizes, if they learn."""
        return float(self._sizes.values.mean()) if self._sizes.learn else None

    def iterate(self, learnable: LearnableImages, iteration: int, generator: torch.Generator) -> float:
        """Train one network, then make one step on the images and one on the step sizes.

        Args:
            learnable: the images of the stage, and the earlier ones.
            iteration: counted from 0.
            generator: of the end, the inner batches and the real images.
        """
        settings, stage, union = self._settings, self.stage, learnable.union
        window = settings.window or settings.syn_steps
        steps = settings.syn_steps
        if settings.ends == "random":
            steps = int(torch.randint(window, steps + 1, (), generator=generator))
        batches = batches_on(stage.device, [self._inner_batch(union, generator) for _ in range(steps)])
        chosen = torch.randperm(len(stage.train.labels), generator=generator)[: settings.batch]
        chosen = chosen.to(stage.device, non_blocking=True)
        found = outcome(
            self._student,
            flatten(stage.start_networks.network(iteration)),
            union,
            learnable.labels,
            self._sizes.values,
            batches,
            (stage.train.images[chosen], stage.train.labels[chosen]),
            window,
            settings.optimiser,
        )
        if not bool(found.images.isfinite().all()):
            raise Diverged(f"iteration {iteration}: the gradient is not finite: lower distil.settings.step_size_init")
        learnable.step(found.images, iteration)
        self._sizes.step(found.sizes)
        (loss,) = require_finite(learnable, iteration, found.loss[None])
        return loss

    def _inner_batch(self, union: Tensor, generator: torch.Generator) -> InnerBatch:
        size = self._settings.batch_syn or len(union)
        chosen = draw_without_replacement(self._image_order, size, len(union), generator)
        draw = None
        if self._student.augmentation is not None:
            height, width = union.shape[2:]
            draw = self._student.augmentation.draw(len(chosen), (height, width), generator, siamese=False)
        return InnerBatch(torch.tensor(chosen), draw)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """The step sizes with their moments, and what is left of the random order."""
        return self._sizes.raw.state(), {"image_order": self._image_order}

    def load_state(self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> None:
        """Go back to a `state`."""
        self._sizes.raw.load_state(arrays)
        self._image_order = list(values["image_order"])

"""Trajectory matching: how far a student trained on synthetic images ends from where an expert went.

Cazenavette et al. (MTT, CVPR 2022), as in facts 4.2. From an expert's parameters theta_0 the student takes N
plain gradient steps with a learnable step size a on batches b_t of augmented synthetic images,

    theta_{t+1} = theta_t - a * grad_theta CE(f(A(X[b_t]); theta_t), y[b_t]),

and the loss is  || theta_N - theta* ||^2 / || theta_0 - theta* ||^2,  theta* being the expert M epochs later.

Two engines here compute the loss and its exact gradient with respect to X and a. `unrolled` keeps all N steps
in one autograd graph: fastest, memory grows with N. `adjoint` keeps only the N parameter vectors and walks
back one step at a time:  lambda <- lambda - a H_t lambda,  dX -= a d/dX (g_t . lambda),  da -= g_t . lambda.
Same mathematics in the memory of one step for about a third more time. Both are eager and in native operations, whose
double backward was measured fastest on a CPU. `graphs` launches the adjoint's steps as a whole on a card. Which engine
a spec means is said by `jobs.memory.chosen_engine`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from workers.runtime.transfer import moved_together
from workers.training.augmentation import Augmentation, Draw, draws_on
from workers.training.networks import unflatten

LOOKED_AT = 512
"""Images in a forward pass without a graph."""


@dataclass(frozen=True)
class InnerBatch:
    """One inner step's images, as indices int64 [b] into the synthetic set, and their augmentation."""

    index: Tensor
    draw: Draw | None


def batches_on(device: torch.device, batches: Sequence[InnerBatch]) -> list[InnerBatch]:
    """The same batches with indices and random numbers on the device, moved together."""
    indices = moved_together([batch.index for batch in batches], device)
    draws = draws_on(device, [batch.draw for batch in batches])
    return [InnerBatch(index, draw) for index, draw in zip(indices, draws, strict=True)]


@dataclass(frozen=True)
class Student:
    """What the inner steps need besides images and step size."""

    module: nn.Module
    augmentation: Augmentation | None
    temperature: float = 1.0
    """Of soft labels."""
    kept: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What an engine keeps from one iteration to the next."""

    def loss(self, theta: Tensor, images: Tensor, labels: Tensor, batch: InnerBatch) -> Tensor:
        """Mean cross-entropy of the augmented batch; differentiable in parameters theta [P] and images."""
        return self._cross_entropy(self._logits_of_rows(theta, images[batch.index], batch.draw), labels[batch.index])

    def gradient(
        self, theta: Tensor, rows: Tensor, labels: Tensor, draw: Draw | None, *, create_graph: bool = False
    ) -> Tensor:
        """The gradient of the same loss by theta [P].

        Args:
            theta: parameters, float [P].
            rows: the batch's own images, float [b, C, H, W].
            labels: theirs: classes int64 [b], or soft, logits [b, classes].
            draw: how the images are augmented.
            create_graph: whether the gradient is to be differentiated in its turn.
        """
        logits = self._logits_of_rows(theta, rows, draw)
        if logits.is_cuda:
            (gradient,) = torch.autograd.grad(logits, theta, self._slope(logits, labels), create_graph=create_graph)
        else:
            (gradient,) = torch.autograd.grad(self._cross_entropy(logits, labels), theta, create_graph=create_graph)
        return gradient

    def _logits_of_rows(self, theta: Tensor, rows: Tensor, draw: Draw | None) -> Tensor:
        rows = self.augmented(rows, draw)
        logits: Tensor = functional_call(self.module, unflatten(theta, self.module), (rows,))
        return logits

    def augmented(self, rows: Tensor, draw: Draw | None) -> Tensor:
        """A batch's images [b, C, H, W] under its augmentation."""
        return rows if self.augmentation is None or draw is None else self.augmentation.apply(rows, draw)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, self.shares(labels) if labels.is_floating_point() else labels)

    def shares(self, labels: Tensor) -> Tensor:
        """The probabilities [b, classes] that the network is to learn for soft labels, logits [b, classes]."""
        return torch.softmax(labels / self.temperature, 1)

    def _slope(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The gradient of the mean cross-entropy by the logits written out, for which a card launches fewer kernels."""
        shares = logits.softmax(1)
        if labels.is_floating_point():
            excess = shares - self.shares(labels)
        else:
            place = labels.unsqueeze(1)
            excess = shares.scatter_add(1, place, shares.new_full(place.shape, -1.0))
        return excess / len(labels)

    def logits(self, theta: Tensor, images: Tensor) -> Tensor:
        """What the network makes of images [n, C, H, W] at parameters theta [P]: [n, classes], without a graph."""
        parameters = unflatten(theta, self.module)
        with torch.no_grad():
            parts = [functional_call(self.module, parameters, (rows,)) for rows in torch.split(images, LOOKED_AT)]
        return torch.cat(parts)


@dataclass(frozen=True)
class Matched:
    """The loss and its gradients with respect to the images [n, C, H, W], the step size [], and soft labels."""

    loss: Tensor
    images: Tensor
    step_size: Tensor
    labels: Tensor | None = None


def normalised_distance(end: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """|| end - target ||^2 / || start - target ||^2 over all parameters (MTT, equation 2)."""
    return (end - target).square().sum() / (start - target).square().sum()


def unrolled(
    student: Student,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    step_size: Tensor,
    batches: Sequence[InnerBatch],
) -> Matched:
    """The matching loss with all inner steps in one graph.

    Args:
        student: network and augmentation of the inner steps.
        start: theta_0, float [P]; gets no gradient.
        target: theta*, float [P]; gets no gradient.
        images: X, float [n, C, H, W].
        labels: int64 [n], or soft: logits float [n, classes].
        step_size: a, float [].
        batches: one entry for each of the N inner steps.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        step_size = step_size.detach().requires_grad_()
        soft = [labels := labels.detach().requires_grad_()] if labels.is_floating_point() else []
        theta = start.detach().requires_grad_()
        for batch in batches:
            rows, own = images[batch.index], labels[batch.index]
            gradient = student.gradient(theta, rows, own, batch.draw, create_graph=True)
            theta = theta - step_size * gradient
        loss = normalised_distance(theta, start, target)
        gradients = torch.autograd.grad(loss, (images, step_size, *soft))
    return Matched(loss.detach(), *gradients)


def adjoint(
    student: Student,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    step_size: Tensor,
    batches: Sequence[InnerBatch],
) -> Matched:
    """The same as `unrolled` in the memory of one inner step; arguments and result alike."""
    steps = AdjointSteps(student, images.detach(), labels.detach(), step_size.detach())
    return walked(steps, start.detach(), target, batches)


class AdjointSteps:
    """The inner steps on one synthetic set, forward and back; the way back adds up the gradients.

    Attributes:
        costate: lambda, the gradient of the loss with respect to the parameters where the way back has come to, [P].
        to_images: the gradient with respect to X so far, [n, C, H, W].
        to_step_size: that with respect to a, [].
        to_labels: that with respect to soft labels, [n, classes]; None for hard ones.
    """

    costate: Tensor
    curved: ClassVar[bool] = True
    """Whether the way back multiplies lambda by the Hessian H of each step."""

    def __init__(self, student: Student, images: Tensor, labels: Tensor, step_size: Tensor) -> None:
        self._student, self._images, self._labels, self._step_size = student, images, labels, step_size
        self.to_images, self.to_step_size = torch.zeros_like(images), torch.zeros_like(step_size)
        self.to_labels = torch.zeros_like(labels) if labels.is_floating_point() else None

    def start_back(self, costate: Tensor) -> None:
        """Turn round at the end of the student's way."""
        self.costate = costate

    def forward(self, theta: Tensor, batch: InnerBatch) -> Tensor:
        """The parameters after a step from theta [P]."""
        rows, labels = self._images[batch.index], self._labels[batch.index]
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            gradient = self._student.gradient(theta, rows, labels, batch.draw)
        return theta.detach() - self._step_size * gradient

    def back(self, theta: Tensor, batch: InnerBatch) -> None:
        """Go back over the step that began at theta [P], by H lambda, d/dX (g . lambda) and g, its loss's gradient."""
        rows, labels = self._images[batch.index], self._labels[batch.index]
        with torch.enable_grad():
            theta, rows = theta.detach().requires_grad_(), rows.requires_grad_()
            soft = [labels.requires_grad_()] if self.to_labels is not None else []
            gradient = self._student.gradient(theta, rows, labels, batch.draw, create_graph=True)
            leaves = (theta, rows, *soft) if self.curved else (rows, *soft)
            pulled = torch.autograd.grad(gradient, leaves, grad_outputs=self.costate)
        self._add(batch, gradient.detach(), pulled[self.curved :])
        if self.curved:
            self.costate -= self._step_size * pulled[0]

    def _add(self, batch: InnerBatch, gradient: Tensor, pulled: Sequence[Tensor]) -> None:
        """Add what a step says: d/dX (g . lambda) for its images and, if they are soft, for its labels."""
        for total, share in zip((self.to_images, self.to_labels), pulled, strict=False):
            assert total is not None
            total.index_add_(0, batch.index, self._step_size * share, alpha=-1)
        self.to_step_size -= gradient @ self.costate


def walked(steps: AdjointSteps, start: Tensor, target: Tensor, batches: Sequence[InnerBatch]) -> Matched:
    """The matching loss and its gradients by going the student's way forward, then back.

    Args:
        steps: over whose images and step size; their gradients are zero so far.
        start: theta_0, float [P].
        target: theta*, float [P].
        batches: one entry for each of the N inner steps.
    """
    path = [start]
    for batch in batches:
        path.append(steps.forward(path[-1], batch))
    loss = normalised_distance(path[-1], start, target)
    steps.start_back(2 * (path[-1] - target) / (start - target).square().sum())
    for theta, batch in zip(reversed(path[:-1]), reversed(batches), strict=True):
        steps.back(theta, batch)
    return Matched(loss, steps.to_images, steps.to_step_size, steps.to_labels)

"""Trajectory matching: how far a student trained on synthetic images ends from where an expert went.

Cazenavette et al. (MTT, CVPR 2022), as in facts 4.2. From an expert's parameters theta_0 the student takes N
plain gradient steps with a learnable step size a on batches b_t of augmented synthetic images,

    theta_{t+1} = theta_t - a * grad_theta CE(f(A(X[b_t]); theta_t), y[b_t]),

and the loss is  || theta_N - theta* ||^2 / || theta_0 - theta* ||^2,  theta* being the expert M epochs later.

Two engines compute the loss and its exact gradient with respect to X and a. `unrolled` keeps all N steps
in one autograd graph: fastest, memory grows with N. `adjoint` keeps only the N parameter vectors and walks
back one step at a time:  lambda <- lambda - a H_t lambda,  dX -= a d/dX (g_t . lambda),  da -= g_t . lambda.
Same mathematics in the memory of one step for about a third more time. Which one a spec means is said by
`jobs.memory.chosen_engine`. Everything is eager and in native operations, whose double backward was measured fastest on
a CPU; a compiled engine would be a third function of this signature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from jobs.methods import Engine
from workers.runtime.transfer import moved_together
from workers.training.augmentation import Augmentation, Draw, draws_on
from workers.training.networks import unflatten


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

    def loss(self, theta: Tensor, images: Tensor, labels: Tensor, batch: InnerBatch) -> Tensor:
        """Mean cross-entropy of the augmented batch; differentiable in parameters theta [P] and images."""
        chosen = images[batch.index]
        if self.augmentation is not None and batch.draw is not None:
            chosen = self.augmentation.apply(chosen, batch.draw)
        logits = functional_call(self.module, unflatten(theta, self.module), (chosen,))
        return F.cross_entropy(logits, labels[batch.index])


@dataclass(frozen=True)
class Matched:
    """The loss and its gradients with respect to the images [n, C, H, W] and the step size []."""

    loss: Tensor
    images: Tensor
    step_size: Tensor


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
        labels: int64 [n].
        step_size: a, float [].
        batches: one entry for each of the N inner steps.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        step_size = step_size.detach().requires_grad_()
        theta = start.detach().requires_grad_()
        for batch in batches:
            (gradient,) = torch.autograd.grad(student.loss(theta, images, labels, batch), theta, create_graph=True)
            theta = theta - step_size * gradient
        loss = normalised_distance(theta, start, target)
        to_images, to_step_size = torch.autograd.grad(loss, (images, step_size))
    return Matched(loss.detach(), to_images, to_step_size)


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
    start, images, step_size = start.detach(), images.detach(), step_size.detach()
    path = [start]
    for batch in batches:
        path.append(path[-1] - step_size * _gradient(student, path[-1], images, labels, batch))
    loss = normalised_distance(path[-1], start, target)
    costate = 2 * (path[-1] - target) / (start - target).square().sum()
    to_images, to_step_size = torch.zeros_like(images), torch.zeros_like(step_size)
    for theta, batch in zip(reversed(path[:-1]), reversed(batches), strict=True):
        gradient, curved, pulled = _step_products(student, theta, images, labels, batch, costate)
        to_images -= step_size * pulled
        to_step_size -= gradient @ costate
        costate = costate - step_size * curved
    return Matched(loss, to_images, to_step_size)


def _gradient(student: Student, theta: Tensor, images: Tensor, labels: Tensor, batch: InnerBatch) -> Tensor:
    """The gradient of one inner step's loss, without a graph."""
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(student.loss(theta, images, labels, batch), theta)
    return gradient


def _step_products(
    student: Student, theta: Tensor, images: Tensor, labels: Tensor, batch: InnerBatch, costate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """g, H lambda and d/dX (g . lambda) of one inner step, g being the gradient of its loss."""
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        images = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(student.loss(theta, images, labels, batch), theta, create_graph=True)
        curved, pulled = torch.autograd.grad(gradient @ costate, (theta, images))
    return gradient.detach(), curved, pulled


ENGINES: dict[Engine, Callable[..., Matched]] = {"unrolled": unrolled, "adjoint": adjoint}

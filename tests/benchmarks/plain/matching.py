"""Trajectory matching the ordinary way: all inner steps in one graph, as MTT was published."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from workers.training.augmentation import Augmentation, Draw

Batch = tuple[Tensor, Draw | None]


def trajectory_matching(
    network: nn.Module,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    step_size: Tensor,
    batches: Sequence[Batch],
    augmentation: Augmentation | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The matching loss, its gradient by the images, and by the step size.

    Args:
        network: any module of the architecture.
        start: theta_0, float [P].
        target: theta*, float [P].
        images: float [n, C, H, W].
        labels: int64 [n].
        step_size: float [].
        batches: indices int64 [b] into the images and random numbers of the augmentation, for each inner step.
        augmentation: of the inner batches.
    """
    images, step_size = images.clone().requires_grad_(), step_size.clone().requires_grad_()
    theta = start.clone().requires_grad_()
    for index, draw in batches:
        shown = images[index]
        if augmentation is not None and draw is not None:
            shown = augmentation.apply(shown, draw)
        logits = functional_call(network, _views(theta, network), (shown,))
        loss = F.cross_entropy(logits, labels[index])
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta = theta - step_size * gradient
    distance = F.mse_loss(theta, target, reduction="sum") / F.mse_loss(start, target, reduction="sum")
    distance.backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None and step_size.grad is not None
    return distance.detach(), images.grad, step_size.grad


def _views(theta: Tensor, network: nn.Module) -> dict[str, Tensor]:
    views, at = {}, 0
    for name, parameter in network.named_parameters():
        views[name] = theta[at : at + parameter.numel()].view(parameter.shape)
        at += parameter.numel()
    return views

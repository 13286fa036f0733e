"""Copies of a network side by side: each one's loss and gradients are those of the network by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.workers.matched import generator
from workers.training.networks import build
from workers.training.side_by_side import SideBySide, stands_side_by_side


def _network(architecture: str, norm: str = "instance") -> Any:
    depth = 2 if architecture == "convnet" else None
    numbers = {"channels": 3, "size": 8, "classes": 5, "width": 4, "depth": depth, "norm": norm}
    return build(architecture, generator=generator(), **numbers).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["convnet", "resnet10", "idc_resnet10"])
@pytest.mark.parametrize("norm", ["instance", "none"])
def test_copies_have_the_losses_and_gradients_of_the_network_by_itself(architecture: str, norm: str) -> None:
    network = _network(architecture, norm)
    images = torch.randn(3, 4, 3, 8, 8, generator=generator(1), dtype=torch.float64).requires_grad_()
    labels = torch.tensor([4, 0, 2])
    copies = SideBySide(network, 3)
    loss = copies.loss(images, labels)
    together = torch.autograd.grad(loss, list(copies.weights.values()), create_graph=True)
    losses = []
    for copy in range(3):
        losses.append(F.cross_entropy(network(images[copy]), labels[copy].expand(4)))
        alone = torch.autograd.grad(losses[-1], list(network.parameters()), create_graph=True)
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours.view(3, *theirs.shape)[copy], theirs, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss, torch.stack(losses).sum())


def test_copies_take_the_weights_as_they_are_and_leave_the_network_alone() -> None:
    network = _network("convnet")
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    copies = SideBySide(network, 2)
    with torch.no_grad():
        copies.weights["blocks.0.weight"].zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in network.named_parameters())
    assert network.blocks[0].groups == 1 and network.classifier(torch.zeros(1, 16).double()).shape == (1, 5)


def test_batch_norm_keeps_statistics_and_does_not_stand_side_by_side() -> None:
    assert stands_side_by_side(_network("convnet")) and not stands_side_by_side(_network("convnet", "batch"))
    assert not stands_side_by_side(torch.nn.ReLU()) and not stands_side_by_side(_network("convnet", "layer"))

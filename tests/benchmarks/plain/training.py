"""Training and testing a network the ordinary way: a DataLoader, an optimiser, a loop."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from workers.training.augmentation import Augmentation


def convnet(width: int, classes: int = 10, channels: int = 3, size: int = 32, depth: int = 3) -> nn.Sequential:
    """The ConvNet with instance norm and average pooling, its parameters in the project's order."""
    layers: list[nn.Module] = []
    for block in range(depth):
        layers += [
            nn.Conv2d(width if block else channels, width, 3, padding=1),
            nn.GroupNorm(width, width),
            nn.ReLU(),
            nn.AvgPool2d(2),
        ]
    side = size >> depth
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side * side, classes))


def loader(images: Tensor, labels: Tensor, batch: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images and labels, in an order if one is given."""
    sampler = None if order is None else order.tolist()
    return iter(DataLoader(TensorDataset(images, labels), batch_size=batch, sampler=sampler))


def train(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch: int,
    generator: torch.Generator,
    augmentation: Augmentation | None = None,
) -> list[list[Tensor]]:
    """Train for some epochs and return copies of the parameters, before the first epoch and after each."""
    network.train()
    snapshots = [[parameter.detach().clone() for parameter in network.parameters()]]
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for shown, target in loader(images, labels, batch, order):
            if augmentation is not None:
                height, width = shown.shape[2:]
                draw = augmentation.draw(len(shown), (height, width), generator, siamese=False)
                shown = augmentation.apply(shown, draw)
            torch.rand((), generator=generator)  # the project asks here whether this batch is mixed
            logits = network(shown)
            loss = F.cross_entropy(logits, target)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        snapshots.append([parameter.detach().clone() for parameter in network.parameters()])
    return snapshots


def test(network: nn.Module, images: Tensor, labels: Tensor, batch: int = 256) -> float:
    """Accuracy in percent."""
    network.eval()
    right = 0
    with torch.no_grad():
        for shown, target in loader(images, labels, batch):
            right += int((network(shown).argmax(1) == target).sum())
    return 100 * right / len(images)

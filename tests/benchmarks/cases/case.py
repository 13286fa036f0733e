"""What a compared loop is, and what its cases share: images, networks, and how far two results are apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from workers.training.networks import Network, build, flatten

PLAIN, EXACT = "plain", "float64"
CLASSES, SHAPE = 10, (3, 32, 32)
DSA = "color_crop_cutout_flip_scale_rotate"

Sides = dict[str, Callable[[], Tensor]]
"""By the name of an engine, and `PLAIN` and `EXACT`: the whole loop from the same start, which gives its result."""


@dataclass(frozen=True)
class Case:
    """One loop.

    Attributes:
        name: of the loop and its size.
        build: makes the sides from `arguments`; a function of a module, so that another process can call it.
        default: the side that recipes get without asking.
        per: what one figure is for.
        count: how many of them a call does.
        counted: sides whose operations are counted on another side.
    """

    name: str
    build: Callable[..., Sides]
    arguments: Mapping[str, Any]
    default: str
    per: str = "iteration"
    count: int = 1
    counted: Mapping[str, str] = field(default_factory=dict)

    def sides(self) -> Sides:
        """Everything that is compared."""
        return self.build(**self.arguments)


def generator(seed: int = 0) -> torch.Generator:
    """A fresh source of random numbers."""
    return torch.Generator().manual_seed(seed)


def images(count: int, seed: int, shape: tuple[int, int, int] = SHAPE) -> tuple[Tensor, Tensor]:
    """Smooth random images in the training space, class by class in turn, and their labels."""
    labels = torch.arange(count) % CLASSES
    coarse = torch.randn(count, shape[0], shape[1] // 4, shape[2] // 4, generator=generator(seed))
    return nn.functional.interpolate(coarse, size=shape[1:], mode="bilinear"), labels


def network(seed: int = 0, *, architecture: str = "convnet", width: int | None = 32, size: int = SHAPE[1]) -> Network:
    """A fresh network of the project."""
    return build(
        architecture, channels=SHAPE[0], size=size, classes=CLASSES, width=width, depth=None, norm="instance",
        generator=generator(seed),
    )  # fmt: skip


def load(module: nn.Module, flat: Tensor) -> None:
    """Put the parameters of one network into another with the same layers in the same order."""
    with torch.no_grad():
        for parameter, piece in zip(
            module.parameters(), flat.split([p.numel() for p in module.parameters()]), strict=True
        ):
            parameter.copy_(piece.view_as(parameter))


def moved(module: nn.Module, start: Tensor) -> Tensor:
    """How far the parameters moved, float64 [P]."""
    return flatten(module).double() - start.double()


def distance(result: Tensor, reference: Tensor) -> float:
    """The norm of the difference by that of the reference."""
    return float((result.double() - reference.double()).norm() / reference.double().norm())

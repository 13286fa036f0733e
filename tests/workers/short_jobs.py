"""Jobs and steps of seconds, by which every method and loop is sent through a card, a real one or a pretended one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from jobs.methods import Engine
from jobs.specs import NetworkSpec, SgdSpec
from workers.methods.trajectory.engines import ENGINES
from workers.methods.trajectory.trajectory_matching import InnerBatch, Matched, Student, batches_on
from workers.training.augmentation import Augmentation
from workers.training.networks import build, flatten
from workers.training.students import build_network, fit, trainer_for

TWO = {"stages": 2, "ipc_per_stage": 1}
ONE = {"ipc_per_stage": 1}
ARMS = {
    "random": ONE,
    "herding": ONE,
    "k_center": ONE,
    "forgetting": ONE,
    "full": {},
    "mtt": TWO,
    "dm": TWO,
    "cafe": TWO,
    "dc": TWO,
    "dsa": TWO,
    "idc": TWO,
    "dream": TWO,
    "frepo": TWO,
    "tesla": TWO,
    "datm": TWO,
    "haba": {"stages": 2, "ipc_per_stage": 3},
    "dd": TWO,
    "rat_bptt": TWO,
    "rfad": TWO,
}
GRADIENTS: dict[str, dict[str, Any]] = {
    "dc": {"distil.iterations": 2, "distil.settings.outer": 2},
    "dsa": {"distil.iterations": 2, "distil.settings.outer": 2},
    "idc": {"distil.iterations": 2, "distil.settings.rounds": 2},
    "dream": {"distil.iterations": 2, "distil.settings.rounds": 2},
}
"""Methods whose iterations are long, with the numbers that make them short."""

CARD_ENGINES: list[Engine] = ["unrolled", "adjoint", "graphs"]
"""The engines of trajectory matching that do not stand for another one on a card."""


def _student(module: nn.Module) -> Student:
    return Student(module, Augmentation.parse("color_crop_cutout_flip_scale_rotate", align_corners=True))


@dataclass(frozen=True)
class Problem:
    """The sizes of an iteration of trajectory matching: all images take part in each inner step."""

    images: int = 8
    steps: int = 6
    width: int = 8
    side: int = 16
    classes: int = 4
    depth: int = 3


def matching(device: torch.device, engine: Engine, problem: Problem) -> Callable[[], Matched]:
    """One iteration of trajectory matching: its random numbers are moved by it, the rest is on the device before."""
    generator = torch.Generator().manual_seed(2)
    shape, many = (problem.side, problem.side), problem.images
    network = build(
        "convnet", channels=3, size=problem.side, classes=problem.classes, width=problem.width, depth=problem.depth,
        norm="instance", generator=generator,
    )  # fmt: skip
    start = flatten(network)
    target = start + 0.01 * torch.randn(start.shape, generator=generator)
    images, labels = torch.randn(many, 3, *shape, generator=generator), torch.arange(many) % problem.classes
    student = _student(network.to(device))
    assert student.augmentation is not None
    drawn = [
        InnerBatch(
            torch.randperm(many, generator=generator),
            student.augmentation.draw(many, shape, generator, siamese=False),
        )
        for _ in range(problem.steps)
    ]
    there = [tensor.to(device) for tensor in (start, target, images, labels, torch.tensor(0.02))]
    return lambda: ENGINES[engine](student, *there, batches_on(device, drawn))


def matched(device: torch.device, engine: Engine, steps: int = 6) -> Matched:
    """One iteration on 8 images."""
    return matching(device, engine, Problem(steps=steps))()


def trained(device: torch.device, batches: int, epochs: int = 1) -> Callable[[], None]:
    """Passes over so many batches of 4 images that are on the device already, with DSA's augmentation."""
    training = SgdSpec(epochs=epochs, batch_size=4, lr=0.05, augmentation="color_crop_cutout_flip_scale_rotate")
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(4 * batches, 3, 16, 16, generator=generator).to(device)
    labels = (torch.arange(4 * batches) % 4).to(device)
    spec = NetworkSpec(architecture="convnet", width=8, depth=3)
    network = build_network(spec, (3, 16, 16), 4, generator, device)
    return lambda: fit(trainer_for(network, training, generator), images, labels, training)


def trained_weights(spec: NetworkSpec, device: torch.device, epochs: int = 2) -> torch.Tensor:
    """The weights, on the CPU, of a network that was trained on 20 images with every kind of augmentation."""
    training = SgdSpec(
        epochs=epochs, batch_size=8, lr=0.05, augmentation="color_crop_cutout_flip_scale_rotate", cutmix=0.5
    )
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(20, 3, 16, 16, generator=generator)
    labels = torch.arange(20) % 4
    network = build_network(spec, (3, 16, 16), 4, generator, device)
    fit(trainer_for(network, training, generator), images.to(device), labels.to(device), training)
    return flatten(network).cpu()

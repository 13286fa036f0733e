"""A stage of three classes of small images for the methods without experts, and what is measured on it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch

from jobs.learning import ImageOptimiserSpec
from jobs.specs import ChoiceSpec, DistilSpec, NetworkSpec, TransitionSpec
from workers.data.dataset import Split
from workers.data.preprocess import Affine, Zca
from workers.data.synthetic_set import SyntheticSet
from workers.methods.base import LearnableImages, Method, Stage
from workers.training.networks import Network, build
from workers.training.transition import StartNetworks

CLASSES, SIDE = 3, 8
SGD = ImageOptimiserSpec(lr=0.5, momentum=0.5)
AFFINE = Affine(torch.tensor([0.4]), torch.tensor([0.25]))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_network(number: int, dtype: torch.dtype = torch.float32) -> Network:
    network = build(
        "convnet",
        channels=1,
        size=SIDE,
        classes=CLASSES,
        width=4,
        depth=2,
        norm="instance",
        generator=generator(500 + number),
    )
    return network.to(dtype)


def images(per_class: int, seed: int, dtype: torch.dtype = torch.float32) -> SyntheticSet:
    """Images in the training space, class by class."""
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    drawn = torch.rand(len(labels), 1, SIDE, SIDE, generator=generator(seed), dtype=torch.float64)
    return SyntheticSet(AFFINE.normalise(drawn).to(dtype), labels, None)


def starts(*sets: SyntheticSet, transition: bool = True, dtype: torch.dtype = torch.float32) -> StartNetworks:
    spec = TransitionSpec(epochs=3, lr=0.1, batch_size=4) if transition else None
    return StartNetworks(
        lambda number: random_network(number, dtype), lambda number: generator(900 + number), sets, spec, None
    )


def stage(
    method: str,
    numbers: dict[str, Any],
    *,
    per_class: int = 12,
    ipc: int = 2,
    factor: int = 1,
    earlier: tuple[SyntheticSet, ...] = (),
    transition: bool = True,
    transform: Affine | Zca = AFFINE,
    dtype: torch.dtype = torch.float32,
) -> Stage:
    """A stage whose real images are `images(per_class, 1)`."""
    spec = DistilSpec(
        method=method,
        stage=1 + len(earlier),
        ipc_per_stage=ipc,
        factor=factor,
        network=NetworkSpec(),
        iterations=10,
        image=SGD,
        choice=ChoiceSpec(by="last"),
        settings=numbers,
    )
    real = images(per_class, 1, dtype)
    return Stage(
        spec=spec,
        train=Split(real.images, real.labels),
        classes=CLASSES,
        transform=transform,
        experts=None,
        network=random_network(0, dtype),
        start_networks=starts(*earlier, transition=transition, dtype=dtype),
        device=torch.device("cpu"),
        memory_level=0,
    )


def pixels(
    unit: bool, ipc: int = 2, frozen: SyntheticSet | None = None, optimiser: ImageOptimiserSpec = SGD, factor: int = 1
) -> LearnableImages:
    """New images `images(ipc, 2)`, in [0, 1] if `unit`, behind the frozen ones."""
    new = replace(images(ipc, 2), factor=factor)
    if unit:
        new = replace(new, images=AFFINE.inverse(new.images))
        frozen = None if frozen is None else replace(frozen, images=AFFINE.inverse(frozen.images))
    return LearnableImages(new, frozen, optimiser, 10)


def after(method: Method, canvas: LearnableImages, iterations: int = 2, seed: int = 5) -> torch.Tensor:
    """The new images after some iterations."""
    draws = generator(seed)
    method.begin(canvas, draws)
    for iteration in range(iterations):
        method.iterate(canvas, iteration, draws)
    return canvas.new.clone()


def resumed(
    one: Method, other: Method, canvas: LearnableImages, twin: LearnableImages, before: int = 2
) -> tuple[list[Any], list[Any]]:
    """Losses and last images of a run straight through, and of one that `other` goes on with from a state."""
    draws = generator(5)
    one.begin(canvas, draws)
    for iteration in range(before):
        one.iterate(canvas, iteration, draws)
    (arrays, values), images_then, drawn = one.state(), canvas.state(), draws.get_state()
    written = json.dumps(values)
    arrays = {name: value.copy() for name, value in arrays.items()}
    straight: list[Any] = [one.iterate(canvas, iteration, draws) for iteration in (before, before + 1)]
    other.load_state(arrays, json.loads(written))
    twin.load_state(images_then)
    draws.set_state(drawn)
    again: list[Any] = [other.iterate(twin, iteration, draws) for iteration in (before, before + 1)]
    return [*straight, canvas.new.numpy().tobytes()], [*again, twin.new.numpy().tobytes()]

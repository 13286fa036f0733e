"""An outer iteration of each method that matches class by class."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from jobs.fields import Frozen
from jobs.learning import ImageOptimiserSpec
from jobs.specs import ChoiceSpec, Clustering, DistilSpec, NetworkSpec
from tests.benchmarks.cases.case import CLASSES, DSA, EXACT, PLAIN, Case, Sides, generator, images, network
from tests.benchmarks.plain import by_class
from tests.benchmarks.plain.by_class import Problem
from workers.data.dataset import Split
from workers.data.preprocess import Affine
from workers.data.synthetic_set import SyntheticSet
from workers.methods import method_named, settings_for
from workers.methods.base import LearnableImages, Stage
from workers.training.networks import Network
from workers.training.students import augmentation_of
from workers.training.transition import StartNetworks

TRAINING: dict[str, Any] = {"epochs": 1, "lr": 0.01, "batch_size": 128}
MATCH: dict[str, Any] = {"batch_real": 32}
CAFE: dict[str, Any] = {
    "weights": {"layers": (1.0, 0.1, 0.1, 1.0), "pooled": 0.1, "discrimination": 0.01},
    "lr_network": 0.01,
    "batch_train": 128,
    "probe": 16,
    "window": 2,
    "settled": 0.0,
    "moved": 1.0,
    "most_steps": 2,
    "most_epochs": 1,
}
IDC: dict[str, Any] = {"rounds": 2, "n_data": 128, "augmentation": "color_crop_cutout", "training": TRAINING}
METHODS: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "dc": (by_class.gradient_matching, {"outer": 2, "training": TRAINING}),
    "dsa": (
        by_class.gradient_matching,
        {"outer": 2, "augmentation": DSA, "training": {**TRAINING, "augmentation": DSA, "family": "dc"}},
    ),
    "dm": (by_class.distribution_matching, {"augmentation": DSA}),
    "idc": (by_class.formation_matching, IDC),
    "dream": (by_class.formation_matching, {**IDC, "recluster_every": 2}),
    "cafe": (by_class.feature_alignment, CAFE),
    "cafe_dsa": (by_class.feature_alignment, {**CAFE, "augmentation": DSA}),
}
"""Plain code of a method, and its settings beside `MATCH`."""
UNIT = {"idc", "dream"}
"""Methods whose pixels are in [0, 1]."""
LR = 0.1


def case(method: str, real: int = 500, ipc: int = 10) -> Case:
    """An outer iteration of a method at width 32."""
    arguments = {"method": method, "real": real, "ipc": ipc, "width": 32}
    return Case(f"{method.upper()}, width 32, {ipc} images a class", sides, arguments, default="by class")


def sides(method: str, real: int, ipc: int, width: int, size: int = 32, seed: int = 0) -> Sides:
    """How far an iteration moves the synthetic images."""
    ordinary, numbers = METHODS[method]
    settings: Any = settings_for(method, {**MATCH, **numbers})
    factor = 2 if method in UNIT else 1
    transform = _transform()
    shown, labels = images(real, seed + 1, (3, size, size))
    own_labels = torch.arange(CLASSES).repeat_interleave(ipc)
    own = torch.rand(len(own_labels), 3, size, size, generator=generator(seed + 2))
    own = own if method in UNIT else transform.normalise(own)
    augmentation = augmentation_of(settings.augmentation, "idc" if method in UNIT else "dc")

    def written_out(dtype: torch.dtype) -> Tensor:
        problem = Problem(
            network=copy.deepcopy(network(seed, width=width, size=size)).to(dtype),
            real=shown.to(dtype),
            real_labels=labels,
            images=own.to(dtype, copy=True),
            labels=own_labels,
            classes=CLASSES,
            lr=LR,
            mean=transform.mean.view(3, 1, 1).to(dtype),
            deviation=transform.std.view(3, 1, 1).to(dtype),
            factor=factor,
            generator=generator(seed + 3),
        )
        return ordinary(problem, settings, augmentation).double() - own.double()

    def ours() -> Tensor:
        learnable, iterate = iteration(
            method,
            Split(shown, labels),
            SyntheticSet(own, own_labels, None, factor),
            partial(network, seed, width=width, size=size),
            settings,
        )
        iterate(generator(seed + 3))
        return learnable.new.double() - own.double()

    return {PLAIN: partial(written_out, torch.float32), "by class": ours, EXACT: partial(written_out, torch.float64)}


def _transform() -> Affine:
    return Affine(torch.full((3,), 0.5), torch.full((3,), 0.25))


def iteration(
    method: str,
    train: Split,
    start: SyntheticSet,
    fresh: Callable[[], Network],
    settings: Frozen,
    clustering: Clustering = "sklearn",
) -> tuple[LearnableImages, Callable[[torch.Generator], float]]:
    """The images of a stage that begins, and one of its iterations, on the device of the real images.

    Args:
        method: its name.
        train: the real images.
        start: where the synthetic ones begin.
        fresh: makes a network, on the same device.
        settings: the method's own numbers.
        clustering: DREAM's k-means.
    """
    device, optimiser = train.labels.device, ImageOptimiserSpec(lr=LR)
    spec = DistilSpec(
        method=method, stage=1, ipc_per_stage=len(start) // CLASSES, factor=start.factor, network=NetworkSpec(),
        iterations=1, image=optimiser, choice=ChoiceSpec(by="last"), settings={}, clustering=clustering,
    )  # fmt: skip
    starts = StartNetworks(lambda number: fresh(), lambda number: generator(0), (), None, None)
    stage = Stage(
        spec=spec, train=train, classes=CLASSES, transform=_transform().to(device), experts=None, network=fresh(),
        start_networks=starts, device=device, memory_level=0,
    )  # fmt: skip
    learnable, matching = LearnableImages(start, None, optimiser, 1), method_named(method)(stage, settings)
    return learnable, lambda draws: matching.iterate(learnable, 0, draws)

"""Training and testing networks: experts, evaluation at several set sizes, ResNet-18, a test pass."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from jobs.specs import SgdSpec
from tests.benchmarks.cases.case import (
    CLASSES,
    DSA,
    EXACT,
    PLAIN,
    Case,
    Sides,
    generator,
    images,
    load,
    moved,
    network,
)
from tests.benchmarks.plain import training as plain
from workers.training.networks import flatten
from workers.training.students import augmentation_of, fit, trainer_for
from workers.training.trainer import correct

EXPERT = SgdSpec(epochs=1, lr=0.01, batch_size=256, augmentation=DSA)
EVALUATION = SgdSpec(epochs=1, lr=0.01, momentum=0.9, weight_decay=5e-4, batch_size=256, augmentation=DSA)
ENGINES: dict[str, dict[str, str]] = {
    "eager": {},
    "eager bfloat16": {"precision": "bfloat16"},
    "compiled": {"engine": "compiled"},
    "compiled bfloat16": {"engine": "compiled", "precision": "bfloat16"},
}
"""What a recipe says for each engine."""
UNCOMPILED = ("eager", "eager bfloat16")
COMPILED_IPC = 10
"""Images a class at which evaluation is measured compiled too: compiling takes as long as all else."""
RESNET = EVALUATION.model_copy(update={"batch_size": 32})


def experts(width: int, count: int) -> Case:
    """An epoch of an expert on so many images, in every engine."""
    return _training(f"experts, width {width}, an epoch of {count} images", EXPERT, ENGINES, width=width, count=count)


def evaluation(ipc: int, epochs: int) -> Case:
    """Epochs of an evaluation network of width 32."""
    spec = EVALUATION.model_copy(update={"epochs": epochs})
    name, engines = f"evaluation, width 32, {ipc} images a class", ENGINES if ipc == COMPILED_IPC else UNCOMPILED
    return _training(name, spec, engines, per="epoch", times=epochs, width=32, count=ipc * CLASSES)


def resnet(count: int) -> Case:
    """An epoch of ResNet-18 on so many images."""
    name = f"ResNet-18, an epoch of {count} images"
    return _training(name, RESNET, UNCOMPILED, width=None, count=count, architecture="resnet18")


def _training(
    name: str, spec: SgdSpec, engines: Iterable[str], *, per: str = "epoch", times: int = 1, **arguments: object
) -> Case:
    named = tuple(name for name in engines if shutil.which("g++") or "compiled" not in name)
    arguments = {"spec": spec, "named": named, **arguments}
    counted = {name: "eager" for name in named}
    return Case(name, sides, arguments, default="eager", per=per, count=times, counted=counted)


def sides(
    spec: SgdSpec,
    width: int | None,
    count: int,
    *,
    architecture: str = "convnet",
    size: int = 32,
    seed: int = 0,
    named: tuple[str, ...] = ("eager",),
) -> Sides:
    """How far training moves the parameters, in the `named` engines."""
    module = network(seed, architecture=architecture, width=width, size=size)
    start = flatten(module)
    ordinary: nn.Module = copy.deepcopy(module)
    if architecture == "convnet":
        ordinary = plain.convnet(width or 128, size=size)
    shown, labels = images(count, seed + 1, (3, size, size))
    assert spec.lr is not None
    rate, augmentation = spec.lr, augmentation_of(spec.augmentation, spec.family)

    def written_out(dtype: torch.dtype) -> Tensor:
        own = ordinary.to(dtype)
        load(own, start)
        optimiser = torch.optim.SGD(own.parameters(), lr=rate, momentum=spec.momentum, weight_decay=spec.weight_decay)
        plain.train(
            own, optimiser, shown.to(dtype), labels, epochs=spec.epochs, batch=spec.batch_size,
            generator=generator(seed + 2), augmentation=augmentation,
        )  # fmt: skip
        return moved(own, start)

    def ours(engine: SgdSpec) -> Tensor:
        load(module, start)
        trainer = trainer_for(module, engine, generator(seed + 2))
        fit(trainer, shown, labels, engine, on_epoch=lambda epoch, seen: None, correctness=True)
        return moved(module, start)

    engines = {name: partial(ours, spec.model_copy(update=how)) for name, how in ENGINES.items() if name in named}
    return {PLAIN: partial(written_out, torch.float32), **engines, EXACT: partial(written_out, torch.float64)}


def test_pass(width: int, count: int) -> Case:
    """A test on so many images."""
    arguments = {"width": width, "count": count}
    return Case(f"test, width {width}, {count} images", test_sides, arguments, default="eager", per="pass")


def test_sides(width: int, count: int, size: int = 32, seed: int = 0) -> Sides:
    """How many images are classified rightly."""
    module = network(seed, width=width, size=size)
    ordinary = plain.convnet(width, size=size)
    load(ordinary, flatten(module))
    shown, labels = images(count, seed + 1, (3, size, size))

    def written_out(dtype: torch.dtype) -> Tensor:
        return torch.tensor(plain.test(ordinary.to(dtype), shown.to(dtype), labels))

    def ours() -> Tensor:
        return 100 * correct(module, shown, labels).double().mean()

    return {PLAIN: partial(written_out, torch.float32), "eager": ours, EXACT: partial(written_out, torch.float64)}

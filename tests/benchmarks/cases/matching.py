"""An iteration of trajectory matching: the loss of some inner steps and its gradients."""

from __future__ import annotations

import shutil
from functools import partial

import torch
from torch import Tensor

from jobs.methods import Engine
from tests.benchmarks.cases.case import DSA, EXACT, PLAIN, Case, Sides, generator, images, load, network
from tests.benchmarks.plain.matching import trajectory_matching
from tests.benchmarks.plain.training import convnet
from workers.methods.trajectory.engines import ENGINES
from workers.methods.trajectory.trajectory_matching import InnerBatch, Student
from workers.training.networks import flatten
from workers.training.students import augmentation_of

EAGER: tuple[Engine, ...] = ("unrolled", "adjoint")
"""The engines of a CPU that take no compiler."""
DISTANCE = 0.05
"""Of the target from the start, as a share of the start's norm: about that of two epochs of an expert."""


def of_this_host() -> tuple[Engine, ...]:
    """The engines that a CPU has: with a C++ compiler the compiled one too."""
    return (*EAGER, "compiled") if shutil.which("g++") else EAGER


def case(width: int, batch: int, steps: int, side: int = 32, engines: tuple[Engine, ...] = EAGER) -> Case:
    """An iteration of so many inner steps on batches of so many images."""
    name = f"MTT, width {width}, {steps} steps of {batch} images"
    arguments = {"width": width, "batch": batch, "steps": steps, "size": side, "engines": engines}
    return Case(name, sides, arguments, default="unrolled", counted={"compiled": "adjoint"})


def sides(
    width: int,
    batch: int,
    steps: int,
    size: int = 32,
    seed: int = 0,
    engines: tuple[Engine, ...] = EAGER,
) -> Sides:
    """The gradient by the images, from the engines named."""
    module = network(seed, width=width, size=size)
    start = flatten(module)
    aside = torch.randn(len(start), generator=generator(seed + 1))
    target = start + DISTANCE * start.norm() / aside.norm() * aside
    shown, labels = images(batch, seed + 2, (3, size, size))
    augmentation = augmentation_of(DSA)
    assert augmentation is not None
    source = generator(seed + 3)
    batches = [
        InnerBatch(
            torch.randperm(batch, generator=source), augmentation.draw(batch, (size, size), source, siamese=False)
        )
        for _ in range(steps)
    ]
    student, rate = Student(module, augmentation), torch.tensor(0.02)
    plain = convnet(width, size=size)
    load(plain, start)
    drawn = [(one.index, one.draw) for one in batches]

    def ordinary(dtype: torch.dtype) -> Tensor:
        numbers = (one.to(dtype) for one in (start, target, shown))
        begin, end, x = numbers
        return trajectory_matching(plain.to(dtype), begin, end, x, labels, rate.to(dtype), drawn, augmentation)[1]

    def by(engine: Engine) -> Tensor:
        return ENGINES[engine](student, start, target, shown, labels, rate, batches).images

    ours = {name: partial(by, name) for name in engines}
    return {PLAIN: partial(ordinary, torch.float32), **ours, EXACT: partial(ordinary, torch.float64)}

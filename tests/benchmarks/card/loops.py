"""The loops of jobs on a card at the paper's sizes: seconds, kernels of a step, memory, and the share of the limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch

from jobs.specs import NetworkSpec
from tests.benchmarks.card.kernels import kernels_of
from tests.benchmarks.card.limits import peak_flops, tf32
from tests.benchmarks.card.measured import Measured, measured
from tests.benchmarks.cases import classwise
from tests.benchmarks.cases.case import CLASSES, DSA, generator
from tests.benchmarks.cases.training import ENGINES as TRAINING_ENGINES
from tests.benchmarks.cases.training import EVALUATION, EXPERT
from tests.benchmarks.loops import operations
from tests.benchmarks.measure import Row
from tests.workers.short_jobs import Problem, matching
from workers.data.dataset import Split
from workers.data.synthetic_set import SyntheticSet
from workers.methods import settings_for
from workers.methods.matching.kmeans import _CLUSTERINGS
from workers.methods.trajectory.engines import ENGINES
from workers.training.networks import Network
from workers.training.students import build_network, fit, trainer_for
from workers.training.trainer import correct

CONVNET = NetworkSpec(architecture="convnet", width=128, depth=3)
TRAIN, TEST = 195 * 256, 10_000
"""Images: of an epoch without a short last batch, for which compiled code would be made anew, and of a test."""
MATCHING = {1: (50, 10), 10: (30, 100), 50: (30, 500)}
"""By images per class: the inner steps of the published commands, and the images of each."""
PART, PROFILED = 4, 10
"""Inner steps whose operations are counted; steps whose kernels are."""
METHODS: dict[str, dict[str, Any]] = {
    "dm": {"batch_real": 256},
    "dsa": {"batch_real": 256},
    "dsa, ten classes at once": {"batch_real": 256, "classes_at_once": 10},
    "idc": {"batch_real": 64},
    "idc, ten classes at once": {"batch_real": 64, "classes_at_once": 10},
    "dream": {"batch_real": 64},
    "cafe": {"batch_real": 128},
}
"""Settings that differ from those of `tests.benchmarks.cases.classwise`."""
SIDE = 32
MOST_KERNELS = 12
"""Kernels of a step that are named."""


def matching_rows(device: torch.device) -> Iterator[Row]:
    """An iteration of MTT by images per class and engine."""
    sizes = {"width": 128, "side": SIDE, "classes": CLASSES}
    for ipc, (steps, images) in MATCHING.items():
        flops = operations(matching(device, "unrolled", Problem(images, PART, **sizes))) / PART * steps
        for engine in ENGINES:
            free(device)
            few = matching(device, engine, Problem(images, min(steps, PROFILED), **sizes))
            work = matching(device, engine, Problem(images, steps, **sizes))
            taken = measured(device, work, few, steps / min(steps, PROFILED))
            del few, work
            name = f"MTT, {ipc} a class, {steps} steps of {images} images, {engine}"
            yield _row(device, name, taken, flops, per="iteration", steps=steps)


def training_rows(device: torch.device) -> Iterator[Row]:
    """An epoch of an expert as it is by default and in other precisions, of an evaluation, and a test pass."""
    yield expert_row(device, "eager", "")
    with tf32(False):
        yield expert_row(device, "eager", ", float32 without TF32")
    yield expert_row(device, "eager bfloat16", "")
    images, labels = pictures(device, TRAIN)
    for ipc in (1, 10, 50):
        count, epochs = ipc * CLASSES, 20
        spec = EVALUATION.model_copy(update={"epochs": epochs})
        work = partial(fit, trainer_for(fresh(device), spec, generator(1)), images[:count], labels[:count], spec)
        taken = measured(device, work, work)
        per_epoch = Measured(taken.seconds / epochs, *_shared(epochs, taken.kernels, taken.busy), taken.peak_mib)
        steps, flops = -(-count // spec.batch_size), training_operations(device) * count
        yield _row(device, f"evaluation, {ipc} a class, an epoch", per_epoch, flops, per="epoch", steps=steps)
    network = fresh(device)
    work = partial(correct, network, images[:TEST], labels[:TEST])
    taken = measured(device, work, work)
    yield _row(device, f"test of {TEST} images", taken, training_operations(device) / 3 * TEST, per="pass")


def compiled_rows(device: torch.device) -> Iterator[Row]:
    """An epoch of an expert by compiled code."""
    for engine in TRAINING_ENGINES:
        if "compiled" in engine:
            yield expert_row(device, engine, "")


def expert_row(device: torch.device, engine: str, words: str) -> Row:
    """An epoch of an expert; its kernels are those of some steps.

    Args:
        device: on which it trains.
        engine: a name of `TRAINING_ENGINES`.
        words: that the name of the row ends with.
    """
    images, labels = pictures(device, TRAIN)
    spec = EXPERT.model_copy(update=TRAINING_ENGINES[engine])
    trainer = trainer_for(fresh(device), spec, generator(1))
    work = partial(fit, trainer, images, labels, spec, on_epoch=lambda epoch, seen: None, correctness=True)
    steps, some = -(-TRAIN // spec.batch_size), PROFILED * spec.batch_size
    taken = measured(device, work, partial(fit, trainer, images[:some], labels[:some], spec), steps / PROFILED)
    name = f"expert, an epoch of {TRAIN} images, {engine}{words}"
    return _row(device, name, taken, training_operations(device) * TRAIN, per="epoch", steps=steps)


def method_rows(device: torch.device) -> Iterator[Row]:
    """An iteration of each method that matches class by class, with few image steps."""
    images, labels = pictures(device, 5_000)
    for name, changed in METHODS.items():
        free(device)
        method = name.split(",")[0]
        settings = settings_for(method, {**classwise.MATCH, **classwise.METHODS[method][1], **changed})
        factor = 2 if method in classwise.UNIT else 1
        own = torch.arange(CLASSES, device=device).repeat_interleave(10)
        start = SyntheticSet(images[: len(own)].sigmoid(), own, None, factor)
        _, iterate = classwise.iteration(
            method, Split(images, labels), start, partial(fresh, device), settings, clustering="torch"
        )
        work = partial(iterate, generator(3))
        taken = measured(device, work, work)
        yield _row(device, f"{name}, 10 a class", taken, None, per="iteration")


def cluster_rows(device: torch.device) -> Iterator[Row]:
    """k-means of DREAM."""
    features = torch.randn(4_500, 2_048, generator=generator(0)).to(device)
    work = partial(_CLUSTERINGS["torch"], features, 128, 1)
    taken = measured(device, work, work)
    yield _row(device, "k-means, 4,500 x 2,048 to 128 clusters", taken, None, per="class")


def kernel_rows(device: torch.device) -> Iterator[Row]:
    """The kernels that take most of the time of some steps: of an expert, and of MTT."""
    if device.type != "cuda":
        return
    images, labels = pictures(device, PROFILED * EXPERT.batch_size)
    steps, many = MATCHING[10]
    problem = Problem(many, min(steps, PROFILED), width=128, side=SIDE, classes=CLASSES)
    works: dict[str, Callable[[], object]] = {
        "expert": partial(fit, trainer_for(fresh(device), EXPERT, generator(1)), images, labels, EXPERT),
        "MTT, 10 a class, unrolled": matching(device, "unrolled", problem),
    }
    for name, work in works.items():
        work()
        kernels = kernels_of(work)
        for kernel in sorted(kernels.seconds, key=kernels.seconds.__getitem__, reverse=True)[:MOST_KERNELS]:
            share = kernels.seconds[kernel] / kernels.busy
            yield Row(
                part="card kernels", name=f"{name}, of {kernels.busy * 1e3:.1f} ms: {kernel[:90]}", cpu_seconds=None,
                share=share, kernels=kernels.runs[kernel], note=f"{PROFILED} steps",
            )  # fmt: skip


PARTS: dict[str, Callable[[torch.device], Iterator[Row]]] = {
    "training": training_rows,
    "clusters": cluster_rows,
    "kernels": kernel_rows,
    "methods": method_rows,
    "compiled": compiled_rows,
    "matching": matching_rows,  # last, since a recording that fails may spoil the process
}


def _row(device: torch.device, name: str, taken: Measured, flops: float | None, *, per: str, steps: int = 1) -> Row:
    share = None if flops is None else flops / taken.seconds / peak_flops(device)
    each = "" if taken.kernels is None or steps == 1 else f"{taken.kernels / steps:.0f} kernels a step"
    if taken.busy is not None:
        each += f"; the card is busy {100 * taken.busy / taken.seconds:.0f} % of the time"
    return Row(
        part="card loops", name=name, cpu_seconds=None, wall_seconds=taken.seconds, per=per, share=share,
        peak_mib=taken.peak_mib, kernels=taken.kernels, note=each.removeprefix("; "),
    )  # fmt: skip


def _shared(epochs: int, *figures: float | None) -> tuple[float | None, ...]:
    """What is an epoch's of figures of so many."""
    return tuple(figure and figure / epochs for figure in figures)


def fresh(device: torch.device, seed: int = 0) -> Network:
    """The paper's network on the device."""
    return build_network(CONVNET, (3, SIDE, SIDE), CLASSES, generator(seed), device)


def pictures(device: torch.device, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images in the training space and their labels, on the device."""
    images = torch.randn(count, 3, SIDE, SIDE, generator=generator(5))
    return images.to(device), (torch.arange(count) % CLASSES).to(device)


@cache
def training_operations(device: torch.device, images: int = 64) -> float:
    """Floating-point operations of a training step for each image."""
    shown, labels = pictures(device, images)
    spec = EXPERT.model_copy(update={"batch_size": images, "augmentation": DSA})
    return operations(partial(fit, trainer_for(fresh(device), spec, generator(1)), shown, labels, spec)) / images


def free(device: torch.device) -> None:
    """Give what was allocated and is no longer used back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()

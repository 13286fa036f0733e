"""What a job costs: its work in FLOPs, and from that an estimate in seconds.

The estimate serves two ends: to order jobs by the work that hangs on them, and to tell people when a run will
be done. It takes no part in any result, and where a job of the same size was measured that time is taken
instead. Counted are convolutions and classifiers, two FLOPs a multiply-add, a forward and backward pass as
three forward passes. Tiny networks are bound by the number of calls and not by arithmetic, so every layer of
every step costs a fixed time as well. Left out: norms, augmentation, tests, reading and writing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jobs.facts import first_map
from jobs.graph import Graph, Job
from jobs.specs import (
    DatasetSpec,
    DistilSpec,
    EvaluateSpec,
    ExpertsSpec,
    ForgettingSpec,
    FullSpec,
    Kind,
    NetworkSpec,
    SelectSpec,
    SgdSpec,
)

Signature = tuple[Kind, str]
"""What jobs of the same size have in common, though not their seeds; see `signature`."""

RATE = 4.0e10
"""FLOP/s where no rate is given. It and the next three fit the quickstart on one core, mostly to a fifth."""
CALL = 0.7e-3
"""Seconds that one layer costs in one SGD step, however small it is."""
INNER_CALL = 3.4e-3
"""The same in one inner step of a student, which is differentiated twice."""
START = 0.1
"""Seconds to load the parents and to write the artifact."""
LIGHT = 1.0e6
"""FLOPs of the kinds that only move images about: `dataset` and `select`."""
SYN_STEPS = 10
"""Inner steps an iteration of a base method that names none in its settings."""


@dataclass(frozen=True)
class Effort:
    """FLOPs, and how many times a layer is called in SGD steps and in inner steps."""

    flops: float
    calls: float = 0.0
    inner_calls: float = 0.0

    def __add__(self, other: Effort) -> Effort:
        return Effort(self.flops + other.flops, self.calls + other.calls, self.inner_calls + other.inner_calls)

    def times(self, count: int) -> Effort:
        """The effort of doing the same `count` times."""
        return Effort(self.flops * count, self.calls * count, self.inner_calls * count)


def forward_flops(network: NetworkSpec, data: DatasetSpec) -> float:
    """FLOPs of one image's way through the network."""
    return 2.0 * sum(_multiply_adds(network, data))


def work(job: Job, graph: Graph) -> float:
    """FLOPs of a job; its parents must be in the graph."""
    return effort(job, graph).flops


def seconds(
    job: Job,
    graph: Graph,
    rates: Mapping[Kind, float],
    measured: Mapping[str | Signature, float],
) -> float:
    """An estimate of a job's seconds on one worker.

    Args:
        job: a job of the graph.
        graph: where its parents are.
        rates: FLOP/s by kind; `RATE` for a kind that is not there.
        measured: seconds of jobs that were run, by key or by `signature`; the key is the better witness.
    """
    for known in (job.key, signature(job, graph)):
        if known in measured:
            return measured[known]
    needed = effort(job, graph)
    calling = CALL * needed.calls + INNER_CALL * needed.inner_calls
    return START + calling + needed.flops / rates.get(job.kind, RATE)


def signature(job: Job, graph: Graph) -> Signature:
    """The job's kind, and its title without the numbers that tell equal jobs apart, with its effort."""
    words = re.sub(r"-(seed|net|draw|stage)\d+|-\d+to\d+", "", job.spec.title())
    needed = effort(job, graph)
    return job.kind, f"{words} {needed.flops:.6g} {needed.calls + needed.inner_calls:.6g}"


def effort(job: Job, graph: Graph) -> Effort:
    """FLOPs and calls of a job; its parents must be in the graph."""
    match job.spec:
        case ExpertsSpec() as spec:
            return _experts(spec, job, graph)
        case ForgettingSpec() as spec:
            counted = bool(job.parents.get("experts"))
            images = _data(job, graph).train_images
            return Effort(LIGHT) if counted else _fit(spec.network, spec.training, images, job, graph).times(spec.runs)
        case DistilSpec() as spec:
            return _matching(spec, job, graph) + _judging(spec, job, graph)
        case EvaluateSpec() as spec:
            return _links(spec, job, graph)
        case FullSpec() as spec:
            return _fit(spec.network, spec.training, _data(job, graph).train_images, job, graph)
        case _:
            return Effort(LIGHT)


def _experts(spec: ExpertsSpec, job: Job, graph: Graph) -> Effort:
    one = _fit(spec.network, spec.real, _data(job, graph).train_images, job, graph)
    if spec.transition is not None:
        one += _fit(spec.network, spec.transition, sum(_set_sizes(job, graph)), job, graph)
    return one.times(spec.count)


def _matching(spec: DistilSpec, job: Job, graph: Graph) -> Effort:
    """Each inner step is a forward and backward pass (3F) that is differentiated again (twice as much)."""
    data = _data(job, graph)
    new = data.classes * spec.ipc
    union = new + (sum(_set_sizes(job, graph)) if spec.conditioning else 0)
    steps = spec.iterations * (spec.settings.get("syn_steps") or SYN_STEPS)
    batch = min(union, spec.settings.get("batch_syn") or new)
    layers = len(list(_multiply_adds(spec.network, data)))
    return Effort(9 * forward_flops(spec.network, data) * batch * steps, inner_calls=layers * steps)


def _judging(spec: DistilSpec, job: Job, graph: Graph) -> Effort:
    """Each candidate is judged by networks trained on the union of the stage and those before it."""
    if spec.choice.by == "last" or spec.choice.training is None:
        return Effort(0.0)
    union = sum(_set_sizes(job, graph)) + _data(job, graph).classes * spec.ipc
    candidates = math.ceil(spec.iterations / spec.choice.every)
    return _fit(spec.network, spec.choice.training, union, job, graph).times(candidates * spec.choice.networks)


def _links(spec: EvaluateSpec, job: Job, graph: Graph) -> Effort:
    sizes = _set_sizes(job, graph)
    trained_on = {
        "union": [sum(sizes)],
        "sequential": sizes,
        "progressive": [sum(sizes[: stage + 1]) for stage in range(len(sizes))],
    }[spec.mode]
    fits = (_fit(spec.network, spec.training, images, job, graph) for images in trained_on)
    return sum(fits, Effort(0.0))


def _fit(network: NetworkSpec, training: SgdSpec, images: int, job: Job, graph: Graph) -> Effort:
    layers = list(_multiply_adds(network, _data(job, graph)))
    epochs = training.epochs + training.extra_epoch
    steps = epochs * math.ceil(images / training.batch_size)
    return Effort(3 * 2.0 * sum(layers) * images * epochs, calls=len(layers) * steps)


def _data(job: Job, graph: Graph) -> DatasetSpec:
    (key,) = job.parents["dataset"]
    spec = graph[key].spec
    assert isinstance(spec, DatasetSpec)
    return spec


def _set_sizes(job: Job, graph: Graph) -> list[int]:
    """Images of each of the synthetic sets among the parents."""
    classes = _data(job, graph).classes
    sizes = []
    for key in job.parents.get("sets", ()):
        spec = graph[key].spec
        assert isinstance(spec, DistilSpec | SelectSpec)
        sizes.append(classes * spec.ipc)
    return sizes


def _multiply_adds(network: NetworkSpec, data: DatasetSpec) -> Iterator[int]:
    """Multiply-adds of each convolution and of the classifier of `workers.networks`, for one image."""
    return _convnet(network, data) if network.architecture == "convnet" else _resnet(network, data)


def _convnet(network: NetworkSpec, data: DatasetSpec) -> Iterator[int]:
    side, incoming = first_map(data.channels, data.height), data.channels
    for _ in range(network.blocks):
        yield _convolution(side, 3, incoming, network.channels)
        side, incoming = side // 2, network.channels
    yield incoming * side * side * data.classes


def _resnet(network: NetworkSpec, data: DatasetSpec) -> Iterator[int]:
    """Maps below 4x4 are not halved any more; the MTT family pools 4x4, the IDC family the whole map."""
    side, incoming = data.height, network.channels
    yield _convolution(side, 3, data.channels, incoming)
    for group in range(4):
        outgoing = network.channels << group
        if group and side > 2:
            side = math.ceil(side / 2)
        for _ in range(network.blocks):
            yield _convolution(side, 3, incoming, outgoing)
            yield _convolution(side, 3, outgoing, outgoing)
            if incoming != outgoing:
                yield _convolution(side, 1, incoming, outgoing)
            incoming = outgoing
    pooled = 1 if network.architecture.startswith("idc_") or side < 4 else side // 4
    yield incoming * pooled * pooled * data.classes


def _convolution(side: int, kernel: int, incoming: int, outgoing: int) -> int:
    return side * side * kernel * kernel * incoming * outgoing

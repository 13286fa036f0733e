"""How much memory of a card a job needs at its peak, estimated from its spec before anything runs.

Counted are the data set, the weights with their gradients and momenta, and the maps that a backward pass needs: every
convolution's output costs some copies of itself, by what is differentiated how often. The copies were counted on the
pretended card of the tests with ConvNets (`tests/workers/test_memory.py` holds them to 20 %); of other networks the
sizes of the layers are exact and the copies are a ConvNet's.

On an H200 (torch 2.11) jobs at width 128 took 0.93 to 1.09 times their estimate in TF32, the default of convolutions.
cuDNN takes work space beside it (`WORKSPACE`), or slower algorithms where there is no room for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from jobs.graph import Graph, Job
from jobs.inputs import dataset_of, set_sizes
from jobs.methods import Engine
from jobs.specs import (
    DatasetSpec,
    DistilSpec,
    EvaluateSpec,
    ExpertsSpec,
    ForgettingSpec,
    FullSpec,
    NetworkSpec,
    SelectSpec,
)

BYTES = 4
"""Of a number: all of them are float32."""
CARD_SIZES = (16, 24, 40, 80)
"""GB of common cards."""
SPARE = 0.85
"""The share of a card that jobs may count on: CUDA's context and what the allocator leaves idle take the rest.
Assumed."""
WORKSPACE = 450 * 2**20
"""Bytes that each job's process may take beside its estimate: at most 219 MiB measured on an H200 in TF32 and 400 in
full float32, with batches of 32 images; 65 of them are cuBLAS's and the rest cuDNN's."""
GRAPH_LIMIT = 64 * 2**30
"""Bytes of graph above which trajectory matching takes the adjoint: what is left on a card of 80 GB."""
GRAPH_COPIES = 1.9 * 3.25
"""Copies of the maps that an inner step's graph keeps by this rule: 1.9 times the outputs of all layers (measured: 1.87
at width 32, 1.48 at 128, float32), which in a ConvNet are 3.25 times its maps."""

SGD = 3.4
"""Copies of the maps in one SGD step."""
PIXELS = 2.65
"""Those of a step that differentiates with respect to the images alone (RFAD)."""
LOOK = 2.33
"""Copies of the largest map in a forward pass without gradients."""
TEST_BATCH = 512
"""Images of such a pass."""
INNER, LAST = 4.9, 4.1
"""Copies of the maps that each differentiated inner step keeps, and those of one gradient of a gradient beside them."""
ALIGNED, ALIGNED_REAL, ALIGNED_MEANS = 2.26, 1.66, 5.3
"""CAFE: copies of the maps of the synthetic images, of one class's real images, and of the mean maps of all classes."""


@dataclass(frozen=True)
class Footprint:
    """The sizes of a network on one image: input, maps, the largest map, the classifier's input, and its weights."""

    pixels: int
    maps: int
    largest: int
    features: int
    weights: int


@cache  # thousands of jobs share a handful of networks
def footprint(network: NetworkSpec, channels: int, side: int, classes: int) -> Footprint:
    """What a network takes on one image.

    Args:
        network: its architecture and sizes.
        channels: of the image.
        side: of the square image, in pixels.
        classes: number of logits.
    """
    layers = network.layers(channels, side, classes)
    outputs = [layer.outputs for layer in layers]
    return Footprint(
        pixels=channels * side * side,
        maps=sum(outputs),
        largest=max(outputs),
        features=layers[-1].multiply_adds // classes,
        weights=sum(layer.weights for layer in layers),
    )


def _footprint(network: NetworkSpec, data: DatasetSpec) -> Footprint:
    return footprint(network, data.channels, data.height, data.classes)


def needs_card(job: Job) -> bool:
    """Whether the job computes with a network: on a CPU core beside cards the others are done as soon."""
    match job.spec:
        case DatasetSpec():
            return False
        case SelectSpec():
            return bool(job.parents.get("experts"))
        case ForgettingSpec():
            return not job.parents.get("experts")
    return True


def peak_bytes(job: Job, graph: Graph, engine: Engine | None = None) -> int:
    """The most that a job keeps on a card at once; 0 for jobs that use none.

    Args:
        job: a job of the graph.
        graph: where its parents are.
        engine: of trajectory matching, instead of the one that the spec leads to.
    """
    spec = job.spec
    if not needs_card(job):
        return 0
    if isinstance(spec, SelectSpec):
        expert = graph[job.parents["experts"][0]].spec
        assert isinstance(expert, ExpertsSpec)
        size = _footprint(expert.network, dataset_of(job, graph))
        return BYTES * math.ceil(_data_values(job, graph) + size.weights + _look(size, TEST_BATCH))
    assert isinstance(spec, DistilSpec | ExpertsSpec | EvaluateSpec | FullSpec | ForgettingSpec)
    size = _footprint(spec.network, dataset_of(job, graph))
    return BYTES * math.ceil(_data_values(job, graph) + _working(job, graph, size, engine))


def chosen_engine(spec: DistilSpec, channels: int, side: int, classes: int) -> Engine:
    """The engine of trajectory matching: the one that the recipe names, else by `GRAPH_LIMIT`.

    Args:
        spec: the stage.
        channels: of an image.
        side: of an image, in pixels.
        classes: of the data set.
    """
    engine: Engine | None = spec.settings.get("engine")
    if engine is not None:
        return engine
    maps = footprint(spec.network, channels, side, classes).maps
    batch = _inner_batch(spec, classes)
    return "adjoint" if BYTES * GRAPH_COPIES * maps * batch * _steps(spec) > GRAPH_LIMIT else "unrolled"


def largest_by_card(jobs: Mapping[str, int]) -> dict[int, str | None]:
    """For each card size in GB the key of the largest job that fits it; `jobs` are peak bytes by key."""
    fitting = {size: {key: peak for key, peak in jobs.items() if peak <= room(size)} for size in CARD_SIZES}
    return {size: max(fits, key=fits.__getitem__, default=None) for size, fits in fitting.items()}


def room(gigabytes: float) -> float:
    """The bytes of a card of this size that a job may count on."""
    return max(0.0, SPARE * gigabytes * 1e9 - WORKSPACE)


def _working(job: Job, graph: Graph, size: Footprint, engine: Engine | None) -> float:
    """Numbers that a job keeps beside the data set."""
    match job.spec:
        case DistilSpec() as spec:
            return _stage(spec, job, graph, size, engine)
        case ExpertsSpec() as spec:
            return _fit(size, min(spec.real.batch_size, dataset_of(job, graph).train_images))
        case EvaluateSpec() as spec:
            images = sum(set_sizes(job, graph))
            test = min(TEST_BATCH, _test_images(dataset_of(job, graph)))
            fit = _fit(size, min(spec.training.batch_size, images))
            return images * size.pixels + max(fit, 2 * size.weights + _look(size, test))
        case FullSpec() | ForgettingSpec() as spec:
            data = dataset_of(job, graph)
            fit = _fit(size, min(spec.training.batch_size, data.train_images))
            return max(fit, 2 * size.weights + _look(size, min(TEST_BATCH, _test_images(data))))
    return 0.0


def _stage(spec: DistilSpec, job: Job, graph: Graph, size: Footprint, engine: Engine | None) -> float:
    """The images with their gradients and momenta, and the largest of what an iteration does and of the judging."""
    data = dataset_of(job, graph)
    new = data.classes * spec.ipc_per_stage * spec.factor**2
    union = new + (sum(set_sizes(job, graph)) if spec.conditioning else 0)
    phases = [_METHODS.get(spec.method, _mtt)(spec, data, size, union, engine)]
    if spec.choice.by != "last" and spec.choice.training is not None:
        judged = min(TEST_BATCH, _validation_images(data) or TEST_BATCH)
        phases += [_fit(size, min(spec.choice.training.batch_size, union)), 3 * size.weights + _look(size, judged)]
    if spec.init == "classified":
        phases.append(2 * size.weights + _look(size, min(TEST_BATCH, data.train_images)))
    if spec.transition is not None and job.parents.get("sets"):
        phases.append(_fit(size, min(spec.transition.batch_size, union)))
    stays = spec.settings.get("engine") == "graphs" and engine is None  # recordings keep their memory to the end
    return 5 * union // spec.factor**2 * size.pixels + (sum(phases) if stays else max(phases))


Phase = Callable[[DistilSpec, DatasetSpec, Footprint, int, Engine | None], float]
"""The numbers that an iteration of a method keeps beside images and data, with so many images in the union."""


def _mtt(spec: DistilSpec, data: DatasetSpec, size: Footprint, union: int, engine: Engine | None) -> float:
    batch = min(union, _inner_batch(spec, data.classes))
    engine = engine or chosen_engine(spec, data.channels, data.height, data.classes)
    return _trajectory(size, batch, _steps(spec), engine)


def _factorised(spec: DistilSpec, data: DatasetSpec, size: Footprint, union: int, engine: Engine | None) -> float:
    """HaBa: as MTT, or the extractor's training on two images of each basis; its weights and momenta stay."""
    trained = _fit(size, 2 * min(union, _inner_batch(spec, data.classes)))
    return max(_mtt(spec, data, size, union, engine) + 3 * size.weights, trained)


def _constant_memory(spec: DistilSpec, data: DatasetSpec, size: Footprint, union: int, engine: Engine | None) -> float:
    """TESLA: as the adjoint, which keeps the graph of one inner step."""
    batch = min(union, _inner_batch(spec, data.classes))
    return _trajectory(size, batch, _steps(spec), "adjoint")


def _trajectory(size: Footprint, batch: int, steps: int, engine: Engine) -> float:
    kept = INNER * (steps if engine == "unrolled" else 1) + LAST
    vectors = 3 * steps + 2 if engine == "unrolled" else steps + (9 if engine == "graphs" else 7)
    return kept * batch * size.maps + vectors * size.weights


def _gradient(spec: DistilSpec, data: DatasetSpec, size: Footprint, union: int, engine: Engine | None) -> float:
    """DC, DSA: a class's real images, its synthetic ones with a gradient of a gradient, or training on the union."""
    trained = min(union, _number(spec, "training.batch_size", 256))
    return max(_match(spec, data, size, union // data.classes), _fit(size, trained))


def _formation(spec: DistilSpec, data: DatasetSpec, size: Footprint, union: int, engine: Engine | None) -> float:
    """IDC, DREAM: the same, with at most `max_synthetic` images of a class, and trained on real ones."""
    synthetic = min(union // data.classes, _number(spec, "max_synthetic", union))
    trained = min(_number(spec, "n_data", 256), _number(spec, "training.batch_size", 256))
    return max(_match(spec, data, size, synthetic), _fit(size, trained) + 3 * trained * size.pixels)


def _match(spec: DistilSpec, data: DatasetSpec, size: Footprint, synthetic: int) -> float:
    at_once = min(data.classes, _number(spec, "classes_at_once", 1))
    real = SGD * _real_of_class(spec, data) * size.maps
    return 4 * at_once * size.weights + at_once * max(real, (INNER + LAST) * synthetic * size.maps)


def _distribution(spec: DistilSpec, data: DatasetSpec, size: Footprint, union: int, engine: Engine | None) -> float:
    """DM: one class's real images in a forward pass, or its synthetic ones with their gradient."""
    synthetic = SGD * (union // data.classes) * size.maps
    return 2 * size.weights + max(_look(size, _real_of_class(spec, data)), synthetic)


def _alignment(spec: DistilSpec, data: DatasetSpec, size: Footprint, union: int, engine: Engine | None) -> float:
    """CAFE: a class's real or all synthetic images, beside the mean maps of all classes and all real features."""
    real, means = _real_of_class(spec, data), data.classes * (size.maps + size.features)
    phases = means + ALIGNED_REAL * real * size.maps, ALIGNED_MEANS * means + ALIGNED * union * size.maps
    trained = min(union, _number(spec, "batch_train", 256))
    return max(2 * size.weights + data.classes * real * size.features + max(phases), _fit(size, trained))


def _feature_regression(
    spec: DistilSpec, data: DatasetSpec, size: Footprint, union: int, engine: Engine | None
) -> float:
    """FRePo: the pool with its moments, and a look at real images or the synthetic ones' maps beside features."""
    real = min(data.train_images, _number(spec, "batch", 1024))
    features = 2 * (real + union) * size.features
    phase = max(_look(size, real), SGD * union * size.maps + features)
    return 3 * (_number(spec, "pool", 10) + 1) * size.weights + real * size.pixels + phase


def _unrolled(spec: DistilSpec, data: DatasetSpec, size: Footprint, union: int, engine: Engine | None) -> float:
    """DD, RaT-BPTT: the graph of the steps that are differentiated, and of the real images behind them."""
    window = _number(spec, "window", 0) or _steps(spec)
    batch = min(union, _number(spec, "batch_syn", union))
    real = min(data.train_images, _number(spec, "batch", data.train_images))
    vectors = (6 if spec.settings.get("optimiser") == "adam" else 3) * window + 5
    return (INNER * window * batch + SGD * real) * size.maps + real * size.pixels + vectors * size.weights


def _random_features(spec: DistilSpec, data: DatasetSpec, size: Footprint, union: int, engine: Engine | None) -> float:
    """RFAD: a look at real images by one of the networks, or the synthetic ones' maps in all of them and features."""
    networks = _number(spec, "networks", 1)
    real = min(data.train_images, _number(spec, "batch", data.train_images))
    maps = networks * (PIXELS * union * size.maps + 3 * (real + union) * size.features)
    return 2 * networks * size.weights + real * size.pixels + max(_look(size, real), maps)


_METHODS: dict[str, Phase] = {
    "mtt": _mtt,
    "datm": _mtt,
    "haba": _factorised,
    "dc": _gradient,
    "dsa": _gradient,
    "idc": _formation,
    "dream": _formation,
    "dm": _distribution,
    "cafe": _alignment,
    "cafe_dsa": _alignment,
    "frepo": _feature_regression,
    "tesla": _constant_memory,
    "dd": _unrolled,
    "rat_bptt": _unrolled,
    "rfad": _random_features,
}


def _fit(size: Footprint, batch: int) -> float:
    """An SGD step: weights, gradients, momenta and those of the network that it began from, and the maps."""
    return 4 * size.weights + SGD * batch * size.maps


def _look(size: Footprint, images: int) -> float:
    return LOOK * images * size.largest


def _steps(spec: DistilSpec) -> int:
    return int(spec.settings.get("syn_steps") or 10)


def _inner_batch(spec: DistilSpec, classes: int) -> int:
    """Images of an inner step of trajectory matching: all new ones, one of each of HaBa's bases, or a number given."""
    shown = math.ceil(spec.ipc_per_stage / _number(spec, "hallucinators", 1))
    return _number(spec, "batch_syn", classes * shown)


def _number(spec: DistilSpec, path: str, default: int) -> int:
    """A number of the method's settings, by its path."""
    value: Any = spec.settings
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return int(value) if value is not None else default


def _real_of_class(spec: DistilSpec, data: DatasetSpec) -> int:
    return min(data.train_images // data.classes, _number(spec, "batch_real", data.train_images))


def _data_values(job: Job, graph: Graph) -> float:
    """All images of the data set, as bytes or whitened as float32, each with an int64 label; in numbers of `BYTES`."""
    data = dataset_of(job, graph)
    images = data.train_images + _validation_images(data) + _test_images(data)
    pixels = data.channels * data.height * data.width
    return images * (pixels if data.normalise == "zca" else pixels / BYTES) + 2 * images


def _validation_images(data: DatasetSpec) -> int:
    per_class = data.validation_per_class
    return sum(per_class) if isinstance(per_class, tuple) else data.classes * per_class


def _test_images(data: DatasetSpec) -> int:
    """As many as are kept, else a fifth of the training images: a spec does not say how many there are."""
    if data.test_per_class:
        return data.classes * data.test_per_class
    return data.train_images // 5

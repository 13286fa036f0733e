"""What a job costs: its work, of which `jobs.machines` makes seconds.

The estimate serves two ends: to order jobs by the work that hangs on them, and to tell people when a run will be done.
It takes no part in any result, and where a job of the same size was measured that time is taken instead. Counted are
convolutions and classifiers, two FLOPs a multiply-add, a forward and backward pass as three forward passes, and what a
base method does by the numbers in its settings. Tiny networks are bound by the number of calls, narrow ones by the
memory that their maps take and ResNets on few images by that of their weights, so these are counted as well. Left out:
augmentation, tests and writing.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from jobs.fields import Settings
from jobs.graph import Graph, Job
from jobs.inputs import dataset_of, set_sizes
from jobs.machines import Effort
from jobs.specs import (
    Clustering,
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
    TransitionSpec,
)

Signature = tuple[Kind, str]
"""What jobs of the same size have in common, though not their seeds; see `signature`."""

MATCHED_CALL = 0.55
"""What a layer's call takes in a match of gradients, by that in an inner step."""
CLUSTERING_CALLS, CENTROID_CALLS = 8, 0.25
"""Embedding and k-means of one class, however small, by a layer's calls in SGD steps; and what each centroid adds."""
FORWARD_NUMBERS = 1 / 3
"""What a look without gradient moves of the numbers of an SGD step."""
ADJOINT = 1.25
"""What the adjoint takes of flops and calls, by the whole graph: 1.22 to 1.26 on a core, 1.16 to 1.27 on a card."""
COMPILED = 0.9, 0.8
"""What compiled code leaves of calls and of what moves memory, by the whole graph: by host 0.5 to 1.1 of its time."""
RECORDED = 0.85, 0.12
"""What recorded steps take of flops and calls on a card, by the whole graph."""
CLUSTERING_PASSES: dict[Clustering, int] = {"sklearn": 270, "torch": 40}
"""What a k-means takes, by the distances of all points from all centroids; measured on one core."""
LIGHT = 1.0e6
"""FLOPs of what only moves images about: `select` where no features are looked at, a phase of a data set."""
READING, DECODING, LIBRARY = 5e-9, 1.4e-4, 0.12
"""Seconds of reading a byte of a data set, of decoding a kept image, of importing scikit-learn."""
SYN_STEPS = 10
"""Inner steps an iteration of a base method that names none in its settings."""


class Sizes(NamedTuple):
    """A network on one image: multiply-adds of each layer, and the numbers and weights of all."""

    multiply_adds: tuple[int, ...]
    numbers: int
    weights: int

    @property
    def forward(self) -> float:
        """FLOPs of the image's way through the network."""
        return 2.0 * sum(self.multiply_adds)

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self.multiply_adds)


def forward_flops(network: NetworkSpec, data: DatasetSpec) -> float:
    """FLOPs of one image's way through the network."""
    return _sizes_on(network, data).forward


def work(job: Job, graph: Graph) -> float:
    """FLOPs of a job; its parents must be in the graph."""
    return effort(job, graph).flops


def signature(job: Job, graph: Graph, needed: Effort | None = None) -> Signature:
    """What a job has in common with jobs of its size.

    Args:
        job: a job of the graph.
        graph: where its parents are.
        needed: its effort, if it is known already.

    Returns:
        Its kind, and its title without the numbers that tell equal jobs apart, with its effort.
    """
    words = re.sub(r"-(seed|net|draw|stage)\d+|-\d+to\d+", "", job.spec.title())
    needed = needed or effort(job, graph)
    return job.kind, f"{words} {needed.flops:.6g} {needed.calls + needed.inner_calls:.6g}"


def effort(job: Job, graph: Graph, declared: Mapping[str, IterationCost] | None = None) -> Effort:
    """FLOPs and calls of a job; its parents must be in the graph.

    Args:
        job: a job of the graph.
        graph: where its parents are.
        declared: by base method from outside, what one iteration costs; one that is in neither counts as MTT.
    """
    match job.spec:
        case ExpertsSpec() as spec:
            return _experts(spec, job, graph)
        case ForgettingSpec() as spec:
            counted = bool(job.parents.get("experts"))
            images = dataset_of(job, graph).train_images
            return Effort(LIGHT) if counted else _fit(spec.network, spec.training, images, job, graph).times(spec.runs)
        case DistilSpec() as spec:
            return _matching(spec, job, graph, declared or {}) + _judging(spec, job, graph)
        case EvaluateSpec() as spec:
            return _links(spec, job, graph)
        case SelectSpec(rule="herding" | "k_center"):
            expert = graph[job.parents["experts"][0]].spec
            assert isinstance(expert, ExpertsSpec)
            data = dataset_of(job, graph)
            return Effort(LIGHT) + _seen(_sizes_on(expert.network, data), data.train_images)
        case FullSpec() as spec:
            return _fit(spec.network, spec.training, dataset_of(job, graph).train_images, job, graph)
        case DatasetSpec(subset=()) as spec:
            return _reading(spec)
        case _:
            return Effort(LIGHT)


def _reading(spec: DatasetSpec) -> Effort:
    """All bytes are read once, and what is kept is decoded; of test images nothing is known here."""
    kept = min(spec.train_images, spec.classes * (spec.train_per_class or spec.train_images))
    pixels = spec.channels * spec.height * spec.width
    library = LIBRARY if spec.name == "digits" else 0
    return Effort(LIGHT, seconds=READING * pixels * spec.train_images + DECODING * kept + library)


def _experts(spec: ExpertsSpec, job: Job, graph: Graph) -> Effort:
    """The training of each expert on real images, and on the sets before that."""
    expert = _fit(spec.network, spec.real, dataset_of(job, graph).train_images, job, graph)
    if spec.transition is not None:
        expert += _fit(spec.network, spec.transition, _links_of(spec.transition, job, graph)[-1], job, graph)
    return expert.times(spec.count)


def _matching(spec: DistilSpec, job: Job, graph: Graph, declared: Mapping[str, IterationCost]) -> Effort:
    """The iterations of a stage, by its base method's own settings."""
    data = dataset_of(job, graph)
    new = data.classes * spec.ipc_per_stage * spec.factor**2
    size = _sizes_on(spec.network, data)
    match = Match(
        forward=size.forward,
        layers=size.layers,
        features=size.multiply_adds[-1] // data.classes,
        classes=data.classes,
        real=data.train_images,
        new=new,
        union=new + (sum(set_sizes(job, graph)) if spec.conditioning else 0),
        clustering=spec.clustering,
        numbers=size.numbers,
        weights=size.weights,
    )
    iteration = ITERATIONS.get(spec.method) or declared.get(spec.method, _trajectory)
    return iteration(match, spec.settings).times(spec.iterations) + _transition(spec, job, graph)


def _transition(spec: DistilSpec, job: Job, graph: Graph) -> Effort:
    """The chains of the networks that a method without experts starts from, one an iteration or a pool of them."""
    if spec.transition is None or not job.parents.get("sets"):
        return Effort(0.0)
    links = (_fit(spec.network, spec.transition, n, job, graph) for n in _links_of(spec.transition, job, graph))
    return sum(links, Effort(0.0)).times(min(spec.iterations, spec.starts or spec.iterations))


def _links_of(transition: TransitionSpec, job: Job, graph: Graph) -> list[int]:
    """Training images of each link of a chain: the growing unions, or each set by itself."""
    sizes = set_sizes(job, graph)
    return sizes if transition.on == "newest" else list(itertools.accumulate(sizes))


@dataclass(frozen=True)
class Match:
    """What an iteration's cost depends on: FLOPs and layers of the network, classes, real and synthetic images.

    `features` are the numbers that a network's classifier reads of an image, `numbers` those that its layers give.
    """

    forward: float
    layers: int
    features: int
    classes: int
    real: int
    new: int
    union: int
    clustering: Clustering = "sklearn"
    numbers: int = 0
    weights: int = 0

    def real_of_class(self, settings: Settings) -> int:
        """Real images of a class in a match: as many as are asked for, if there are."""
        batch: int = settings.get("batch_real", self.real)
        return min(self.real // self.classes, batch)

    @property
    def own(self) -> int:
        """Synthetic images of a class."""
        return self.union // self.classes

    def seen(self, images: int) -> Effort:
        """A forward pass of so many images."""
        return _seen(self, images)

    def step(self, images: int) -> Effort:
        """One SGD step on so many images: a forward and a backward pass."""
        return self.steps(images, images)

    def steps(self, images: int, batch: int) -> Effort:
        """One epoch over so many images in batches."""
        return _epoch(self, images, batch)

    def twice(self, images: int) -> Effort:
        """An inner step that is differentiated again, which is twice as much as the step."""
        return Effort(9 * self.forward * images, inner_calls=self.layers, inner_numbers=self.numbers * images)

    def matched(self, images: int) -> Effort:
        """A gradient differentiated by the images alone: no chain of weights, so a layer's call is shorter."""
        twice = self.twice(images)
        return replace(twice, inner_calls=MATCHED_CALL * twice.inner_calls)

    def clustered(self, clusters: int) -> Effort:
        """The embeddings of all real images, and their k-means class by class."""
        distances = 2.0 * self.real * min(clusters, self.real // self.classes) * self.features
        calls = (CLUSTERING_CALLS + CENTROID_CALLS * clusters) * self.classes
        kmeans = Effort(CLUSTERING_PASSES[self.clustering] * distances, calls)
        return self.seen(self.real) + kmeans


IterationCost = Callable[[Match, Settings], Effort]
"""What one iteration costs by what it meets and by the method's settings; a method from outside may declare its own."""


def _trajectory(match: Match, settings: Settings) -> Effort:
    """MTT: inner steps of a student that are differentiated."""
    batch = min(match.union, settings.get("batch_syn") or match.new)
    steps, engine = match.twice(batch).times(settings.get("syn_steps") or SYN_STEPS), settings.get("engine")
    if engine == "compiled":
        calls, moved = COMPILED
        return replace(steps, inner_calls=calls * steps.inner_calls, inner_numbers=moved * steps.inner_numbers)
    factors = {"adjoint": (ADJOINT, ADJOINT), "graphs": RECORDED}
    flops, calls = factors.get(str(engine), (1.0, 1.0))
    return replace(steps.times(flops), inner_calls=calls * steps.inner_calls)


def _factorised(match: Match, settings: Settings) -> Effort:
    """HaBa: MTT with bases in its batches; two images of each for a gradient of the features and for their training."""
    of_class = match.new // match.classes
    hallucinators = min(of_class, settings["hallucinators"])
    batch = min(match.union, settings.get("batch_syn") or match.classes * math.ceil(of_class / hallucinators))
    pairs = match.step(2 * batch).times(2 if hallucinators > 1 else 0)
    return _trajectory(match, {**settings, "batch_syn": batch}) + pairs


def _constant_memory(match: Match, settings: Settings) -> Effort:
    """TESLA: inner steps forward, and each once more to be differentiated by its images, without a chain of weights."""
    batch = min(match.union, settings.get("batch_syn") or match.new)
    return (match.step(batch) + match.matched(batch)).times(settings.get("syn_steps") or SYN_STEPS)


def _gradient(match: Match, settings: Settings) -> Effort:
    """DC, DSA: a match for every class in each of the image steps, training on the synthetic set between them."""
    training, outer = settings.get("training", {}), settings.get("outer", 1)
    one_class = match.step(match.real_of_class(settings)) + match.matched(match.own)
    epoch = match.steps(match.union, training.get("batch_size", 256))
    return one_class.times(match.classes * outer) + epoch.times((outer - 1) * training.get("epochs", 1))


def _formation(match: Match, settings: Settings) -> Effort:
    """IDC: a match for every class in each of the rounds, training on real images between them."""
    training, rounds = settings.get("training", {}), settings.get("rounds", 1)
    synthetic = min(match.own, settings.get("max_synthetic", match.own))
    one_class = match.step(match.real_of_class(settings)) + match.matched(synthetic)
    epoch = match.steps(settings.get("n_data", match.real), training.get("batch_size", 256))
    return one_class.times(match.classes * rounds) + epoch.times((rounds - 1) * training.get("epochs", 1))


def _representatives(match: Match, settings: Settings) -> Effort:
    """DREAM: IDC, and a clustering of all real images every few rounds."""
    clusterings = math.ceil(settings.get("rounds", 1) / settings.get("recluster_every", 1))
    return _formation(match, settings) + match.clustered(match.real_of_class(settings)).times(clusterings)


def _distribution(match: Match, settings: Settings) -> Effort:
    """DM: one look at real images and one step through synthetic ones for every class."""
    return (match.seen(match.real_of_class(settings)) + match.step(match.own)).times(match.classes)


def _alignment(match: Match, settings: Settings) -> Effort:
    """CAFE, as at scale small: accuracies waver, so the inner loop ends when it may, the outer one when it must."""
    epochs: int = settings.get("window", 1)
    steps: int = settings.get("most_steps", epochs)
    probe = match.seen(match.classes * settings.get("probe", 1))
    inner = (match.steps(match.union, settings.get("batch_train", 256)) + probe).times(epochs)
    return (_distribution(match, settings) + probe).times(steps) + inner.times(steps - 1)


def _random_features(match: Match, settings: Settings) -> Effort:
    """RFAD: a look at real images and a gradient of the synthetic ones, by several networks."""
    look = match.seen(min(match.real, settings.get("batch", match.real)))
    return (look + match.step(match.union)).times(settings.get("networks", 1))


def _feature_regression(match: Match, settings: Settings) -> Effort:
    """FRePo: the same by one network, and a training step on the synthetic images."""
    return _random_features(match, settings) + match.step(min(match.union, settings.get("batch_train", match.union)))


def _unrolled(match: Match, settings: Settings) -> Effort:
    """DD, RaT-BPTT: inner steps, the last of them differentiated, and a gradient on real images."""
    steps, window = settings["syn_steps"], settings.get("window") or settings["syn_steps"]
    mean = (window + steps) / 2 if settings.get("ends") == "random" else steps
    batch = min(match.union, settings.get("batch_syn") or match.union)
    real = match.step(min(match.real, settings.get("batch", match.real)))
    return match.twice(batch).times(window) + match.step(batch).times(mean - window) + real


ITERATIONS: dict[str, IterationCost] = {
    "mtt": _trajectory,
    "datm": _trajectory,
    "haba": _factorised,
    "dc": _gradient,
    "dsa": _gradient,
    "idc": _formation,
    "dream": _representatives,
    "dm": _distribution,
    "cafe": _alignment,
    "cafe_dsa": _alignment,
    "frepo": _feature_regression,
    "tesla": _constant_memory,
    "dd": _unrolled,
    "rat_bptt": _unrolled,
    "rfad": _random_features,
}
"""What one iteration of a base method costs."""


def _judging(spec: DistilSpec, job: Job, graph: Graph) -> Effort:
    """The networks that judge the candidates, trained on the union of the stage's images and the earlier sets."""
    if spec.choice.by == "last" or spec.choice.training is None:
        return Effort(0.0)
    union = sum(set_sizes(job, graph)) + dataset_of(job, graph).classes * spec.ipc_per_stage * spec.factor**2
    candidates = math.ceil(spec.iterations / spec.choice.every)
    return _fit(spec.network, spec.choice.training, union, job, graph).times(candidates * spec.choice.networks)


def image_visits(job: Job, graph: Graph) -> int:
    """How many training images, counted once for every pass over them, an evaluated network sees in all its links."""
    assert isinstance(job.spec, EvaluateSpec)
    training = job.spec.training
    return sum(_trained_on(job.spec, job, graph)) * (training.epochs + training.extra_epoch)


def _links(spec: EvaluateSpec, job: Job, graph: Graph) -> Effort:
    """The training of an evaluated network, link by link."""
    fits = (_fit(spec.network, spec.training, images, job, graph) for images in _trained_on(spec, job, graph))
    return sum(fits, Effort(0.0))


def _trained_on(spec: EvaluateSpec, job: Job, graph: Graph) -> list[int]:
    """Training images of each link; in class-incremental learning a stage has its sets from every phase."""
    by_set, phases = set_sizes(job, graph), max(1, len(spec.phases))
    stages = len(by_set) // phases
    sizes = [sum(by_set[stage::stages]) for stage in range(stages)]
    return {
        "union": [sum(sizes)],
        "sequential": sizes,
        "progressive": list(itertools.accumulate(sizes)),
    }[spec.mode]


def _fit(network: NetworkSpec, training: SgdSpec, images: int, job: Job, graph: Graph) -> Effort:
    return fit(_sizes_on(network, dataset_of(job, graph)), training, images)


def fit(size: Sizes, training: SgdSpec, images: int) -> Effort:
    """A training of a network.

    Args:
        size: of the network.
        training: its epochs and batches.
        images: that it is trained on.
    """
    return _epoch(size, images, training.batch_size).times(training.epochs + training.extra_epoch)


def _epoch(size: Sizes | Match, images: int, batch: int) -> Effort:
    """SGD steps over so many images in batches, once."""
    steps = math.ceil(images / batch)
    flops, numbers = 3 * size.forward * images, size.numbers * images
    return Effort(flops, calls=size.layers * steps, numbers=numbers, weights=size.weights * steps)


def _seen(size: Sizes | Match, images: int) -> Effort:
    """A look at so many images, without gradient."""
    return Effort(size.forward * images, numbers=FORWARD_NUMBERS * size.numbers * images)


def _sizes_on(network: NetworkSpec, data: DatasetSpec) -> Sizes:
    return sizes(network, data.channels, data.height, data.classes)


@cache  # thousands of jobs share a handful of networks
def sizes(network: NetworkSpec, channels: int, side: int, classes: int) -> Sizes:
    """What a network takes for one image.

    Args:
        network: any of the registry.
        channels: of the image.
        side: its pixels in either direction.
        classes: number of logits.
    """
    layers = network.layers(channels, side, classes)
    return Sizes(
        tuple(layer.multiply_adds for layer in layers),
        sum(layer.outputs for layer in layers),
        sum(layer.weights for layer in layers),
    )

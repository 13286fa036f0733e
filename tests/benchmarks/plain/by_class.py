"""An outer iteration of each method that matches class by class, the ordinary way: one graph over a loop of classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jobs.methods import CafeSettings, DmSettings, DreamSettings, GradientSettings, IdcSettings
from tests.benchmarks.plain.training import loader, train
from workers.training.augmentation import Augmentation
from workers.training.networks import ConvNet, Network


@dataclass
class Problem:
    """What an iteration works with: a network, real and synthetic images, and how the latter descend.

    Attributes:
        network: a fresh one of the iteration.
        real: float [n, C, H, W] with labels int64 [n].
        images: synthetic ones with labels, changed in place; factor * factor training images in each.
        lr: of the images, by SGD with momentum 0.5.
        mean: of the normalisation, as `deviation`, for methods whose pixels are in [0, 1]; [C, 1, 1].
    """

    network: Network
    real: Tensor
    real_labels: Tensor
    images: Tensor
    labels: Tensor
    classes: int
    lr: float
    mean: Tensor
    deviation: Tensor
    factor: int
    generator: torch.Generator

    def optimiser(self) -> torch.optim.Optimizer:
        """Of the images."""
        return torch.optim.SGD([self.images.requires_grad_()], lr=self.lr, momentum=0.5)

    def real_of(self, label: int, count: int) -> Tensor:
        """Random real images of a class."""
        members = torch.nonzero(self.real_labels == label).flatten()
        return self.real[members[torch.randperm(len(members), generator=self.generator)[:count]]]

    def own(self, label: int) -> Tensor:
        """The synthetic images of a class."""
        return self.images[self.labels == label]

    def decoded(self, images: Tensor) -> Tensor:
        """The training images in stored ones: tiles, enlarged to the size of an image."""
        if self.factor == 1:
            return images
        side = images.shape[2] // self.factor
        tiles = [
            images[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
            for row in range(self.factor)
            for column in range(self.factor)
        ]
        return F.interpolate(torch.cat(tiles), size=images.shape[2:], mode="bilinear")

    def alike(self, augmentation: Augmentation | None, real: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
        """Both batches under one draw."""
        if augmentation is None:
            return real, synthetic
        height, width = real.shape[2:]
        draw = augmentation.draw(1, (height, width), self.generator, siamese=True)
        return augmentation.apply(real, draw), augmentation.apply(synthetic, draw)


def gradient_matching(problem: Problem, settings: GradientSettings, augmentation: Augmentation | None) -> Tensor:
    """DC or DSA: the images after all image steps of one network."""
    network, optimiser = problem.network, problem.optimiser()
    network_optimiser = torch.optim.SGD(network.parameters(), lr=settings.training.lr)
    weights = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    for step in range(settings.outer):
        if step:
            _train_on(problem, network_optimiser, settings, augmentation)
        total = torch.zeros(())
        for label in range(problem.classes):
            real, synthetic = problem.alike(
                augmentation, problem.real_of(label, settings.batch_real), problem.own(label)
            )
            total = total + _distance(network, weights, real, synthetic, label, _by_angle)
        optimiser.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return problem.images.detach()


def _train_on(
    problem: Problem,
    optimiser: torch.optim.Optimizer,
    settings: GradientSettings,
    augmentation: Augmentation | None,
) -> None:
    training = settings.training
    train(
        problem.network, optimiser, problem.images.detach(), problem.labels, epochs=training.epochs,
        batch=training.batch_size, generator=problem.generator, augmentation=augmentation,
    )  # fmt: skip


def _distance(
    network: Network,
    weights: Sequence[Tensor],
    real: Tensor,
    synthetic: Tensor,
    label: int,
    between: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """How differently a class's real and synthetic images pull the weights."""
    wanted = torch.autograd.grad(F.cross_entropy(network(real), _all(label, real)), weights)
    pulled = torch.autograd.grad(
        F.cross_entropy(network(synthetic), _all(label, synthetic)), weights, create_graph=True
    )
    total = torch.zeros(())
    for ours, theirs in zip(pulled, wanted, strict=True):
        total = total + between(ours, theirs.detach())
    return total


def _all(label: int, images: Tensor) -> Tensor:
    return torch.full((len(images),), label)


def _by_angle(synthetic: Tensor, real: Tensor) -> Tensor:
    a, b = synthetic.flatten(1), real.flatten(1)
    return (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()


def _by_square(synthetic: Tensor, real: Tensor) -> Tensor:
    return (synthetic - real).pow(2).sum()


def distribution_matching(problem: Problem, settings: DmSettings, augmentation: Augmentation | None) -> Tensor:
    """DM: the images after the image step of one network."""
    optimiser, total = problem.optimiser(), torch.zeros(())
    for label in range(problem.classes):
        real, synthetic = problem.alike(augmentation, problem.real_of(label, settings.batch_real), problem.own(label))
        target = problem.network.embed(real).detach().mean(0)
        total = total + (problem.network.embed(synthetic).mean(0) - target).pow(2).sum()
    optimiser.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return problem.images.detach()


def formation_matching(problem: Problem, settings: IdcSettings, augmentation: Augmentation | None) -> Tensor:
    """IDC, or DREAM by its settings: the images after all rounds of one network."""
    network, generator = problem.network, problem.generator
    problem.images.data.clamp_(0, 1)
    optimiser = problem.optimiser()
    training = settings.training
    network_optimiser = torch.optim.SGD(network.parameters(), lr=training.lr)
    members = [torch.nonzero(problem.real_labels == label).flatten() for label in range(problem.classes)]
    streams, everything = [_endless(own, generator) for own in members], torch.arange(len(problem.real))
    all_stream, chosen = _endless(everything, generator), list[Tensor]()
    convolutions = [parameter for parameter in network.parameters() if parameter.dim() == 4]
    for number in range(settings.rounds):
        if number:
            batches = math.ceil(settings.n_data / training.batch_size)
            index = torch.cat([next(all_stream)(training.batch_size) for _ in range(batches)])
            train(
                network, network_optimiser, problem.real[index], problem.real_labels[index],
                epochs=training.epochs, batch=training.batch_size, generator=generator,
            )  # fmt: skip
        if not isinstance(settings, DreamSettings):
            chosen = [next(stream)(settings.batch_real) for stream in streams]
        elif number % settings.recluster_every == 0:
            chosen = [_representatives(problem, own, settings.batch_real) for own in members]
        for label in range(problem.classes):
            shown = (problem.decoded(problem.own(label)) - problem.mean) / problem.deviation
            real, synthetic = problem.alike(augmentation, problem.real[chosen[label]], shown)
            optimiser.zero_grad()
            _distance(network, convolutions, real, synthetic, label, _by_square).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return problem.images.detach()


def _endless(members: Tensor, generator: torch.Generator) -> Iterator[Callable[[int], Tensor]]:
    """A function that gives the next indices of random passes over some."""
    rest = members[:0]

    def take(count: int) -> Tensor:
        nonlocal rest
        count = min(count, len(members))
        if len(rest) < count:
            rest = members[torch.randperm(len(members), generator=generator)]
        taken, rest = rest[:count], rest[count:]
        return taken

    while True:
        yield take


def _representatives(problem: Problem, members: Tensor, count: int) -> Tensor:
    """Of one class the images nearest to the centroids of k-means."""
    from sklearn.cluster import KMeans

    seed = int(torch.randint(2**31 - 1, (), generator=problem.generator))
    with torch.no_grad():
        pixels = problem.real[members] * problem.deviation + problem.mean
        features = problem.network.embed(pixels).numpy()
    clusters = KMeans(min(count, len(members)), n_init=1, random_state=seed).fit(features)
    nearest = []
    for cluster, centre in enumerate(clusters.cluster_centers_):
        own = (clusters.labels_ == cluster).nonzero()[0]
        nearest.append(own[((features[own] - centre) ** 2).sum(1).argmin()])
    return members[torch.tensor(nearest)]


def feature_alignment(problem: Problem, settings: CafeSettings, augmentation: Augmentation | None) -> Tensor:
    """CAFE: the images after the whole outer loop of one network."""
    network, optimiser = problem.network, problem.optimiser()
    network_optimiser = torch.optim.SGD(network.parameters(), lr=settings.lr_network)
    outer: list[float] = []
    while True:
        loss = _alignment(problem, settings, augmentation)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        outer.append(_probe(problem, settings))
        settled = len(outer) >= settings.window and _span(outer, settings.window) < settings.settled
        if settled or len(outer) == settings.most_steps:
            return problem.images.detach()
        inner: list[float] = []
        for _ in range(settings.most_epochs):
            train(
                network, network_optimiser, problem.images.detach().clone(), problem.labels, epochs=1,
                batch=settings.batch_train, generator=problem.generator, augmentation=augmentation,
            )  # fmt: skip
            inner.append(_probe(problem, settings))
            if len(inner) >= settings.window and _span(inner, settings.window) > settings.moved:
                break


def _span(seen: list[float], window: int) -> float:
    return max(seen[-window:]) - min(seen[-window:])


def _probe(problem: Problem, settings: CafeSettings) -> float:
    """The accuracy on some real images of every class."""
    images = torch.cat([problem.real_of(label, settings.probe) for label in range(problem.classes)])
    labels = torch.arange(problem.classes).repeat_interleave(len(images) // problem.classes)
    right = 0
    problem.network.eval()
    with torch.no_grad():
        for shown, target in loader(images, labels, 256):
            right += int((problem.network(shown).argmax(1) == target).sum())
    problem.network.train()
    return right / len(images)


def _alignment(problem: Problem, settings: CafeSettings, augmentation: Augmentation | None) -> Tensor:
    network: Any = problem.network
    assert isinstance(network, ConvNet)
    real_maps, own_maps, labels = [], [], list[Tensor]()
    for label in range(problem.classes):
        real = problem.real_of(label, settings.batch_real)
        real, synthetic = problem.alike(augmentation, real, problem.own(label))
        real_maps.append([each.detach() for each in network.maps(real)])
        own_maps.append(network.maps(synthetic))
        labels.append(_all(label, real))
    weights = settings.weights.layers[-len(own_maps[0]) :]
    total, last = torch.zeros(()), torch.zeros(())
    for layer, weight in enumerate(weights):
        last = torch.zeros(())
        for ours, theirs in zip(own_maps, real_maps, strict=True):
            last = last + (ours[layer].mean(0) - theirs[layer].mean(0)).pow(2).sum()
        total = total + weight * last
    features = torch.cat([maps[-1].flatten(1) for maps in real_maps])
    centres = torch.stack([maps[-1].mean(0).flatten() for maps in own_maps])
    told_apart = F.cross_entropy(features @ centres.T, torch.cat(labels), reduction="sum")
    return total + settings.weights.pooled * last + settings.weights.discrimination * told_apart

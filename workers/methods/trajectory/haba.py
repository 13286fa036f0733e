"""HaBa, a factorised set: bases and hallucinators (Liu et al., NeurIPS 2022; facts 4.6).

A hallucinator is a small network, common to all classes: a 3x3 convolution, a scale and a shift for every number of its
map, and a transposed convolution back to the size of an image. Each basis stands for the images that h hallucinators
make of it. Bases and hallucinators learn together by MTT's loss (`workers.methods.trajectory.mtt`), an inner step
taking some bases as one hallucinator shows them all. The images are rows of the union as in any other method, so every
engine matches them as they are, and the gradient goes on from them to bases and hallucinators by the chain rule.

So that a basis does not become h times the same image, the loss has a second term: how similar the features of two
images of one basis are. The features are those of a network that learns against it, to tell classes and to find images
of one basis similar.

OURS: `ipc_per_stage` counts images. Image k of a class is basis k // h as hallucinator k % h shows it, so 10 images a
class are 2 bases and 5 hallucinators; with fewer than h images there are as many hallucinators as images, and with one
image no second term. What is stored, frozen, evaluated and exported are these images. Under PDD every stage has bases
and hallucinators of its own, and h neighbours of one class among the frozen images stand for a basis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from jobs.fields import Frozen
from jobs.learning import ImageOptimiserSpec
from jobs.methods import ExtractorSettings, HabaSettings
from workers.data.synthetic_set import SyntheticSet
from workers.methods.base import Arrays, LearnableImages, Stage, draw_without_replacement, under
from workers.methods.learned import Learned
from workers.methods.trajectory.mtt import TrajectoryMatching
from workers.methods.trajectory.trajectory_matching import InnerBatch, Matched, batches_on
from workers.training.augmentation import Augmentation
from workers.training.networks import Network, flatten, load_flat

KERNEL = 3
"""Side of both convolutions."""
NOISE = 0.1
"""What is left of the random weights where hallucinators start by passing bases on."""
TEMPERATURE = 0.07
"""Of the contrast."""


@dataclass(frozen=True)
class Hallucinator:
    """The form of a hallucinator for images of one shape; its P numbers are kept apart, as a flat tensor.

    Attributes:
        shape: channels, height and width of an image.
    """

    shape: tuple[int, int, int]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of its tensors: the encoder's weight and bias, scale, shift, the decoder's weight and bias."""
        channels, height, width = self.shape
        weight, inner = (channels, channels, KERNEL, KERNEL), (channels, height - KERNEL + 1, width - KERNEL + 1)
        return [weight, (channels,), inner, inner, weight, (channels,)]

    def parts(self, numbers: Tensor) -> list[Tensor]:
        """Views of its numbers [P] as the tensors of `shapes`."""
        pieces = torch.split(numbers, [math.prod(shape) for shape in self.shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def first(self, start: Literal["random", "identity"], generator: torch.Generator) -> Tensor:
        """Its numbers before it learns, float32 [P]: convolutions as drawn by PyTorch's rule, scale 1, shift 0.

        Args:
            start: as drawn, or with a tenth of it about convolutions that pass an image on.
            generator: a CPU generator.
        """
        channels = self.shape[0]
        numbers = torch.zeros(sum(math.prod(shape) for shape in self.shapes))
        encoder, encoder_bias, scale, _, decoder, decoder_bias = self.parts(numbers)
        bound = 1 / math.sqrt(channels * KERNEL**2)
        for drawn in (encoder, encoder_bias, decoder, decoder_bias):
            drawn.uniform_(-bound, bound, generator=generator)
        if start == "identity":
            numbers *= NOISE
            middle = KERNEL // 2
            for weight in (encoder, decoder):
                weight[range(channels), range(channels), middle, middle] += 1
        scale += 1
        return numbers

    def images(self, bases: Tensor, numbers: Tensor) -> Tensor:
        """The images of bases [n, C, H, W] by a hallucinator with these numbers [P]; differentiable in both."""
        encoder, encoder_bias, scale, shift, decoder, decoder_bias = self.parts(numbers)
        inner = F.conv2d(bases, encoder, encoder_bias)
        return F.conv_transpose2d(scale * inner + shift, decoder, decoder_bias)


def rows_by_basis(labels: Sequence[int], count: int) -> list[list[int]]:
    """The rows of a union that belong to one basis: up to `count` neighbours of one class.

    Args:
        labels: of the union, set by set and class by class.
        count: of hallucinators.
    """
    rows = itertools.count()
    classes = [[next(rows) for _ in group] for _, group in itertools.groupby(labels)]
    return [own[first : first + count] for own in classes for first in range(0, len(own), count)]


def similarity(features: Tensor) -> Tensor:
    """How similar the pairs of features [2m, d] are, pair i being rows i and m + i: the mean of (cos + 1) / 2, []."""
    first, second = features.chunk(2)
    return (F.cosine_similarity(first, second).mean() + 1) / 2


def contrast(features: Tensor, labels: Tensor) -> Tensor:
    """The supervised contrast of features [n, d] with classes int64 [n], of which each has two rows or more; [].

    A softmax over the cosines of a row with all others, divided by the temperature, should choose those of its class.
    """
    directions = F.normalize(features)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    alike = (labels[:, None] == labels[None, :]) & ~itself
    cosines = (directions @ directions.T / TEMPERATURE).masked_fill(itself, -math.inf)
    shares = cosines.log_softmax(1).masked_fill(~alike, 0.0)
    return -(shares.sum(1) / alike.sum(1)).mean()


class Extractor:
    """The network whose features tell how similar two images are, and its own training against that."""

    def __init__(self, network: Network, augmentation: Augmentation | None, settings: ExtractorSettings) -> None:
        self._network, self._augmentation, self._settings = network, augmentation, settings
        self.weights = Learned.by(flatten(network), ImageOptimiserSpec(lr=settings.lr, momentum=settings.momentum))

    def features(self, images: Tensor, batch: InnerBatch) -> Tensor:
        """Of a batch out of images [n, C, H, W], augmented: [b, d]."""
        rows = images[batch.index]
        if self._augmentation is not None and batch.draw is not None:
            rows = self._augmentation.apply(rows, batch.draw)
        return self._network.embed(rows)

    def loss(self, images: Tensor, labels: Tensor, pairs: InnerBatch) -> Tensor:
        """What it learns by: cross-entropy, distance within the pairs, and contrast, each with its weight; [].

        Args:
            images: of the union, float32 [n, C, H, W].
            labels: theirs, int64 [n].
            pairs: first and second rows of each, one half behind the other.
        """
        settings, features, own = self._settings, self.features(images, pairs), labels[pairs.index]
        return (
            settings.classification * F.cross_entropy(self._network.classifier(features), own)
            + settings.distance * (1 - similarity(features))
            + settings.contrast * contrast(features, own)
        )

    def learn(self, images: Tensor, labels: Tensor, pairs: InnerBatch) -> None:
        """Make one step on its loss; arguments as there."""
        gradients = torch.autograd.grad(self.loss(images, labels, pairs), list(self._network.parameters()))
        self.weights.step(torch.cat([gradient.flatten() for gradient in gradients]))
        load_flat(self._network, self.weights.values)

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go back to a state of the weights."""
        self.weights.load_state(state)
        load_flat(self._network, self.weights.values)


class FactorisedMatching(TrajectoryMatching):
    """HaBa in one stage; see `workers.methods.base.Method`."""

    soft_labels = False
    Settings: ClassVar[type[Frozen]] = HabaSettings
    rates: ClassVar[str] = "distil.image.lr, lr_hallucinators or lr_step_size"

    def __init__(self, stage: Stage, settings: Frozen) -> None:
        assert isinstance(settings, HabaSettings)
        super().__init__(stage, settings)
        spec, self._numbers = stage.spec, settings
        self._count = min(settings.hallucinators, spec.ipc_per_stage)
        self._bases_of_class = math.ceil(spec.ipc_per_stage / self._count)
        channels, height, width = stage.train.images.shape[1:]
        self._hallucinator = Hallucinator((channels, height, width))
        labels = torch.arange(stage.classes).repeat_interleave(self._bases_of_class)
        empty = torch.zeros((len(labels), channels, height, width)).to(stage.device)
        self._bases = LearnableImages(SyntheticSet(empty, labels, None), None, spec.image, spec.iterations)
        size = sum(math.prod(shape) for shape in self._hallucinator.shapes)
        constant = {"lr": settings.lr_hallucinators, "final_lr": None, "halve_at": ()}
        zeros = torch.zeros((self._count, size)).to(stage.device)
        self._hallucinators = Learned.by(zeros, spec.image.model_copy(update=constant))
        self._extractor = None
        if self._count > 1:
            network = stage.start_networks.network(0)
            self._extractor = Extractor(network, self._student.augmentation, settings.extractor)
        self._rows: list[list[int]] = []

    def iterate(self, learnable: LearnableImages, iteration: int, generator: torch.Generator) -> float:
        """One iteration of MTT on bases and hallucinators, and one step of the extractor.

        Args:
            learnable: the images of the stage, and the earlier ones.
            iteration: counted from 0.
            generator: of all that is drawn.
        """
        if not self._rows:
            self._rows = rows_by_basis(learnable.labels.tolist(), self._count)
        loss = super().iterate(learnable, iteration, generator)
        if self._extractor is not None:
            union = learnable.union
            self._extractor.learn(union, learnable.labels, self._pairs(union, generator))
        return loss

    def begin(self, learnable: LearnableImages, generator: torch.Generator) -> None:
        """Take the first image of each basis for the basis, and draw the hallucinators."""
        by_class = learnable.new.view(self._stage.classes, -1, *self._hallucinator.shape)
        self._bases.assign(by_class[:, :: self._count].flatten(0, 1))
        drawn = [self._hallucinator.first(self._numbers.start, generator) for _ in range(self._count)]
        self._hallucinators.values.copy_(torch.stack(drawn))
        learnable.assign(self._images(self._bases.new, self._hallucinators.values))

    def _images(self, bases: Tensor, numbers: Tensor) -> Tensor:
        """All new images, float32 [classes * ipc_per_stage, C, H, W], of all bases and numbers [h, P]."""
        shown = torch.stack([self._hallucinator.images(bases, own) for own in numbers], 1)
        by_class = shown.view(self._stage.classes, -1, *self._hallucinator.shape)
        return by_class[:, : self._stage.spec.ipc_per_stage].flatten(0, 1)

    def _matched(self, learnable: LearnableImages, iteration: int, generator: torch.Generator) -> Matched:
        """The match of the union, with the similarity of pairs in its loss and its gradient."""
        matched = super()._matched(learnable, iteration, generator)
        if self._extractor is None:
            return matched
        union = learnable.union.requires_grad_()
        alike = similarity(self._extractor.features(union, self._pairs(union, generator)))
        (gradient,) = torch.autograd.grad(alike, union)
        weight = self._numbers.similarity
        return replace(matched, loss=matched.loss + weight * alike.detach(), images=matched.images + weight * gradient)

    def _step(self, learnable: LearnableImages, matched: Matched, iteration: int) -> None:
        """Move bases and hallucinators, then show the new images."""
        bases, numbers = self._bases.union.requires_grad_(), self._hallucinators.values.clone().requires_grad_()
        older = len(matched.images) - len(learnable.new)
        to_bases, to_numbers = torch.autograd.grad(
            self._images(bases, numbers), (bases, numbers), matched.images[older:]
        )
        self._bases.step(to_bases, iteration)
        self._hallucinators.step(to_numbers)
        if self._stage.spec.earlier_rate:  # the earlier images learn as they are
            super()._step(learnable, matched, iteration)
        learnable.assign(self._images(self._bases.new, self._hallucinators.values))

    def _next_rows(self, images: int, generator: torch.Generator) -> list[int]:
        """One image of each of the next bases, by the same hallucinator where they have it."""
        bases = self._next_bases(generator)
        number = int(torch.randint(self._count, (), generator=generator))
        return [rows[number % len(rows)] for rows in bases]

    def _pairs(self, union: Tensor, generator: torch.Generator) -> InnerBatch:
        """Two images of each of the next bases, on the device: all first ones, then all second ones."""
        bases = self._next_bases(generator)
        numbers: list[int] = torch.randperm(self._count, generator=generator)[:2].tolist()
        chosen = [rows[number % len(rows)] for number in numbers for rows in bases]
        (batch,) = batches_on(self._stage.device, [self._augmented(chosen, union, generator)])
        return batch

    def _next_bases(self, generator: torch.Generator) -> list[list[int]]:
        """The rows of the next bases of the union's random order."""
        size = self._numbers.batch_syn or self._stage.classes * self._bases_of_class
        chosen = draw_without_replacement(self._image_order, size, len(self._rows), generator)
        return [self._rows[basis] for basis in chosen]

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """MTT's, and the bases, hallucinators and extractor with their moments."""
        _, values = super().state()
        parts = {"bases": self._bases.state(), "hallucinators": self._hallucinators.state()}
        if self._extractor is not None:
            parts["extractor"] = self._extractor.weights.state()
        return {f"{part}/{name}": array for part, state in parts.items() for name, array in state.items()}, values

    def load_state(self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> None:
        """Go back to a `state`."""
        super().load_state(arrays, values)
        self._bases.load_state(under("bases/", arrays))
        self._hallucinators.load_state(under("hallucinators/", arrays))
        if self._extractor is not None:
            self._extractor.load_state(under("extractor/", arrays))

"""CAFE, aligning features layer by layer (Wang et al., CVPR 2022; facts 7.4), and CAFE+DSA with an augmentation.

Two terms pull the images. *Alignment*: in every block's map after its ReLU, and in the last map pooled, the mean over
a class's synthetic images should be the mean over its real ones. *Discrimination*: the mean synthetic features of the
classes, read as the rows of a classifier, should tell the real images apart.

**One iteration is one network and its whole outer loop**: an image step, training on the synthetic set (the inner
loop), an image step, and so on. A watch on the network's accuracy on real images of the training split ends both loops
(*dynamic bi-level*): the outer one when the last `window` accuracies span less than `settled`, since the network has
no more to show; the inner one when they span more than `moved`, since the images were fitted to a network that is no
longer there. A stage is thus left between networks only, its checkpoint holds nothing but the pixels, and the image
learning rate counts networks, as published.

OUR departures. Every accuracy is measured by itself; the reference adds a tenth of the one before, so that the first
readings rise whatever the network does. An accuracy that stays flat would keep the inner loop going, one that keeps
moving the outer loop, so both have a bound. Under PDD the means are those of the union's images, and the inner loop
trains on the union.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from jobs.errors import BadInput
from jobs.fields import Frozen
from jobs.methods import CafeSettings, Weights
from workers.data.dataset import rows_by_class
from workers.data.multi_formation import decode
from workers.data.synthetic_set import SyntheticSet
from workers.methods.base import LearnableImages, Method, Stage
from workers.methods.by_class import augmented, random_rows, require_finite, siamese_draw
from workers.training.augmentation import Draw, draws_on
from workers.training.networks import ConvNet, Network
from workers.training.students import augmentation_of
from workers.training.trainer import Optimiser, Schedule, Trainer, accuracy

Gradient = tuple[Tensor, Tensor]
"""The loss [] and its gradient with respect to the union's images."""


class Watch:
    """The last accuracies of a loop."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._seen: deque[float] = deque(maxlen=window)

    def see(self, value: float) -> None:
        """Add a measurement; the oldest of a full window goes."""
        self._seen.append(value)

    def settled(self, bound: float) -> bool:
        """Whether a full window spans less than `bound`."""
        return len(self._seen) == self._window and self._span < bound

    def moved(self, bound: float) -> bool:
        """Whether a full window spans more than `bound`."""
        return len(self._seen) == self._window and self._span > bound

    @property
    def _span(self) -> float:
        return max(self._seen) - min(self._seen)


@dataclass(frozen=True)
class Drawn:
    """Indices int64 of the real images of a class, and the augmentation of both sides."""

    real: Tensor
    draw: Draw | None


@dataclass(frozen=True)
class RealSide:
    """What the loss asks of the real images, whose maps are not kept.

    Attributes:
        means: of each layer's maps by class, [classes, width, side, side].
        features: of every image, [n, F].
        labels: int64 [n].
    """

    means: list[Tensor]
    features: Tensor
    labels: Tensor


class FeatureAlignment(Method):
    """CAFE in one stage; see `workers.methods.base.Method`. It keeps no state between iterations."""

    Settings = CafeSettings
    saving = "with the synthetic images of one class at a time"

    def __init__(self, stage: Stage, settings: Frozen) -> None:
        super().__init__(stage, settings)
        assert isinstance(settings, CafeSettings)
        self._settings = settings
        self._augmentation = augmentation_of(settings.augmentation, "dc")
        self._real = rows_by_class(stage.train.labels, stage.classes)
        _require_weights(stage, settings.weights)

    @classmethod
    def memory_levels(cls, settings: Frozen) -> int:
        """One: the synthetic maps of one class at a time, which are computed twice."""
        return 1

    def iterate(self, learnable: LearnableImages, iteration: int, generator: torch.Generator) -> float:
        """One network through its outer loop; the mean loss of its image steps."""
        settings = self._settings
        network = self.stage.start_networks.network(iteration)
        trainer = Trainer(network, Optimiser(lr=settings.lr_network), generator)
        watch, losses = Watch(settings.window), list[float]()
        while True:
            losses.append(self._image_step(learnable, network, iteration, generator))
            watch.see(self._accuracy(network, generator))
            if watch.settled(settings.settled) or len(losses) == settings.most_steps:
                return sum(losses) / len(losses)
            self._train(trainer, learnable, generator)

    def _image_step(
        self, learnable: LearnableImages, network: Network, iteration: int, generator: torch.Generator
    ) -> float:
        assert isinstance(network, ConvNet)
        drawn = [self._drawn(label, generator) for label in range(self.stage.classes)]
        descent = self._class_by_class if self.stage.memory_level else self._in_one_graph
        loss, gradient = descent(network, learnable, drawn)
        learnable.step(gradient, iteration)
        return require_finite(learnable, iteration, loss[None])[0]

    def _in_one_graph(self, network: ConvNet, learnable: LearnableImages, drawn: Sequence[Drawn]) -> Gradient:
        """The loss and its gradient with respect to the union; the maps of all synthetic images are kept."""
        union = learnable.union.requires_grad_()
        real = real_side(network, self._real_batches(drawn))
        centres = class_means(network, self._synthetic_batches(union, learnable.rows, drawn))
        loss = alignment_loss(network, real, centres, self._settings.weights)
        (gradient,) = torch.autograd.grad(loss, union)
        return loss.detach(), gradient

    def _class_by_class(self, network: ConvNet, learnable: LearnableImages, drawn: Sequence[Drawn]) -> Gradient:
        """The same, but each class's maps are computed once more when its turn has come, so only those are kept."""
        union, rows = learnable.union, learnable.rows
        real = real_side(network, self._real_batches(drawn))
        with torch.no_grad():
            centres = class_means(network, self._synthetic_batches(union, rows, drawn))
        leaves = [centre.requires_grad_() for centre in centres]
        loss = alignment_loss(network, real, leaves, self._settings.weights)
        pulls, gradient = torch.autograd.grad(loss, leaves), torch.zeros_like(union)
        with _statistics_kept(network):
            for label, (own, one) in enumerate(zip(rows, drawn, strict=True)):
                stored = union[own].requires_grad_()
                means = _means(network.maps(self._synthetic(stored, one)))
                (gradient[own],) = torch.autograd.grad(means, stored, [pull[label] for pull in pulls])
        return loss.detach(), gradient

    def _drawn(self, label: int, generator: torch.Generator) -> Drawn:
        """The random numbers of a class in an image step."""
        real = random_rows(self._real[label], self._settings.batch_real, generator)
        (draw,) = draws_on(real.device, [siamese_draw(self._augmentation, self.stage.train.images, generator)])
        return Drawn(real, draw)

    def _real_batches(self, drawn: Sequence[Drawn]) -> Iterator[Tensor]:
        return (augmented(self._augmentation, self.stage.train.images[one.real], one.draw) for one in drawn)

    def _synthetic_batches(self, union: Tensor, rows: Sequence[Tensor], drawn: Sequence[Drawn]) -> Iterator[Tensor]:
        return (self._synthetic(union[own], one) for own, one in zip(rows, drawn, strict=True))

    def _synthetic(self, stored: Tensor, drawn: Drawn) -> Tensor:
        """What the network sees of a class's stored images."""
        return augmented(self._augmentation, decode(stored, self.stage.spec.factor), drawn.draw)

    def _train(self, trainer: Trainer, learnable: LearnableImages, generator: torch.Generator) -> None:
        """The inner loop: train on the union until the accuracy on real images has moved."""
        settings, watch = self._settings, Watch(self._settings.window)
        images, labels = SyntheticSet(learnable.union, learnable.labels, None, self.stage.spec.factor).expanded()
        once, size = Schedule(epochs=1), settings.batch_train
        for _ in range(settings.most_epochs):
            trainer.run(images, labels, schedule=once, batch_size=size, augmentation=self._augmentation)
            watch.see(self._accuracy(trainer.module, generator))
            if watch.moved(settings.moved):
                return

    def _accuracy(self, network: torch.nn.Module, generator: torch.Generator) -> float:
        """Share of fresh random real images of the training split, as many of every class, that are classified."""
        chosen = torch.cat([random_rows(own, self._settings.probe, generator) for own in self._real])
        return accuracy(network, self.stage.train.images[chosen], self.stage.train.labels[chosen]) / 100


def alignment_loss(network: ConvNet, real: RealSide, centres: Sequence[Tensor], weights: Weights) -> Tensor:
    """The loss of an image step, differentiable with respect to the mean synthetic maps.

    With f the maps of `ConvNet.maps`, F the last of them flattened, and [.] the mean over a class's images,

        sum over layers l and classes c of w_l |[f_l(S_c)] - [f_l(T_c)]|^2  +  w |[F(S_c)] - [F(T_c)]|^2
        + v * sum over real x of CE([F(S)] F(x), label of x)  +  CE(network(T), labels),

    the last term being a mean without a gradient, which only the reported number has (facts 7.4).

    Args:
        network: in whose maps the classes are aligned.
        real: what its maps of the real images say.
        centres: [f_l(S)] by layer, [classes, width, side, side].
        weights: of the terms.
    """
    with torch.no_grad():
        logits: Tensor = network.classifier(real.features)
    distances = [(a - b).square().sum() for a, b in zip(centres, real.means, strict=True)]
    by_layer = torch.tensor(weights.layers[-len(distances) :], dtype=logits.dtype)
    aligned = (torch.stack(distances) * by_layer.to(logits.device, non_blocking=True)).sum()
    told_apart = F.cross_entropy(real.features @ centres[-1].flatten(1).T, real.labels, reduction="sum")
    told = weights.pooled * distances[-1] + weights.discrimination * told_apart
    return aligned + told + F.cross_entropy(logits, real.labels)


def real_side(network: ConvNet, batches: Iterable[Tensor]) -> RealSide:
    """What the loss asks of the real images, [n, C, H, W] by class; a class is let go before the next one comes."""
    means, features, labels = list[list[Tensor]](), list[Tensor](), list[Tensor]()
    with torch.no_grad():
        for label, images in enumerate(batches):
            maps = network.maps(images)
            means.append(_means(maps))
            features.append(maps[-1].flatten(1))
            labels.append(torch.full((len(images),), label, device=images.device))
            del images, maps
    return RealSide(_by_layer(means), torch.cat(features), torch.cat(labels))


def class_means(network: ConvNet, batches: Iterable[Tensor]) -> list[Tensor]:
    """For each layer the mean maps of the classes, [classes, width, side, side], of images [n, C, H, W] by class."""
    return _by_layer([_means(network.maps(images)) for images in batches])


def _means(maps: Sequence[Tensor]) -> list[Tensor]:
    """The mean of each layer's map [n, width, side, side] over its images."""
    return [one.mean(0) for one in maps]


def _by_layer(means: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """For each layer the means of all classes, [classes, width, side, side]; given by class."""
    return [torch.stack(layer) for layer in zip(*means, strict=True)]


@contextmanager
def _statistics_kept(network: torch.nn.Module) -> Iterator[None]:
    """What is seen inside leaves the running statistics of batch norm as they are."""
    kept = [buffer.clone() for buffer in network.buffers()]
    yield
    for buffer, value in zip(network.buffers(), kept, strict=True):
        buffer.copy_(value)


def _require_weights(stage: Stage, weights: Weights) -> None:
    """Only a ConvNet has known maps, and each of them needs a weight."""
    place, network = f"stage {stage.spec.stage} of {stage.spec.method}", stage.spec.network
    if network.architecture != "convnet":
        raise BadInput(place, "network.architecture", network.architecture, "CAFE aligns a convnet's maps; name that")
    if len(weights.layers) <= network.blocks:
        fix = f"give {network.blocks + 1}, one for each block's map and the last for the pooled one"
        raise BadInput(place, "distil.settings.weights.layers", weights.layers, fix)

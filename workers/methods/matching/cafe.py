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
from collections.abc import Sequence

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
from workers.methods.by_class import random_rows, require_finite, siamese
from workers.training.networks import ConvNet, Network
from workers.training.students import augmentation_of
from workers.training.trainer import Optimiser, Schedule, Trainer, accuracy

Pair = tuple[Tensor, Tensor]
"""Real [m, C, H, W] and synthetic images [n, C, H, W] of one class."""


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


class FeatureAlignment(Method):
    """CAFE in one stage; see `workers.methods.base.Method`. It keeps no state between iterations."""

    Settings = CafeSettings

    def __init__(self, stage: Stage, settings: Frozen) -> None:
        super().__init__(stage, settings)
        assert isinstance(settings, CafeSettings)
        self._settings = settings
        self._augmentation = augmentation_of(settings.augmentation, "dc")
        self._real = rows_by_class(stage.train.labels, stage.classes)
        _require_weights(stage, settings.weights)

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
        union = learnable.union.requires_grad_()
        pairs = [self._pair(union[own], label, generator) for label, own in enumerate(learnable.rows)]
        loss = cafe_loss(network, pairs, self._settings.weights)
        (gradient,) = torch.autograd.grad(loss, union)
        learnable.step(gradient, iteration)
        return require_finite(learnable, iteration, loss.detach()[None])[0]

    def _pair(self, stored: Tensor, label: int, generator: torch.Generator) -> Pair:
        real = self.stage.train.images[random_rows(self._real[label], self._settings.batch_real, generator)]
        return siamese(self._augmentation, real, decode(stored, self.stage.spec.factor), generator)

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


def cafe_loss(network: ConvNet, pairs: Sequence[Pair], weights: Weights) -> Tensor:
    """The loss of an image step, differentiable with respect to the synthetic images.

    With f the maps of `ConvNet.maps`, F the last of them flattened, and [.] the mean over a class's images,

        sum over layers l and classes c of w_l |[f_l(S_c)] - [f_l(T_c)]|^2  +  w |[F(S_c)] - [F(T_c)]|^2
        + v * sum over real x of CE([F(S)] F(x), label of x)  +  CE(network(T), labels),

    the last term being a mean without a gradient, which only the reported number has (facts 7.4).
    """
    with torch.no_grad():
        real = [network.maps(images) for images, _ in pairs]
        features = torch.cat([maps[-1].flatten(1) for maps in real])
        logits: Tensor = network.classifier(features)
    labels = torch.cat([torch.full((len(one[-1]),), label, device=logits.device) for label, one in enumerate(real)])
    centres = _class_means([network.maps(images) for _, images in pairs])
    distances = [(a - b).square().sum() for a, b in zip(centres, _class_means(real), strict=True)]
    aligned = (torch.stack(distances) * logits.new_tensor(weights.layers[-len(distances) :])).sum()
    told_apart = F.cross_entropy(features @ centres[-1].flatten(1).T, labels, reduction="sum")
    told = weights.pooled * distances[-1] + weights.discrimination * told_apart
    return aligned + told + F.cross_entropy(logits, labels)


def _class_means(maps: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """For each map its mean over every class's images, [classes, width, side, side]; `maps` are by class."""
    return [torch.stack([one.mean(0) for one in by_class]) for by_class in zip(*maps, strict=True)]


def _require_weights(stage: Stage, weights: Weights) -> None:
    """Only a ConvNet has known maps, and each of them needs a weight."""
    place, network = f"stage {stage.spec.stage} of {stage.spec.method}", stage.spec.network
    if network.architecture != "convnet":
        raise BadInput(place, "network.architecture", network.architecture, "CAFE aligns a convnet's maps; name that")
    if len(weights.layers) <= network.blocks:
        fix = f"give {network.blocks + 1}, one for each block's map and the last for the pooled one"
        raise BadInput(place, "distil.settings.weights.layers", weights.layers, fix)

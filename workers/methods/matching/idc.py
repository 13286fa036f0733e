"""IDC, efficient data parameterisation with gradient matching (Kim et al., ICML 2022; facts 6.1).

Three changes to `workers.methods.matching.gradient`. A stored image holds factor * factor training images, and the
match goes through their decoding (`workers.data.multi_formation`). The matching network trains on real images, so that
it goes on learning while the images are poor. And each class takes an image step of its own: matched are the
convolutions' weights alone, by plain distance and not by angle.

One iteration takes a new network through `rounds` rounds of an image step for every class and some hundred real images
of training. Pixels live in [0, 1]; the new ones are clamped when an iteration begins. Under PDD the class's frozen
images are decoded with the new ones.

What differs from the published code: the network is not trained once more after the last round, when it is dropped; the
frozen images are not clamped again (facts 6.2), since nothing may move them; images are drawn, not the first of their
class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.errors import BadInput
from jobs.fields import Frozen
from jobs.methods import IdcSettings
from workers.data.dataset import rows_by_class
from workers.data.multi_formation import decode
from workers.data.preprocess import Zca
from workers.methods.base import Arrays, LearnableImages, Method, Stage
from workers.methods.by_class import (
    SiameseDraws,
    classes_at_once,
    require_finite,
    siamese,
    siamese_draw,
    taken_together,
)
from workers.methods.matching.gradient import Distance, gradient_distance, joint_gradient_distance
from workers.training.augmentation import Draw
from workers.training.networks import Network
from workers.training.side_by_side import SideBySide
from workers.training.students import augmentation_of, fit, trainer_for
from workers.training.trainer import Trainer

DISTANCES: dict[str, Distance] = {
    "l1": lambda synthetic, real: (synthetic - real).abs().sum(),
    "l2": lambda synthetic, real: (synthetic - real).square().sum(),
}
"""Of one convolution's gradients: the sum of absolute or of squared differences."""


class Endless:
    """Some indices in random order, pass after pass without an end.

    Attributes:
        rest: int64 [r], what is left of the current pass; all that `take` depends on.
    """

    def __init__(self, members: Tensor) -> None:
        self._members = members
        self.rest = members[:0]

    def take(self, count: int, generator: torch.Generator) -> Tensor:
        """The next `count` indices, or all if there are fewer; a rest that is too short is dropped."""
        count = min(count, len(self._members))
        if len(self.rest) < count:
            order = torch.randperm(len(self._members), generator=generator)
            self.rest = self._members[order.to(self._members.device, non_blocking=True)]
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken


class FormationMatching(Method):
    """IDC in one stage; see `workers.methods.base.Method`."""

    Settings: ClassVar[type[Frozen]] = IdcSettings
    saving = "with one class in a call"
    space = "unit"

    def __init__(self, stage: Stage, settings: Frozen) -> None:
        super().__init__(stage, settings)
        assert isinstance(settings, IdcSettings)
        _require_pixels(stage)
        self._settings = settings
        self._augmentation = augmentation_of(settings.augmentation, "idc")
        self._at_once = classes_at_once(stage, settings.classes_at_once)
        self._real = rows_by_class(stage.train.labels, stage.classes)
        self._classes = [Endless(own) for own in self._real]
        self._all = Endless(torch.arange(len(stage.train), device=stage.train.labels.device))

    @classmethod
    def memory_levels(cls, settings: Frozen) -> int:
        """One where several classes are taken at once: they are taken one by one."""
        assert isinstance(settings, IdcSettings)
        return int(settings.classes_at_once > 1)

    def iterate(self, learnable: LearnableImages, iteration: int, generator: torch.Generator) -> float:
        """One network from its start to its end; returns the mean loss of a class."""
        learnable.new.clamp_(0.0, 1.0)
        network = self.stage.start_networks.network(iteration)
        trainer = trainer_for(network, self._settings.training, generator)
        rows = learnable.rows
        losses = []
        for number in range(self._settings.rounds):
            if number:
                self._train(trainer, generator)
            real = self._real_batches(network, number, generator)
            for labels in taken_together([len(batch) for batch in real], self._at_once):
                if len(labels) == 1:
                    (label,) = labels
                    step = self._class_step(learnable, network, real[label], rows[label], label, iteration, generator)
                else:
                    step = self._classes_step(learnable, network, real, rows, labels, iteration, generator)
                losses.append(step)
        steps = self._settings.rounds * len(rows)
        mean = torch.stack(losses).mean() * (len(losses) / steps)
        return require_finite(learnable, iteration, mean[None])[0]

    def _real_batches(self, network: Network, number: int, generator: torch.Generator) -> Sequence[Tensor]:
        """For each class the indices of the real images of round `number`."""
        return [stream.take(self._settings.batch_real, generator) for stream in self._classes]

    def _class_step(
        self,
        learnable: LearnableImages,
        network: Network,
        real: Tensor,
        own: Tensor,
        label: int,
        iteration: int,
        generator: torch.Generator,
    ) -> Tensor:
        """One descent for one class; the other classes' images have no gradient and go on by their momentum."""
        union = learnable.union
        gradient = torch.zeros_like(union)
        loss, gradient[own] = self._match(network, self.stage.train.images[real], union[own], label, generator)
        learnable.step(gradient, iteration)
        return loss

    def _classes_step(
        self,
        learnable: LearnableImages,
        network: Network,
        real: Sequence[Tensor],
        rows: Sequence[Tensor],
        labels: range,
        iteration: int,
        generator: torch.Generator,
    ) -> Tensor:
        """As many descents, one for each class, from matches that are computed together; the sum of the losses.

        Until a class's turn comes its images go on by their momentum, whatever the other classes' gradients are; so
        where they will be then is known before.
        """
        ahead, stored = learnable.twin(), list[Tensor]()
        nothing = torch.zeros_like(learnable.union)
        for label in labels:
            stored.append(ahead.union[rows[label]])
            ahead.step(nothing, iteration)
        loss, gradients = self._match_together(network, real, torch.stack(stored), labels, generator)
        for label, own in zip(labels, gradients, strict=True):
            learnable.step(nothing.index_copy(0, rows[label], own), iteration)
        return loss

    def _match_together(
        self,
        network: Network,
        real: Sequence[Tensor],
        stored: Tensor,
        labels: range,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """As `_match` for several classes [classes, n, C, H, W]: the sum of their distances, and its gradient."""
        stored.requires_grad_()
        images = self.stage.train.images[torch.cat([real[label] for label in labels])]
        synthetic, draws = list[Tensor](), list[Draw | None]()
        for own in stored.unbind():
            synthetic.append(self._decoded(own, generator))
            draws.append(siamese_draw(self._augmentation, images, generator))
        siamese = SiameseDraws(self._augmentation, draws, stored.device)
        shown = siamese.apply(images.view(len(labels), -1, *images.shape[1:]))
        matched = siamese.apply(torch.stack(synthetic))
        copies = SideBySide(network, len(labels))
        convolutions = [weight for weight in copies.weights.values() if weight.dim() == 4]
        there = torch.arange(labels.start, labels.stop, device=stored.device)
        distance = DISTANCES[self._settings.distance]
        loss = joint_gradient_distance(copies, convolutions, distance, shown, matched, there)
        (gradient,) = torch.autograd.grad(loss, stored)
        return loss.detach(), gradient

    def _match(
        self, network: Network, real: Tensor, stored: Tensor, label: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The distance of one class and its gradient with respect to its stored images, which are in [0, 1]."""
        stored.requires_grad_()
        pair = siamese(self._augmentation, real, self._decoded(stored, generator), generator)
        convolutions = [parameter for parameter in network.parameters() if parameter.dim() == 4]
        loss = gradient_distance(network, convolutions, DISTANCES[self._settings.distance], *pair, label)
        (gradient,) = torch.autograd.grad(loss, stored)
        return loss.detach(), gradient

    def _decoded(self, stored: Tensor, generator: torch.Generator) -> Tensor:
        """The training images in stored ones, in the training space, `max_synthetic` at most."""
        images = decode(stored, self.stage.spec.factor)
        if len(images) > self._settings.max_synthetic:
            chosen = torch.randperm(len(images), generator=generator)[: self._settings.max_synthetic]
            images = images[chosen.to(images.device, non_blocking=True)]
        return self.stage.transform.normalise(images)

    def _train(self, trainer: Trainer, generator: torch.Generator) -> None:
        """Go on training the matching network, on the next real images of the endless stream."""
        training, train = self._settings.training, self.stage.train
        batches = math.ceil(self._settings.n_data / training.batch_size)
        index = torch.cat([self._all.take(training.batch_size, generator) for _ in range(batches)])
        fit(trainer, train.images[index], train.labels[index], training)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """What is left of the current passes over each class and over all real images."""
        streams = {"all": self._all, **{f"class/{label}": stream for label, stream in enumerate(self._classes)}}
        return {name: stream.rest.cpu().numpy().copy() for name, stream in streams.items()}, {}

    def load_state(self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> None:
        """Go back to a `state`."""
        self._all.rest = torch.tensor(arrays["all"], device=self._all.rest.device)
        for label, stream in enumerate(self._classes):
            stream.rest = torch.tensor(arrays[f"class/{label}"], device=stream.rest.device)


def _require_pixels(stage: Stage) -> None:
    """Decoding a whitened image is not whitening a decoded one; with a mean and a deviation it is the same."""
    if isinstance(stage.transform, Zca):
        place = f"stage {stage.spec.stage} of {stage.spec.method}"
        raise BadInput(place, "dataset.normalise", "zca", "take measured or the dataset's constants: it decodes pixels")

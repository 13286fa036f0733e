"""DM, distribution matching (Zhao & Bilen, WACV 2023; facts 7.3).

Nothing is trained and nothing is differentiated twice: an iteration takes a fresh network, embeds a batch of real
images and all synthetic images of each class, pulls the two mean embeddings together, and makes one image step. The
embedding is the flattened last map, before the linear layer.

The published networks are random. Under PDD they have been through S_1, S_1+S_2, ... (facts 7.6); since no training
is matched, the paper finds small gains there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jobs.fields import Frozen
from jobs.methods import DmSettings
from workers.data.dataset import rows_by_class
from workers.data.multi_formation import decode
from workers.methods.base import LearnableImages, Method, Stage
from workers.methods.by_class import random_rows, require_finite, siamese
from workers.training.networks import Network
from workers.training.students import augmentation_of


class DistributionMatching(Method):
    """DM in one stage; see `workers.methods.base.Method`. It keeps no state between iterations."""

    Settings = DmSettings

    def __init__(self, stage: Stage, settings: Frozen) -> None:
        super().__init__(stage, settings)
        assert isinstance(settings, DmSettings)
        self._batch_real = settings.batch_real
        self._augmentation = augmentation_of(settings.augmentation, "dc")
        self._real = rows_by_class(stage.train.labels, stage.classes)

    def iterate(self, learnable: LearnableImages, iteration: int, generator: torch.Generator) -> float:
        """One network, one image step; the loss is summed over the classes, the graph is one class's at a time."""
        network, union = self.stage.start_networks.network(iteration), learnable.union
        gradient, distances = torch.zeros_like(union), list[Tensor]()
        for label, own in enumerate(learnable.rows):
            distance, gradient[own] = self._match(network, union[own], label, generator)
            distances.append(distance)
        learnable.step(gradient, iteration)
        return sum(require_finite(learnable, iteration, torch.stack(distances)))

    def _match(self, network: Network, stored: Tensor, label: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The distance of one class and its gradient with respect to the class's stored images."""
        stored.requires_grad_()
        real = self.stage.train.images[random_rows(self._real[label], self._batch_real, generator)]
        pair = siamese(self._augmentation, real, decode(stored, self.stage.spec.factor), generator)
        distance = mean_distance(network, *pair)
        (gradient,) = torch.autograd.grad(distance, stored)
        return distance.detach(), gradient


def mean_distance(network: Network, real: Tensor, synthetic: Tensor) -> Tensor:
    """Squared distance of the mean embeddings of a class, the paper's equation 5 for one network; [].

    Args:
        network: its features are the embedding.
        real: [m, C, H, W]; not differentiated.
        synthetic: [n, C, H, W].
    """
    with torch.no_grad():
        target = network.embed(real).mean(0)
    return (network.embed(synthetic).mean(0) - target).square().sum()

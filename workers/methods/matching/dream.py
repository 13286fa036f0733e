"""DREAM, efficient distillation by representative matching (Liu et al., ICCV 2023; facts 7.5).

IDC with other real images: a match takes of each class the images nearest to the centroids of its embeddings under the
current matching network, and not random ones, whose gradients scatter. The clusters are made anew every few rounds. Its
stages start from such images too (`init: centroids`), picked with the network of the first iteration.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jobs.fields import Frozen
from jobs.methods import DreamSettings
from workers.methods.base import Stage
from workers.methods.matching.idc import FormationMatching
from workers.methods.matching.kmeans import representatives
from workers.training.networks import Network


class RepresentativeMatching(FormationMatching):
    """DREAM in one stage; see `workers.methods.base.Method`."""

    Settings = DreamSettings

    def __init__(self, stage: Stage, settings: Frozen) -> None:
        super().__init__(stage, settings)
        assert isinstance(settings, DreamSettings)
        self._recluster_every = settings.recluster_every
        self._representatives: Sequence[Tensor] = ()

    def _real_batches(self, network: Network, number: int, generator: torch.Generator) -> Sequence[Tensor]:
        """The representatives; those of one network are never asked for by another, so they are no state."""
        if number % self._recluster_every == 0:
            stage, clusters = self.stage, self._settings.batch_real
            self._representatives = representatives(
                network, stage.train.images, stage.transform, self._real, clusters, generator, stage.spec.clustering
            )
        return self._representatives

"""DATM, difficulty-aligned trajectory matching (Guo et al., ICLR 2024; facts 4.5).

Early epochs of experts teach easy patterns, late ones hard ones. How late the matched epochs should be grows with the
number of images, so a recipe gives their range by setting; and it grows while the images are distilled: matches start
in [min_start_epoch, b), with b rising on a line (`jobs.methods.DatmSettings.start_epochs`). An iteration whose matching
loss is above `most_loss` moves nothing.

The rest of DATM is in the recipe: new images start from real ones that an expert classifies rightly (`init:
classified`), soft labels from the experts' logits (`labels: {source: experts}`), which learn with their own momentum.
"""

from __future__ import annotations

from typing import ClassVar

from jobs.fields import Frozen
from jobs.methods import DatmSettings
from workers.methods.base import Stage
from workers.methods.trajectory.mtt import TrajectoryMatching


class DifficultyAlignedMatching(TrajectoryMatching):
    """DATM in one stage: MTT with a range of start epochs that grows; see `workers.methods.base.Method`."""

    Settings: ClassVar[type[Frozen]] = DatmSettings

    def __init__(self, stage: Stage, settings: Frozen) -> None:
        assert isinstance(settings, DatmSettings)
        super().__init__(stage, settings)
        self._most_loss = settings.most_loss

    def _moves(self, loss: float) -> bool:
        return self._most_loss is None or loss <= self._most_loss

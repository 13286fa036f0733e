"""RFAD, random feature approximation of the kernel (Loo, Hasani, Amini & Rus, NeurIPS 2022; facts 7.9).

KIP regresses with the exact kernel of an infinitely wide ConvNet, which takes minutes for a batch. RFAD estimates that
kernel by the features of a few random networks: an iteration draws new ones, puts their features side by side, and
predicts real images from the synthetic ones by ridge regression. Nothing is trained. The error is the squared one or,
better in the paper, the cross-entropy of the predictions times a learned number (`platt`), since least squares alone
spends images on making right predictions larger.

Under PDD the networks come from their chains, and the frozen images stand in the regression.

OUR simplifications: networks are the experiment's, as wide and normalised as its own (the paper: four times as wide,
without a norm, Gaussian weights); no constant is added to the kernel, and no whitening learns with the images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from jobs.fields import Frozen
from jobs.methods import RfadSettings
from workers.methods.base import Arrays, LearnableImages, Method, Stage
from workers.methods.by_class import require_finite
from workers.methods.learned import Learned
from workers.methods.ridge.regression import Error, Regression, squared_error


def platt_error(log_scale: Tensor) -> Error:
    """The cross-entropy of predictions times exp(log_scale); [].

    The scale is float64 [], and may learn.
    """
    return lambda predicted, labels: F.cross_entropy(log_scale.exp() * predicted, labels)


class RandomFeatures(Method):
    """RFAD in one stage; see `workers.methods.base.Method`."""

    Settings = RfadSettings
    soft_labels = True

    def __init__(self, stage: Stage, settings: Frozen) -> None:
        super().__init__(stage, settings)
        assert isinstance(settings, RfadSettings)
        self._settings = settings
        self._regression = Regression(stage, settings.batch, settings.ridge)
        self._log_scale = Learned.by_adam(torch.zeros((), dtype=torch.float64).to(stage.device), settings.lr_scale)

    def iterate(self, learnable: LearnableImages, iteration: int, generator: torch.Generator) -> float:
        """Make an image step by the features of new networks.

        Args:
            learnable: the images of the stage, and the earlier ones.
            iteration: counted from 0.
            generator: of the real images.
        """
        count = self._settings.networks
        networks = [self.stage.start_networks.network(iteration * count + slot) for slot in range(count)]

        def embed(images: Tensor) -> Tensor:
            return torch.cat([network.embed(images) for network in networks], 1)

        if self._settings.loss == "squared":
            loss, _ = self._regression.step(learnable, embed, squared_error, iteration, generator)
        else:
            scale = self._log_scale.values.clone().requires_grad_()
            loss, (gradient,) = self._regression.step(
                learnable, embed, platt_error(scale), iteration, generator, [scale]
            )
            self._log_scale.step(gradient)
        return require_finite(learnable, iteration, loss[None])[0]

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """The logarithm of the scale of predictions, with its moments."""
        return self._log_scale.state(), {}

    def load_state(self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> None:
        """Go back to a `state`."""
        self._log_scale.load_state(arrays)

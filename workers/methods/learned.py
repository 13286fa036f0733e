"""A tensor that learns beside the images: step sizes, the scale of predictions, the weights of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.learning import ImageOptimiserSpec
from workers.methods.base import Arrays, image_optimiser
from workers.training.compute import Adam

VALUES = "values"
"""The name of the tensor itself in a state, beside those of its moments."""


class Learned:
    """A tensor and the optimiser that moves it: Adam, or that of a spec.

    Attributes:
        values: float tensor, changed in place.
    """

    def __init__(self, values: Tensor, optimiser: torch.optim.Optimizer) -> None:
        """Start without moments; the values are taken over, not copied, and are all that the optimiser moves."""
        self.values, self._optimiser = values, optimiser

    @classmethod
    def by_adam(cls, values: Tensor, lr: float, shares: tuple[float, float] = (0.9, 0.999)) -> Learned:
        """A tensor that Adam moves.

        Args:
            values: taken over, not copied.
            lr: of Adam.
            shares: what is kept of the mean gradient and of the mean square.
        """
        return cls(values, Adam([values], lr=lr, betas=shares, foreach=False))

    @classmethod
    def by(cls, values: Tensor, spec: ImageOptimiserSpec) -> Learned:
        """A tensor, taken over, that an image optimiser moves at its first learning rate."""
        return cls(values, image_optimiser(values, spec))

    def step(self, gradient: Tensor) -> None:
        """Move against a gradient of the tensor's shape."""
        self.values.grad = gradient
        self._optimiser.step()

    def state(self) -> Arrays:
        """The tensor and its moments, as copies."""
        tensors = {VALUES: self.values, **self._optimiser.state_dict()["state"].get(0, {})}
        return {name: tensor.cpu().numpy().copy() for name, tensor in tensors.items()}

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go back to a `state`."""
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
        self.values.copy_(tensors.pop(VALUES))
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": {0: tensors} if tensors else {}, "param_groups": groups})

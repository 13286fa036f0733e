"""FRePo, neural feature regression with pooling (Zhou, Nezhadarya & Ba, NeurIPS 2022).

Only the last layer of a network is solved for, and exactly: ridge regression from the features of the synthetic images
predicts real ones, and the images descend along the gradient of that prediction's error, which goes through their
features alone and never through a training step. So that the features are those of networks of all ages, a pool of
networks trains on the synthetic images meanwhile: an iteration takes one of them at random, makes an image step, and
trains it for one step. One that has made `most_updates` steps is replaced by a new one. At the start their counts are
spread evenly, so that they are not replaced at the same time.

Under PDD the pool's networks start at the end of their chains, and the frozen images stand in the regression and in the
pool's training.

OUR simplifications: labels learn where the recipe says so, but without the paper's penalty on their margin; the
features are of the experiment's network, where the paper widens it and takes batch norm; pooled networks train at a
constant rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from jobs.fields import Frozen
from jobs.methods import FrepoSettings
from workers.data.multi_formation import decode
from workers.methods.base import Arrays, LearnableImages, Method, Stage, under
from workers.methods.by_class import require_finite
from workers.methods.learned import VALUES, Learned
from workers.methods.ridge.regression import Regression, squared_error
from workers.training.networks import Network, flatten, load_flat


class PooledNetwork:
    """A network that trains on the synthetic images: its weights [P], and how many steps it has made."""

    def __init__(self, weights: Tensor, lr: float, updates: int = 0) -> None:
        self.weights, self.updates = Learned.by_adam(weights, lr), updates

    def train(self, network: Network, images: Tensor, targets: Tensor) -> None:
        """Make one step on the squared error of the logits.

        Args:
            network: it must hold the weights.
            images: float32 [n, C, H, W].
            targets: of their logits, [n, classes].
        """
        loss = F.mse_loss(network(images), targets.to(images.dtype))
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        self.weights.step(torch.cat([gradient.flatten() for gradient in gradients]))
        self.updates += 1


class FeatureRegression(Method):
    """FRePo in one stage; see `workers.methods.base.Method`."""

    Settings = FrepoSettings
    soft_labels = True

    def __init__(self, stage: Stage, settings: Frozen) -> None:
        super().__init__(stage, settings)
        assert isinstance(settings, FrepoSettings)
        self._settings = settings
        self._network = stage.network
        self._regression = Regression(stage, settings.batch, settings.ridge)
        self._started = 0
        self._pool: list[PooledNetwork] = []

    def iterate(self, learnable: LearnableImages, iteration: int, generator: torch.Generator) -> float:
        """Make an image step by the features of one network of the pool, then a training step of that network.

        Args:
            learnable: the images of the stage, and the earlier ones.
            iteration: counted from 0.
            generator: of the network, the real images, and the images it is trained on.
        """
        settings = self._settings
        if not self._pool:
            spread = (settings.most_updates * slot // settings.pool for slot in range(settings.pool))
            self._pool = [self._new(updates) for updates in spread]
        slot = int(torch.randint(settings.pool, (), generator=generator))
        pooled = self._pool[slot]
        load_flat(self._network, pooled.weights.values)
        loss, _ = self._regression.step(learnable, self._network.embed, squared_error, iteration, generator)
        images, targets = self._chosen(learnable, generator)
        pooled.train(self._network, images, targets)
        if pooled.updates >= settings.most_updates:
            self._pool[slot] = self._new()
        return require_finite(learnable, iteration, loss[None])[0]

    def _chosen(self, learnable: LearnableImages, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The batch on which a pooled network trains, the whole union if it is small: images and targets."""
        images = decode(learnable.union, self.stage.spec.factor)
        targets = self._regression.targets(learnable.labels, learnable.logits)
        if len(images) <= self._settings.batch_train:
            return images, targets
        rows = torch.randperm(len(images), generator=generator)[: self._settings.batch_train]
        rows = rows.to(images.device, non_blocking=True)
        return images[rows], targets[rows]

    def _new(self, updates: int = 0) -> PooledNetwork:
        """A network at the end of its chain, the next by number."""
        weights = flatten(self.stage.start_networks.network(self._started))
        self._started += 1
        return PooledNetwork(weights, self._settings.lr_network, updates)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """The pool."""
        states = [pooled.weights.state() for pooled in self._pool]
        arrays = {f"{slot}/{name}": array for slot, state in enumerate(states) for name, array in state.items()}
        return arrays, {"started": self._started, "updates": [pooled.updates for pooled in self._pool]}

    def load_state(self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> None:
        """Go back to a `state`."""
        self._started, self._pool = values["started"], []
        for slot, updates in enumerate(values["updates"]):
            own = under(f"{slot}/", arrays)
            weights = torch.from_numpy(np.array(own[VALUES])).to(self.stage.device)
            self._pool.append(PooledNetwork(weights, self._settings.lr_network, updates))
            self._pool[-1].weights.load_state(own)

"""FRePo, neural feature regression with pooling (Zhou, Nezhadarya & Ba, NeurIPS 2022).

Only the last layer of a network is solved for, and exactly: ridge regression from the features of the synthetic images
predicts real ones, and the images descend along the gradient of that prediction's error, which goes through their
features alone and never through a training step. So that the features are those of networks of all ages, a pool of
networks trains on the synthetic images meanwhile: an iteration takes one of them at random, makes an image step, and
trains it for one step. One that has made `most_updates` steps is replaced by a new one. At the start their counts are
spread evenly, so that they are not replaced at the same time.

Under PDD the pool's networks start at the end of their chains, and the frozen images stand in the regression and in the
pool's training.

OUR simplifications: labels are fixed, one-hot and centred (the paper learns them, with a penalty on their margin); the
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
from workers.methods.base import Arrays, LearnableImages, Method, Stage
from workers.methods.by_class import require_finite
from workers.methods.ridge.regression import centred_targets, predictions, squared_error
from workers.training.compute import Adam
from workers.training.networks import Network, flatten, load_flat


class PooledNetwork:
    """The weights of a network that trains on the synthetic images, with its optimiser and its count of steps."""

    def __init__(self, weights: Tensor, lr: float, updates: int = 0) -> None:
        self.weights, self.updates = weights, updates
        self._optimiser = Adam([weights], lr=lr, foreach=False)

    def train(self, network: Network, images: Tensor, targets: Tensor) -> None:
        """Make one step on the squared error of the logits.

        Args:
            network: it must hold the weights.
            images: float32 [n, C, H, W].
            targets: of their logits, [n, classes].
        """
        loss = F.mse_loss(network(images), targets.to(images.dtype))
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        self.weights.grad = torch.cat([gradient.flatten() for gradient in gradients])
        self._optimiser.step()
        self.updates += 1

    def state(self) -> Arrays:
        """Weights and moments, as copies."""
        moments = self._optimiser.state_dict()["state"].get(0, {})
        return {name: value.cpu().numpy().copy() for name, value in {"weights": self.weights, **moments}.items()}

    def load_state(self, state: Mapping[str, NDArray[Any]], updates: int) -> None:
        """Go back to a `state`."""
        arrays = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
        self.weights.copy_(arrays.pop("weights"))
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": {0: arrays} if arrays else {}, "param_groups": groups})
        self.updates = updates


class FeatureRegression(Method):
    """FRePo in one stage; see `workers.methods.base.Method`."""

    Settings = FrepoSettings

    def __init__(self, stage: Stage, settings: Frozen) -> None:
        super().__init__(stage, settings)
        assert isinstance(settings, FrepoSettings)
        self._settings = settings
        self._network = stage.network
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
        load_flat(self._network, pooled.weights)
        loss = self._image_step(learnable, iteration, generator)
        images, targets = self._chosen(learnable, generator)
        pooled.train(self._network, images, targets)
        if pooled.updates >= settings.most_updates:
            self._pool[slot] = self._new()
        return require_finite(learnable, iteration, loss[None])[0]

    def _image_step(self, learnable: LearnableImages, iteration: int, generator: torch.Generator) -> Tensor:
        train, settings = self.stage.train, self._settings
        chosen = torch.randperm(len(train.labels), generator=generator)[: settings.batch].to(train.labels.device)
        with torch.no_grad():
            real = self._network.embed(train.images[chosen])
        union = learnable.union.requires_grad_()
        features = self._network.embed(decode(union, self.stage.spec.factor))
        predicted = predictions(features, self._targets(learnable), real, settings.ridge)
        loss = squared_error(predicted, centred_targets(train.labels[chosen], self.stage.classes))
        (gradient,) = torch.autograd.grad(loss, union)
        learnable.step(gradient, iteration)
        return loss.detach()

    def _targets(self, learnable: LearnableImages) -> Tensor:
        """Of all training images of the union, float64 [n, classes]."""
        labels = learnable.labels.repeat_interleave(self.stage.spec.factor**2)
        return centred_targets(labels, self.stage.classes)

    def _chosen(self, learnable: LearnableImages, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The batch on which a pooled network trains, the whole union if it is small: images and targets."""
        images, targets = decode(learnable.union, self.stage.spec.factor), self._targets(learnable)
        if len(images) <= self._settings.batch_train:
            return images, targets
        rows = torch.randperm(len(images), generator=generator)[: self._settings.batch_train].to(images.device)
        return images[rows], targets[rows]

    def _new(self, updates: int = 0) -> PooledNetwork:
        """A network at the end of its chain, the next by number."""
        weights = flatten(self.stage.start_networks.network(self._started))
        self._started += 1
        return PooledNetwork(weights, self._settings.lr_network, updates)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """The pool."""
        arrays = {f"{slot}/{name}": value for slot, p in enumerate(self._pool) for name, value in p.state().items()}
        return arrays, {"started": self._started, "updates": [pooled.updates for pooled in self._pool]}

    def load_state(self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> None:
        """Go back to a `state`."""
        self._started = values["started"]
        self._pool = []
        for slot, updates in enumerate(values["updates"]):
            own = {
                name.removeprefix(f"{slot}/"): array for name, array in arrays.items() if name.startswith(f"{slot}/")
            }
            weights = torch.from_numpy(np.array(own["weights"])).to(self.stage.device)
            pooled = PooledNetwork(weights, self._settings.lr_network)
            pooled.load_state(own, updates)
            self._pool.append(pooled)

"""Several copies of a network, each on images of its own, computed as one: what many small matches have in common.

Methods that match gradients class by class ask for the gradient of the same weights by each class's images. On a card
that launches some 460 kernels a class, however small the images; with the copies side by side as groups of one network
it launches them once for all classes. The sums are the same, their order is not, so results agree to rounding.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from workers.training.networks import ConvNet, Network, ResNet


def stands_side_by_side(network: nn.Module) -> bool:
    """Whether a network is made of layers that have groups, which layer norm has not; copies keep no statistics."""
    return isinstance(network, ConvNet | ResNet) and not any(
        isinstance(layer, nn.BatchNorm2d | nn.LayerNorm) for layer in network.modules()
    )


class SideBySide:
    """`count` copies of a network with its weights as they are now.

    Attributes:
        weights: by name, those of all copies: float [count * rows, ...], rows of the first copy first.
    """

    def __init__(self, network: Network, count: int) -> None:
        self._count = count
        self._module = _grouped(network, count)
        self.weights = {
            name: weight.detach().repeat(count, *[1] * (weight.dim() - 1)).requires_grad_()
            for name, weight in network.named_parameters()
        }

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy of each copy's images, summed over the copies.

        Args:
            images: float [count, n, C, H, W], those of the first copy first.
            labels: int64 [count], one for all images of a copy.
        """
        count, n = images.shape[:2]
        logits = functional_call(self._module, self.weights, (images.transpose(0, 1).flatten(1, 2),))
        return F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(n)) * count


def _grouped(network: Network, count: int) -> Network:
    """The layers of a network for `count` copies, still with the weights of one."""
    module = copy.deepcopy(network, {id(weight): weight for weight in network.parameters()})
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.groups *= count
        elif isinstance(layer, nn.GroupNorm):
            layer.num_groups *= count
    module.classifier = _Classifiers(network.classifier, count)
    return module


class _Classifiers(nn.Linear):
    """The classifiers of all copies: features [n, count * features] to logits [count, n, classes]."""

    def __init__(self, classifier: nn.Linear, count: int) -> None:
        nn.Module.__init__(self)
        self._count = count
        self.weight, self.bias = classifier.weight, classifier.bias

    def forward(self, input: Tensor) -> Tensor:
        features = input.view(len(input), self._count, -1).transpose(0, 1)
        weight = self.weight.view(self._count, -1, features.shape[2]).transpose(1, 2)
        return torch.baddbmm(self.bias.view(self._count, 1, -1), features, weight)

"""The networks on which the field tests how a synthetic set carries over: MLP, LeNet, AlexNet, VGG-11 and a small ViT.

Why it exists: papers on dataset distillation report a table over these names and mean the forms of the published DC
code (facts 1.3): no dropout, no hidden classifier but LeNet's, maximum pooling. Their layers stand in
`jobs.architectures`, where they are priced too.

What it decides: the ViT is ours, since no published code fixes one: patches of 4x4 pixels, layer norm before attention
and before the two-layer network, fixed two-dimensional sine and cosine positions, the mean over patches as features.
Attention is written out, because the fused kernels have no second derivative, which matching needs.

Sources: Zhao et al. (ICLR 2021) for the convolutional networks and the MLP; Dosovitskiy et al. (ICLR 2021) and Beyer et
al. (2022) for the ViT.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jobs.architectures import HEAD_WIDTH, PATCH, Dimensions, PlainLayer, patches_along, side_after
from workers.training.networks import NORMS, Network


class Mlp(Network):
    """`depth` hidden layers of `width` units, each with ReLU, on the flattened image, then the classifier."""

    def __init__(self, *, channels: int, size: int, classes: int, width: int, depth: int, norm: str) -> None:
        """Lay the layers out; there is no norm, whatever `norm` says."""
        super().__init__()
        self.hidden = _hidden(channels * size * size, [width] * depth)
        self.classifier = nn.Linear(width, classes)

    def embed(self, x: Tensor) -> Tensor:
        """The last hidden layer: [n, width]."""
        hidden: Tensor = self.hidden(x.flatten(1))
        return hidden


class PlainConvNet(Network):
    """Convolutions with ReLU, some with maximum pooling, then hidden layers if any, and the classifier."""

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        classes: int,
        width: int,
        depth: int,
        norm: str,
        layers: Callable[[Dimensions], Sequence[PlainLayer]],
        hidden: Callable[[Dimensions], Sequence[int]],
        has_norm: bool,
    ) -> None:
        """Lay the layers out.

        Args:
            channels: channels of the images.
            size: side of the images in pixels.
            classes: number of logits.
            width: channels of the first convolution; the others grow with it.
            depth: says nothing here.
            norm: name of the norm after each convolution.
            layers: the convolutions of a network for images of these sizes.
            hidden: the units of the hidden layers between the last map and the classifier.
            has_norm: whether there is a norm at all.
        """
        super().__init__()
        of = Dimensions(channels, size, classes, width, depth)
        modules: list[nn.Module] = []
        for layer in layers(of):
            modules.append(nn.Conv2d(channels, layer.channels, layer.kernel, padding=layer.padding))
            side = side_after(size, replace(layer, pooled=False))
            modules += [NORMS[norm](layer.channels, side)] if has_norm else []
            modules += [nn.ReLU(), *([nn.MaxPool2d(2)] if layer.pooled else [])]
            channels, size = layer.channels, side_after(size, layer)
        self.blocks = nn.Sequential(*modules)
        units = hidden(of)
        self.hidden = _hidden(channels * size * size, units)
        self.classifier = nn.Linear([channels * size * size, *units][-1], classes)

    def embed(self, x: Tensor) -> Tensor:
        """The flattened last map, or the last hidden layer: [n, classifier.in_features]."""
        hidden: Tensor = self.hidden(self.blocks(x).flatten(1))
        return hidden


def _hidden(incoming: int, units: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU."""
    layers: list[nn.Module] = []
    for width in units:
        layers += [nn.Linear(incoming, width), nn.ReLU()]
        incoming = width
    return nn.Sequential(*layers)


class Vit(Network):
    """A vision transformer: patches of 4x4 pixels as tokens of `width` numbers, and `depth` blocks."""

    positions: Tensor

    def __init__(self, *, channels: int, size: int, classes: int, width: int, depth: int, norm: str) -> None:
        """Lay the layers out; the norm is layer norm, whatever `norm` says."""
        super().__init__()
        self.along = patches_along(size)
        self.missing = self.along * PATCH - size
        self.patches = nn.Linear(channels * PATCH * PATCH, width)
        self.blocks = nn.Sequential(*(_TransformerBlock(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("positions", torch.empty(self.along**2, width), persistent=False)
        self.classifier = nn.Linear(width, classes)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the weights and write the positions, which are not learned."""
        super().initialise(generator)
        self.positions.copy_(_positions(self.along, self.positions.shape[1]))

    def embed(self, x: Tensor) -> Tensor:
        """The mean of the tokens after the last block: [n, width]."""
        x = F.pad(x, (0, self.missing, 0, self.missing))
        patches = F.unfold(x, PATCH, stride=PATCH).transpose(1, 2)
        tokens: Tensor = self.norm(self.blocks(self.patches(patches) + self.positions))
        return tokens.mean(1)


class _TransformerBlock(nn.Module):
    """Attention over the tokens and a network of two layers on each, both on normed tokens and beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.attention_norm, self.network_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.join(self._attend(self.attention_norm(x)))
        wide: Tensor = self.narrow(F.gelu(self.widen(self.network_norm(x))))
        return x + wide

    def _attend(self, x: Tensor) -> Tensor:
        """Softmax attention of tokens x [n, tokens, width], head by head: the same shape."""
        count, tokens, width = x.shape
        split = self.query_key_value(x).view(count, tokens, 3, self.heads, HEAD_WIDTH)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind()
        weights = (query @ key.transpose(2, 3) / math.sqrt(HEAD_WIDTH)).softmax(-1)
        heads: Tensor = weights @ value
        return heads.transpose(1, 2).reshape(count, tokens, width)


def _positions(along: int, width: int) -> Tensor:
    """Sines and cosines of each patch's row and column at `width` / 4 frequencies: [along * along, width]."""
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(along, dtype=torch.float64)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    rows = waves[:, None].expand(along, along, -1)
    columns = waves[None].expand(along, along, -1)
    return torch.cat([rows, columns], 2).reshape(along * along, width).float()

"""Architectures: the networks that can be trained, their published sizes, and what one image costs in them.

`ARCHITECTURES` says all there is to say about an architecture by its name; the class that lays out its layers is named
by its import path, since nothing here imports torch. To add one, add an entry, and a module with its class if no class
that is there will do. An architecture of one's own needs no entry: it is named by the import path of its class,
`package.module:Name`, and counts as a ResNet-18 in estimates until it was measured.

Two families of ResNets: the MTT half and the IDC half of the paper's Table 2 mean different networks by "ResNet-18",
with a base width of 64 against 32. They have different names here, `resnet18` and `idc_resnet18` (facts 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

from jobs.plugins import is_plug_in


@dataclass(frozen=True)
class Dimensions:
    """A network's sizes as far as its cost hangs on them: images [channels, size, size] in, `classes` logits out."""

    channels: int
    size: int
    classes: int
    width: int
    blocks: int
    halved: bool = True
    """Whether each block of a ConvNet halves the map."""


class Layer(NamedTuple):
    """What a layer takes for one image: multiply-adds, the numbers that it gives, and its weights with its norm's."""

    multiply_adds: int
    outputs: int
    weights: int


Layers = Callable[[Dimensions], Iterator[Layer]]
"""The convolutions and linear layers of a network of these sizes."""


def first_map(channels: int, size: int) -> int:
    """Side of a ConvNet's first map: 28x28 images of one channel are padded to 32x32 (facts 1.1)."""
    return 32 if (channels, size) == (1, 28) else size


def deepest_convnet(channels: int, size: int) -> int:
    """How many times the map can be halved before it vanishes."""
    return first_map(channels, size).bit_length() - 1


def _convnet(of: Dimensions) -> Iterator[Layer]:
    side, incoming = first_map(of.channels, of.size), of.channels
    for _ in range(of.blocks):
        yield _convolution(side, 3, incoming, of.width)
        side, incoming = side // 2 if of.halved else side, of.width
    yield _linear(incoming * side * side, of.classes)


def _resnet(of: Dimensions, *, global_pooling: bool = False) -> Iterator[Layer]:
    """Maps below 4x4 are not halved any more; the MTT family pools 4x4, the IDC family the whole map."""
    side, incoming = of.size, of.width
    yield _convolution(side, 3, of.channels, incoming, bias=False)
    for group in range(4):
        outgoing = of.width << group
        if group and side > 2:
            side = math.ceil(side / 2)
        for _ in range(of.blocks):
            yield _convolution(side, 3, incoming, outgoing, bias=False)
            yield _convolution(side, 3, outgoing, outgoing, bias=False)
            if incoming != outgoing:
                yield _convolution(side, 1, incoming, outgoing, bias=False)
            incoming = outgoing
    pooled = 1 if global_pooling or side < 4 else side // 4
    yield _linear(incoming * pooled * pooled, of.classes)


def _idc_resnet(of: Dimensions) -> Iterator[Layer]:
    return _resnet(of, global_pooling=True)


@dataclass(frozen=True)
class PlainLayer:
    """A convolution of stride 1 with ReLU, then 2x2 maximum pooling if it is `pooled`."""

    channels: int
    kernel: int
    padding: int
    pooled: bool


def side_after(side: int, layer: PlainLayer) -> int:
    """Side of the map behind a layer."""
    side += 2 * layer.padding - layer.kernel + 1
    return side // 2 if layer.pooled else side


def alexnet_layers(of: Dimensions) -> list[PlainLayer]:
    """Five convolutions of 128, 192, 256, 192 and 192 channels, three of them pooled (facts 1.3)."""
    widths = [128, 192, 256, 192, 192]
    kernels = [5, 5, 3, 3, 3]
    pooled = [True, True, False, False, True]
    return _fitting(of, [factor * of.width // 128 for factor in widths], kernels, pooled)


def vgg11_layers(of: Dimensions) -> list[PlainLayer]:
    """Eight 3x3 convolutions of 64 to 512 channels, five of them pooled (facts 1.3)."""
    factors = [1, 2, 4, 4, 8, 8, 8, 8]
    pooled = [True, True, False, True, False, True, False, True]
    return _fitting(of, [factor * of.width for factor in factors], [3] * 8, pooled)


def lenet_layers(of: Dimensions) -> list[PlainLayer]:
    """Two 5x5 convolutions of 6 and 16 channels, both pooled (facts 1.3).

    OUR departure: they keep the size of maps below 28 pixels, which would vanish.
    """
    small = of.size < 28
    first_padding = 2 if small or of.channels == 1 else 0
    return [
        PlainLayer(of.width, 5, first_padding, True),
        PlainLayer(16 * of.width // 6, 5, 2 if small else 0, of.size > 3),
    ]


def lenet_hidden(of: Dimensions) -> list[int]:
    """Units of LeNet's hidden layers: 120 and 84."""
    return [120 * of.width // 6, 84 * of.width // 6]


def no_hidden(of: Dimensions) -> list[int]:
    """No hidden layers."""
    return []


def _fitting(of: Dimensions, widths: Sequence[int], kernels: Sequence[int], pooled: Sequence[bool]) -> list[PlainLayer]:
    """Convolutions that keep the size of the map, which the first one pads as a ConvNet's does.

    OUR departure: a pooling before the last that would leave less than 2x2 is left out, because instance norm of a 1x1
    map is zero whatever the input. Nothing changes for images of 32 pixels or more.
    """
    side = first_map(of.channels, of.size)
    layers: list[PlainLayer] = []
    for index, (channels, kernel, pool) in enumerate(zip(widths, kernels, pooled, strict=True)):
        padding = kernel // 2 + (0 if index else (side - of.size) // 2)
        pool = pool and side // 2 >= (1 if index == len(widths) - 1 else 2)
        layers.append(PlainLayer(channels, kernel, padding, pool))
        side = side // 2 if pool else side
    return layers


def _plain(
    layers_of: Callable[[Dimensions], list[PlainLayer]],
    hidden_of: Callable[[Dimensions], list[int]],
    *,
    norm: bool,
) -> Layers:
    """The layers of a network of plain ones."""

    def layers(of: Dimensions) -> Iterator[Layer]:
        side, incoming = of.size, of.channels
        for layer in layers_of(of):
            map_side = side_after(side, replace(layer, pooled=False))
            yield _convolution(map_side, layer.kernel, incoming, layer.channels, norm=norm)
            side, incoming = side_after(side, layer), layer.channels
        units = [incoming * side * side, *hidden_of(of), of.classes]
        yield from (_linear(before, after) for before, after in pairwise(units))

    return layers


def _mlp(of: Dimensions) -> Iterator[Layer]:
    units = [of.channels * of.size**2, *[of.width] * of.blocks, of.classes]
    return (_linear(before, after) for before, after in pairwise(units))


PATCH = 4
"""Side of a ViT's patch in pixels."""
HEAD_WIDTH = 64
"""Numbers of a token that one head of a ViT looks at."""


def patches_along(size: int) -> int:
    """How many patches of a ViT stand in a row; the last one is filled up with zeros."""
    return -(-size // PATCH)


def _vit(of: Dimensions) -> Iterator[Layer]:
    tokens, width, norm = patches_along(of.size) ** 2, of.width, 2 * of.width
    yield _linear(of.channels * PATCH**2, width, tokens)
    for _ in range(of.blocks):
        yield _linear(width, 3 * width, tokens, more=norm)
        yield Layer(2 * tokens**2 * width, tokens**2 * width // HEAD_WIDTH + tokens * width, 0)
        yield _linear(width, width, tokens)
        yield _linear(width, 4 * width, tokens, more=norm)
        yield _linear(4 * width, width, tokens)
    yield _linear(width, of.classes, more=norm)


def _convolution(
    side: int, kernel: int, incoming: int, outgoing: int, *, bias: bool = True, norm: bool = True
) -> Layer:
    filters = kernel * kernel * incoming * outgoing
    return Layer(side * side * filters, side * side * outgoing, filters + (bias + 2 * norm) * outgoing)


def _linear(incoming: int, outgoing: int, tokens: int = 1, more: int = 0) -> Layer:
    """A linear layer on each of some tokens, with so many weights of a norm."""
    return Layer(tokens * incoming * outgoing, tokens * outgoing, incoming * outgoing + outgoing + more)


@dataclass(frozen=True, kw_only=True)
class ArchitectureInfo:
    """An architecture with a name."""

    network: str
    """Import path of its `workers.training.networks.Network`."""
    width: int
    """Published channels of a ConvNet's blocks, a ResNet's first group or a plain network's first convolution; units of
    an MLP's layers; numbers of a ViT's token."""
    blocks: int
    """Published blocks of a ConvNet or ViT, hidden layers of an MLP, residual blocks of each of a ResNet's groups; 1 of
    the others, whose depth has no name."""
    layers: Layers
    """Its convolutions and linear layers, by which its jobs are priced and their memory is estimated."""
    takes_depth: bool = False
    """Whether a user may choose the number of blocks."""
    takes_norm: bool = True
    """Whether its norm may be chosen."""
    width_multiple: int = 1
    """What a width must be a multiple of."""
    takes_variations: bool = False
    """Whether its pooling and its activation may be chosen."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of its class."""

    def fix_for(self, name: str, value: int | str | None) -> str | None:
        """What to do about a size, norm, pooling or activation that it cannot have; None for one that it can."""
        if name == "width" and isinstance(value, int) and value % self.width_multiple:
            return f"give a multiple of {self.width_multiple}"
        if name == "depth" and value is not None and not self.takes_depth:
            return "leave it out; the name of the architecture says its depth"
        if name == "norm" and value in ("batch", "layer", "group") and not self.takes_norm:
            return "leave it out; this architecture has no norm to choose"
        if name in ("pooling", "activation") and value not in ("average", "relu") and not self.takes_variations:
            return "leave it out; only a ConvNet has a choice of it"
        return None


_CONVNET = "workers.training.networks:ConvNet"
_RESNET = "workers.training.networks:ResNet"
_IDC: dict[str, Any] = {"fan_out_init": True}


def _plain_network(
    width: int,
    layers: Callable[[Dimensions], list[PlainLayer]],
    hidden: Callable[[Dimensions], list[int]] = no_hidden,
    *,
    norm: bool = False,
) -> ArchitectureInfo:
    """A network of plain layers; `width` is that of its first convolution."""
    return ArchitectureInfo(
        network="workers.training.cross_networks:PlainConvNet",
        width=width,
        blocks=1,
        layers=_plain(layers, hidden, norm=norm),
        takes_norm=norm,
        options={"layers": layers, "hidden": hidden, "has_norm": norm},
    )


ARCHITECTURES: Mapping[str, ArchitectureInfo] = {
    "convnet": ArchitectureInfo(
        network=_CONVNET, width=128, blocks=3, layers=_convnet, takes_depth=True, takes_variations=True
    ),
    "resnet10": ArchitectureInfo(network=_RESNET, width=64, blocks=1, layers=_resnet),
    "resnet18": ArchitectureInfo(network=_RESNET, width=64, blocks=2, layers=_resnet),
    "idc_resnet10": ArchitectureInfo(network=_RESNET, width=32, blocks=1, layers=_idc_resnet, options=_IDC),
    "idc_resnet18": ArchitectureInfo(network=_RESNET, width=32, blocks=2, layers=_idc_resnet, options=_IDC),
    "vgg11": _plain_network(64, vgg11_layers, norm=True),
    "alexnet": _plain_network(128, alexnet_layers),
    "lenet": _plain_network(6, lenet_layers, lenet_hidden),
    "mlp": ArchitectureInfo(
        network="workers.training.cross_networks:Mlp",
        width=128,
        blocks=2,
        layers=_mlp,
        takes_depth=True,
        takes_norm=False,
    ),
    "vit": ArchitectureInfo(
        network="workers.training.cross_networks:Vit",
        width=192,
        blocks=6,
        layers=_vit,
        width_multiple=HEAD_WIDTH,
        takes_depth=True,
        takes_norm=False,
    ),
}
"""Architectures by name."""


def architecture_named(name: str) -> ArchitectureInfo:
    """What is known of an architecture; one from outside is taken for a ResNet-18 with a depth of its own.

    Raises:
        KeyError: there is none of this name, and it is no import path.
    """
    if is_plug_in(name):
        return ArchitectureInfo(network=name, width=64, blocks=2, layers=_resnet, takes_depth=True)
    return ARCHITECTURES[name]

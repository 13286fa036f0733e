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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.plugins import is_plug_in


@dataclass(frozen=True)
class Dimensions:
    """A network's sizes as far as its cost hangs on them: images [channels, size, size] in, `classes` logits out."""

    channels: int
    size: int
    classes: int
    width: int
    blocks: int


def first_map(channels: int, size: int) -> int:
    """Side of a ConvNet's first map: 28x28 images of one channel are padded to 32x32 (facts 1.1)."""
    return 32 if (channels, size) == (1, 28) else size


def deepest_convnet(channels: int, size: int) -> int:
    """How many times the map can be halved before it vanishes."""
    return first_map(channels, size).bit_length() - 1


def _convnet(of: Dimensions) -> Iterator[int]:
    side, incoming = first_map(of.channels, of.size), of.channels
    for _ in range(of.blocks):
        yield _convolution(side, 3, incoming, of.width)
        side, incoming = side // 2, of.width
    yield incoming * side * side * of.classes


def _resnet(of: Dimensions, *, global_pooling: bool = False) -> Iterator[int]:
    """Maps below 4x4 are not halved any more; the MTT family pools 4x4, the IDC family the whole map."""
    side, incoming = of.size, of.width
    yield _convolution(side, 3, of.channels, incoming)
    for group in range(4):
        outgoing = of.width << group
        if group and side > 2:
            side = math.ceil(side / 2)
        for _ in range(of.blocks):
            yield _convolution(side, 3, incoming, outgoing)
            yield _convolution(side, 3, outgoing, outgoing)
            if incoming != outgoing:
                yield _convolution(side, 1, incoming, outgoing)
            incoming = outgoing
    pooled = 1 if global_pooling or side < 4 else side // 4
    yield incoming * pooled * pooled * of.classes


def _idc_resnet(of: Dimensions) -> Iterator[int]:
    return _resnet(of, global_pooling=True)


def _convolution(side: int, kernel: int, incoming: int, outgoing: int) -> int:
    return side * side * kernel * kernel * incoming * outgoing


@dataclass(frozen=True, kw_only=True)
class ArchitectureInfo:
    """An architecture with a name."""

    network: str
    """Import path of its `workers.training.networks.Network`."""
    width: int
    """Published channels of a ConvNet's blocks or of a ResNet's first group."""
    blocks: int
    """Published blocks of a ConvNet, or residual blocks of each of a ResNet's four groups."""
    multiply_adds: Callable[[Dimensions], Iterator[int]]
    """Multiply-adds of each convolution and of the classifier, for one image."""
    takes_depth: bool = False
    """Whether a user may choose the number of blocks."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of its class."""


_CONVNET = "workers.training.networks:ConvNet"
_RESNET = "workers.training.networks:ResNet"
_IDC: dict[str, Any] = {"fan_out_init": True}

ARCHITECTURES: Mapping[str, ArchitectureInfo] = {
    "convnet": ArchitectureInfo(network=_CONVNET, width=128, blocks=3, multiply_adds=_convnet, takes_depth=True),
    "resnet10": ArchitectureInfo(network=_RESNET, width=64, blocks=1, multiply_adds=_resnet),
    "resnet18": ArchitectureInfo(network=_RESNET, width=64, blocks=2, multiply_adds=_resnet),
    "idc_resnet10": ArchitectureInfo(network=_RESNET, width=32, blocks=1, multiply_adds=_idc_resnet, options=_IDC),
    "idc_resnet18": ArchitectureInfo(network=_RESNET, width=32, blocks=2, multiply_adds=_idc_resnet, options=_IDC),
}
"""Architectures by name."""


def architecture_named(name: str) -> ArchitectureInfo:
    """What is known of an architecture; one from outside is taken for a ResNet-18 with a depth of its own.

    Raises:
        KeyError: there is none of this name, and it is no import path.
    """
    if is_plug_in(name):
        return ArchitectureInfo(network=name, width=64, blocks=2, multiply_adds=_resnet, takes_depth=True)
    return ARCHITECTURES[name]

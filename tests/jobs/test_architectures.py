"""Names of architectures: those of the registry, and import paths."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from jobs.architectures import (
    ARCHITECTURES,
    Dimensions,
    PlainLayer,
    alexnet_layers,
    architecture_named,
    deepest_convnet,
    lenet_layers,
    side_after,
    vgg11_layers,
)
from jobs.plugins import is_plug_in, short_name
from jobs.specs import NetworkSpec


@pytest.mark.parametrize(
    ("name", "width", "blocks"), [("convnet", 128, 3), ("resnet10", 64, 1), ("idc_resnet18", 32, 2)]
)
def test_published_sizes_fill_what_a_spec_leaves_out(name: str, width: int, blocks: int) -> None:
    spec = NetworkSpec(architecture=name)
    assert (spec.channels, spec.blocks) == (width, blocks)
    assert NetworkSpec(architecture=name, width=5).channels == 5


def test_an_import_path_is_an_architecture_and_may_have_a_depth() -> None:
    spec = NetworkSpec(architecture="mine.nets:Wide", width=7, depth=9)
    assert (spec.channels, spec.blocks) == (7, 9)
    assert architecture_named("mine.nets:Wide").network == "mine.nets:Wide"


@pytest.mark.parametrize("name", ["vgg", "mine.nets", "mine.nets:", ":Wide", "mine nets:Wide", "a:b:c"])
def test_any_other_name_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(ValidationError, match="must be one of convnet, .*, or package.module:Name"):
        NetworkSpec(architecture=name)


@pytest.mark.parametrize("name", sorted(name for name, info in ARCHITECTURES.items() if not info.takes_depth))
def test_where_the_name_says_the_depth_there_is_none_to_choose(name: str) -> None:
    with pytest.raises(ValidationError, match="leave it out"):
        NetworkSpec(architecture=name, depth=2)


@pytest.mark.parametrize("name", sorted(name for name, info in ARCHITECTURES.items() if not info.takes_norm))
def test_a_network_without_a_norm_to_choose_refuses_batch_norm(name: str) -> None:
    with pytest.raises(ValidationError, match="no norm to choose"):
        NetworkSpec(architecture=name, norm="batch")


@pytest.mark.parametrize("layers_of", [alexnet_layers, vgg11_layers, lenet_layers])
@pytest.mark.parametrize("size", range(2, 33))
@pytest.mark.parametrize("channels", [1, 3])
def test_no_map_vanishes_and_none_of_one_pixel_is_normed(
    layers_of: Callable[[Dimensions], list[PlainLayer]], size: int, channels: int
) -> None:
    sides = [size]
    for layer in layers_of(Dimensions(channels, size, 10, 6, 1)):
        sides.append(side_after(sides[-1], layer))
    assert sides[-1] >= 1
    assert layers_of is lenet_layers or min(sides[:-1]) >= 2


@pytest.mark.parametrize(("channels", "size", "blocks"), [(3, 32, 5), (1, 28, 5), (3, 28, 4), (1, 8, 3)])
def test_a_convnet_halves_its_map_until_one_pixel_is_left(channels: int, size: int, blocks: int) -> None:
    assert deepest_convnet(channels, size) == blocks


def test_the_short_name_of_an_import_path_is_what_stands_after_the_colon() -> None:
    assert (short_name("mine.birds:BIRDS"), short_name("cifar10")) == ("birds", "cifar10")
    assert is_plug_in("birds:BIRDS") and not is_plug_in("/data/x:y")

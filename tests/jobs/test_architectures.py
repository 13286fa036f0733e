"""Names of architectures: those of the registry, and import paths."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from jobs.architectures import ARCHITECTURES, architecture_named, deepest_convnet
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


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"convnet"}))
def test_a_resnet_has_no_depth_to_choose(name: str) -> None:
    with pytest.raises(ValidationError, match="leave it out"):
        NetworkSpec(architecture=name, depth=2)


@pytest.mark.parametrize(("channels", "size", "blocks"), [(3, 32, 5), (1, 28, 5), (3, 28, 4), (1, 8, 3)])
def test_a_convnet_halves_its_map_until_one_pixel_is_left(channels: int, size: int, blocks: int) -> None:
    assert deepest_convnet(channels, size) == blocks


def test_the_short_name_of_an_import_path_is_what_stands_after_the_colon() -> None:
    assert (short_name("mine.birds:BIRDS"), short_name("cifar10")) == ("birds", "cifar10")
    assert is_plug_in("birds:BIRDS") and not is_plug_in("/data/x:y")

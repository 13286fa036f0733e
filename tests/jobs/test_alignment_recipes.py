"""Recipes of the methods that match features, DM and CAFE, against the published numbers of their papers and codes."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.recipe import Setting, resolve
from jobs.recipe_numbers import DistilNumbers, Recipe

METHODS = ("dm", "cafe", "cafe_dsa")
SIDES = {"cifar10": 32, "cifar100": 32, "tiny-imagenet": 64, "fashion-mnist": 28, "digits": 8}


def recipe(method: str, dataset: str = "cifar10", stages: int = 1, scale: Any = "paper") -> Recipe:
    setting = Setting(scale=scale, dataset=dataset, size=SIDES[dataset], stages=stages, ipc_per_stage=10)
    return resolve(method, setting, {}, "x").recipe


def distil(method: str, dataset: str = "cifar10", stages: int = 1, scale: Any = "paper") -> DistilNumbers:
    numbers = recipe(method, dataset, stages, scale).distil
    assert numbers is not None
    return numbers


def test_dm_has_its_published_numbers(facts: dict[str, Any]) -> None:
    published, numbers = facts["DM"], distil("dm")
    assert (numbers.iterations, numbers.init) == (published["iterations"], published["init"])
    assert (numbers.image.lr, numbers.image.momentum) == (published["lr_img"]["CIFAR-10"], published["image_momentum"])
    assert distil("dm", "cifar100").image.lr == published["lr_img"]["CIFAR-100"]
    assert numbers.settings["batch_real"] == published["batch_real"]
    assert numbers.settings["augmentation"] == published["strategy"]
    assert numbers.starts is None  # a fresh network every iteration


@pytest.mark.parametrize("method", ["cafe", "cafe_dsa"])
def test_cafe_has_its_published_numbers(facts: dict[str, Any], method: str) -> None:
    published, numbers = facts["CAFE"], distil(method)
    assert (numbers.iterations, numbers.init) == (published["iterations"], published["init"])
    image = numbers.image
    assert (image.lr, image.momentum) == (published["lr_img"], published["image_momentum"])
    assert list(image.halve_at) == published["lr_img_halved_at"]
    settings = numbers.settings
    assert settings["weights"] == published["weights"]
    assert (settings["batch_real"], settings["batch_train"]) == (
        published["batch_real"],
        published["batch_train"],
    )
    assert (settings["settled"], settings["moved"]) == (published["settled"], published["moved"])
    assert (settings["window"], settings["probe"]) == (published["window"], published["probe"])
    assert settings["lr_network"] == published["lr_network"]
    assert settings.get("augmentation") == (published["strategy"] if method == "cafe_dsa" else None)


@pytest.mark.parametrize(
    ("method", "name", "epochs"),
    [("dm", "DM", "epochs"), ("cafe", "CAFE", "epochs"), ("cafe_dsa", "CAFE", "epochs_augmented")],
)
def test_they_are_evaluated_as_published(facts: dict[str, Any], method: str, name: str, epochs: str) -> None:
    training, published, rest = recipe(method).evaluate.training(1), facts[name]["eval"], facts["DM"]["eval"]
    assert (training.epochs, training.lr) == (published[epochs], published["lr"])
    assert (training.momentum, training.weight_decay) == (rest["momentum"], rest["weight_decay"])
    assert (training.batch_size, training.extra_epoch, training.drop) == (rest["batch_size"], True, "half")
    augmented = method != "cafe"
    assert (training.augmentation != "none", training.family == "dc") == (augmented, augmented)


@pytest.mark.parametrize("method", METHODS)
def test_networks_of_later_stages_are_trained_as_those_of_evaluation_but_a_fifth_as_long(method: str) -> None:
    numbers = recipe(method, stages=5)
    assert numbers.transition is not None
    once = numbers.evaluate.training(1)
    assert numbers.transition.epochs * 5 == once.epochs
    different = {"epochs", "extra_epoch", "on"}
    assert numbers.transition.model_dump(exclude=different) == once.model_dump(exclude=different)


@pytest.mark.parametrize("method", METHODS)
def test_every_block_of_the_paper_s_networks_has_a_weight_and_tiny_imagenet_s_has_four(method: str) -> None:
    for dataset in SIDES:
        layers = distil(method, dataset).settings.get("weights", {}).get("layers")
        assert recipe(method, dataset).network.depth == (4 if dataset == "tiny-imagenet" else 3)
        assert layers is None or len(layers) == recipe(method, dataset).network.blocks + 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dataset", SIDES)
def test_small_rows_share_the_data_and_the_evaluation_of_random_s_row(method: str, dataset: str) -> None:
    ours, random = recipe(method, dataset, scale="small"), recipe("random", dataset, scale="small")
    assert (ours.dataset, ours.network) == (random.dataset, random.network)
    assert ours.evaluate.training(1) == random.evaluate.training(1)
    assert distil(method, dataset, scale="small").choice.by == "last"


@pytest.mark.parametrize("method", METHODS)
def test_digits_are_not_mirrored(method: str) -> None:
    for scale in ("paper", "small", "tiny"):
        asked = distil(method, "digits", scale=scale).settings.get("augmentation", "none")
        assert "flip" not in asked and "flip" not in recipe(method, "digits", scale=scale).evaluate.augmentation

"""Recipes of the methods that are in no table of the paper, against the published numbers of their papers and codes."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.methods import SETTINGS, DatmSettings
from jobs.recipe import Setting, resolve
from jobs.recipe_numbers import DistilNumbers, Recipe

METHODS = ("frepo", "dd", "rat_bptt", "rfad")
SIDES = {"cifar10": 32, "cifar100": 32, "tiny-imagenet": 64, "fashion-mnist": 28, "mnist": 28, "svhn": 32, "digits": 8}


def recipe(method: str, dataset: str = "cifar10", stages: int = 1, scale: Any = "paper", ipc: int = 10) -> Recipe:
    setting = Setting(scale=scale, dataset=dataset, size=SIDES[dataset], stages=stages, ipc_per_stage=ipc)
    return resolve(method, setting, {}, "x").recipe


def distil(method: str, dataset: str = "cifar10", **more: Any) -> DistilNumbers:
    numbers = recipe(method, dataset, **more).distil
    assert numbers is not None
    return numbers


def test_frepo_has_its_published_numbers(facts: dict[str, Any]) -> None:
    published, numbers = facts["FRePo"], distil("frepo")
    assert (numbers.iterations, numbers.init) == (published["iterations"], published["init"])
    assert numbers.settings == published["settings"]
    assert numbers.image.model_dump(include=set(published["optimiser"])) == published["optimiser"]
    for dataset, strategy in (("cifar10", "CIFAR-10"), ("mnist", "MNIST")):
        assert recipe("frepo", dataset).evaluate.augmentation == published["strategy"][strategy]
    assert recipe("frepo").evaluate.training(1).epochs == published["epochs"][10]
    assert recipe("frepo").dataset.normalise == recipe("frepo", "cifar100").dataset.normalise == "zca"


def test_rfad_has_its_published_numbers(facts: dict[str, Any]) -> None:
    published, numbers = facts["RFAD"], distil("rfad")
    assert numbers.init == published["init"] and numbers.settings == published["settings"]
    assert numbers.image.lr == published["optimiser"]["lr"]
    assert recipe("rfad").dataset.normalise == recipe("rfad", "svhn").dataset.normalise == "zca"


@pytest.mark.parametrize(("method", "name"), [("dd", "DD"), ("rat_bptt", "RaT-BPTT")])
def test_unrolled_methods_have_their_published_numbers(facts: dict[str, Any], method: str, name: str) -> None:
    published, numbers = facts[name], distil(method)
    assert numbers.init == published["init"] and numbers.settings == published["settings"]
    assert numbers.image.model_dump(include=set(published["image"])) == published["image"]
    assert numbers.iterations == published.get("iterations", numbers.iterations)


def test_dd_halves_its_rate_nine_times_at_even_distances() -> None:
    image = distil("dd").image
    assert list(image.halve_at) == [2000 * tenth for tenth in range(1, 10)] and not distil("rat_bptt").image.halve_at


@pytest.mark.parametrize("method", METHODS)
def test_networks_of_later_stages_are_trained_as_those_of_evaluation_but_a_fifth_as_long(method: str) -> None:
    numbers = recipe(method, stages=5)
    assert numbers.transition is not None
    once = numbers.evaluate.training(1)
    assert numbers.transition.epochs * 5 == once.epochs
    different = {"epochs", "extra_epoch", "on"} | ({"momentum", "weight_decay"} if method == "dd" else set())
    assert numbers.transition.model_dump(exclude=different) == once.model_dump(exclude=different)


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
        assert "flip" not in recipe(method, "digits", scale=scale).evaluate.augmentation


def matching(numbers: DistilNumbers, classes: int, ipc: int) -> dict[str, Any]:
    """The numbers of trajectory matching under the names of the collected facts."""
    settings = numbers.settings
    named = {"lr_lr": "lr_step_size", "lr_teacher": "step_size_init"}
    same = ("syn_steps", "expert_epochs", "max_start_epoch")
    return {
        **{name: settings[name] for name in same},
        **{name: settings[own] for name, own in named.items()},
        "lr_img": numbers.image.lr,
        "batch_syn": settings.get("batch_syn") or classes * ipc,
    }


@pytest.mark.parametrize(
    ("dataset", "name", "ipc", "classes"), [("cifar10", "CIFAR-10", 1, 10), ("cifar100", "CIFAR-100", 50, 100)]
)
def test_tesla_has_the_numbers_of_its_commands(
    facts: dict[str, Any], dataset: str, name: str, ipc: int, classes: int
) -> None:
    published, numbers = facts["TESLA"], distil("tesla", dataset, ipc=ipc)
    assert matching(numbers, classes, ipc) == published["settings"][name][ipc]
    assert numbers.iterations == published["iterations"] and numbers.labels is None
    many = distil("tesla", "tiny-imagenet")
    assert many.labels is not None and many.labels.source == "target"


@pytest.mark.parametrize("bases", [1, 10, 50])
def test_haba_has_the_numbers_of_its_commands(facts: dict[str, Any], bases: int) -> None:
    published, count = facts["HaBa"], facts["HaBa"]["hallucinators"]["hallucinators"]
    numbers = distil("haba", ipc=bases * count)
    assert matching(numbers, 10, bases) == published["settings"][bases]
    assert (numbers.iterations, numbers.init, numbers.labels) == (published["iterations"], published["init"], None)
    assert {name: getattr(numbers.image, name) for name in published["image"]} == published["image"]
    given = {**published["hallucinators"], **published["step_size"], "extractor": published["extractor"]}
    assert given.items() <= numbers.settings.items()
    assert recipe("haba", ipc=bases * count).dataset.normalise == "zca"


DATM = [(name, ipc) for name in ("CIFAR-10", "CIFAR-100", "Tiny-ImageNet") for ipc in (1, 10, 50)]


@pytest.mark.parametrize(("name", "ipc"), DATM)
def test_datm_has_the_numbers_of_its_configurations(facts: dict[str, Any], name: str, ipc: int) -> None:
    dataset, classes = {"CIFAR-10": ("cifar10", 10), "CIFAR-100": ("cifar100", 100)}.get(name, ("tiny-imagenet", 200))
    numbers, published = distil("datm", dataset, ipc=ipc), facts["DATM"]
    lowest, highest, first, grown, steps, epochs, lr_img, lr_y, lr_lr, threshold, batch = published["settings"][name][
        ipc
    ]
    settings = DatmSettings(**numbers.settings)
    assert settings.start_epochs(0) == (lowest, first)
    for iteration in (1, grown // 3, grown, 9999):
        bound = first + int((highest - first) * iteration / grown) if grown else highest
        assert settings.start_epochs(iteration) == (lowest, min(bound, highest))
    assert (settings.syn_steps, settings.expert_epochs, settings.lr_step_size) == (steps, epochs, lr_lr)
    assert min(classes * ipc, settings.batch_syn or classes * ipc) == min(classes * ipc, batch)
    assert (settings.most_loss, settings.step_size_init) == (threshold, 0.01)
    assert numbers.labels is not None and numbers.labels.learning is not None
    learning = numbers.labels.learning
    assert (learning.name, learning.lr, learning.momentum) == ("sgd", lr_y, published["momentum_y"])
    assert (numbers.image.lr, numbers.iterations) == (lr_img, published["iterations"])
    assert numbers.init == ("real" if (name, ipc) == ("CIFAR-100", 50) else "classified")


@pytest.mark.parametrize("dataset", SIDES)
@pytest.mark.parametrize("stages", [1, 5])
@pytest.mark.parametrize("ipc", [1, 2, 10, 20, 50])
@pytest.mark.parametrize("method", ["tesla", "datm", "haba"])
def test_experts_are_trained_up_to_the_last_target(method: str, dataset: str, stages: int, ipc: int) -> None:
    numbers = recipe(method, dataset, stages=stages, ipc=ipc)
    assert numbers.distil is not None and numbers.experts is not None
    needed = SETTINGS[method](**numbers.distil.settings).last_target  # type: ignore[attr-defined]
    assert min(numbers.experts.real.epochs, numbers.experts.later_epochs or 100) >= needed

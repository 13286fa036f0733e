"""Recipes of the methods that match gradients, against the published numbers of their papers and codes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from jobs.recipe import Setting, resolve
from jobs.recipe_numbers import Recipe

METHODS = ("dc", "dsa", "idc", "dream")
NAMES = {
    "CIFAR-10": ("cifar10", 32),
    "CIFAR-100": ("cifar100", 32),
    "SVHN": ("svhn", 32),
    "MNIST": ("mnist", 28),
    "FashionMNIST": ("fashion-mnist", 28),
}
"""Our name and the images' side, by the name in the published numbers."""
DSA = "color_crop_cutout_flip_scale_rotate"


def setting(dataset: str, stages: int, ipc: int) -> Setting:
    name, size = NAMES[dataset]
    return Setting(scale="paper", dataset=name, size=size, stages=stages, ipc_per_stage=ipc)


def paper(method: str, dataset: str = "CIFAR-10", stages: int = 1, ipc: int = 10) -> Recipe:
    return resolve(method, setting(dataset, stages, ipc), {}, "x").recipe


def numbers(method: str, dataset: str = "CIFAR-10", stages: int = 1, ipc: int = 10) -> dict[str, Any]:
    distil = paper(method, dataset, stages, ipc).distil
    assert distil is not None
    return distil.settings


@pytest.mark.parametrize("method", ["dc", "dsa"])
def test_dc_and_dsa_go_through_the_published_loops(facts: dict[str, Any], method: str) -> None:
    for ipc, (outer, inner) in facts["DC"]["loops"].items():
        settings = numbers(method, ipc=ipc)
        assert (settings["outer"], settings["training"]["epochs"]) == (outer, inner)
    published, distil = facts["DC"], paper(method).distil
    assert distil is not None
    assert (distil.iterations, distil.image.lr) == (published["iterations"], published["lr_img"])
    assert (distil.image.name, distil.image.momentum) == ("sgd", published["image_momentum"])
    assert distil.init == (facts["DSA"]["init"] if method == "dsa" else published["init"])
    assert distil.settings["batch_real"] == published["batch_real"]
    training = distil.settings["training"]
    assert {"momentum": 0.0, **training} == {**training, **published["training"]}


@pytest.mark.parametrize("dataset", NAMES)
def test_dsa_augments_matches_networks_and_evaluation_by_one_strategy(facts: dict[str, Any], dataset: str) -> None:
    strategy = facts["DSA"]["strategy"][dataset]
    recipe = paper("dsa", dataset)
    assert recipe.distil is not None and recipe.transition is not None
    settings = recipe.distil.settings
    assert settings["augmentation"] == settings["training"]["augmentation"] == strategy
    assert recipe.evaluate.augmentation == recipe.transition.augmentation == strategy
    assert settings["training"]["family"] == recipe.evaluate.family == recipe.transition.family == "dc"
    assert "augmentation" not in numbers("dc", dataset)


@pytest.mark.parametrize(("method", "epochs"), [("dc", "epochs"), ("dsa", "epochs_augmented")])
def test_dc_and_dsa_are_evaluated_as_published(facts: dict[str, Any], method: str, epochs: str) -> None:
    published, training = facts["DC"]["eval"], paper(method).evaluate.training(1)
    assert training.epochs == published[epochs]
    assert (training.lr, training.momentum) == (published["lr"], published["momentum"])
    assert (training.weight_decay, training.batch_size) == (published["weight_decay"], published["batch_size"])
    assert (training.extra_epoch, training.drop) == (published["extra_epoch"], "half")


@pytest.mark.parametrize("method", ["idc", "dream"])
@pytest.mark.parametrize("dataset", NAMES)
def test_idc_and_dream_have_idc_s_numbers(facts: dict[str, Any], method: str, dataset: str) -> None:
    published, distil = facts["IDC"], paper(method, dataset).distil
    assert distil is not None
    settings, update = distil.settings, published["update"]
    assert distil.iterations == published["iterations"][dataset]
    assert (distil.factor, distil.image.momentum) == (published["factor"], published["image_momentum"])
    assert settings["rounds"] == published["rounds"]
    assert settings["max_synthetic"] == published["max_synthetic"]
    assert settings["distance"] == published["distance"][dataset]
    assert settings["n_data"] == update["n_data"][dataset]
    assert settings["augmentation"] == published["strategy"][dataset]
    training = settings["training"]
    assert (training["lr"], training["momentum"]) == (update["lr"], update["momentum"])
    assert (training["weight_decay"], training["augmentation"]) == (update["weight_decay"], update["strategy"])
    assert training["cutmix"] == update["cutmix"][dataset]


@pytest.mark.parametrize("method", ["idc", "dream"])
@pytest.mark.parametrize("dataset", NAMES)
@pytest.mark.parametrize("ipc", [1, 2, 4, 5, 10, 20, 29, 50])
def test_idc_s_image_learning_rate_follows_its_formula(
    facts: dict[str, Any], method: str, dataset: str, ipc: int
) -> None:
    base, own = facts["IDC"]["lr_img_base"][dataset], facts["IDC"]["base_side"][dataset]
    size = NAMES[dataset][1]
    distil = paper(method, dataset, ipc=ipc).distil
    assert distil is not None
    assert distil.image.lr == pytest.approx(base * ipc / 10 * (size / own) ** 2, rel=1e-12)


@pytest.mark.parametrize("method", ["idc", "dream"])
def test_idc_and_dream_are_evaluated_as_published(facts: dict[str, Any], method: str) -> None:
    published, training = facts["IDC"]["eval"], paper(method).evaluate.training(1)
    assert (training.epochs, training.batch_size) == (published["epochs"], published["batch_size"])
    assert (training.lr, training.momentum) == (published["lr"], published["momentum"])
    assert (training.weight_decay, training.drop) == (published["weight_decay"], "thirds")
    assert (training.augmentation, training.cutmix) == (published["strategy"], published["cutmix"])
    assert (training.family, training.extra_epoch) == ("idc", False)


def test_dream_differs_from_idc_as_published(facts: dict[str, Any]) -> None:
    published, dream, idc = facts["DREAM"], paper("dream").distil, paper("idc").distil
    assert dream is not None and idc is not None
    assert (dream.init, idc.init) == ("centroids", "real")
    assert dream.settings["recluster_every"] == published["recluster_every"]
    assert dream.settings["batch_real"] == published["batch_real"]
    assert dream.settings["training"]["batch_size"] == published["update_batch"]
    assert idc.settings["batch_real"] == facts["IDC"]["batch_real"]
    same = {name: value for name, value in idc.settings.items() if name not in ("batch_real", "training")}
    assert {name: dream.settings[name] for name in same} == same


@pytest.mark.parametrize(("dataset", "total"), [(d, t) for d in ("CIFAR-10", "CIFAR-100") for t in (10, 50)])
def test_pdd_on_idc_has_the_numbers_of_its_readme(facts: dict[str, Any], dataset: str, total: int) -> None:
    published = facts["PDD+IDC"]["settings"][dataset][total]
    recipe = paper("idc", dataset, stages=5, ipc=published["ipc"])
    assert recipe.distil is not None
    assert recipe.distil.iterations == published["iterations"]
    assert recipe.distil.image.lr == pytest.approx(published["lr_img"])


@pytest.mark.parametrize("method", ["idc", "dream"])
def test_the_chain_of_idc_and_dream_is_pdd_s(facts: dict[str, Any], method: str) -> None:
    published, chain = facts["PDD+IDC"]["chain"], paper(method, stages=5).transition
    assert chain is not None
    assert (chain.epochs, chain.lr, chain.drop) == (published["epochs"], published["lr"], "thirds")
    assert (chain.momentum, chain.weight_decay) == (published["momentum"], published["weight_decay"])
    assert (chain.batch_size, chain.cutmix) == (published["batch_size"], published["cutmix"])
    assert (chain.augmentation, chain.family) == (published["strategy"], "idc")


@pytest.mark.parametrize("method", ["dsa", "idc", "dream"])
def test_prefixes_are_evaluated_by_the_paper_s_epochs(method: str) -> None:
    assert [paper(method, stages=5).evaluate.training(p).epochs for p in (1, 2, 5)] == [1000, 666, 333]
    assert paper(method, "CIFAR-100", stages=5).evaluate.training(5).epochs == 500


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dataset", NAMES)
def test_the_last_set_counts_and_nothing_is_reused_at_the_paper_s_scale(method: str, dataset: str) -> None:
    for stages, ipc in ((1, 10), (5, 2)):
        distil = paper(method, dataset, stages, ipc).distil
        assert distil is not None
        assert (distil.choice.by, distil.starts, distil.conditioning) == ("last", None, True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dataset", NAMES)
def test_a_source_names_where_a_number_comes_from(method: str, dataset: str) -> None:
    known = r"(P A?\d|PDD|DC|DSA|IDC|DREAM|ours:|replaced)"
    for stages, ipc in ((1, 10), (5, 2)):
        sources = resolve(method, setting(dataset, stages, ipc), {}, "x").sources
        assert {path: said for path, said in sources.items() if not re.match(known, said)} == {}


@pytest.mark.parametrize("method", METHODS)
def test_rows_compare_alike_with_random_at_reduced_scale(method: str) -> None:
    for dataset, size in (("digits", 8), ("fashion-mnist", 28), ("cifar10", 32)):
        one = Setting(scale="small", dataset=dataset, size=size, ipc_per_stage=10)
        ours, random, mtt = (resolve(name, one, {}, "x").recipe for name in (method, "random", "mtt"))
        assert ours.evaluate.training(1) == random.evaluate.training(1)
        assert ours.evaluate.epochs_total == mtt.evaluate.epochs_total
        assert ours.dataset == mtt.dataset == random.dataset
        assert ours.network == mtt.network == random.network

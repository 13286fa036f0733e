"""`jobs.recipe`: layers, overrides, contradictions, and the published numbers against the collected facts."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from jobs.errors import BadInput
from jobs.recipe import FOLDER, Protocol, Resolved, Scale, Setting, class_of, flat, methods, resolve, varies_by_stage
from jobs.recipe_numbers import Recipe

DSA = "color_crop_cutout_flip_scale_rotate"
IMAGES = {"digits": 8, "fashion-mnist": 28, "cifar10": 32, "cifar100": 32, "tiny-imagenet": 64}
PUBLISHED = {
    "CIFAR-10": ("cifar10", 10),
    "CIFAR-100": ("cifar100", 100),
    "Tiny-ImageNet": ("tiny-imagenet", 200),
}
"""Our name and the number of classes, by the name in the collected facts."""


def setting(scale: Scale = "small", dataset: str = "digits", stages: int = 1, ipc_per_stage: int = 10) -> Setting:
    return Setting(scale=scale, dataset=dataset, size=IMAGES[dataset], stages=stages, ipc_per_stage=ipc_per_stage)


def small(method: str = "mtt", overrides: dict[str, Any] | None = None, **more: Any) -> Resolved:
    return resolve(method, setting(), overrides or {}, "mine.yaml", **more)


def paper(dataset: str, stages: int, ipc_per_stage: int) -> Recipe:
    return resolve("mtt", setting("paper", dataset, stages, ipc_per_stage), {}, "x").recipe


def refusal(method: str = "mtt", overrides: dict[str, Any] | None = None, **more: Any) -> BadInput:
    with pytest.raises(BadInput) as caught:
        small(method, overrides, **more)
    return caught.value


# ------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("method", methods())
@pytest.mark.parametrize("scale", get_args(Scale))
@pytest.mark.parametrize("dataset", IMAGES)
def test_every_method_has_numbers_at_every_scale_and_each_has_a_source(method: str, scale: Scale, dataset: str) -> None:
    resolved = resolve(method, setting(scale, dataset), {}, "x")
    assert all(isinstance(source, str) and source for source in resolved.sources.values())
    given = resolved.recipe.model_dump(exclude_unset=True)
    leaves = {path for path, _ in flat(given) if not path.startswith("evaluate.networks.")}
    assert leaves <= set(resolved.sources)


@pytest.mark.parametrize("method", methods())
def test_a_layer_asks_only_what_a_setting_can_answer(method: str) -> None:
    for layer in yaml.safe_load((FOLDER / f"{method}.yaml").read_text())["layers"]:
        assert {"when", "set"} <= set(layer) <= {"when", "also", "set"}
        setting().matches(layer["when"])


@pytest.mark.parametrize(
    ("when", "matches"),
    [
        ({}, True),
        ({"scale": "small"}, True),
        ({"scale": ["tiny", "small"]}, True),
        ({"scale": "tiny"}, False),
        ({"scale": "small", "dataset": "cifar10"}, False),
        ({"progressive": True, "stages": [2, 3]}, True),
        ({"progressive": False}, False),
        ({"ipc_per_stage": 5, "size": 8}, True),
    ],
)
def test_a_layer_applies_when_every_question_has_the_asked_answer(when: dict[str, Any], matches: bool) -> None:
    assert setting(stages=2, ipc_per_stage=5).matches(when) == matches


def test_a_later_layer_overwrites_single_numbers_of_an_earlier_one() -> None:
    digits, fashion = small().recipe, resolve("mtt", setting("small", "fashion-mnist"), {}, "x").recipe
    assert (fashion.network.depth, fashion.network.width) == (3, 16)
    assert (digits.network.depth, digits.network.width) == (2, 32)
    assert (digits.evaluate.epochs_total, fashion.evaluate.epochs_total) == (240, 400)
    others = {
        name for name in digits.evaluate.networks if digits.evaluate.networks[name] != fashion.evaluate.networks[name]
    }
    assert others == {"vgg11"}  # batch norm where its last maps are single pixels


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    error = refusal("dmm")
    assert (error.place, error.field, error.value) == ("mine.yaml", "method", "dmm")
    assert error.fix == f"must be one of {', '.join(methods())}"


# ------------------------------------------------------------------------- files, bases, protocols

TOY = """
method: toys.means:ToyMatching
base: random
layers:
  - when: {}
    set:
      distil: {iterations: [5, mine], image: {lr: [0.5, mine]}, choice: {by: [last, mine]}, settings: {a: [1, mine]}}
"""


def toy(folder: Path, text: str = TOY) -> Resolved:
    file = folder / "toy.yaml"
    file.write_text(text)
    return resolve(str(file), setting("tiny"), {}, "mine.yaml")


def test_a_recipe_outside_the_package_adds_its_layers_to_those_of_its_base(tmp_path: Path) -> None:
    resolved = toy(tmp_path)
    assert resolved.recipe.evaluate == resolve("random", setting("tiny"), {}, "x").recipe.evaluate
    assert resolved.recipe.distil is not None and resolved.recipe.distil.iterations == 5
    assert resolved.sources["distil.iterations"] == "mine"
    assert class_of(str(tmp_path / "toy.yaml")) == "toys.means:ToyMatching"
    assert class_of("mtt") == "mtt"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("base: random", "base: rando", "base is 'rando': must be one of cafe,"),
        ("base: random", "bases: random", "bases is 'random': unknown field; known here: base, layers, method"),
        ("layers:", "layer:", "layers is None: required"),
        ("[5, mine]", "5", "write distil.iterations as [value, source]"),
        ("when: {}", "when: {colour: red}", "no setting has colour; known: scale, dataset,"),
        ("when: {}", "when: {stages: {from: 2}}", "write stages as a value, a list, or bounds"),
        ("when: {}", "when: {scale: paper}", "no layer sets a distil section"),
    ],
)
def test_a_recipe_file_that_cannot_work_is_refused_by_its_name(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        toy(tmp_path, TOY.replace(old, new))
    assert words in str(caught.value) and str(tmp_path / "toy.yaml") in str(caught.value)


def test_a_recipe_file_must_name_its_class(tmp_path: Path) -> None:
    toy(tmp_path, TOY.replace("method: toys.means:ToyMatching", ""))
    with pytest.raises(BadInput, match="name the class of the base method"):
        class_of(str(tmp_path / "toy.yaml"))


@pytest.mark.parametrize("method", ["random", "herding", "k_center", "forgetting"])
def test_every_selection_is_evaluated_by_the_same_two_protocols(method: str) -> None:
    for protocol, epochs, augmentation in (("published", 300, "none"), ("augmented", 1000, DSA)):
        asked = Setting(scale="paper", dataset="cifar10", size=32, protocol=protocol)  # type: ignore[arg-type]
        evaluate = resolve(method, asked, {}, "x").recipe.evaluate
        assert evaluate == resolve("random", asked, {}, "x").recipe.evaluate
        assert (evaluate.epochs, evaluate.augmentation, evaluate.lr, evaluate.extra_epoch) == (
            *(epochs, augmentation),
            *(0.01, True),
        )


@pytest.mark.parametrize("method", methods())
@pytest.mark.parametrize("dataset", ["mnist", "svhn", "digits"])
def test_digits_are_never_mirrored(method: str, dataset: str) -> None:
    """A mirrored 2 is no 2: not in experts, scores, links, matching or evaluation, in no protocol, at no scale."""
    protocols = get_args(Protocol) if method in ("random", "herding", "k_center", "forgetting") else ("published",)
    for scale, protocol, phases in product(get_args(Scale), protocols, (False, True)):
        asked = Setting(
            scale=scale, dataset=dataset, size=28, protocol=protocol, ipc_per_stage=10, class_incremental=phases
        )
        recipe = resolve(method, asked, {}, "x").recipe.model_dump()
        assert [path for path, value in flat(recipe) if "flip" in str(value)] == []


@pytest.mark.parametrize(
    ("numbers", "matches"),
    [
        ({"ipc_per_stage": 10}, "published"),
        ({"ipc_per_stage": 9}, "nearest"),
        ({"ipc_per_stage": 12}, "nearest"),
        ({"ipc_per_stage": 13}, None),
        ({"ipc_per_stage": 10, "stages": 2}, None),
    ],
)
def test_a_published_setting_serves_those_for_which_it_is_the_nearest_and_its_sources_say_so(
    tmp_path: Path, numbers: dict[str, int], matches: str | None
) -> None:
    layer = """
  - when: {ipc_per_stage: 10, stages: 1}
    also: {ipc_per_stage: {at_least: 8, at_most: 12}}
    set: {distil: {iterations: [7, DC]}}
"""
    file = tmp_path / "toy.yaml"
    file.write_text(TOY + layer)
    asked = Setting(**{"scale": "tiny", "dataset": "digits", "size": 8, **numbers})  # type: ignore[arg-type]
    resolved = resolve(str(file), asked, {}, "mine.yaml")
    source = {"published": "DC", "nearest": "ours: as published for ipc_per_stage 10 (DC)", None: "mine"}[matches]
    assert resolved.sources["distil.iterations"] == source
    assert resolved.recipe.distil is not None and resolved.recipe.distil.iterations == (5 if matches is None else 7)


def test_a_layer_may_be_about_some_stages_only_and_the_users_number_still_wins(tmp_path: Path) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(TOY + "\n  - when: {stage: {at_least: 2}}\n    set: {distil: {iterations: [7, mine]}}\n")
    assert varies_by_stage(str(file)) and not varies_by_stage("dc")
    for stage, ours in ((1, 5), (2, 7), (3, 7)):
        asked = Setting(scale="tiny", dataset="digits", size=8, stages=3, stage=stage)
        for overrides, iterations in (({}, ours), ({"distil.iterations": 9}, 9)):
            distil = resolve(str(file), asked, overrides, "mine.yaml").recipe.distil
            assert distil is not None and distil.iterations == iterations


def test_full_data_is_trained_as_the_method_whose_training_reaches_the_printed_number(facts: dict[str, Any]) -> None:
    ours, published = resolve("full", setting("paper", "cifar10"), {}, "x").recipe.evaluate, facts["IDC"]["eval"]
    assert (ours.augmentation, ours.cutmix, ours.family) == (published["strategy"], published["cutmix"], "idc")
    assert (ours.lr, ours.batch_size, ours.drop) == (published["lr"], published["batch_size"], "thirds")


def test_a_method_with_one_way_of_evaluation_has_no_protocols() -> None:
    with pytest.raises(BadInput, match="protocol is 'augmented': 'mtt' is evaluated in one way only"):
        resolve("mtt", Setting(scale="tiny", dataset="digits", size=8, protocol="augmented"), {}, "x")


def test_a_borrowed_section_is_that_of_the_other_method_with_its_sources() -> None:
    resolved = small(borrowed={"scores": "forgetting"})
    lender = small("forgetting")
    assert resolved.recipe.scores == lender.recipe.scores is not None
    assert resolved.recipe.evaluate == small().recipe.evaluate
    path = "scores.training.epochs"
    assert resolved.sources[path] == lender.sources[path]


def test_changed_numbers_have_the_given_source_and_leave_the_rest() -> None:
    before = small()
    after = before.changed("ours: because", {"distil.settings.syn_steps": 3, "network.width": 5})
    assert after.recipe.distil is not None and after.recipe.distil.settings["syn_steps"] == 3
    assert (after.recipe.network.width, after.sources["network.width"]) == (5, "ours: because")
    assert after.recipe.evaluate == before.recipe.evaluate
    assert before == small()


# ---------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    "overrides",
    [
        {"network.width": 8, "network.norm": "batch"},
        {"network": {"width": 8, "norm": "batch"}},
    ],
)
def test_an_override_changes_its_number_and_no_other(overrides: dict[str, Any]) -> None:
    usual, changed = small(), small(overrides=overrides)
    assert changed.recipe.network == usual.recipe.network.model_copy(update={"width": 8, "norm": "batch"})
    assert changed.recipe.distil == usual.recipe.distil
    assert changed.sources["network.width"] == "mine.yaml"
    assert changed.sources["network.depth"] == usual.sources["network.depth"] != "mine.yaml"


def test_overrides_do_not_stay_in_the_recipe() -> None:
    before = small()
    small(overrides={"evaluate.networks.resnet10.width": 2, "distil.settings.syn_steps": 99})
    assert small() == before


def test_an_arm_s_override_wins_over_the_experiment_s() -> None:
    resolved = small(overrides={"distil.iterations": 7}, shared={"distil": {"iterations": 5}, "network.width": 9})
    assert resolved.recipe.distil is not None
    assert (resolved.recipe.distil.iterations, resolved.recipe.network.width) == (7, 9)


def test_an_experiment_s_override_passes_over_methods_without_that_section() -> None:
    resolved = small("random", shared={"distil.iterations": 5, "network.width": 9})
    assert resolved.recipe.distil is None
    assert resolved.recipe.network.width == 9


KNOWN_IN_DISTIL = (
    "checkpoint_every, choice, clustering, conditioning, earlier_rate, factor, image, init, iterations, "
    "iterations_total, labels, settings, starts"
)


@pytest.mark.parametrize(
    ("overrides", "field", "value", "fix"),
    [
        ({"distil.iteratons": 5}, "set.distil.iteratons", 5, f"unknown field; known here: {KNOWN_IN_DISTIL}"),
        (
            {"distil": {"iteratons": 5}},
            "set.distil.iteratons",
            5,
            "unknown field; known here: checkpoint_every",
        ),
        (
            {"distill.iterations": 5},
            "set.distill",
            {"iterations": 5},
            "unknown field; known here: dataset, distil",
        ),
        (
            {"network.width.px": 5},
            "set.network.width.px",
            5,
            "width is a number, not a section; leave px out",
        ),
        ({"network": 5}, "set.network", 5, "input should be a valid dictionary"),
        ({"distil.iterations": 0}, "set.distil.iterations", 0, "must be at least 1"),
        ({"distil.iterations": "many"}, "set.distil.iterations", "many", "input should be a valid integer"),
        ({"distil.image.lr": "1e-4"}, "set.distil.image.lr", "1e-4", "write a number without quotes"),
        ({"distil.settings.x": float("inf")}, "set.distil.settings", None, "x must be a finite number"),
        (
            {"distil.choice.by": "train"},
            "set.distil.choice.by",
            "train",
            "must be one of 'validation', 'test' or",
        ),
        ({"evaluate.lr": -1}, "set.evaluate.lr", -1, "must be greater than 0"),
        ({"evaluate.weight_decay": -1.0}, "set.evaluate.weight_decay", -1.0, "must be at least 0"),
        (
            {"evaluate.augmentation": "blur"},
            "set.evaluate.augmentation",
            "blur",
            "write none, or some of color",
        ),
        ({"dataset.validation_fraction": 1.0}, "set.dataset.validation_fraction", 1.0, "must be less than 1"),
        (
            {"evaluate.networks.vgg": {"width": 2}},
            "set.evaluate.networks.vgg.architecture",
            "convnet",
            "must be vgg",
        ),
        (
            {"evaluate.networks.resnet10.depth": 3},
            "set.evaluate.networks.resnet10.depth",
            3,
            "leave it out; the name of the architecture says its depth",
        ),
    ],
)
def test_an_override_that_does_not_fit_is_refused(
    overrides: dict[str, Any], field: str, value: object, fix: str
) -> None:
    error = refusal(overrides=overrides)
    assert (error.place, error.field) == ("mine.yaml", field)
    assert value is None or error.value == value
    assert error.fix.startswith(fix)


def test_an_arm_s_override_of_a_section_its_method_lacks_is_refused() -> None:
    assert refusal("random", {"distil.iterations": 5}).field.startswith("set.distil.")


@pytest.mark.parametrize(
    ("method", "overrides", "field", "fix"),
    [
        ("mtt", {"evaluate.epochs": 5}, "evaluate.epochs", "give exactly one of evaluate.epochs and"),
        ("random", {"evaluate.epochs": None}, "evaluate.epochs", "give exactly one of evaluate.epochs and"),
        ("random", {"evaluate.lr": None}, "evaluate.lr", "give a number; no stage learns a step size"),
        ("mtt", {"experts.real.lr": None}, "experts.real.lr", "give a number; experts learn no step size"),
        ("dm", {"distil.init": "classified"}, "distil.init", "this method has no experts; start from real"),
        ("dm", {"distil.labels.source": "experts"}, "distil.labels.source", "this method has no experts; take the"),
        ("dm", {"distil.labels.source": "target"}, "distil.labels.source", "this method has no experts; take the"),
        (
            "mtt",
            {"distil.labels": {"source": "target", "learning": {"lr": 1.0}}},
            "distil.labels",
            "a target gives labels anew in each iteration",
        ),
        (
            "mtt",
            {"dataset.validation_fraction": 0.0},
            "dataset.validation_fraction",
            "hold images out, or set",
        ),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(
    method: str, overrides: dict[str, Any], field: str, fix: str
) -> None:
    error = refusal(method, overrides)
    assert error.field == f"set.{field}"
    assert error.fix.startswith(fix)


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("mtt", {"evaluate.epochs": 5, "evaluate.epochs_total": None}),
        ("mtt", {"dataset.validation_fraction": 0.0, "distil.choice.by": "last"}),
        ("full", {"dataset.validation_fraction": 0.0}),
    ],
)
def test_the_named_mends_mend(method: str, overrides: dict[str, Any]) -> None:
    assert small(method, overrides).recipe


@pytest.mark.parametrize(("prefix", "epochs"), [(1, 1000), (2, 666), (3, 500), (4, 400), (5, 333)])
def test_a_prefix_of_p_stages_is_evaluated_with_2000_over_p_plus_one_epochs_a_link(prefix: int, epochs: int) -> None:
    training = paper("cifar10", stages=5, ipc_per_stage=10).evaluate.training(prefix)
    assert training.epochs == epochs
    assert (training.momentum, training.weight_decay, training.drop) == (0.9, 5e-4, "half")


def test_a_fixed_number_of_epochs_holds_for_every_prefix() -> None:
    evaluate = small("random").recipe.evaluate
    assert evaluate.training(1) == evaluate.training(7)
    assert evaluate.training(1).lr == 0.02


# --------------------------------------------------- published numbers (tests/data/hyperparameters.yaml)


def matching(recipe: Recipe, classes: int, ipc: int) -> dict[str, Any]:
    """The numbers of the matching step under the names of the collected facts."""
    assert recipe.distil is not None
    settings, whole = recipe.distil.settings, classes * ipc
    return {
        "syn_steps": settings["syn_steps"],
        "expert_epochs": settings["expert_epochs"],
        "max_start_epoch": settings["max_start_epoch"],
        "lr_img": recipe.distil.image.lr,
        "lr_lr": settings["lr_step_size"],
        "lr_teacher": settings["step_size_init"],
        "batch_syn": settings.get("batch_syn") or whole,
        "zca": recipe.dataset.normalise == "zca",
    }


@pytest.mark.parametrize("dataset", PUBLISHED)
@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_mtt_alone_has_the_numbers_of_its_authors_commands(facts: dict[str, Any], dataset: str, ipc: int) -> None:
    name, classes = PUBLISHED[dataset]
    published = dict(facts["MTT"]["settings"][dataset][ipc])
    if published["batch_syn"] == "all":
        published["batch_syn"] = classes * ipc
    assert matching(paper(name, stages=1, ipc_per_stage=ipc), classes, ipc) == published


@pytest.mark.parametrize("dataset", PUBLISHED)
@pytest.mark.parametrize("total", [10, 50])
def test_pdd_has_the_numbers_of_its_readme(facts: dict[str, Any], dataset: str, total: int) -> None:
    name, classes = PUBLISHED[dataset]
    published, stages = facts["PDD+MTT"]["settings"][dataset][total], facts["PDD+MTT"]["stages"]
    ipc = published["ipc"]
    assert stages * ipc == total
    ours = matching(paper(name, stages, ipc), classes, ipc)
    assert ours == {name: published[name] for name in ours}


@pytest.mark.parametrize("dataset", PUBLISHED)
@pytest.mark.parametrize("stages", [1, 5])
def test_what_all_settings_share_is_as_published(facts: dict[str, Any], dataset: str, stages: int) -> None:
    recipe = paper(PUBLISHED[dataset][0], stages, 10)
    common = facts["PDD+MTT" if stages > 1 else "MTT"]["common"]
    networks, distil = facts["networks"], recipe.distil
    assert distil is not None
    assert recipe.network.architecture == "convnet" and recipe.network.norm == "instance"
    assert recipe.network.width == networks["width"]
    assert recipe.network.depth == networks["depth"][dataset]
    assert distil.iterations == common["iterations"]
    assert (distil.image.name, distil.image.momentum) == ("sgd", common["image_momentum"])
    assert distil.image.final_lr is None
    assert distil.settings["step_size_momentum"] == common["step_size_momentum"]
    assert distil.settings["augmentation"] == DSA == facts["MTT"]["strategy"]
    assert distil.settings["step_size_form"] == "linear"
    assert distil.init == common["init"]
    assert (distil.choice.every, distil.choice.networks) == (common["eval_every"], common["num_eval"])


@pytest.mark.parametrize("dataset", PUBLISHED)
@pytest.mark.parametrize("stages", [1, 5])
def test_experts_are_trained_as_published(facts: dict[str, Any], dataset: str, stages: int) -> None:
    experts = paper(PUBLISHED[dataset][0], stages, 10).experts
    published = facts["PDD+MTT" if stages > 1 else "MTT"]["experts"]
    epochs = published["train_epochs"]
    if isinstance(epochs, dict):
        epochs = epochs[dataset]
    assert experts is not None
    assert experts.number == published["num_experts"]
    assert experts.real.model_dump() == {
        "epochs": epochs,
        "lr": published["lr"],
        "momentum": published["momentum"],
        "weight_decay": published["weight_decay"],
        "batch_size": published["batch_size"],
        "augmentation": DSA,
        "drop": "none",
        "extra_epoch": False,
    }


@pytest.mark.parametrize("dataset", PUBLISHED)
@pytest.mark.parametrize("stages", [1, 5])
def test_links_candidates_and_evaluation_networks_are_trained_as_published(
    facts: dict[str, Any], dataset: str, stages: int
) -> None:
    recipe = paper(PUBLISHED[dataset][0], stages, 10)
    mtt, pdd = facts["MTT"]["eval"], facts["PDD+MTT"]["eval"]
    chain = facts["PDD+MTT"]["chain"]
    assert recipe.transition is not None and recipe.distil is not None
    assert recipe.transition.epochs == chain["epochs"]
    assert recipe.transition.momentum == chain["momentum"]
    assert recipe.transition.weight_decay == chain["weight_decay"]
    assert recipe.distil.choice.training.epochs == mtt["epochs"]
    for training in (recipe.transition, recipe.distil.choice.training, recipe.evaluate.training(1)):
        assert training.lr is None, "the learned step size"
        assert training.momentum == mtt["momentum"] == pdd["momentum"]
        assert training.weight_decay == mtt["weight_decay"] == pdd["weight_decay"]
        assert training.batch_size == mtt["batch_size"] == pdd["batch_size"]
        assert training.extra_epoch is mtt["extra_epoch"] is pdd["extra_epoch"] is True
        assert (training.drop, training.augmentation) == ("half", DSA)


def test_evaluation_takes_the_paper_s_epochs_and_the_readme_s_where_the_paper_is_silent(
    facts: dict[str, Any],
) -> None:
    epochs = facts["PDD+MTT"]["eval"]["epochs"]
    assert epochs["paper"]["CIFAR-10"] == "2000/(P+1)"
    assert paper("cifar10", 5, 10).evaluate.training(5).epochs == 2000 // (5 + 1)
    assert paper("cifar100", 5, 10).evaluate.training(5).epochs == epochs["paper"]["CIFAR-100"]
    assert epochs["paper"]["Tiny-ImageNet"] is None
    assert paper("tiny-imagenet", 5, 10).evaluate.training(5).epochs == epochs["readme"]["Tiny-ImageNet"]
    for name, _ in PUBLISHED.values():
        assert paper(name, 1, 10).evaluate.training(1).epochs == facts["MTT"]["eval"]["epochs"]


def test_random_images_are_evaluated_by_the_protocol_of_dataset_condensation(facts: dict[str, Any]) -> None:
    published = facts["DC"]["eval"]
    training = resolve("random", setting("paper", "cifar10"), {}, "x").recipe.evaluate.training(1)
    assert training.model_dump() == {
        "epochs": published["epochs"],
        "lr": published["lr"],
        "momentum": published["momentum"],
        "weight_decay": published["weight_decay"],
        "batch_size": published["batch_size"],
        "augmentation": "none",
        "drop": "half",
        "extra_epoch": published["extra_epoch"],
    }


# Where the recipes knowingly leave the published numbers; each test fails when the departure goes away.


def test_departure_iterates_are_chosen_on_a_tenth_held_out_and_not_on_test(facts: dict[str, Any]) -> None:
    recipe = paper("cifar10", 5, 10)
    assert facts["PDD+MTT"]["kept_by"] == "test accuracy"
    assert recipe.distil is not None and recipe.distil.choice.by == "validation"
    assert recipe.dataset.validation_fraction == 0.1


@pytest.mark.parametrize("dataset", PUBLISHED)
@pytest.mark.parametrize("total", [10, 50])
def test_departure_later_experts_leave_out_the_two_epochs_that_nothing_reads(
    facts: dict[str, Any], dataset: str, total: int
) -> None:
    published = facts["PDD+MTT"]["settings"][dataset][total]
    recipe = paper(PUBLISHED[dataset][0], 5, published["ipc"])
    assert recipe.experts is not None and recipe.distil is not None
    assert recipe.experts.later_epochs == published["later_epochs"] - 2
    last_target = published["max_start_epoch"] - 1 + published["expert_epochs"]
    assert recipe.experts.later_epochs == last_target <= recipe.experts.real.epochs


def test_with_one_image_a_stage_the_step_size_s_rate_rises_from_stage_2_on(facts: dict[str, Any]) -> None:
    published = facts["PDD+MTT"]["lr_lr_at_one_image_a_stage"]["CIFAR-10"]["from_stage_2"]
    rates = []
    for stage in (1, 2, 10):
        asked = Setting(scale="paper", dataset="cifar10", size=32, stages=10, ipc_per_stage=1, stage=stage)
        distil = resolve("mtt", asked, {}, "x").recipe.distil
        assert distil is not None
        rates.append(distil.settings["lr_step_size"])
    assert rates == [1e-7, published, published] == [1e-7, 1e-5, 1e-5]


def test_a_source_of_the_published_scale_names_where_it_comes_from() -> None:
    for dataset, stages in [("cifar10", 1), ("cifar10", 5), ("cifar100", 5), ("tiny-imagenet", 1)]:
        sources = resolve("mtt", setting("paper", dataset, stages, 10), {}, "x").sources
        unclear = {path: said for path, said in sources.items() if not re.match(r"P \d|PDD|MTT|ours:|replaced", said)}
        assert unclear == {}


def test_medium_is_the_published_setting_with_some_numbers_cut() -> None:
    paper, medium = (
        resolve("mtt", Setting(scale=scale, dataset="cifar10", size=32, ipc_per_stage=10), {}, "x")
        for scale in ("paper", "medium")
    )
    changed = {path for path, source in medium.sources.items() if source != paper.sources.get(path)}
    assert all(medium.sources[path].startswith("ours") or "MTT" in medium.sources[path] for path in changed)
    assert medium.recipe.distil is not None and paper.recipe.distil is not None
    assert medium.recipe.distil.settings == paper.recipe.distil.settings
    assert (medium.recipe.distil.iterations, paper.recipe.distil.iterations) == (200, 5000)
    assert (medium.recipe.network.width, medium.recipe.dataset.train_per_class) == (64, 1000)


@pytest.mark.parametrize("method", methods())
def test_every_method_has_numbers_at_medium(method: str) -> None:
    asked = Setting(scale="medium", dataset="cifar10", size=32, ipc_per_stage=10)
    assert resolve(method, asked, {}, "x").recipe.network.width == 64

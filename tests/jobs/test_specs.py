"""`jobs.specs`: what a job may be told, and what is refused."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from jobs.fields import Frozen
from jobs.kinds import SPECS
from jobs.learning import ImageOptimiserSpec
from jobs.specs import (
    ChoiceSpec,
    DatasetSpec,
    DistilSpec,
    EvaluateSpec,
    ExpertsSpec,
    Kind,
    NetworkSpec,
    SelectSpec,
    SgdSpec,
    Spec,
    TransitionSpec,
)

SGD = {"epochs": 2, "lr": 0.1}
DATASET = {
    "name": "digits",
    "fingerprint": "f",
    "channels": 1,
    "height": 8,
    "width": 8,
    "classes": 10,
    "train_images": 100,
    "normalise": "measured",
    "validation_per_class": 1,
}
DISTIL = {
    "method": "mtt",
    "stage": 1,
    "ipc": 1,
    "network": {},
    "iterations": 10,
    "image": {"lr": 1000},
    "choice": {"training": SGD},
    "settings": {"syn_steps": 3},
}
COHORT = {"stage": 2, "first": 4, "count": 2, "network": {}, "real": SGD}


def test_every_kind_has_its_spec_and_a_version() -> None:
    assert set(SPECS) == set(get_args(Kind))
    assert all(spec.kind == kind and spec.version >= 1 for kind, spec in SPECS.items())


@pytest.mark.parametrize("spec", SPECS.values())
def test_placement_names_fields_that_exist(spec: type[Spec]) -> None:
    assert spec.placement <= set(spec.model_fields)


def test_the_identity_holds_everything_but_placement() -> None:
    identity = DatasetSpec.model_validate({**DATASET, "path": "/data", "layout": "folder"}).identity()
    assert identity == {**DATASET, "train_per_class": None, "test_per_class": None, "split_seed": 0}


def test_an_integer_and_the_equal_float_are_one_number() -> None:
    written, meant = SgdSpec(epochs=1, lr=1), SgdSpec(epochs=1, lr=1.0)
    assert repr(written.lr) == repr(meant.lr) == "1.0"


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SelectSpec(rule="random", ipc_total=1).ipc_total = 2


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (SgdSpec, {"epochs": 0}),
        (SgdSpec, {"epochs": 2.0}),
        (SgdSpec, {"epochs": True}),
        (SgdSpec, {"epochs": "2"}),
        (SgdSpec, {"epochs": 1, "lr": 0}),
        (SgdSpec, {"epochs": 1, "lr": -0.1}),
        (SgdSpec, {"epochs": 1, "lr": float("inf")}),
        (SgdSpec, {"epochs": 1, "lr": float("nan")}),
        (SgdSpec, {"epochs": 1, "momentum": 1.0}),
        (SgdSpec, {"epochs": 1, "momentum": float("nan")}),
        (SgdSpec, {"epochs": 1, "weight_decay": -1e-4}),
        (SgdSpec, {"epochs": 1, "batch_size": 0}),
        (SgdSpec, {"epochs": 1, "drop": "third"}),
        (SgdSpec, {"epochs": 1, "augmentation": "blur"}),
        (SgdSpec, {"epochs": 1, "augmentation": "color_"}),
        (SgdSpec, {"epochs": 1, "augmentation": "none_color"}),
        (SgdSpec, {"epochs": 1, "augmentation": ""}),
        (SgdSpec, {"epochs": 1, "learning_rate": 0.1}),
        (NetworkSpec, {"architecture": "vgg"}),
        (NetworkSpec, {"width": 0}),
        (NetworkSpec, {"norm": "filter"}),
        (NetworkSpec, {"architecture": "resnet10", "depth": 3}),
        (ImageOptimiserSpec, {"lr": 1.0, "name": "lbfgs"}),
        (ChoiceSpec, {"training": SGD, "by": "train"}),
        (DatasetSpec, {**DATASET, "classes": 1}),
        (DatasetSpec, {**DATASET, "train_images": 0}),
        (DatasetSpec, {**DATASET, "validation_per_class": -1}),
        (DistilSpec, {**DISTIL, "stage": 0}),
        (DistilSpec, {**DISTIL, "ipc": 0}),
        (DistilSpec, {**DISTIL, "seed": -1}),
        (DistilSpec, {**DISTIL, "init": "mix"}),
        (ExpertsSpec, {**COHORT, "count": 0}),
        (ExpertsSpec, {**COHORT, "first": -1}),
        (EvaluateSpec, {"network": {}, "training": SGD, "index": 0, "mode": "joint"}),
    ],
)
def test_an_impossible_number_is_refused(model: type[Frozen], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model.model_validate(fields)


@pytest.mark.parametrize("augmentation", ["none", "flip", "color_crop_cutout_flip_scale_rotate"])
def test_the_published_augmentations_are_accepted(augmentation: str) -> None:
    assert SgdSpec(epochs=1, augmentation=augmentation).augmentation == augmentation


def test_no_default_chooses_on_the_test_split() -> None:
    assert ChoiceSpec(training=SgdSpec(epochs=1)).by == "validation"


@pytest.mark.parametrize(
    ("architecture", "channels", "blocks"),
    [
        ("convnet", 128, 3),
        ("resnet10", 64, 1),
        ("resnet18", 64, 2),
        ("idc_resnet10", 32, 1),
        ("idc_resnet18", 32, 2),
    ],
)
def test_a_network_without_numbers_is_the_published_one(architecture: str, channels: int, blocks: int) -> None:
    spec = NetworkSpec.model_validate({"architecture": architecture})
    assert (spec.channels, spec.blocks) == (channels, blocks)


def test_a_network_s_own_numbers_replace_the_published_ones() -> None:
    spec = NetworkSpec(width=16, depth=2)
    assert (spec.channels, spec.blocks) == (16, 2)


@pytest.mark.parametrize(
    ("kind", "fields", "title"),
    [
        ("dataset", DATASET, "digits-measured"),
        ("experts", COHORT, "convnet-stage2-4to5-seed0"),
        ("forgetting", {"network": {}, "training": SGD}, "convnet-2ep-seed0"),
        ("select", {"rule": "forgetting", "ipc": 3, "draw": 2}, "forgetting-ipc3-draw2-seed0"),
        ("distil", {**DISTIL, "stage": 3, "ipc": 2, "seed": 5}, "mtt-stage3-ipc2-seed5"),
        ("evaluate", {"network": {}, "training": SGD, "index": 1}, "convnet-progressive-net1-seed0"),
        (
            "full",
            {"network": {"architecture": "resnet18"}, "training": SGD, "index": 1},
            "resnet18-net1-seed0",
        ),
    ],
)
def test_a_title_tells_a_reader_which_job_it_is(kind: Kind, fields: dict[str, Any], title: str) -> None:
    assert SPECS[kind].model_validate(fields).title() == title


@pytest.mark.parametrize("partition", [[0, 3], (0, 3)])
def test_a_partition_comes_back_from_json_as_the_pair_it_was(partition: Any) -> None:
    spec = ExpertsSpec.model_validate({**COHORT, "partition": partition, "transition": {"epochs": 1}})
    assert spec.partition == (0, 3)
    assert spec.transition == TransitionSpec(epochs=1)
    assert ExpertsSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("kind", "value", "field"),
    [("select", {"rule": "random"}, "ipc_total"), ("distil", {**DISTIL}, "ipc_per_stage")],
)
def test_images_per_class_are_stored_under_the_name_that_keys_have_always_had(
    kind: Kind, value: dict[str, object], field: str
) -> None:
    others = {name: part for name, part in value.items() if name != "ipc"}
    stored, named = (SPECS[kind].model_validate({**others, name: 3}) for name in ("ipc", field))
    assert stored == named and getattr(named, field) == 3
    assert named.identity()["ipc"] == 3 and field not in named.identity()

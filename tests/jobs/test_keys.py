"""`jobs.keys`: a key changes with all that can change a result, and with nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from pydantic import ValidationError

from jobs.datasets import DATASETS
from jobs.expansion import expand
from jobs.experiment import FOLDER, load
from jobs.keys import canonical, canonical_text, differences, key_of, kind_of, seed_from
from jobs.kinds import SPECS
from jobs.specs import (
    DatasetSpec,
    DistilSpec,
    FullSpec,
    Kind,
    NetworkSpec,
    SelectSpec,
    SgdSpec,
    Spec,
)

SGD: dict[str, Any] = {"epochs": 2, "lr": 0.1}
EXAMPLES: dict[Kind, dict[str, Any]] = {
    "dataset": {
        "name": "digits",
        "fingerprint": "f",
        "channels": 1,
        "height": 8,
        "width": 8,
        "classes": 10,
        "train_images": 100,
        "normalise": "measured",
        "validation_per_class": 1,
    },
    "experts": {"stage": 1, "first": 0, "count": 2, "network": {}, "real": SGD},
    "forgetting": {"network": {}, "training": SGD},
    "select": {"rule": "random", "ipc_total": 1},
    "distil": {
        "method": "mtt",
        "stage": 1,
        "ipc_per_stage": 1,
        "network": {"width": 8},
        "iterations": 10,
        "image": {"lr": 1000.0},
        "choice": {"training": SGD},
        "settings": {"syn_steps": 3, "lr_step_size": 1e-5},
    },
    "evaluate": {"network": {}, "training": SGD, "index": 0},
    "full": {"network": {}, "training": SGD, "index": 0},
    "imported": {"what": "experts", "source": "d", "count": 2, "shapes": [[3, 3], [3]], "epochs": 5},
}
NETWORKS: list[Any] = [
    {"architecture": "resnet10"},
    {"architecture": "resnet18"},
    {"width": 16},
    {"depth": 2},
    {"norm": "batch"},
]
TRAININGS: list[Any] = [
    {**SGD, **change}
    for change in (
        {"epochs": 3},
        {"lr": 0.2},
        {"lr": None},
        {"momentum": 0.9},
        {"weight_decay": 5e-4},
        {"batch_size": 64},
        {"augmentation": "flip"},
        {"family": "idc"},
        {"cutmix": 0.5},
        {"drop": "half"},
        {"extra_epoch": True},
        {"momentum_at_drop": "reset"},
        {"temperature": 2.0},
    )
]
CHANGES: dict[Kind, dict[str, list[Any]]] = {
    "dataset": {
        "name": ["digit"],
        "fingerprint": ["g"],
        "channels": [3],
        "height": [9],
        "width": [9],
        "classes": [9],
        "train_images": [99],
        "normalise": ["zca"],
        "validation_per_class": [2],
        "train_per_class": [9],
        "test_per_class": [9],
        "split_seed": [1],
        "subset": [(0, 1), (2, 3)],
    },
    "experts": {
        "stage": [2],
        "first": [1],
        "count": [3],
        "network": NETWORKS,
        "real": TRAININGS,
        "transition": [*TRAININGS, {**SGD, "on": "newest"}],
        "partition": [(0, 3), (3, 6)],
        "seed": [1],
    },
    "forgetting": {
        "network": NETWORKS,
        "training": TRAININGS,
        "runs": [2],
        "never_learned": ["epochs"],
        "levels": [5],
        "seed": [1],
    },
    "select": {"rule": ["forgetting", "herding", "k_center", "imported"], "ipc_total": [2], "draw": [1], "seed": [1]},
    "distil": {
        "method": ["dm"],
        "stage": [2],
        "ipc_per_stage": [2],
        "network": NETWORKS,
        "iterations": [11],
        "image": [
            {"lr": 100.0},
            {"lr": 1000.0, "name": "adam"},
            {"lr": 1000.0, "momentum": 0.0},
            {"lr": 1000.0, "final_lr": 1.0},
            {"lr": 1000.0, "halve_at": [5, 8]},
        ],
        "init": ["noise", "centroids", "classified"],
        "factor": [2],
        "transition": [{"epochs": 4}],
        "starts": [3],
        "partition": [(0, 3), (3, 6)],
        "earlier_rate": [0.1],
        "clustering": ["torch"],
        "labels": [
            {},
            {"source": "classes"},
            {"source": "target"},
            {"source": "classes", "scale": 1.0},
            {"teachers": 1},
            {"learning": {"lr": 2.0}},
            {"temperature": 2.0},
        ],
        "conditioning": [False],
        "choice": [
            *({"training": training} for training in TRAININGS),
            {"training": SGD, "by": "test"},
            {"training": SGD, "every": 5},
            {"training": SGD, "networks": 1},
            {"training": SGD, "initial_not_final": True},
        ],
        "settings": [{"syn_steps": 4, "lr_step_size": 1e-5}, {"syn_steps": 3}, {}],
        "seed": [1],
    },
    "evaluate": {
        "mode": ["union", "sequential"],
        "network": NETWORKS,
        "training": TRAININGS,
        "start": ["expert"],
        "best_of": [4],
        "phases": [((0, 1),), ((0,), (1,))],
        "index": [1],
        "seed": [1],
    },
    "full": {"network": NETWORKS, "training": TRAININGS, "index": [1], "seed": [1]},
    "imported": {
        "what": ["set"],
        "source": ["e"],
        "count": [3],
        "shapes": [[[3, 4], [3]], [[3, 3]]],
        "epochs": [6],
        "classes": [10],
        "soft_labels": [True],
        "step_size": [0.01, 0.02],
        "normalise": ["zca"],
    },
}
PLACEMENT: dict[Kind, dict[str, Any]] = {
    "dataset": {
        "layout": "folder",
        "path": "/elsewhere",
        "image_field": "picture",
        "label_field": "class",
        "test": "0.2",
        "size": 32,
        "called": "Pets",
        "licence": "CC0",
        "url": "https://example.org",
    },
    "distil": {"checkpoint_every": 7},
    "imported": {"files": ("/elsewhere/replay_buffer_0.pt",)},
}


def example(kind: Kind, **changes: Any) -> Spec:
    return SPECS[kind].model_validate({**EXAMPLES[kind], **changes})


@pytest.mark.parametrize("kind", SPECS)
def test_every_value_that_can_change_the_result_changes_the_key(kind: Kind) -> None:
    specs = [example(kind)] + [
        example(kind, **{field: value}) for field, values in CHANGES[kind].items() for value in values
    ]
    assert len({key_of(spec, {}) for spec in specs}) == len(specs)


@pytest.mark.parametrize("kind", SPECS)
def test_every_field_is_either_tried_above_or_placement(kind: Kind) -> None:
    assert set(CHANGES[kind]) | SPECS[kind].placement == set(SPECS[kind].model_fields)
    assert set(PLACEMENT.get(kind, {})) == SPECS[kind].placement


@pytest.mark.parametrize("kind", SPECS)
def test_a_field_that_came_later_changes_no_key_until_it_is_used(kind: Kind) -> None:
    spec = example(kind)
    silent = {name for name in spec.later if getattr(spec, name) == type(spec).model_fields[name].default}
    assert silent == spec.later and not silent & set(spec.identity())


@pytest.mark.parametrize("kind", PLACEMENT)
def test_where_bytes_lie_and_how_often_to_save_do_not_change_the_key(kind: Kind) -> None:
    moved = example(kind, **PLACEMENT[kind])
    assert moved != example(kind)
    assert key_of(moved, {}) == key_of(example(kind), {})


@pytest.mark.parametrize("kind", SPECS)
def test_a_raised_algorithm_version_changes_the_key(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(example(kind), {})
    monkeypatch.setattr(SPECS[kind], "version", SPECS[kind].version + 1)
    assert key_of(example(kind), {}) != before


def test_parents_their_roles_and_their_order_change_the_key() -> None:
    spec = example("evaluate")
    families: list[dict[str, list[str]]] = [
        {},
        {"sets": ["a"]},
        {"sets": ["b"]},
        {"sets": ["a", "b"]},
        {"sets": ["b", "a"]},
        {"chain": ["a"]},
        {"chain": ["a"], "sets": ["b"]},
    ]
    assert len({key_of(spec, family) for family in families}) == len(families)


def test_the_order_in_which_roles_are_named_and_roles_without_parents_do_not() -> None:
    spec = example("evaluate")
    key = key_of(spec, {"dataset": ["d"], "sets": ["a"]})
    assert key_of(spec, {"sets": ("a",), "dataset": ("d",), "experts": ()}) == key


def test_a_default_written_out_is_the_same_job() -> None:
    assert key_of(example("distil", init="real", seed=0), {}) == key_of(example("distil"), {})


def test_the_same_job_has_this_key_in_every_process_and_on_every_machine() -> None:
    spec = DistilSpec.model_validate({**EXAMPLES["distil"], "stage": 2, "ipc_per_stage": 2})
    key = key_of(spec, {"dataset": ["dataset-x"], "sets": ["distil-y"]})
    assert key == "distil-mtt-stage2-ipc2-seed0-5e00591a33799707"


def test_a_key_starts_with_readable_words_and_ends_with_sixteen_hex_digits() -> None:
    key = key_of(SelectSpec(rule="random", ipc_total=4, draw=2, seed=1), {})
    assert re.fullmatch(r"select-random-ipc4-draw2-seed1-[0-9a-f]{16}", key)


@pytest.mark.parametrize(
    "name", ["A" * 1000, "-" * 300, "../../etc/passwd", "Tiny ImageNet (64×64)", "データ", "a\nb\0c", "."]
)
def test_whatever_a_dataset_is_called_its_key_is_a_plain_file_name(name: str) -> None:
    key = key_of(DatasetSpec.model_validate({**EXAMPLES["dataset"], "name": name}), {})
    assert re.fullmatch(r"dataset(-[a-z0-9]+)*-[0-9a-f]{16}", key)
    assert len(key) <= 200
    assert kind_of(key) == "dataset"


def test_long_names_that_differ_at_their_end_have_keys_that_differ() -> None:
    first, second = (example("dataset", name="a" * 500 + end) for end in "xy")
    assert key_of(first, {}) != key_of(second, {})


@pytest.mark.parametrize("kind", SPECS)
def test_a_key_tells_its_kind(kind: Kind) -> None:
    assert kind_of(key_of(example(kind), {})) == kind


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_cannot_say_never_enter_a_key(number: float) -> None:
    with pytest.raises(ValidationError, match="lr_step_size must be a finite number"):
        example("distil", settings={"lr_step_size": number})


def test_seeds_differ_by_key_and_by_purpose_and_fit_torch() -> None:
    seeds = [
        seed_from(key, *purpose)
        for key in ("experts-a", "experts-b")
        for purpose in ((), ("init", 0), ("init", 1), ("init", 10), ("real", 0))
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_is_this_number_in_every_process() -> None:
    assert seed_from("experts-a", "init", 3) == 2588827588607773989


def test_differences_name_each_field_by_its_path_with_both_values() -> None:
    old = {"kind": "distil", "spec": {"lr": 0.1, "name": "a", "nested": {"x": 1}}, "parents": {"sets": ["a"]}}
    new = {
        "kind": "distil",
        "spec": {"lr": 0.2, "name": "a", "nested": {"x": 2}},
        "parents": {"sets": ["a", "b"]},
    }
    assert differences(old, new) == [
        'parents.sets: ["a"] -> ["a", "b"]',
        "spec.lr: 0.1 -> 0.2",
        "spec.nested.x: 1 -> 2",
    ]
    assert differences(old, old) == []


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ({}, {"drop": None}, "drop: absent -> null"),
        ({"drop": None}, {}, "drop: null -> absent"),
        ({}, {"sets": ["a"]}, 'sets: absent -> ["a"]'),
        ({"transition": None}, {"transition": {"epochs": 1}}, 'transition: null -> {"epochs": 1}'),
    ],
)
def test_a_field_that_one_side_lacks_is_a_difference(old: Any, new: Any, line: str) -> None:
    assert differences(old, new) == [line]


@pytest.mark.parametrize("kind", SPECS)
def test_where_keys_differ_so_do_the_canonical_values(kind: Kind) -> None:
    for field, values in CHANGES[kind].items():
        changed = canonical(example(kind, **{field: values[0]}), {})
        lines = differences(canonical(example(kind), {}), changed)
        stored = SPECS[kind].model_fields[field].serialization_alias or field
        assert lines and all(line.startswith(f"spec.{stored}") for line in lines)


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.yaml")))
def test_the_text_behind_a_key_is_that_of_its_canonical_value(name: str) -> None:
    experiment, place, _ = load(name)
    for job in expand(experiment, DATASETS[experiment.source.name], place).graph:
        plain = json.dumps(job.canonical(), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        assert canonical_text(job.spec, job.parents) == plain


def test_equal_parts_that_are_written_otherwise_keep_texts_of_their_own() -> None:
    """-0.0 equals 0.0; a text that is kept by equality would give the second spec the first one's key."""
    zeros = [SgdSpec(epochs=1, lr=0.1, weight_decay=zero) for zero in (0.0, -0.0)]
    full = [FullSpec(network=NetworkSpec(), training=zero, index=0) for zero in zeros]
    assert full[0] == full[1] and key_of(full[0], {}) != key_of(full[1], {})

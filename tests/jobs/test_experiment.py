"""`jobs.experiment`: what a user writes becomes exactly these jobs, cells and groups, or is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from jobs.datasets import are_uneven
from jobs.documents import validate
from jobs.errors import BadInput
from jobs.expansion import expand
from jobs.experiment import FOLDER, QUICKSTART, Cell, Experiment, Plan, load
from jobs.graph import Job
from jobs.methods import SETTINGS
from jobs.specs import DatasetSpec, DistilSpec, EvaluateSpec, ExpertsSpec, FullSpec, SelectSpec


@dataclass(frozen=True)
class FakeFacts:
    """A dataset of three classes with 40, 50 and 60 training images of 8x8 pixels."""

    layout: str = "digits"
    channels: int = 1
    height: int = 8
    width: int = 8
    class_names: tuple[str, ...] = ("zero", "one", "two")
    train_per_class: tuple[int, ...] = (40, 50, 60)
    fingerprint: str = "f00d"


def experiment(*arms: dict[str, Any], **fields: Any) -> Experiment:
    """A tiny experiment with one network and, unless said, one seed."""
    raw = {"name": "exam", "scale": "tiny", "networks": 1, "arms": arms, **fields}
    return validate(Experiment, raw, "exam.yaml")


def plan_of(*arms: dict[str, Any], facts: FakeFacts = FakeFacts(), **fields: Any) -> Plan:  # noqa: B008
    return expand(experiment(*arms, **fields), facts, "exam.yaml")


def pdd(stages: int, ipc: int = 1, **fields: Any) -> dict[str, Any]:
    return {"method": "mtt", "stages": stages, "ipc_per_stage": ipc, **fields}


def refusal(*arms: dict[str, Any], **more: Any) -> BadInput:
    with pytest.raises(BadInput) as caught:
        plan_of(*arms, **more)
    return caught.value


def short(job: Job) -> str:
    """A job's name in the hand-written lists below."""
    spec = job.spec
    if isinstance(spec, ExpertsSpec):
        return f"experts {spec.stage} from {spec.first}"
    if isinstance(spec, DistilSpec):
        return f"distil {spec.stage}"
    if isinstance(spec, EvaluateSpec):
        return f"evaluate {len(job.parents['sets'])}"
    return job.kind


def listing(plan: Plan) -> list[tuple[str, dict[str, list[str]]]]:
    """Every job with its parents by role, under the short names."""
    names = {job.key: short(job) for job in plan.graph}
    return [
        (names[job.key], {role: [names[key] for key in keys] for role, keys in job.parents.items()})
        for job in plan.graph
    ]


def keys(plan: Plan, kind: type) -> set[str]:
    return {job.key for job in plan.graph if isinstance(job.spec, kind)}


def specs(plan: Plan, kind: type) -> list[Any]:
    return [job.spec for job in plan.graph if isinstance(job.spec, kind)]


# --------------------------------------------------------------------------------------- expansion

DATA = {"dataset": ["dataset"]}
FIRST = [
    ("dataset", {}),
    ("experts 1 from 0", DATA),
    ("experts 1 from 1", DATA),
    ("distil 1", {**DATA, "experts": ["experts 1 from 0", "experts 1 from 1"]}),
]
SECOND = [
    ("experts 2 from 0", {**DATA, "chain": ["experts 1 from 0"], "sets": ["distil 1"]}),
    ("experts 2 from 1", {**DATA, "chain": ["experts 1 from 1"], "sets": ["distil 1"]}),
    ("distil 2", {**DATA, "experts": ["experts 2 from 0", "experts 2 from 1"], "sets": ["distil 1"]}),
]
THIRD = [
    ("experts 3 from 0", {**DATA, "chain": ["experts 2 from 0"], "sets": ["distil 1", "distil 2"]}),
    ("experts 3 from 1", {**DATA, "chain": ["experts 2 from 1"], "sets": ["distil 1", "distil 2"]}),
    (
        "distil 3",
        {**DATA, "experts": ["experts 3 from 0", "experts 3 from 1"], "sets": ["distil 1", "distil 2"]},
    ),
]
EVALUATED = [
    ("evaluate 1", {**DATA, "sets": ["distil 1"]}),
    ("evaluate 2", {**DATA, "sets": ["distil 1", "distil 2"]}),
    ("evaluate 3", {**DATA, "sets": ["distil 1", "distil 2", "distil 3"]}),
]


@pytest.mark.parametrize(
    ("stages", "jobs"),
    [
        (1, FIRST + EVALUATED[:1]),
        (2, FIRST + SECOND + EVALUATED[:2]),
        (3, FIRST + SECOND + THIRD + EVALUATED),
    ],
)
def test_p_stages_are_exactly_these_jobs_with_these_parents(stages: int, jobs: list[Any]) -> None:
    assert listing(plan_of(pdd(stages))) == jobs


def test_random_images_are_drawn_anew_for_every_network_and_shared_by_the_architectures() -> None:
    plan = plan_of(
        {"method": "random", "ipc_per_stage": 2, "stages": 3},
        networks=2,
        architectures=["convnet", "resnet10"],
    )
    assert [name for name, _ in listing(plan)] == ["dataset", "select", "select"] + 4 * ["evaluate 1"]
    assert [(s.rule, s.ipc_total, s.draw) for s in specs(plan, SelectSpec)] == [("random", 6, 0), ("random", 6, 1)]
    evaluations = [job for job in plan.graph if isinstance(job.spec, EvaluateSpec)]
    assert [job.parents["sets"] for job in evaluations[:2]] == [job.parents["sets"] for job in evaluations[2:]]
    assert evaluations[0].parents["sets"] != evaluations[1].parents["sets"]


def test_full_data_is_one_job_a_network_seed_and_architecture() -> None:
    plan = plan_of({"method": "full"}, networks=2, seeds=[0, 7], architectures=["convnet", "resnet18"])
    assert [(s.network.architecture, s.seed, s.index) for s in specs(plan, FullSpec)] == [
        (architecture, seed, index) for architecture in ("convnet", "resnet18") for seed in (0, 7) for index in (0, 1)
    ]


def test_the_last_cohort_takes_what_is_left_of_the_experts() -> None:
    plan = plan_of(pdd(2, set={"experts.number": 5, "experts.expert_batch": 2}))
    assert [(s.stage, s.first, s.count) for s in specs(plan, ExpertsSpec)] == [
        (stage, first, count) for stage in (1, 2) for first, count in ((0, 2), (2, 2), (4, 1))
    ]


def test_only_later_stages_have_a_transition_and_the_later_epochs() -> None:
    first, _, later, _ = specs(plan_of(pdd(2, set={"experts.later_epochs": 2})), ExpertsSpec)
    assert (first.transition, first.real.epochs) == (None, 3)
    assert (later.transition.epochs, later.real.epochs) == (3, 2)
    assert later.real.model_copy(update={"epochs": 3}) == first.real


def test_only_the_last_prefix_is_evaluated_when_asked() -> None:
    plan = plan_of(pdd(3, prefixes="last"))
    assert [name for name, _ in listing(plan) if name.startswith("evaluate")] == ["evaluate 3"]
    assert [cell.stage for cell in plan.cells] == [3]


def test_a_prefix_of_p_stages_has_its_own_epochs() -> None:
    plan = plan_of(pdd(3, set={"evaluate.epochs_total": 600}))
    assert [spec.training.epochs for spec in specs(plan, EvaluateSpec)] == [300, 200, 150]


def test_the_dataset_job_knows_how_many_images_are_left_for_training() -> None:
    (tiny,) = specs(plan_of(pdd(1)), DatasetSpec)
    assert (tiny.train_per_class, tiny.validation_per_class, tiny.train_images) == (40, 4, 3 * 36)
    (whole,) = specs(plan_of(pdd(1, set={"dataset.train_per_class": None})), DatasetSpec)
    assert (whole.validation_per_class, whole.train_images) == ((4, 5, 6), 36 + 45 + 54)
    assert (whole.classes, whole.channels, whole.height, whole.fingerprint) == (3, 1, 8, "f00d")


def test_an_architecture_is_the_recipe_s_network_of_that_name_or_the_published_one() -> None:
    plan = plan_of(pdd(1), architectures=["convnet", "resnet10", "idc_resnet10"])
    networks = [spec.network for spec in specs(plan, EvaluateSpec)]
    assert [(n.architecture, n.channels) for n in networks] == [
        ("convnet", 8),
        ("resnet10", 4),
        ("idc_resnet10", 32),
    ]


def test_every_job_knows_the_recipe_its_numbers_come_from() -> None:
    plan = plan_of(pdd(2), {"method": "full"})
    assert set(plan.sources) == set(plan.graph.jobs)


@pytest.mark.parametrize(
    ("written", "name", "path"),
    [
        ("digits", "digits", None),
        ("./mine", "auto", "./mine"),
        ("/data/mine", "auto", "/data/mine"),
        (".", "auto", "."),
        ({"name": "cifar10", "path": "mine"}, "cifar10", "mine"),
    ],
)
def test_a_dataset_is_a_name_a_path_or_both(written: Any, name: str, path: str | None) -> None:
    source = experiment(pdd(1), dataset=written).source
    assert (source.name, source.path) == (name, path)


def test_images_of_ones_own_are_called_by_their_title_or_folder_and_neither_is_in_the_key() -> None:
    facts = replace(FakeFacts(), layout="folder", height=32, width=32)
    titled = {"path": "/there", "title": "Pets of the lab", "licence": "CC0", "url": "https://example.org"}
    here, there, third = (plan_of(pdd(1), dataset=data, facts=facts) for data in ("./here", "/there/", titled))
    parquet = plan_of(pdd(1), dataset="/there", facts=replace(facts, layout="parquet"))
    assert set(here.graph.jobs) == set(there.graph.jobs) == set(third.graph.jobs) == set(parquet.graph.jobs)
    assert [(s.name, s.called, s.path) for s in specs(here, DatasetSpec)] == [("images", "here", "./here")]
    names = [{cell.dataset for cell in plan.cells} for plan in (here, there, third)]
    assert names == [{"here"}, {"there"}, {"Pets of the lab"}]
    assert all("folder" not in key for key in here.graph.jobs)
    (spec,) = specs(third, DatasetSpec)
    assert (spec.called, spec.licence, spec.url) == ("Pets of the lab", "CC0", "https://example.org")


def test_a_known_dataset_keeps_its_name_whatever_its_title_and_layout() -> None:
    plans = [
        plan_of(
            pdd(1), dataset={"name": "cifar10", "path": "/x", "title": "Mine"}, facts=replace(FakeFacts(), layout=on)
        )
        for on in ("cifar10", "parquet")
    ]
    plans.append(plan_of(pdd(1), dataset="/x", facts=replace(FakeFacts(), layout="cifar10")))
    assert [{cell.dataset for cell in plan.cells} for plan in plans] == [{"cifar10"}] * 3
    assert [s.name for plan in plans for s in specs(plan, DatasetSpec)] == ["cifar10"] * 3


def test_a_cell_knows_what_guessing_reaches() -> None:
    assert {cell.guessing for cell in plan_of(pdd(1)).cells} == {100 / 3}
    arm = {"method": "random", "ipc_per_stage": 1, "class_incremental": {"phases": 3, "orders": 1}}
    assert [cell.guessing for cell in plan_of(arm).cells] == [100.0, 50.0, pytest.approx(100 / 3)]


# ----------------------------------------------------------------------------------------- sharing


def test_mtt_and_pdd_share_the_first_stage_s_experts_but_not_their_sets() -> None:
    alone, progressive = plan_of(pdd(1, ipc=2)), plan_of(pdd(2, ipc=1))
    shared = keys(alone, ExpertsSpec) & keys(progressive, ExpertsSpec)
    assert shared == keys(alone, ExpertsSpec)
    assert keys(alone, DatasetSpec) == keys(progressive, DatasetSpec)
    assert not keys(alone, DistilSpec) & keys(progressive, DistilSpec)


def test_a_longer_arm_adds_only_its_own_last_stage_and_evaluation() -> None:
    two, three = plan_of(pdd(2)), plan_of(pdd(3))
    assert set(two.graph.jobs) < set(three.graph.jobs)
    added = [short(job) for job in three.graph if job.key not in two.graph.jobs]
    assert added == ["experts 3 from 0", "experts 3 from 1", "distil 3", "evaluate 3"]
    both = plan_of(pdd(2), pdd(3))
    assert set(both.graph.jobs) == set(three.graph.jobs)
    assert both.graph.requested == two.graph.requested + three.graph.requested


def test_random_with_as_many_images_in_all_shares_its_draws() -> None:
    plan = plan_of({"method": "random", "ipc_per_stage": 4}, {"method": "random", "stages": 2, "ipc_per_stage": 2})
    assert len(keys(plan, SelectSpec)) == len(keys(plan, EvaluateSpec)) == 1
    assert [(cell.stages, cell.ipc_total) for cell in plan.cells] == [(1, 4), (2, 4)]


def test_seeds_share_the_dataset_and_nothing_else() -> None:
    one, other = plan_of(pdd(2), seeds=[0]), plan_of(pdd(2), seeds=[1])
    assert set(one.graph.jobs) & set(other.graph.jobs) == keys(one, DatasetSpec)


def test_one_changed_pixel_shares_nothing() -> None:
    one, other = plan_of(pdd(1)), plan_of(pdd(1), facts=replace(FakeFacts(), fingerprint="beef"))
    assert not set(one.graph.jobs) & set(other.graph.jobs)


def test_experiments_expand_into_one_plan() -> None:
    facts = FakeFacts()
    plan = expand(experiment(pdd(2), name="first"), facts, "a.yaml")
    assert expand(experiment(pdd(3), name="second"), facts, "b.yaml", plan) is plan
    assert set(plan.graph.jobs) == set(plan_of(pdd(3)).graph.jobs)
    assert [(cell.experiment, cell.stage) for cell in plan.cells] == [
        ("first", 1),
        ("first", 2),
        ("second", 1),
        ("second", 2),
        ("second", 3),
    ]


# ------------------------------------------------------------------------------- cells and groups


def row(cell: Cell) -> tuple[str, str, str, int, int, int]:
    return cell.method, cell.architecture, cell.mode, cell.stage, cell.ipc_total, len(cell.jobs)


def test_every_prefix_mode_and_architecture_is_one_cell_of_seeds_times_networks() -> None:
    plan = plan_of(
        {"method": "random", "ipc_per_stage": 4},
        pdd(1, ipc=4),
        pdd(2, ipc=2, modes=["progressive", "union"]),
        {"method": "full", "name": "Whole"},
        architectures=["convnet", "resnet10"],
        networks=2,
        seeds=[0, 1, 2],
    )
    expected = [
        ("Random", "union", 1, 4),
        ("MTT", "progressive", 1, 4),
        ("PDD+MTT", "progressive", 1, 2),
        ("PDD+MTT", "union", 1, 2),
        ("PDD+MTT", "progressive", 2, 4),
        ("PDD+MTT", "union", 2, 4),
        ("Whole", "full", 0, 0),
    ]
    assert [row(cell) for cell in plan.cells] == [
        (method, architecture, mode, stage, total, 6)
        for method, mode, stage, total in expected
        for architecture in ("convnet", "resnet10")
    ]
    assert {cell.base_method for cell in plan.cells} == {"random", "mtt", "full"}
    assert {(cell.experiment, cell.dataset, cell.scale) for cell in plan.cells} == {("exam", "digits", "tiny")}


def test_a_cell_s_networks_are_its_own_ordered_by_seed_and_then_index() -> None:
    plan = plan_of(pdd(1), networks=2, seeds=[3, 0])
    (cell,) = plan.cells
    made = [plan.graph[key].spec for key in cell.jobs]
    assert [(s.seed, s.index) for s in made if isinstance(s, EvaluateSpec)] == [
        (3, 0),
        (3, 1),
        (0, 0),
        (0, 1),
    ]


def test_wanted_are_the_jobs_of_the_cells_each_once() -> None:
    plan = plan_of(pdd(2), pdd(2, name="again"), {"method": "full"})
    assert len(plan.cells) == 5
    assert set(plan.wanted()) == keys(plan, EvaluateSpec) | keys(plan, FullSpec)
    assert len(plan.wanted()) == 3
    assert plan.graph.ancestors(plan.wanted()) == set(plan.graph.jobs)


def test_distillations_of_one_seed_of_an_experiment_exclude_each_other() -> None:
    plan = plan_of(pdd(2), seeds=[0, 5], distil_at_once=2)
    groups = {key: plan.graph[key].spec.model_dump()["seed"] for key in keys(plan, DistilSpec)}
    assert plan.exclusive == {key: (f"exam/seed{seed}",) for key, seed in groups.items()}
    assert plan.limits == {"exam/seed0": 2, "exam/seed5": 2}


def test_a_distillation_that_two_experiments_share_is_in_the_groups_of_both() -> None:
    plan = expand(experiment(pdd(1), name="first"), FakeFacts(), "a.yaml")
    expand(experiment(pdd(1), pdd(2), name="second"), FakeFacts(), "b.yaml", plan)
    (alone,) = keys(plan_of(pdd(1)), DistilSpec)
    assert plan.exclusive[alone] == ("first/seed0", "second/seed0")
    assert set(plan.exclusive.values()) == {("first/seed0", "second/seed0"), ("second/seed0",)}
    assert plan.limits == {"first/seed0": 1, "second/seed0": 1}


@pytest.mark.parametrize(
    ("arm", "label"),
    [
        (pdd(1), "MTT"),
        (pdd(5), "PDD+MTT"),
        (pdd(5, name="Ours"), "Ours"),
        ({"method": "random", "ipc_per_stage": 1}, "Random"),
        ({"method": "full"}, "Full data"),
    ],
)
def test_an_arm_has_the_name_the_paper_s_tables_give_it(arm: dict[str, Any], label: str) -> None:
    assert experiment(arm).arms[0].label == label


# ---------------------------------------------------------------------------------------- bad input

ARM_FIELDS = (
    "class_incremental, conditioning, earlier_rate, imported_experts, imported_set, ipc_per_stage, method, modes, "
    "name, partition, prefixes, protocol, set, stages, transition"
)
DIGITS_KNOWN = "known here: about, architectures, arms, dataset, distil_at_once, name, networks, scale, seeds, set"


@pytest.mark.parametrize(
    ("arm", "field", "value", "fix"),
    [
        (pdd(0), "arms.0.stages", 0, "must be at least 1"),
        (pdd(1, ipc=0), "arms.0.ipc_per_stage", 0, "must be at least 1"),
        (pdd(1, ipc="2"), "arms.0.ipc_per_stage", "2", "input should be a valid integer"),  # type: ignore[arg-type]
        (pdd(1, ipcs=2), "arms.0.ipcs", 2, f"unknown field; known here: {ARM_FIELDS}"),
        (pdd(1, modes=["joint"]), "arms.0.modes.0", "joint", "must be one of 'progressive', 'union' or"),
        (pdd(1, modes=[]), "arms.0.modes", [], "tuple should have at least 1 item"),
        (pdd(1, modes=["union", "union"]), "arms.0.modes", ["union", "union"], "name each only once"),
        (pdd(1, prefixes="none"), "arms.0.prefixes", "none", "must be one of 'all' or 'last'"),
        ({"ipc_per_stage": 1}, "arms.0.method", None, "required; add it"),
        ({"method": "mtt"}, "arms.0.ipc_per_stage", None, "required; images per class of one stage"),
        ({"method": "random"}, "arms.0.ipc_per_stage", None, "required; images per class of one stage"),
        ({"method": "mt", "ipc_per_stage": 1}, "arms.0.method", "mt", "must be one of "),
        (
            pdd(1, set={"distil.iteratons": 5}),
            "set.distil.iteratons",
            5,
            "unknown field; known here: checkpoint",
        ),
        (
            pdd(1, set={"network.depth": 4}),
            "set.network.depth",
            4,
            "images of 8 pixels allow at most 3 blocks",
        ),
    ],
)
def test_an_arm_that_cannot_work_is_refused(arm: dict[str, Any], field: str, value: object, fix: str) -> None:
    error = refusal(arm)
    assert (error.place, error.field, error.value) == ("exam.yaml", field, value)
    assert error.fix.startswith(fix)
    assert str(error).startswith(f"exam.yaml: {field} is {value!r}: ")


@pytest.mark.parametrize(
    ("fields", "field", "value", "fix"),
    [
        ({"arm": 1}, "arm", 1, f"unknown field; {DIGITS_KNOWN}"),
        ({"arms": []}, "arms", [], "tuple should have at least 1 item"),
        ({"seeds": [-1]}, "seeds.0", -1, "must be at least 0"),
        ({"seeds": [0, 0]}, "seeds", [0, 0], "name each only once"),
        ({"seeds": 0}, "seeds", 0, "input should be a valid tuple"),
        ({"seeds": ["0"]}, "seeds.0", "0", "input should be a valid integer"),
        ({"architectures": ["vgg"]}, "architectures.0", "vgg", "must be one of convnet, resnet10"),
        ({"networks": 0}, "networks", 0, "must be at least 1"),
        ({"scale": "huge"}, "scale", "huge", "must be one of 'paper', 'medium', 'small' or 'tiny'"),
        ({"name": "a/b"}, "name", "a/b", "write at most 100 letters A to Z"),
        ({"name": "größe"}, "name", "größe", "write at most 100 letters A to Z"),
        (
            {"dataset": {"nme": "x"}},
            "dataset.nme",
            "x",
            "unknown field; known here: image, label, licence, name, path",
        ),
        ({"dataset": 5}, "dataset", 5, "input should be a valid dictionary"),
        ({"distil_at_once": 0}, "distil_at_once", 0, "must be at least 1"),
        (
            {"set": {"distil.iteratons": 5}},
            "set.distil.iteratons",
            5,
            "unknown field; known here: checkpoint_ev",
        ),
    ],
)
def test_an_experiment_that_cannot_work_is_refused(fields: dict[str, Any], field: str, value: object, fix: str) -> None:
    error = refusal(pdd(1), **fields) if "arms" not in fields else refusal_of_raw(fields)
    assert (error.place, error.field, error.value) == ("exam.yaml", field, value)
    assert error.fix.startswith(fix)


def refusal_of_raw(fields: dict[str, Any]) -> BadInput:
    with pytest.raises(BadInput) as caught:
        validate(Experiment, {"name": "exam", **fields}, "exam.yaml")
    return caught.value


@pytest.mark.parametrize("method", ["random", "mtt"])
def test_a_class_with_fewer_images_than_are_asked_for_is_named(method: str) -> None:
    facts = replace(FakeFacts(), train_per_class=(40, 10, 60))
    arm = {"method": method, "stages": 2, "ipc_per_stage": 5}
    error = refusal(arm, facts=facts)
    assert (error.field, error.value) == ("arms.0.ipc_per_stage", 5)
    assert error.fix == (
        "2 x 5 images per class are asked for, but class 'one' has 9 training images after the held-out "
        "split; ask for fewer or add images"
    )
    assert plan_of({**arm, "ipc_per_stage": 4}, facts=facts).cells


def test_a_class_with_fewer_images_than_one_stage_starts_from_is_named() -> None:
    facts = replace(FakeFacts(), train_per_class=(40, 30, 60))
    error = refusal({"method": "idc", "ipc_per_stage": 8}, facts=facts)
    assert error.fix == (
        "8 images per class start from 32 real ones (4 in each), but class 'one' has 27 training images after the "
        "held-out split; ask for fewer or add images"
    )
    assert plan_of({"method": "idc", "ipc_per_stage": 6}, facts=facts).cells


def test_images_that_are_not_square_are_refused() -> None:
    error = refusal(pdd(1), facts=replace(FakeFacts(), width=9))
    assert str(error) == "exam.yaml: dataset is '8x9': crop or pad the images to squares"


def test_grey_images_of_28_pixels_may_be_halved_once_more_than_those_of_31() -> None:
    grey = replace(FakeFacts(), layout="mnist", height=28, width=28)
    assert plan_of(pdd(1, set={"network.depth": 5}), dataset="mnist", facts=grey).cells
    colour = replace(grey, channels=3)
    assert refusal(pdd(1, set={"network.depth": 5}), dataset="mnist", facts=colour).value == 5


def test_an_override_for_all_arms_reaches_those_that_have_its_section() -> None:
    plan = plan_of({"method": "random", "ipc_per_stage": 1}, pdd(1), set={"distil": {"iterations": 9}})
    assert [spec.iterations for spec in specs(plan, DistilSpec)] == [9]


def test_an_override_for_all_arms_that_reaches_none_is_refused() -> None:
    error = refusal({"method": "random", "ipc_per_stage": 1}, {"method": "full"}, set={"distil.iteratons": 5})
    assert str(error) == "exam.yaml: set.distil.iteratons is 5: no arm has this section; leave it out"


# ------------------------------------------------------------------------------ the files that ship

SHIPPED = {
    "digits": FakeFacts(class_names=tuple("0123456789"), train_per_class=(130,) * 10),
    "fashion-mnist": FakeFacts("fashion-mnist", 1, 28, 28, tuple("0123456789"), (6000,) * 10),
    "cifar10": FakeFacts("cifar10", 3, 32, 32, tuple("0123456789"), (5000,) * 10),
    "cifar100": FakeFacts("cifar100", 3, 32, 32, tuple(map(str, range(100))), (500,) * 100),
    "tiny-imagenet": FakeFacts("tiny-imagenet", 3, 64, 64, tuple(map(str, range(200))), (500,) * 200),
}


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.yaml")))
def test_every_experiment_that_ships_expands(name: str) -> None:
    shipped, place, raw = load(name)
    assert (shipped.name, place, raw["name"]) == (name, f"{name}.yaml", name)
    plan = expand(shipped, SHIPPED[shipped.source.name], place)
    assert len(plan.cells) >= len(shipped.arms)


def test_every_base_method_stands_in_the_comparison_under_two_stages() -> None:
    shipped, _, _ = load("methods_pdd")
    distilled = [arm for arm in shipped.arms if arm.method != "random"]
    assert sorted(arm.method for arm in distilled) == sorted(SETTINGS)
    assert {(arm.stages, arm.ipc_per_stage) for arm in distilled} == {(2, 5)}


def test_the_quickstart_is_56_jobs_in_15_cells() -> None:
    shipped, place, _ = load(str(QUICKSTART))
    plan = expand(shipped, SHIPPED["digits"], place)
    kinds: dict[str, int] = {}
    for job in plan.graph:
        kinds[job.kind] = kinds.get(job.kind, 0) + 1
    assert kinds == {"dataset": 1, "select": 3, "evaluate": 36, "experts": 4, "distil": 3, "full": 9}
    assert len(plan.cells) == 15


def test_an_experiment_is_loaded_from_a_file_of_the_user_s(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\narms: [{method: full}]\n")
    loaded, place, raw = load(str(file))
    assert (loaded.name, place) == ("mine", str(file))
    assert raw == {"name": "mine", "arms": [{"method": "full"}]}


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInput) as caught:
        load("quickstar")
    error = caught.value
    assert (error.place, error.field, error.value) == ("command line", "experiment", "quickstar")
    assert (
        error.fix.startswith("must be a YAML file or one of ablations, anchor_distilled,") and "quickstart" in error.fix
    )


@pytest.mark.parametrize(
    ("content", "field", "fix"),
    [
        ("name: [", "line 2", "fix the YAML at that place"),
        ("- a", "file", "write a mapping of fields to values"),
        ("name: mine", "arms", "required; add it"),
        (
            "name: mine\narms: [{method: mtt, stages: two}]",
            "arms.0.stages",
            "input should be a valid integer",
        ),
    ],
)
def test_a_bad_file_is_refused_by_its_path(tmp_path: Path, content: str, field: str, fix: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(BadInput) as caught:
        load(str(file))
    assert (caught.value.place, caught.value.field) == (str(file), field)
    assert caught.value.fix.startswith(fix)


def test_a_file_that_is_not_there_is_refused_by_its_path() -> None:
    with pytest.raises(BadInput, match=r"nowhere\.yaml: file is"):
        load("nowhere.yaml")


# Uneven classes

UNEVEN = FakeFacts(train_per_class=(120, 50, 3))


def test_a_tenth_of_each_class_is_held_out_and_one_image_at_least() -> None:
    (spec,) = specs(plan_of(pdd(1), facts=UNEVEN, set={"dataset.train_per_class": None}), DatasetSpec)
    assert (spec.validation_per_class, spec.train_images) == ((12, 5, 1), 108 + 45 + 2)


def test_even_held_out_images_are_one_number_so_that_keys_stay() -> None:
    plan = plan_of(pdd(1), facts=FakeFacts(train_per_class=(49, 40, 45)), set={"dataset.train_per_class": None})
    (spec,) = specs(plan, DatasetSpec)
    assert spec.validation_per_class == 4 and spec.identity()["validation_per_class"] == 4


def test_a_phase_holds_out_what_its_classes_hold_out() -> None:
    facts = FakeFacts(class_names=tuple("abcd"), train_per_class=(200, 100, 100, 100))
    arm = pdd(1, class_incremental={"phases": 2, "orders": 1})
    plan = plan_of(arm, facts=facts, set={"dataset.train_per_class": None})
    held_out = {spec.subset: spec.validation_per_class for spec in specs(plan, DatasetSpec)}
    assert held_out.pop(()) == (20, 10, 10, 10)
    assert {value if 0 in group else value == 10 for group, value in held_out.items()} == {(20, 10), True}


@pytest.mark.parametrize("arm", [{"method": "full"}, pdd(1), {"method": "random", "ipc_per_stage": 1}])
def test_a_class_that_would_keep_no_training_image_is_refused(arm: dict[str, Any]) -> None:
    error = refusal(arm, facts=FakeFacts(train_per_class=(120, 120, 1)))
    assert error.field == "set.dataset.validation_fraction"
    assert error.fix.startswith("class 'two' has 1 training image and it is held out, so none is left to train on")


def test_few_held_out_images_in_all_are_noted_once() -> None:
    arms = ({"method": "full"}, {"method": "random", "ipc_per_stage": 1})
    few: dict[str, Any] = {"facts": UNEVEN, "set": {"dataset.train_per_class": None}}
    (note,) = plan_of(*arms, scale="small", **few).notes
    assert plan_of(*arms, scale="tiny", **few).notes == [], "its numbers mean nothing anyway"
    assert "only 18 images are held out in all, 1 of the smallest class" in note
    assert (
        plan_of(*arms, facts=FakeFacts(train_per_class=(200, 200, 200)), set={"dataset.train_per_class": None}).notes
        == []
    )


@pytest.mark.parametrize(("images", "uneven"), [((10, 20), False), ((10, 21), True), ((0, 10), False), ((), False)])
def test_classes_are_uneven_above_two_to_one(images: tuple[int, ...], uneven: bool) -> None:
    assert are_uneven(images) is uneven

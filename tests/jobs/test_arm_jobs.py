"""`jobs.arm_jobs`: each baseline and ablation is exactly these jobs, told these numbers, on these parents."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.graph import Job
from jobs.specs import DistilSpec, EvaluateSpec, ExpertsSpec, ForgettingSpec, SelectSpec
from tests.jobs.test_experiment import pdd, plan_of, refusal, specs


def jobs(plan: Any, kind: type) -> list[Job]:
    return [job for job in plan.graph if isinstance(job.spec, kind)]


# ---------------------------------------------------------------------------------------- selection


@pytest.mark.parametrize("method", ["herding", "k_center"])
def test_features_come_from_one_expert_trained_on_the_whole_split(method: str) -> None:
    plan = plan_of({"method": method, "stages": 2, "ipc_per_stage": 3}, networks=2)
    (expert,), (chosen,) = jobs(plan, ExpertsSpec), jobs(plan, SelectSpec)
    assert isinstance(expert.spec, ExpertsSpec) and isinstance(chosen.spec, SelectSpec)
    assert (expert.spec.stage, expert.spec.count, expert.spec.partition) == (1, 1, None)
    assert (chosen.spec.rule, chosen.spec.ipc_total, chosen.spec.draw) == (method, 6, 0)
    assert chosen.parents["experts"] == (expert.key,)
    assert [job.parents["sets"] for job in jobs(plan, EvaluateSpec)] == 2 * [(chosen.key,)]


def test_the_most_forgotten_images_hang_on_scores_of_the_same_dataset() -> None:
    plan = plan_of({"method": "forgetting", "ipc_per_stage": 3}, seeds=[0, 1])
    scores, chosen = jobs(plan, ForgettingSpec), jobs(plan, SelectSpec)
    assert [job.parents["forgetting"] for job in chosen] == [(one.key,) for one in scores]
    (data,) = (job.key for job in plan.graph if job.kind == "dataset")
    assert {job.parents["dataset"] for job in scores + chosen} == {(data,)}
    assert [spec.never_learned for spec in specs(plan, ForgettingSpec)] == ["zero", "zero"]


def test_both_protocols_of_a_selection_share_the_images_and_differ_in_how_networks_are_trained() -> None:
    arm = {"method": "random", "ipc_per_stage": 2}
    plan = plan_of(arm, {**arm, "protocol": "augmented"})
    assert len(specs(plan, SelectSpec)) == 1
    plain, augmented = (spec.training for spec in specs(plan, EvaluateSpec))
    assert (plain.augmentation, augmented.augmentation) == ("none", "color_crop_cutout_scale_rotate")
    assert augmented.family == "dc"
    assert [cell.method for cell in plan.cells] == ["Random", "Random (augmented)"]


def test_a_distilled_arm_has_one_protocol() -> None:
    error = refusal(pdd(1, protocol="augmented"))
    assert (error.field, error.value) == ("protocol", "augmented")


# ---------------------------------------------------------------------------------------- ablations


def test_without_transition_later_stages_match_later_spans_of_the_first_stage_s_experts() -> None:
    plan = plan_of(pdd(3, transition=False, set={"distil.settings.max_start_epoch": 4}))
    experts, stages = jobs(plan, ExpertsSpec), jobs(plan, DistilSpec)
    assert {spec.stage for spec in specs(plan, ExpertsSpec)} == {1}
    assert {spec.real.epochs for spec in specs(plan, ExpertsSpec)} == {3 * 4 - 1 + 1}
    assert {job.parents["experts"] for job in stages} == {tuple(job.key for job in experts)}
    spans = [
        (spec.settings.get("min_start_epoch", 0), spec.settings["max_start_epoch"]) for spec in specs(plan, DistilSpec)
    ]
    assert spans == [(0, 4), (4, 8), (8, 12)]
    assert [len(job.parents.get("sets", ())) for job in stages] == [0, 1, 2]
    assert plan.cells[-1].method == "PDD+MTT w/o transition"


def test_experts_that_are_trained_far_enough_anyway_are_shared_with_the_arm_that_has_a_transition() -> None:
    enough = {"experts.real.epochs": 6}
    plan = plan_of(pdd(2, set=enough), pdd(2, transition=False, set=enough))
    assert [spec.stage for spec in specs(plan, ExpertsSpec)] == [1, 1, 2, 2]
    assert len(specs(plan, DistilSpec)) == 3


def test_the_numbers_that_an_ablation_implies_have_a_source() -> None:
    plan = plan_of(pdd(2, transition=False), pdd(2, conditioning=False), pdd(2, earlier_rate=0.25))
    said: dict[str, set[str]] = {}
    for resolved in plan.sources.values():
        for path, source in resolved.sources.items():
            said.setdefault(path, set()).add(source)
    assert any(source.startswith("ours: P * T - 1 + M") for source in said["experts.real.epochs"])
    assert any(source.startswith("ours: stage i starts in") for source in said["distil.settings.min_start_epoch"])
    assert said["distil.conditioning"] == said["transition.on"] == said["distil.earlier_rate"] == {"exam.yaml"}


def test_without_conditioning_neither_matching_nor_links_see_earlier_sets() -> None:
    plan = plan_of(pdd(3, conditioning=False))
    assert [spec.conditioning for spec in specs(plan, DistilSpec)] == [False, False, False]
    links = {spec.transition.on for spec in specs(plan, ExpertsSpec) if spec.transition is not None}
    assert links == {"newest"}


def test_earlier_sets_that_move_leave_the_first_stage_as_it_is() -> None:
    plan = plan_of(pdd(2), pdd(2, earlier_rate=0.1))
    assert [(spec.stage, spec.earlier_rate) for spec in specs(plan, DistilSpec)] == [(1, 0.0), (2, 0.0), (2, 0.1)]


def test_a_partition_is_what_experts_and_distillation_of_a_stage_see() -> None:
    plan = plan_of(pdd(3, partition={"increment": 4, "never_learned": "epochs"}))
    (scores,) = jobs(plan, ForgettingSpec)
    assert isinstance(scores.spec, ForgettingSpec) and scores.spec.never_learned == "epochs"
    for kind in (ExpertsSpec, DistilSpec):
        assert {(spec.stage, spec.partition) for spec in specs(plan, kind)} == {(1, (0, 4)), (2, (4, 8)), (3, (8, 12))}
        assert {job.parents["forgetting"] for job in jobs(plan, kind)} == {(scores.key,)}
    assert plan.cells[-1].method == "PDD+MTT by forgetting score"


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ({"method": "random", "ipc_per_stage": 1, "transition": False}, "leave transition out; nothing is distilled"),
        ({"method": "full", "earlier_rate": 0.1}, "leave earlier_rate out"),
        (pdd(2, conditioning=False, earlier_rate=0.1), "without conditioning earlier sets have no gradient"),
        (pdd(2, transition=False, partition={}), "a partition's experts come from the transition"),
        (pdd(2, partition={}, class_incremental={}), "not for full data, nor with a partition"),
        ({"method": "full", "class_incremental": {}}, "not for full data"),
        ({"method": "herding", "ipc_per_stage": 1, "set": {"network.norm": "batch"}}, "use instance"),
        ({"method": "random", "ipc_per_stage": 1, "set": {"evaluate.start": "expert"}}, "this method has no experts"),
    ],
)
def test_what_does_not_go_together_is_refused(arm: dict[str, Any], words: str) -> None:
    assert words in str(refusal(arm))


# --------------------------------------------------------------------------------------- evaluation


def test_stored_weights_are_the_first_expert_s_and_only_for_the_network_that_was_distilled_with() -> None:
    plan = plan_of(pdd(2, set={"evaluate.start": "expert"}), architectures=["convnet", "resnet10"])
    first = jobs(plan, ExpertsSpec)[0]
    told = [
        (job.spec.network.architecture, job.spec.start, job.parents.get("experts"))
        for job in jobs(plan, EvaluateSpec)
        if isinstance(job.spec, EvaluateSpec)
    ]
    assert told == 2 * [("convnet", "expert", (first.key,)), ("resnet10", "random", None)]


def test_what_the_published_code_does_is_reached_by_name() -> None:
    """The settings of docs/methods.md arrive in the jobs that they are about, and nowhere by default."""
    published = {
        "evaluate.momentum_at_drop": "reset",
        "evaluate.best_of": 4,
        "transition.momentum_at_drop": "reset",
        "experts.real.momentum_at_drop": "reset",
        "distil.choice.training.momentum_at_drop": "reset",
        "distil.choice.initial_not_final": True,
        "distil.settings.candidates_start": "random",
        "distil.settings.image_order": "anew",
    }
    plans = [plan_of(pdd(2, set=numbers)) for numbers in (published, {})]
    for plan, momentum, best_of in zip(plans, ("reset", "kept"), (4, 1), strict=True):
        evaluation, stage, expert = (specs(plan, kind)[-1] for kind in (EvaluateSpec, DistilSpec, ExpertsSpec))
        trainings = [evaluation.training, stage.choice.training, expert.real, expert.transition]
        assert {training.momentum_at_drop for training in trainings} == {momentum}
        assert evaluation.best_of == best_of
        assert stage.choice.initial_not_final is (best_of == 4)
        assert [name in stage.settings for name in ("candidates_start", "image_order")] == [best_of == 4] * 2


def test_the_resnets_of_idc_are_its_own_with_batch_norm_and_the_cell_says_so() -> None:
    plan = plan_of({"method": "idc", "ipc_per_stage": 1}, pdd(1), architectures=["convnet", "resnet10", "resnet18"])
    networks = [spec.network for spec in specs(plan, EvaluateSpec)]
    assert [(one.architecture, one.norm) for one in networks] == [
        ("convnet", "instance"),
        ("idc_resnet10", "batch"),
        ("idc_resnet18", "batch"),
        ("convnet", "instance"),
        ("resnet10", "instance"),
        ("resnet18", "instance"),
    ]
    assert [cell.architecture for cell in plan.cells] == [one.architecture for one in networks]


@pytest.mark.parametrize(("stages", "each"), [(1, 7), (2, 3), (8, 1)])
def test_a_total_of_iterations_is_divided_among_the_stages(stages: int, each: int) -> None:
    arm = pdd(stages, set={"distil.iterations_total": 7, "distil.choice.every": 1})
    iterations = [spec.iterations for spec in specs(plan_of(arm), DistilSpec) if isinstance(spec, DistilSpec)]
    assert iterations == [each] * stages

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.experiment import Arm, Plan
from orchestrator.results.verdict import NO_VERDICT, Verdict, headlines, limits, lines_of, signed, verdicts
from tests.orchestrator.results.test_cells import cell_of, demo_plan, measure
from workers.store.store import Store

ARMS = (Arm(method="mtt", ipc_per_stage=2), Arm(method="mtt", stages=2, ipc_per_stage=1))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def plan_of(networks: int = 3, seeds: tuple[int, ...] = (0,)) -> Plan:
    """MTT, and PDD+MTT in two stages at the same images per class, on one architecture."""
    return demo_plan(arms=ARMS, architectures=("convnet",), networks=networks, seeds=seeds)


def put(store: Store, plan: Plan, pdd: Sequence[float], base: Sequence[float]) -> None:
    """Accuracies of the networks of PDD's last stage and of its base method, by seed and then network."""
    measure(store, plan, cell_of(plan, "PDD+MTT", "convnet", 2), pdd)
    measure(store, plan, cell_of(plan, "MTT", "convnet", 1), base)


def only(plan: Plan, store: Store) -> Verdict:
    (verdict,) = verdicts(plan, store)
    return verdict


def test_without_seeds_in_common_the_networks_are_compared_by_welchs_test(store: Store) -> None:
    """82, 84, 86 against 80, 80, 80.3: means 84 and 80.1, variances 4 and 0.03.

    Squared errors 4/3 and 0.01, together 1.343333, root 1.159023. Degrees of freedom
    1.343333^2 / (1.777778 / 2 + 0.0001 / 2) = 2.0300; t(0.975) = 4.2423; half width 4.9169.
    """
    plan = plan_of()
    put(store, plan, (82.0, 84.0, 86.0), (80.0, 80.0, 80.3))
    verdict = only(plan, store)
    assert (verdict.test, verdict.n, verdict.n_base, verdict.significant) == ("welch", 3, 3, False)
    assert verdict.difference.mean == pytest.approx(3.9)
    assert verdict.difference.high - 3.9 == pytest.approx(4.9169, abs=1e-3)
    assert verdict.sentence == (
        "PDD+MTT (2 x 1) does not differ significantly from MTT (1 x 2) on convnet, 2 images per class: +3.9 points "
        "(95 % interval −1.0 to +8.8; Welch's test, 3 against 3 networks)."
    )


def test_three_seeds_in_common_are_paired_and_networks_of_a_seed_are_one_value(store: Store) -> None:
    """Means of two networks by seed: 72, 73, 75 and 70, 70, 71. Differences 2, 3, 4: mean 3, deviation 1.

    t(0.975, 2) = 4.302653; half width 4.302653 / sqrt(3) = 2.484138.
    """
    plan = plan_of(networks=2, seeds=(0, 1, 2))
    put(store, plan, (71, 73, 72, 74, 74, 76), (69, 71, 68, 72, 71, 71))
    verdict = only(plan, store)
    assert (verdict.test, verdict.n, verdict.n_base, verdict.significant) == ("paired", 3, 3, True)
    expected = (3.0, 3 - 2.484138, 3 + 2.484138)
    assert verdict.difference[:3] == pytest.approx(expected, abs=1e-5)
    assert verdict.sentence == (
        "PDD+MTT (2 x 1) is significantly better than MTT (1 x 2) on convnet, 2 images per class: +3.0 points "
        "(95 % interval +0.5 to +5.5; paired over 3 seeds)."
    )


def test_a_base_method_that_wins_is_said_to_win(store: Store) -> None:
    plan = plan_of()
    put(store, plan, (70.0, 70.1, 70.2), (80.0, 80.1, 80.2))
    verdict = only(plan, store)
    assert verdict.words == "significantly worse" and "significantly worse than MTT" in verdict.sentence
    assert verdict.difference.high < 0


def test_two_seeds_are_too_few_to_be_paired(store: Store) -> None:
    plan = plan_of(networks=2, seeds=(0, 1))
    put(store, plan, (71, 73, 72, 74), (69, 71, 68, 72))
    verdict = only(plan, store)
    assert (verdict.test, verdict.n, verdict.n_base) == ("welch", 4, 4)


def test_a_single_network_is_not_tested(store: Store) -> None:
    plan = plan_of(networks=1)
    put(store, plan, (71.0,), (69.5,))
    verdict = only(plan, store)
    assert (verdict.test, verdict.significant, verdict.words) == ("none", None, "better, not tested")
    assert verdict.sentence == (
        "PDD+MTT (2 x 1) minus MTT (1 x 2) is +1.5 points on convnet, 2 images per class: not tested, "
        "one network alone has no spread."
    )
    assert json.loads(json.dumps(verdict.to_json(), allow_nan=False))["interval"] is None


def test_nothing_is_said_while_one_side_is_not_measured(store: Store) -> None:
    plan = plan_of()
    measure(store, plan, cell_of(plan, "MTT", "convnet", 1), (80.0, 80.0, 80.3))
    assert verdicts(plan, store) == []


def test_other_images_per_class_other_methods_and_real_images_are_no_base(store: Store) -> None:
    """Stage 1 of PDD has half the images, DM is another method, Random distils nothing."""
    arms = (
        Arm(method="random", ipc_per_stage=2),
        Arm(method="mtt", ipc_per_stage=1),
        Arm(method="dm", ipc_per_stage=2),
        Arm(method="mtt", stages=2, ipc_per_stage=1),
        Arm(method="full"),
    )
    plan = demo_plan(arms=arms)
    for cell in plan.cells:
        measure(store, plan, cell, (70.0, 71.0))
    assert verdicts(plan, store) == []


def test_every_architecture_has_a_verdict_of_its_own(store: Store) -> None:
    plan = demo_plan(arms=ARMS)
    for cell in plan.cells:
        measure(store, plan, cell, (70.0, 71.0) if cell.stages == 1 else (75.0, 76.0))
    assert [(verdict.architecture, verdict.base_method) for verdict in verdicts(plan, store)] == [
        ("convnet", "mtt"),
        ("resnet10", "mtt"),
    ]


def test_json_has_the_fields_of_the_interface(store: Store) -> None:
    plan = plan_of()
    put(store, plan, (70.0, 70.1, 70.2), (80.0, 80.1, 80.2))
    document = only(plan, store).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert (
        list(document)
        == (
            "experiment dataset scale architecture base_method pdd base ipc_total "
            "difference interval test n n_base significant sentence"
        ).split()
    )
    assert document["difference"] == pytest.approx(-10.0)
    assert document["interval"][0] < document["difference"] < document["interval"][1]


def test_a_few_verdicts_are_told_one_by_one_and_more_are_counted(store: Store) -> None:
    plan = plan_of()
    put(store, plan, (82.0, 84.0, 86.0), (80.0, 80.0, 80.3))
    verdict = only(plan, store)
    assert headlines([verdict]) == [verdict.sentence]
    assert lines_of([verdict] * 4, {"demo": "Table 1"}) == [
        "Table 1: PDD is significantly better than its base method in 0 of 4 comparisons, without a significant "
        "difference in 4 (+3.9 to +3.9 points)."
    ]


def test_a_sign_is_always_there() -> None:
    assert (signed(1.23), signed(-1.25), signed(0.0)) == ("+1.2", "−1.2", "+0.0")


def test_many_tables_are_summed_up_each_comparison_once(store: Store) -> None:
    plan = plan_of()
    put(store, plan, (82.0, 84.0, 86.0), (80.0, 80.0, 80.3))
    verdict = only(plan, store)
    several = [replace(verdict, experiment=f"table{number}") for number in range(4)]
    assert lines_of(several)[0] == f"table0: {verdict.sentence}", "a table of one comparison says it itself"
    assert len(lines_of(several)) == 4
    assert headlines(several) == [
        "In all: PDD is significantly better than its base method in 0 of 1 comparisons, without a significant "
        "difference in 1 (+3.9 to +3.9 points)."
    ]
    assert headlines([]) == [NO_VERDICT]


def test_the_limits_name_what_the_comparison_leaves_open(store: Store) -> None:
    plan = plan_of()
    put(store, plan, (82.0, 84.0, 86.0), (80.0, 80.0, 80.3))
    verdict = only(plan, store)
    text = " ".join(limits([verdict]))
    for words in ("distilling again", "the scale is tiny", "equal compute", "digits and convnet"):
        assert words in text
    assert "each interval stands for itself" not in text and "each interval stands for itself" in " ".join(
        limits([verdict, verdict])
    )
    sure = replace(verdict, test="paired", scale="paper")
    assert not any(word in " ".join(limits([sure])) for word in ("distilling again", "the scale is"))

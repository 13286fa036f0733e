"""The loops against plain code of the same mathematics, and against the core's limit: the same numbers, no slower."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import loops
from tests.benchmarks.cases import classwise, files, matching, training
from tests.benchmarks.cases.case import EXACT, PLAIN, Case, Sides, distance
from tests.benchmarks.limits import operations
from workers.training.trainer import Trainer

ALLOWED = 1.25
SHARES = {
    "MTT": (0.13, 0.13),
    "experts": (0.18, 0.18),
    "evaluation": (0.18, 0.18),
    "test": (0.17, 0.17),
    "DSA": (0.13, 0.13),
    "DM": (0.11, 0.11),
    "IDC": (0.13, 0.13),
}
"""Shares of the convolution limit at width 32 on a core with AVX-512: of the default engine, and of plain code."""
GUARDED = [
    matching.case(width=32, batch=20, steps=3),
    training.experts(width=32, count=512),
    training.evaluation(ipc=10, epochs=4),
    training.test_pass(width=32, count=1024),
    classwise.case("dsa", real=200, ipc=5),
    classwise.case("dm", real=200, ipc=5),
    classwise.case("idc", real=200, ipc=5),
]


def results(sides: Sides) -> dict[str, torch.Tensor]:
    return {name: work() for name, work in sides.items()}


def test_matching_gives_the_numbers_of_plain_code_in_every_engine() -> None:
    found = results(matching.sides(width=8, batch=10, steps=3, size=8))
    assert set(found) == {PLAIN, EXACT, *matching.EAGER}
    assert all(distance(result, found[EXACT]) < 1e-4 for result in found.values())
    assert torch.equal(found["unrolled"], found[PLAIN])


@pytest.mark.parametrize(
    "case",
    [
        {"spec": training.EXPERT, "width": 8, "count": 300},
        {"spec": training.EVALUATION.model_copy(update={"epochs": 3}), "width": 8, "count": 20},
        {"spec": training.RESNET, "width": 4, "count": 40, "architecture": "resnet18"},
    ],
    ids=["experts", "evaluation", "resnet18"],
)
def test_training_gives_the_numbers_of_plain_code(case: dict[str, Any]) -> None:
    found = results(training.sides(**case, size=8))
    assert distance(found["eager"], found[PLAIN]) < 1e-6
    assert distance(found[PLAIN], found[EXACT]) < 1e-2


def test_a_test_pass_gives_the_number_of_plain_code() -> None:
    found = results(training.test_sides(width=8, count=600, size=8))
    assert float(found["eager"]) == pytest.approx(float(found[PLAIN]))


@pytest.mark.parametrize("method", classwise.METHODS)
def test_a_method_moves_the_images_as_plain_code_does(method: str) -> None:
    sides = classwise.sides(method, real=320, ipc=2, width=8, size=8)
    plain, ours = sides[PLAIN](), sides["by class"]()
    assert float(plain.norm()) > 0
    assert distance(ours, plain) < 1e-4


def test_both_files_of_trajectories_hold_the_same_snapshots(tmp_path: Path) -> None:
    files.write(tmp_path, experts=3, epochs=6)
    (_, plain), (_, ours) = files.read_plain(str(tmp_path)), files.read_ours(str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))


def test_a_default_with_other_numbers_is_refused() -> None:
    case = matching.case(width=8, batch=4, steps=1, side=8)
    found = results(case.sides())
    exact = found.pop(EXACT)
    loops.require_same(case, found, exact)
    with pytest.raises(AssertionError, match=r"unrolled is .* from plain code"):
        loops.require_same(case, {**found, "unrolled": 1.01 * found["unrolled"]}, exact)


def test_operations_of_a_convolution_are_counted_as_the_limits_count_them() -> None:
    x, weight = torch.zeros(100, 32, 16, 16), torch.zeros(32, 32, 3, 3)
    counted = loops.operations(lambda: torch.conv2d(x, weight, padding=1))
    assert counted == operations("second layer, width 32")


@pytest.mark.slow
def test_a_loop_has_a_row_for_every_engine_with_all_its_figures() -> None:
    rows = loops.measured(matching.case(width=8, batch=20, steps=2, side=8), limit=100.0, repeats=1)
    assert [row.name.split(": ")[1] for row in rows] == [PLAIN, "unrolled (default)", "adjoint"]
    for row in rows:
        assert row.cpu_seconds and row.share and row.peak_mib is not None and row.error
    assert rows[1].goal == loops.SLOWER and rows[1].ratio is not None


@pytest.mark.slow
@pytest.mark.parametrize("case", GUARDED, ids=[case.name for case in GUARDED])
def test_no_default_is_a_quarter_slower_than_plain_code(case: Case) -> None:
    assert slowdown(case) <= ALLOWED


@pytest.mark.slow
@pytest.mark.parametrize("case", GUARDED, ids=[case.name for case in GUARDED])
def test_no_default_loses_a_quarter_of_its_share_of_the_limit(case: Case) -> None:
    assert kept(case) >= 1 / ALLOWED


@pytest.mark.slow
@pytest.mark.long
def test_a_loop_that_is_slowed_by_hand_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = kept(training.experts(width=32, count=512))
    whole_pass = Trainer._epoch

    def slowed(self: Trainer, *arguments: Any) -> Any:
        began = time.process_time()
        seen = whole_pass(self, *arguments)
        until = time.process_time() + 0.6 * (time.process_time() - began)
        while time.process_time() < until:
            pass
        return seen

    monkeypatch.setattr(Trainer, "_epoch", slowed)
    assert slowdown(training.experts(width=32, count=512)) > ALLOWED
    assert kept(training.experts(width=32, count=512)) < usual / ALLOWED


def slowdown(case: Case) -> float:
    """The least of up to three measurements: neighbours make a loop slower and never faster."""
    least = loops.slowdown(case)
    for _ in range(2):
        if least > ALLOWED:
            least = min(least, loops.slowdown(case))
    return least


def kept(case: Case) -> float:
    """The share of the limit that is left of the recorded one, the most of up to three measurements.

    A host whose memory is slower beside its arithmetic, or shared with neighbours, gives plain code less than its
    recorded share too: as much less is then expected of the default engine.
    """
    ours, plain = SHARES[case.name.split(",")[0]]
    most = 0.0
    for _ in range(3):
        if most < 1 / ALLOWED:
            found, beside = loops.shares(case)
            most = max(most, found / (ours * min(1.0, beside / plain)))
    return most

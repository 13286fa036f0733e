from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.reports.experiment_report import write
from orchestrator.reports.sections import RunFacts
from orchestrator.results.comparisons import comparisons
from tests.orchestrator.results.test_cells import demo_plan, put
from workers.store.store import Store


def measured(store: Store, advantage: float) -> None:
    """Random at 60 + seed, the last stage of PDD `advantage` above it, one network astray in each seed by +-1."""
    plan = demo_plan(seeds=(0, 1, 2, 3))
    for cell in plan.cells:
        for number, key in enumerate(cell.jobs):
            seed = plan.graph[key].spec.seed  # type: ignore[attr-defined]
            above = advantage + 0.1 * seed if cell.base_method == "mtt" else 0.0
            put(store, plan, key, {"accuracy": 60.0 + seed + above + (1 if number % 2 else -1)})


@pytest.mark.parametrize("advantage", [5.0, -5.0])
def test_arms_with_the_same_images_are_compared_seed_by_seed(tmp_path: Path, advantage: float) -> None:
    store = Store.open(tmp_path / "store")
    measured(store, advantage)
    found = comparisons(demo_plan(seeds=(0, 1, 2, 3)), store)
    assert [one.architecture for one in found] == ["convnet", "resnet10"]
    first = found[0]
    names = ("PDD+MTT (2 x 1)", "Random (1 x 2)")
    assert (first.better, first.worse) == (names if advantage > 0 else names[::-1])
    # Differences over seeds: advantage + 0, 0.1, 0.2, 0.3; sample deviation 0.129099, t(0.975, 3) = 3.182446.
    assert first.difference.n == 4 and first.difference.mean == pytest.approx(abs(advantage + 0.15))
    half = 3.182446 * 0.129099 / 2
    assert first.difference.high - first.difference.low == pytest.approx(2 * half, abs=1e-4)


def test_fewer_than_three_seeds_are_not_compared(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    measured(store, 5.0)
    assert comparisons(demo_plan(seeds=(0, 1)), store) == []


def test_a_seed_with_a_missing_network_is_left_out(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    measured(store, 5.0)
    plan = demo_plan(seeds=(0, 1, 2, 3))
    lost = next(cell for cell in plan.cells if cell.base_method == "random").jobs[0]
    store.quarantine(lost, "for the test")
    assert [one.difference.n for one in comparisons(plan, store)] == [3, 4]


def test_the_report_prints_the_differences(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    measured(store, 5.0)
    page = write(tmp_path / "report", demo_plan(seeds=(0, 1, 2, 3)), store, RunFacts(command="command"))[0].read_text()
    assert "| demo | convnet | 2 | PDD+MTT (2 x 1) − Random (1 x 2) | +5.15 | \\[+4.94, +5.36\\] | 4 |" in page

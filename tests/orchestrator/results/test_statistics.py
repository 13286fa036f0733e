from __future__ import annotations

import math

import pytest

from orchestrator.results.statistics import (
    Difference,
    Sample,
    interval,
    mean,
    paired_difference,
    population_std,
    welch_difference,
)


def test_mean_and_spread_of_nothing_are_nothing() -> None:
    assert mean([]) is None and population_std([]) is None and interval([]) is None


def test_the_spread_has_ddof_0_and_is_0_for_one_value() -> None:
    assert population_std([80.0, 90.0]) == 5.0
    assert population_std([80.0]) == 0.0


def test_the_interval_of_a_mean_is_students() -> None:
    """66, 67, 68, 69, 70: mean 68, sample variance 2.5; t(0.975, 4) = 2.776445."""
    half = 2.776445 * (2.5 / 5) ** 0.5
    assert interval([66, 67, 68, 69, 70]) == pytest.approx((68 - half, 68 + half), abs=1e-5)
    assert interval([66]) is None


def test_a_paired_difference_is_students_t_on_the_differences() -> None:
    """Differences 1, 2, 3: mean 2, sample deviation 1, t(0.975, 2) = 4.302653, half width 4.302653 / sqrt(3)."""
    difference = paired_difference([11.0, 12.0, 13.0], [10.0, 10.0, 10.0])
    assert (difference.mean, difference.n, difference.significant) == (2.0, 3, False)
    assert (difference.low, difference.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)


def test_a_single_pair_says_nothing_about_the_spread() -> None:
    difference = paired_difference([3.0], [1.0])
    assert difference.mean == 2.0 and math.isnan(difference.low) and math.isnan(difference.high)
    assert difference.significant is None


@pytest.mark.parametrize(("values", "others"), [([], []), ([1.0], [1.0, 2.0])])
def test_what_does_not_pair_up_is_refused(values: list[float], others: list[float]) -> None:
    with pytest.raises(ValueError):
        paired_difference(values, others)


def test_a_difference_turned_round_swaps_its_bounds() -> None:
    assert -Difference(1.0, -0.5, 2.5, 3) == Difference(-1.0, -2.5, 0.5, 3)


def test_welchs_interval_agrees_with_a_hand_computation() -> None:
    """Means 62 and 60, variances 2.5 (n 5) and 1 (n 3).

    Squared errors 0.5 and 1/3, together 0.833333; degrees of freedom 0.694444 / (0.0625 + 0.055556) = 5.882353;
    t(0.975, 5.882353) = 2.4588, between 2.4469 at 6 and 2.5706 at 5.
    """
    difference = welch_difference(Sample.of([60, 61, 62, 63, 64]), Sample.of([59, 60, 61]))
    assert (difference.mean, difference.n) == (2.0, 3)
    assert difference.high - 2.0 == pytest.approx(2.459 * 0.833333**0.5, abs=2e-3)
    assert difference.significant is False


@pytest.mark.parametrize("shift", [0.0, 1.5, 3.0, 6.0])
def test_welchs_test_is_scipys(shift: float) -> None:
    from scipy import stats  # type: ignore[import-untyped]

    values, others = [60.0, 61.0, 62.0, 63.0, 64.5], [59.0 - shift, 60.0 - shift, 60.2 - shift]
    expected = stats.ttest_ind(values, others, equal_var=False)
    difference = welch_difference(Sample.of(values), Sample.of(others))
    assert difference.significant == (expected.pvalue < 0.05)
    bounds = expected.confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((bounds.low, bounds.high))


def test_samples_without_any_spread_differ_if_their_means_do() -> None:
    assert welch_difference(Sample.of([60, 60]), Sample.of([60, 60])).significant is False
    assert welch_difference(Sample.of([60, 60]), Sample.of([61, 61])).significant is True


def test_a_printed_spread_is_that_of_the_population() -> None:
    """61, 62, 63: population variance 2/3, unbiased variance 1."""
    assert Sample.printed(62.0, (2 / 3) ** 0.5, 3).variance == pytest.approx(1.0)
    assert Sample.of([61, 62, 63]).variance == pytest.approx(1.0)

"""The statistics of accuracies: means, spreads, Student's interval, paired differences and Welch's test.

Pure functions of plain numbers; whatever the unit of the values is (percent here), results have the same. Intervals
hold 95 %, and a difference is significant if its interval leaves 0 out, which is the two-sided test at `LEVEL`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev, stdev, variance
from typing import NamedTuple

LEVEL = 0.05
"""The chance of calling a difference significant that is none."""


@dataclass(frozen=True)
class Sample:
    """What Welch's test knows of `n` independent values: their mean and their unbiased variance."""

    mean: float
    variance: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Sample:
        """The sample of two values or more."""
        return cls(fmean(values), variance(values), len(values))

    @classmethod
    def printed(cls, mean: float, std: float, n: int) -> Sample:
        """The sample behind a printed mean and population standard deviation of `n` values, two or more."""
        return cls(mean, std**2 * n / (n - 1), n)


class Difference(NamedTuple):
    """A difference of means and its 95 % interval, whose bounds are NaN where they cannot be told."""

    mean: float
    low: float
    high: float
    n: int
    """Pairs, or values in the smaller sample."""

    @classmethod
    def untested(cls, mean: float) -> Difference:
        """A difference of which no interval is known, since a sample has but one value."""
        return cls(mean, math.nan, math.nan, 1)

    @property
    def significant(self) -> bool | None:
        """Whether the interval leaves 0 out; None without an interval."""
        return None if math.isnan(self.low) else not self.low <= 0 <= self.high

    def __neg__(self) -> Difference:
        """The difference the other way round."""
        return Difference(-self.mean, -self.high, -self.low, self.n)


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean; None of no values."""
    return fmean(values) if values else None


def population_std(values: Sequence[float]) -> float | None:
    """The standard deviation with ddof 0, as the codes of this field print it; None of no values."""
    return pstdev(values) if values else None


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    centre, half = fmean(values), _half_width(values)
    return centre - half, centre + half


def paired_difference(values: Sequence[float], others: Sequence[float]) -> Difference:
    """The mean of `values` minus `others` pair by pair, with Student's interval (n - 1 degrees of freedom).

    For arms that share seeds, so that what a pair has in common cancels out.

    Raises:
        ValueError: the two do not pair up, or there is no pair.
    """
    differences = [value - other for value, other in zip(values, others, strict=True)]
    if not differences:
        raise ValueError("paired_difference: there is no pair of values")
    centre = fmean(differences)
    if len(differences) == 1:
        return Difference.untested(centre)
    half = _half_width(differences)
    return Difference(centre, centre - half, centre + half, len(differences))


def welch_difference(sample: Sample, other: Sample) -> Difference:
    """The mean of `sample` minus that of `other`, with the interval of Welch's test: variances may differ."""
    error, other_error = sample.variance / sample.n, other.variance / other.n
    difference, half = sample.mean - other.mean, 0.0
    if squared := error + other_error:
        freedom = squared**2 / (error**2 / (sample.n - 1) + other_error**2 / (other.n - 1))
        half = _quantile(freedom) * math.sqrt(squared)
    return Difference(difference, difference - half, difference + half, min(sample.n, other.n))


def _half_width(values: Sequence[float]) -> float:
    return _quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def _quantile(freedom: float) -> float:
    """The two-sided quantile of Student's distribution at `LEVEL`."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # only reports need it; scipy.stats takes longer

    return float(stdtrit(freedom, 1 - LEVEL / 2))

"""The statistics of this book: 95% intervals of means and ratios; do samples follow a distribution?

Interval: mean +- t(0.975, n - 1) s / sqrt(n), with s the standard deviation of the n values. They are
bounded and independent (the block efficiency of each prompt, say), so from some twenty values on
their mean is close to normal. Unlike a bootstrap, the interval needs no seed.

Test: Pearson's chi-square on all cells, those too small for its approximation pooled into one.
The test is explained in chapter 7, the intervals in chapter 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean and its two-sided 95% confidence interval, from n independent values."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n})"


def mean_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Mean of independent `values` (n,) with Student's 95% interval; infinitely wide for n = 1.

    Raises ValueError when `values` is empty, not a vector, or not finite.

        >>> print(mean_interval([1.0, 2.0, 3.0]))
        2.000 [-0.484, 4.484] (n=3)
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(
            f"values must be a non-empty vector of finite numbers, got shape {values.shape}; "
            f"drop missing runs before averaging"
        )
    mean = float(values.mean())
    if values.size == 1:
        return Interval(mean, -np.inf, np.inf, 1)
    half = float(stats.t.ppf(0.975, values.size - 1) * stats.sem(values))
    return Interval(mean, mean - half, mean + half, values.size)


def ratio_interval(
    numerators: Sequence[float] | np.ndarray, denominators: Sequence[float] | np.ndarray
) -> tuple[Interval, np.ndarray]:
    """sum a_i / sum b_i over n independent units, with its 95% interval, and each unit's influence.

    By the delta method r = sum a / sum b varies like the mean of the influences
    r + (a_i - r b_i) / mean(b), an array (n,). Two ratios over the same units differ by the mean of
    the differences of their influences: `mean_interval` of those is the interval of the difference.
    Raises ValueError when the shapes differ or a denominator is not positive.

        >>> interval, influence = ratio_interval([1, 2, 3], [2, 4, 6])
        >>> print(interval)
        0.500 [0.500, 0.500] (n=3)
    """
    above, below = (np.asarray(part, np.float64) for part in (numerators, denominators))
    if above.shape != below.shape or below.size == 0 or not (below > 0).all():
        raise ValueError(
            f"denominators: give one positive number per numerator; got shapes {above.shape} and "
            f"{below.shape}, smallest denominator {below.min() if below.size else None}"
        )
    ratio = above.sum() / below.sum()
    influence = ratio + (above - ratio * below) / below.mean()
    return mean_interval(influence), influence


@dataclass(frozen=True)
class ChiSquare:
    """Pearson's test that n counts follow a distribution: a small `p_value` speaks against it."""

    statistic: float
    degrees: int
    p_value: float
    n: int


def chi_square(
    counts: Sequence[int] | np.ndarray,
    probabilities: Sequence[float] | np.ndarray,
    min_expected: float = 10.0,
) -> ChiSquare:
    """Test that `counts` (any shape) are n independent draws from `probabilities` (same shape).

    X2 = sum (count - n p)^2 / (n p) ~ chi-square(cells - 1). The cells of smallest expectation are
    pooled into one that expects `min_expected` counts. A count in a cell of probability 0 makes the
    p-value 0. Raises ValueError when the shapes differ, when `probabilities` is no distribution, and
    when fewer than two cells expect enough counts.

        >>> found = chi_square([48, 52, 100], [0.25, 0.25, 0.5])
        >>> round(found.statistic, 2), found.degrees, round(found.p_value, 3)
        (0.16, 2, 0.923)
    """
    observed = np.asarray(counts, np.float64).ravel()
    probs = np.asarray(probabilities, np.float64).ravel()
    if observed.shape != probs.shape:
        raise ValueError(
            f"counts and probabilities must have the same shape, got {np.shape(counts)} and "
            f"{np.shape(probabilities)}"
        )
    if (probs < 0).any() or not np.isclose(probs.sum(), 1, atol=1e-4):
        raise ValueError(
            f"probabilities must be non-negative and sum to 1, got sum {probs.sum():.6g}"
        )
    n = int(observed.sum())
    if observed[probs == 0].any():
        return ChiSquare(np.inf, 0, 0.0, n)
    order = np.argsort(probs)
    expected, observed = n * probs[order] / probs.sum(), observed[order]
    small = int(np.searchsorted(expected, min_expected))
    if 0 < small < expected.size and expected[:small].sum() < min_expected:
        small += 1
    pooled = slice(small, None)
    if small:
        expected = np.append(expected[pooled], expected[:small].sum())
        observed = np.append(observed[pooled], observed[:small].sum())
    if expected.size < 2 or expected.min() < min_expected / 2:
        raise ValueError(
            f"counts hold {n} draws, too few for a test: after pooling {expected.size} cell(s) are "
            f"left; draw more, or merge cells first"
        )
    statistic = float(((observed - expected) ** 2 / expected).sum())
    degrees = expected.size - 1
    return ChiSquare(statistic, degrees, float(stats.chi2.sf(statistic, degrees)), n)

"""The statistics of this book: 95% intervals of means and ratios; do samples follow a distribution?

Interval: mean +- t(0.975, n - 1) s / sqrt(n). What is averaged here, such as the block efficiency
of a prompt, is bounded and independent from prompt to prompt: from some twenty values on the mean
is close to normal. Unlike a bootstrap it needs no seed: mean, s and n are all it takes to redo it.

Test: Pearson's chi-square on all cells, those too small for its approximation pooled into one.
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
    """Mean of independent `values` (n,) with Student's 95% interval; infinitely wide for n = 1."""
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


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray) -> tuple[Interval, np.ndarray]:
    """sum a_i / sum b_i over n independent units, with its 95% interval, and each unit's influence.

    Delta method: r = sum a / sum b varies like the mean of r + (a_i - r b_i) / mean(b), (n,), which is
    the second answer: the interval of a difference of two ratios over the same units is that of the
    mean of the difference of their influences.
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
    """Pearson's test of counts against a distribution: a `p_value` below the false-alarm rate
    rejects it.
    """

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
    pooled into one until it holds `min_expected`. A count where the distribution says zero: p_value 0.
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

"""The statistics of this book: 95% intervals of means and ratios; do samples follow a distribution?

Interval: mean +- t(0.975, n - 1) s / sqrt(n), with s the standard deviation of the n values. They are
bounded and independent (the block efficiency of each prompt, say), so from some twenty values on
their mean is close to normal. Unlike a bootstrap, the interval needs no seed.

Test: Pearson's chi-square on all cells, those too small for its approximation pooled into one. Its
p-value is approximate: far out in the tail (1e-6) it can be twenty times too small. Where a false
alarm is promised, the tests are exact instead: binomial tails, Dirichlet's Bayes factor, and bets,
each with P(p-value <= x) <= x for any number of samples.
Chi-square is explained in chapter 7, the intervals in chapter 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

TINY = 1e-300  # SciPy's binomials overflow below


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


def binomial_p_values(counts: np.ndarray, n: int, probs: np.ndarray) -> np.ndarray:
    """Twice the smaller exact tail of each count, which is Binomial(n, p): at most 1, same shape.

    >>> binomial_p_values(np.array([0, 5]), 10, np.array([0.5, 0.5])).round(6).tolist()
    [0.001953, 1.0]
    """
    above, below = stats.binom.sf(counts - 1, n, probs), stats.binom.cdf(counts, n, probs)
    return np.minimum(1, 2 * np.minimum(above, below))


def mean_deviation(n: int, probs: np.ndarray) -> np.ndarray:
    """E |X - n p| of X ~ Binomial(n, p): 2 m (1 - p) P(X = m), m = floor(n p) + 1 (de Moivre).

    >>> round(float(mean_deviation(2, np.array(0.5))), 6)  # |X - 1| is 1, 0 or 1
    0.5
    """
    probs = probs.clip(TINY, 1)
    m = np.floor(n * probs) + 1
    return 2 * m * (1 - probs) * stats.binom.pmf(m, n, probs)


def spread_p_value(counts: np.ndarray, probs: np.ndarray) -> float:
    """Against an error spread over many cells: 1 / (Bayes factor), at most 1; both arrays (rows, V).

    Each row of counts is multinomial. The alternative draws the probabilities from Dirichlet(c p); the
    factor is averaged over c = n/16, n/4, n, 4 n, 16 n. Its mean under `probs` is 1, so by Markov's
    inequality it exceeds 1/x with probability at most x. Source: Good (J. R. Stat. Soc. B 29, 1967).
    """
    seen = counts > 0
    if (probs[seen] == 0).any():
        return 0.0
    number = counts.sum(-1)
    row, found, mass = np.nonzero(seen)[0], counts[seen], probs[seen]
    logs = []
    for c in (number[:, None] * np.array([1 / 16, 1 / 4, 1, 4, 16])).T:
        cells = special.gammaln(c[row] * mass + found) - special.gammaln(c[row] * mass)
        whole = special.gammaln(c) - special.gammaln(c + number)
        logs.append(whole.sum() + (cells - found * np.log(mass)).sum())
    return _p_value(np.array(logs))


def betting_p_value(values: np.ndarray, means: np.ndarray, tolerance: float = 0.0) -> float:
    """Against E[values] = means, for independent rows of values in [0, 1], (n, sets); at most 1.

    A gambler stakes the share c of the capital on `values` being above their means, or below:
        capital = prod_i (1 + c (value_i - mean_i) / max mean),  or (mean_i - value_i) / (1 - min mean)
    A right mean makes its expectation at most 1, whatever the distribution of the values, so the mean
    over sets, sides and shares exceeds 1/x with probability at most x. Means may be wrong by
    `tolerance`. Source: Waudby-Smith and Ramdas (J. R. Stat. Soc. B 86, 2024).
    """
    values, high, low = values.clip(0, 1), means + tolerance, means - tolerance
    above = (values - high) / np.maximum(high.max(0), np.finfo(float).tiny)
    below = (low - values) / np.maximum((1 - low).max(0), np.finfo(float).tiny)
    shares = 0.9 * 0.6 ** np.arange(10)
    return _p_value(
        np.stack([np.log1p(c * gain).sum(0) for c in shares for gain in (above, below)])
    )


def _p_value(log_factors: np.ndarray) -> float:
    """1 / (the mean of the factors), at most 1."""
    return float(np.exp(min(0.0, np.log(log_factors.size) - special.logsumexp(log_factors))))


def unseen_error(n: int, probs: np.ndarray, level: float, power: float) -> float:
    """The largest error of any of `probs` that n samples can miss with probability 1 - power or more.

    Each is tested by `binomial_p_values` at `level`. Larger errors, of any sign, are missed less often.
    """

    def missed(p: np.ndarray) -> np.ndarray:
        p = p.clip(TINY, 1)
        count = stats.binom.isf(level / 2, n, p) + 1  # the fewest that are too many
        with np.errstate(invalid="ignore"):
            needed = np.where(count > n, 1.0, stats.beta.ppf(power, count, n - count + 1))
        return np.minimum(needed, 1.0) - p

    return float(max(missed(probs).max(), missed(1 - probs).max(), 0.0)) if probs.size else 0.0

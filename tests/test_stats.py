from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from spectr_lite.stats import (
    betting_p_value,
    binomial_p_values,
    chi_square,
    mean_deviation,
    mean_interval,
    spread_p_value,
    unseen_error,
)


def test_interval_by_hand():
    interval = mean_interval([1.0, 2.0, 3.0])  # s = 1, t(0.975, 2) = 4.302653
    assert interval.mean == 2
    assert interval.high - 2 == pytest.approx(4.302653 / 3**0.5, abs=1e-6)
    assert interval.low == pytest.approx(4 - interval.high)
    assert str(interval) == "2.000 [-0.484, 4.484] (n=3)"


def test_interval_covers_the_mean_95_times_in_100():
    values = np.random.default_rng(0).integers(1, 10, size=(2000, 25))
    intervals = [mean_interval(row) for row in values]
    covered = sum(interval.low <= 5 <= interval.high for interval in intervals)
    assert abs(covered / 2000 - 0.95) < 5 * (0.95 * 0.05 / 2000) ** 0.5


def test_one_value_says_nothing_about_spread():
    assert mean_interval([2.5]).high == np.inf


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, np.nan]])
def test_values_are_checked(values):
    with pytest.raises(ValueError, match="values must be"):
        mean_interval(values)


def test_chi_square_by_hand():
    result = chi_square([44, 56], [0.5, 0.5])
    assert result.statistic == pytest.approx(1.44)
    assert (result.degrees, result.n) == (1, 100)
    assert result.p_value == pytest.approx(0.2301393, abs=1e-7)


def test_small_cells_are_pooled():
    counts, probs = [960, 20, 10, 6, 4, 0], [0.96, 0.02, 0.01, 0.006, 0.004, 0]
    assert chi_square(counts, probs).degrees == 3  # 960, 20, 10 and the rest together
    assert chi_square(counts, probs).statistic == pytest.approx(0, abs=1e-20)
    assert chi_square([980, 16, 4], [0.98, 0.017, 0.003]).degrees == 1  # 3 + 17: one more joins


def test_p_values_are_uniform_under_the_distribution():
    rng = np.random.default_rng(1)
    probs = rng.dirichlet(np.full(40, 0.3))
    counts = rng.multinomial(2000, probs, size=1000)
    p_values = np.array([chi_square(row, probs).p_value for row in counts])
    assert abs((p_values < 0.05).mean() - 0.05) < 5 * (0.05 * 0.95 / 1000) ** 0.5


def test_an_impossible_count_rejects():
    assert chi_square([50, 49, 1], [0.5, 0.5, 0.0]).p_value == 0


@pytest.mark.parametrize(
    ("counts", "probs", "message"),
    [
        ([1, 2], [0.5, 0.25, 0.25], "same shape"),
        ([10, 10], [0.5, 0.4], "sum to 1"),
        ([1, 2], [0.5, 0.5], "too few"),
    ],
)
def test_counts_are_checked(counts, probs, message):
    with pytest.raises(ValueError, match=message):
        chi_square(counts, probs)


# --- tests that keep their false alarm exactly: every outcome is enumerated ---


def assert_kept(p_values, chances):
    """P(p <= x) <= x at every x that occurs, but for rounding."""
    order = np.argsort(p_values)
    total = np.cumsum(np.asarray(chances)[order])
    assert total[-1] == pytest.approx(1)
    found = np.asarray(p_values)[order]
    last = np.append(found[1:] > found[:-1], True)
    assert (total[last] <= found[last] * (1 + 1e-9)).all()


@pytest.mark.parametrize(("n", "prob"), [(10, 0.5), (30, 0.02), (200, 0.97), (5, 0.0)])
def test_binomial_p_values_are_exact(n, prob):
    counts = np.arange(n + 1)
    assert_kept(
        binomial_p_values(counts, n, np.full(n + 1, prob)), stats.binom.pmf(counts, n, prob)
    )


@pytest.mark.parametrize("probs", [(0.5, 0.3, 0.2), (0.9, 0.0999, 0.0001), (0.6, 0.4, 0.0)])
def test_the_bayes_factor_keeps_its_false_alarm(probs):
    n = 12
    cells = [c for c in itertools.product(range(n + 1), repeat=3) if sum(c) == n]
    found = [spread_p_value(np.array([c]), np.array([probs])) for c in cells]
    assert_kept(found, [stats.multinomial.pmf(c, n, probs) for c in cells])
    assert min(found) < 1e-3


def test_the_bayes_factor_sees_what_is_spread_thinly():
    rng = np.random.default_rng(0)
    probs = np.full((2, 400), 1 / 400)
    wrong = probs * (1 + 0.3 * np.where(np.arange(400) % 2, 1, -1))
    right, found = (
        np.stack([rng.multinomial(6_000, row) for row in side]) for side in (probs, wrong)
    )
    assert spread_p_value(right, probs) == 1
    assert spread_p_value(found, probs) < 1e-9
    assert binomial_p_values(found, 6_000, probs).min() * 800 > 1e-6  # no token shows it alone


@pytest.mark.parametrize("mean", [0.02, 0.3, 0.5])
def test_bets_keep_their_false_alarm(mean):
    rows = np.array(list(itertools.product([0.0, 1.0], repeat=10)))
    chances = np.where(rows == 1, mean, 1 - mean).prod(-1)
    found = [betting_p_value(row[:, None], np.full((10, 1), mean)) for row in rows]
    assert_kept(found, chances)
    two = np.stack([rows, 1 - rows], -1)  # two sets of tokens, which share the false alarm
    means = np.tile([mean, 1 - mean], (10, 1))
    assert_kept([betting_p_value(row, means) for row in two], chances)


def test_bets_gain_from_a_small_variance():
    rng = np.random.default_rng(0)
    values = rng.uniform(0.45, 0.55, (500, 1))
    assert betting_p_value(values, np.full((500, 1), 0.5)) > 0.01
    for wrong in (0.47, 0.53):
        assert betting_p_value(values, np.full((500, 1), wrong)) < 1e-6
    assert betting_p_value(values * 0 + 0.5, np.full((500, 1), 0.5 + 1e-10), 1e-9) == 1


def test_the_mean_deviation_is_that_of_the_binomial():
    for n, prob in itertools.product((1, 7, 40), (0.0, 6.5e-309, 1e-9, 0.013, 0.5, 0.8, 1.0)):
        counts = np.arange(n + 1)
        chances = stats.binom.pmf(counts, n, prob if prob == 0 else max(prob, 1e-300))
        expected = (np.abs(counts - n * prob) * chances).sum()
        assert mean_deviation(n, np.array(prob)) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_an_error_larger_than_the_unseen_one_is_seen():
    n, level, counts = 500, 1e-4, np.arange(501)

    def power(prob, true):
        return stats.binom.pmf(counts, n, true)[binomial_p_values(counts, n, prob) < level].sum()

    for prob in (0.02, 0.3, 0.5, 0.9):
        least = unseen_error(n, np.array([prob]), level, 0.99)
        sides = [s for s in (prob - least, prob + least) if 0 <= s <= 1]
        assert all(power(prob, side) >= 0.99 - 1e-9 for side in sides)
        assert min(power(prob, side + (prob - side) * 0.05) for side in sides) < 0.99
    assert unseen_error(n, np.array([0.0, 6.5e-309, 1.0]), level, 0.99) < 0.02
    assert unseen_error(3, np.array([0.5]), 1e-6, 0.99) == 0.5
    assert unseen_error(3, np.array([]), 1e-6, 0.99) == 0

from __future__ import annotations

import numpy as np
import pytest

from spectr_lite.stats import chi_square, mean_interval


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

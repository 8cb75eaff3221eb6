from __future__ import annotations

import numpy as np
import pytest
import torch

from spectr_lite.models.markov import MarkovModel, worked_pair


def test_logits_are_the_log_of_the_rows():
    target, _ = worked_pair()
    probabilities = target(torch.tensor([[3, 0, 1, 2]])).exp()
    expected = np.array([[0.3, 0.4, 0.3], [0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.6, 0.2, 0.2]])
    assert probabilities.dtype == torch.float64
    np.testing.assert_allclose(probabilities[0, :, :3], expected, rtol=1e-15)
    assert (probabilities[..., target.start_token] == 0).all()


def test_next_distribution_reads_the_last_token_or_the_initial_distribution():
    target, _ = worked_pair()
    assert target.next_probs(()).tolist() == [0.3, 0.4, 0.3]
    assert (
        target.next_probs((0, 2, 1)).tolist() == target.next_probs([1]).tolist() == [0.1, 0.2, 0.7]
    )


@pytest.mark.parametrize(
    ("transition", "initial", "message"),
    [
        ([[0.5, 0.5]], [0.5, 0.5], r"shapes \(1, 2\) and \(2,\)"),
        ([[1.0, 0.0], [0.5, 0.4]], [0.5, 0.5], r"transition \(initial is row 2\): row 1 sums to"),
        ([[1.0, 0.0], [0.5, 0.5]], [1.5, -0.5], r"transition \(initial is row 2\): entry \[2, 1\]"),
    ],
)
def test_rows_are_checked(transition, initial, message):
    with pytest.raises(ValueError, match=message):
        MarkovModel(transition, initial)

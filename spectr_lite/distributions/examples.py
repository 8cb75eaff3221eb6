"""The pairs this book works with: each function returns (draft, target), float64 NumPy arrays (V,).

Explained in chapter 2.
"""

from __future__ import annotations

import numpy as np

from spectr_lite.distributions.vectors import check_count


def bernoulli(draft_one: float, target_one: float) -> tuple[np.ndarray, np.ndarray]:
    """Two tokens; `draft_one` and `target_one` are the probabilities of token 1.

    >>> [side.tolist() for side in bernoulli(0.25, 0.5)]
    [[0.75, 0.25], [0.5, 0.5]]
    """
    return np.array([1 - draft_one, draft_one]), np.array([1 - target_one, target_one])


def three_tokens() -> tuple[np.ndarray, np.ndarray]:
    """The running example: draft (1/2, 1/3, 1/6), target (1/10, 3/10, 6/10).

    >>> draft, target = three_tokens()
    >>> draft.round(3).tolist(), target.tolist()
    ([0.5, 0.333, 0.167], [0.1, 0.3, 0.6])
    """
    return np.array([1 / 2, 1 / 3, 1 / 6]), np.array([0.1, 0.3, 0.6])


def five_tokens() -> tuple[np.ndarray, np.ndarray]:
    """The pair on which the wrong variants of K-SEQ are compared."""
    return np.array([0.4, 0.25, 0.2, 0.1, 0.05]), np.array([0.1, 0.3, 0.1, 0.2, 0.3])


def kseq_worst_case() -> tuple[np.ndarray, np.ndarray]:
    """Where K-SEQ with two drafts is furthest from the optimum: 8/9 against 1."""
    return np.array([1 / 3, 2 / 3]), np.array([5 / 9, 4 / 9])


def uniform_on_subset(vocabulary: int, support: int) -> tuple[np.ndarray, np.ndarray]:
    """Draft uniform on all tokens, target uniform on the first `support` of them.

    >>> [side.tolist() for side in uniform_on_subset(4, 2)]
    [[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]]
    """
    check_count(vocabulary, "vocabulary")
    if not 1 <= support <= vocabulary:
        raise ValueError(f"support: found {support}. It must be between 1 and {vocabulary}.")
    target = np.zeros(vocabulary)
    target[:support] = 1 / support
    return np.full(vocabulary, 1 / vocabulary), target


def zipf(
    vocabulary: int, exponent: float = 1.0, mismatch: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Target with weights rank**-exponent; the draft's log-weights miss it by N(0, mismatch**2).

    >>> draft, target = zipf(4, mismatch=0.0)
    >>> target.round(2).tolist(), bool((draft == target).all())
    ([0.48, 0.24, 0.16, 0.12], True)
    """
    check_count(vocabulary, "vocabulary")
    rng = np.random.default_rng(seed)
    log_target = -exponent * np.log(np.arange(1, vocabulary + 1))
    log_draft = log_target + mismatch * rng.standard_normal(vocabulary)
    return _softmax(log_draft), _softmax(log_target)


def dirichlet(
    vocabulary: int, concentration: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draft and target drawn independently from a symmetric Dirichlet."""
    check_count(vocabulary, "vocabulary")
    rng = np.random.default_rng(seed)
    draft, target = rng.dirichlet(np.full(vocabulary, concentration), size=2)
    return draft, target


def tempered(
    probabilities: np.ndarray, draft_temperature: float, target_temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """One distribution seen at two temperatures: weights probabilities**(1/temperature)."""
    with np.errstate(divide="ignore"):
        log_weights = np.log(probabilities)
    return _softmax(log_weights / draft_temperature), _softmax(log_weights / target_temperature)


def _softmax(log_weights: np.ndarray) -> np.ndarray:
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()

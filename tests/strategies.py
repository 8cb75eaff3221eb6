"""Distributions that look for trouble: zeros, ties, equal and disjoint pairs, masses of 1e-12."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

# Small whole weights make ties and zeros likely; powers of ten make masses of very different size.
WEIGHT = st.one_of(
    st.integers(0, 6).map(float), st.floats(0.01, 1.0), st.floats(-12, 0).map(lambda e: 10.0**e)
)


@st.composite
def distributions(draw: st.DrawFn, vocabulary: int) -> np.ndarray:
    weights = draw(st.lists(WEIGHT, min_size=vocabulary, max_size=vocabulary).filter(any))
    return np.array(weights) / np.sum(weights)


@st.composite
def pairs(
    draw: st.DrawFn, max_vocabulary: int = 5, min_vocabulary: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """(draft, target) on one vocabulary."""
    vocabulary = draw(st.integers(min_vocabulary, max_vocabulary))
    draft = draw(distributions(vocabulary))
    kind = draw(st.sampled_from(["free", "free", "free", "equal", "disjoint", "two ratios"]))
    if kind == "equal":
        return draft, draft.copy()
    if kind == "two ratios":
        target = draft * np.array(
            draw(st.lists(st.sampled_from([1.0, 3.0]), min_size=vocabulary, max_size=vocabulary))
        )
        return draft, target / target.sum()
    target = draw(distributions(vocabulary))
    if kind == "disjoint" and (draft == 0).any():
        target = np.where(draft > 0, 0.0, target + 0.1)
        target = target / target.sum()
    return draft, target


@st.composite
def distinct_ratio_pairs(draw: st.DrawFn, max_vocabulary: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of the plain kind, every probability between 1% and 1."""
    vocabulary = draw(st.integers(2, max_vocabulary))
    weights = st.lists(st.floats(0.05, 1.0), min_size=vocabulary, max_size=vocabulary)
    draft, target = (np.array(draw(weights)) for _ in range(2))
    return draft / draft.sum(), target / target.sum()

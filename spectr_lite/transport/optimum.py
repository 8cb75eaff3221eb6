"""The exact optimum of draft selection without a solver: the cut formula on one sorted order.

    alpha = 1 - max over token sets A of  [ P(S subset of A) - target(A) ]

S is the set of drafted tokens. Source: max-flow = min-cut for the program of section 3 of SpecTr
(arXiv 2310.15141). Explained in chapter 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectr_lite.distributions import (
    IID,
    Array,
    ArrayLike,
    Drafting,
    check_count,
    check_drafting,
    check_pair,
)


def optimal_acceptance(
    draft: ArrayLike, target: ArrayLike, k: int, drafting: Drafting | None = None
) -> Array:
    """alpha, the largest P(Y in S) of any lossless rule; shape (...), exact at any vocabulary.

        alpha = 1 - max_A [ P(S subset of A) - target(A) ],   i.i.d.: P(S subset of A) = draft(A)^k

    A worst set is a prefix of the tokens sorted by target/draft ascending, so one sort and two
    cumulative sums suffice: O(V log V). `drafting` says how the drafts are drawn (i.i.d. unless given).
    Raises ValueError for bad distributions or k < 1.

        >>> [round(optimal_acceptance([1 / 2, 1 / 3, 1 / 6], [0.1, 0.3, 0.6], k), 6) for k in (1, 2)]
        [0.566667, 0.705556]
    """
    pair = check_pair(draft, target)
    k = check_count(k, "k")
    _, excess = _prefixes(pair.draft, pair.target, k, check_drafting(drafting))
    return pair.restore(1 - excess.amax(-1).clamp(0, 1))


def worst_set(draft: ArrayLike, target: ArrayLike, k: int) -> tuple[int, ...]:
    """The tokens A that maximise draft(A)^k - target(A), for one pair of shape (V,) and i.i.d. drafts.

    It proves the optimum: no lossless rule can do better than 1 - [draft(A)^k - target(A)]. Raises
    ValueError for bad distributions, k < 1 or a batch.

        >>> worst_set([1 / 2, 1 / 3, 1 / 6], [0.1, 0.3, 0.6], k=2)
        (0, 1)
    """
    pair = check_pair(draft, target)
    k = check_count(k, "k")
    if pair.draft.ndim != 1:
        raise ValueError(f"draft: shape {tuple(pair.draft.shape)} is a batch; pass one pair.")
    order, excess = _prefixes(pair.draft, pair.target, k, IID())
    best = int(excess.argmax())
    return tuple(sorted(order[: best + 1].tolist())) if excess[best] > 0 else ()


def _prefixes(draft: Tensor, target: Tensor, k: int, drafting: Drafting) -> tuple[Tensor, Tensor]:
    """The sorted token ids, and P(S subset of A) - target(A) for each prefix A; both (..., V)."""
    order = drafting.order(draft, target, k)
    covered = target.gather(-1, order).cumsum(-1, dtype=torch.float64)
    return order, drafting.containment(draft, order, k) - covered

"""The exact optimum of draft selection without a solver: the cut formula on one sorted order.

    alpha = 1 - max over token sets A of  [ P(S subset of A) - target(A) ]

Source: max-flow = min-cut for the program of section 3 of SpecTr (arXiv 2310.15141).
"""

from __future__ import annotations

from typing import Any

import torch

from spectr_lite.distributions import (
    IID,
    ArrayLike,
    Drafting,
    check_count,
    check_drafting,
    check_pair,
)


def optimal_acceptance(
    draft: ArrayLike, target: ArrayLike, k: int, drafting: Drafting | None = None
) -> Any:
    """alpha, the best P(Y in S) of any lossless rule; shape (...), exact at any vocabulary.

        alpha = 1 - max_A [ P(S subset of A) - target(A) ],   i.i.d.: P(S subset of A) = draft(A)^k

    The worst set is a prefix of the tokens sorted by target/draft ascending, so one sort and two
    cumulative sums suffice: O(V log V). `drafting` says how the drafts are drawn (i.i.d. unless given).
    Raises ValueError for bad distributions or k < 1.
    """
    pair = check_pair(draft, target)
    k = check_count(k, "k")
    drafting = check_drafting(drafting)
    order = drafting.order(pair.draft, pair.target, k)
    inside = drafting.containment(pair.draft, order, k)
    covered = pair.target.gather(-1, order).cumsum(-1, dtype=torch.float64)
    return pair.restore(1 - (inside - covered).amax(-1).clamp(0, 1))


def worst_set(draft: ArrayLike, target: ArrayLike, k: int) -> tuple[int, ...]:
    """The tokens A that maximise draft(A)^k - target(A), for one pair of shape (V,) and i.i.d. drafts.

    The dual optimum of the program: no lossless rule can do better than 1 - [draft(A)^k - target(A)].
    """
    pair = check_pair(draft, target)
    k = check_count(k, "k")
    if pair.draft.ndim != 1:
        raise ValueError(f"draft: shape {tuple(pair.draft.shape)} is a batch; pass one pair.")
    drafting = IID()
    order = drafting.order(pair.draft, pair.target, k)
    covered = pair.target.gather(-1, order).cumsum(-1, dtype=torch.float64)
    excess = drafting.containment(pair.draft, order, k) - covered
    best = int(excess.argmax())
    return tuple(sorted(order[: best + 1].tolist())) if excess[best] > 0 else ()

"""Draft selection as optimal transport with membership cost (OTM).

Choose a joint distribution pi of the drafted tuple x and the output y, with the distribution of the
drafts as one marginal and the target as the other, so that y is a drafted token as often as possible:

    alpha = max over pi of  sum_{x, y in S(x)} pi(x, y),     S(x) = the set of tokens in x

By max-flow = min-cut, for any joint distribution of the drafts,

    alpha = 1 - max over token sets A of  [ P(S subset of A) - target(A) ]

`solve_lp` solves the program; `optimal_acceptance` evaluates the cut formula without a solver.
Source: section 3 of SpecTr (arXiv 2310.15141). Explained in chapter 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp

from spectr_lite.distributions import (
    MOST_DRAFTS,
    ArrayLike,
    Drafting,
    check_count,
    check_drafting,
    check_pair,
    spelled,
)

# Peak memory of cvxpy, HiGHS and the answer, fitted from above to what spectr_experiments/transport.py
# measured: 1.1 kB per variable in literal programs, 24 B for each of the plan's V^(k+1) cells, and
# four copies of the list of V^k tuples with k drafts each.
LP_BYTES_PER_VARIABLE = 1_200
LP_BYTES_PER_CELL = 24
LP_BYTES_PER_DRAFT = 32
LP_BYTES_LIMIT = 4 * 2**30
MOST_AXES = 64  # of a NumPy array

Formulation = Literal["reduced", "literal"]


@dataclass(frozen=True)
class LPResult:
    """An optimal transport plan, its value, and the cut that proves the value.

    acceptance  alpha, the optimum of the program
    plan        joint distribution of (x_1, ..., x_k, y): an array with k + 1 axes of length V. Its
                sum over the last axis is the distribution of the drafts; over the others, the target
    cut         the tokens of a worst set A: acceptance = 1 - P(S subset of A) + target(A)
    variables   the number of variables the program had
    """

    acceptance: float
    plan: np.ndarray
    cut: tuple[int, ...]
    variables: int


def lp_size(vocabulary: int, k: int, formulation: Formulation = "reduced") -> int:
    """The number of variables of the program for i.i.d. drafts.

    "literal" has one for each of V^k tuples and V outputs. "reduced" has one for each multiset of k
    tokens and each of its distinct members: sum_d d C(V, d) C(k - 1, d - 1).

        >>> lp_size(3, 2), lp_size(3, 2, "literal")
        (9, 27)
    """
    check_count(vocabulary, "vocabulary")
    check_count(k, "k", most=MOST_DRAFTS)
    if formulation == "literal":
        return vocabulary ** (k + 1)
    return sum(
        d * math.comb(vocabulary, d) * math.comb(k - 1, d - 1)
        for d in range(1, min(vocabulary, k) + 1)
    )


def lp_bytes(vocabulary: int, k: int, formulation: Formulation = "reduced") -> int:
    """The memory `solve_lp` needs, in bytes: variables, the plan's V^(k+1) cells, V^k tuples."""
    return (
        LP_BYTES_PER_VARIABLE * lp_size(vocabulary, k, formulation)
        + LP_BYTES_PER_CELL * vocabulary ** (k + 1)
        + LP_BYTES_PER_DRAFT * k * vocabulary**k
    )


def solve_lp(
    draft: ArrayLike,
    target: ArrayLike,
    k: int,
    formulation: Formulation = "reduced",
    drafting: Drafting | None = None,
) -> LPResult:
    """The OTM program solved by HiGHS through cvxpy, for one pair of shape (V,).

    "literal" has a variable for every tuple x and every output y. "reduced" merges tuples that are
    reorderings of one another and keeps only the pairs with y in S(x): the mass that stays unmatched
    is afterwards paired independently, as the product of the two remaining marginals.

    Raises ValueError for bad distributions, a batch, k < 1, an unknown formulation, or a program that
    would need more than LP_BYTES_LIMIT bytes.

        >>> found = solve_lp([1 / 2, 1 / 3, 1 / 6], [0.1, 0.3, 0.6], k=2)
        >>> round(found.acceptance, 6), found.cut, found.variables, found.plan.shape
        (0.705556, (0, 1), 9, (3, 3, 3))
    """
    pair = check_pair(draft, target)
    k = check_count(k, "k", most=MOST_DRAFTS)
    drafting = check_drafting(drafting)
    if formulation not in ("reduced", "literal"):
        raise ValueError(f"formulation: found {formulation!r}. Use 'reduced' or 'literal'.")
    if pair.draft.ndim != 1:
        raise ValueError(
            f"draft: shape {tuple(pair.draft.shape)} is a batch. The program is solved for one pair; "
            "use optimal_acceptance for batches."
        )
    p, q = pair.draft.double().cpu(), pair.target.double().cpu().numpy()
    vocabulary = len(q)
    needed = lp_bytes(vocabulary, k, formulation)
    if needed > LP_BYTES_LIMIT or k >= MOST_AXES:
        raise ValueError(
            f"k: V={vocabulary} and k={k} make a {formulation} program of "
            f"{spelled(lp_size(vocabulary, k, formulation))} variables, about "
            f"{spelled(needed // 2**30)} GiB, and a plan of {k + 1} axes; the limit is "
            f"{LP_BYTES_LIMIT // 2**30} GiB, and {MOST_AXES} axes. optimal_acceptance gives the same "
            "optimum at any size."
        )
    drawn, mass = drafting.tuples(p, k, limit=LP_BYTES_LIMIT // LP_BYTES_PER_CELL)
    tuples, weights = drawn.numpy(), mass.numpy()
    if (tuples < 0).any():
        raise ValueError(
            f"k: under {drafting!r} this draft has fewer than {k} tokens to give, so its plan has no "
            "k-th axis. Use a smaller k; optimal_acceptance takes any."
        )
    if formulation == "reduced":
        # Reorderings of one multiset are one node; -1 (no draft) sorts first and is never a member.
        nodes, node_of = np.unique(np.sort(tuples, axis=1), axis=0, return_inverse=True)
        node_of = node_of.reshape(-1)
        supply = np.bincount(node_of, weights, minlength=len(nodes))
        row, column = _members(nodes)
        share, cut = _solve(supply, q, row, column, np.ones(len(row)), complete=False)
        share = _complete(share, supply, q)
        joint = weights[:, None] * (share / np.where(supply > 0, supply, 1)[:, None])[node_of]
    else:
        row, column = (index.reshape(-1) for index in np.indices((len(tuples), vocabulary)))
        member = (tuples[:, :, None] == np.arange(vocabulary)).any(1).reshape(-1)
        joint, cut = _solve(weights, q, row, column, member.astype(float), complete=True)
    plan = np.zeros((vocabulary,) * (k + 1))
    plan[tuple(tuples.T)] = joint
    inside = joint[_members(np.sort(tuples, axis=1))].sum()
    return LPResult(float(inside), plan, cut, len(row))


def _members(nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, token) of every distinct member of every sorted multiset in `nodes` (n, k); -1 is none."""
    first = np.ones_like(nodes, dtype=bool)
    first[:, 1:] = nodes[:, 1:] != nodes[:, :-1]
    row, position = np.nonzero(first & (nodes >= 0))
    return row, nodes[row, position]


def _solve(
    supply: np.ndarray,
    demand: np.ndarray,
    row: np.ndarray,
    column: np.ndarray,
    worth: np.ndarray,
    complete: bool,
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The flow of most worth from tuples to tokens, (tuples, V), and the tokens of the cut.

    Edge e leads from tuple row[e] to token column[e], and each unit of flow on it is worth worth[e].
    `supply` (tuples,) and `demand` (V,) must be used up if `complete`, as the paper states the
    program; otherwise they are only limits.
    """
    import cvxpy as cp

    # Sparse matrices that sum a flow per tuple and per token.
    edges, ones = np.arange(len(row)), np.ones(len(row))
    per_tuple = sp.csr_array((ones, (row, edges)), shape=(len(supply), len(row)))
    per_token = sp.csr_array((ones, (column, edges)), shape=(len(demand), len(row)))
    flow = cp.Variable(len(row), nonneg=True)
    sent, received = per_tuple @ flow, per_token @ flow
    limits = (
        [sent == supply, received == demand] if complete else [sent <= supply, received <= demand]
    )
    problem = cp.Problem(cp.Maximize(worth @ flow), limits)
    # The tightest that HiGHS takes. Its default, 1e-7, exceeds the probability of many tuples.
    tolerances = dict.fromkeys(
        ("primal_feasibility_tolerance", "dual_feasibility_tolerance"), 1e-10
    )
    # Every program here has a solution, but with probabilities below 1e-8 HiGHS's presolve may deny it.
    for presolve in ("on", "off"):
        problem.solve(solver=cp.HIGHS, presolve=presolve, **tolerances)
        if problem.status == cp.OPTIMAL and flow.value is not None:
            break
    else:
        raise RuntimeError(f"HiGHS stopped with status {problem.status!r} instead of an optimum.")
    # At a vertex every dual is 0 or 1: a token is in A when its capacity limits the flow. The duals of
    # equalities are only fixed up to a constant; there the tokens of A lie 1 above the others.
    price = limits[1].dual_value
    cut = np.flatnonzero(price - (price.min() if complete else 0) > 0.5)
    share = np.zeros((len(supply), len(demand)))
    share[row, column] = np.clip(flow.value, 0, None)
    return share, tuple(cut.tolist())


def _complete(share: np.ndarray, supply: np.ndarray, demand: np.ndarray) -> np.ndarray:
    """`share` (tuples, V) with both marginals met: the mass still missing is paired independently."""
    spare = np.clip(supply - share.sum(1), 0, None)
    missing = np.clip(demand - share.sum(0), 0, None)
    total = missing.sum()
    return share + (np.outer(spare, missing / total) if total > 0 else 0)

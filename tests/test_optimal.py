"""Nested priority: the winner's law, its optimality, and its two ways of being computed."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from spectr_lite import distributions as D
from spectr_lite.verifiers import optimal


def winner_law(plan: optimal.NestedPlan, draft: np.ndarray, k: int) -> np.ndarray:
    """The winner's law from the rule's words alone: Z opens edges, the highest pool wins.

    The open edges only change at an activation time. Between two of them, the drafts reach no further
    than edge b with probability U_b^k, so pool [a, b) wins with probability U_b^k - U_a^k; drafts are
    exchangeable and ties are broken evenly, so a token of the pool wins in proportion to its draft mass.
    """
    classes, tau = plan.class_of.numpy(), plan.activation.numpy()
    mass = np.bincount(classes, draft, minlength=len(tau))
    below = np.concatenate([[0], mass.cumsum()])
    law = np.zeros(len(draft))
    levels = np.unique(np.concatenate([tau, [1.0]]))
    for low, high in itertools.pairwise(levels):
        edges = [*np.flatnonzero(tau <= low), len(tau)]
        for a, b in itertools.pairwise(edges):
            pool = (classes >= a) & (classes < b)
            total = draft[pool].sum()
            if total > 0:
                law[pool] += (high - low) * (below[b] ** k - below[a] ** k) * draft[pool] / total
    return law


def test_the_claimed_marginal_is_the_true_one_when_some_bins_are_empty():
    """Two edges with no draft mass between them must open together."""
    draft, target = D.zipf(300, seed=1)
    for k in (2, 8):
        made = optimal.plan(torch.tensor(draft), torch.tensor(target), k, classes=256)
        assert (torch.bincount(made.class_of, minlength=256) == 0).any()
        claimed = made.winner(torch.tensor(draft)).numpy()
        np.testing.assert_allclose(winner_law(made, draft, k), claimed, atol=1e-12)

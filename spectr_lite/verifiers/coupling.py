"""Maximal coupling: speculative decoding's rule for a single draft.

    accept X with probability min(1, target(X) / draft(X)); otherwise Y ~ (target - draft)+
    P(Y in S) = sum_y min(draft(y), target(y)) = 1 - TV(draft, target)                     k = 1

Source: Algorithm 1 of SpecTr (arXiv 2310.15141); Leviathan et al. (arXiv 2211.17192). Explained in
chapter 1.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from spectr_lite.distributions import Drafting, probability_of, sample, uniform
from spectr_lite.verifiers.nodes import NodeVerifier, Parameters, first_passing


def couple_winner(chance: Tensor, winner: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
    """P(Y = y | drafted tuple), (..., V), when draft i wins with probability chance[..., i].

    `winner` (..., V) is the distribution of the winning token over all tuples. A winner w is accepted
    with probability min(1, target(w) / winner(w)); otherwise Y ~ (target - winner)+. The chance of a
    dead draft (-1 in `tokens`) must be 0.
    """
    mass = probability_of(winner, tokens)
    accept = torch.where(mass > 0, probability_of(target, tokens) / mass, 1.0).clamp_max(1)
    residual = (target - winner).clamp_min(0)
    total = residual.sum(-1, keepdim=True)
    rejected = (chance * (1 - accept)).sum(-1, keepdim=True)
    corrected = torch.where(total > 0, rejected * residual / total, 0.0)
    kept = chance * accept
    return corrected.scatter_add(-1, tokens.clamp_min(0).expand_as(kept), kept)


def couple(token: Tensor, probs: Tensor, target: Tensor, generator: Generator) -> Tensor:
    """Y (...), coupled with `token` (..., 1), which was drawn from `probs` (..., V)."""
    eta = uniform(token.shape, generator)
    accepted = eta * probability_of(probs, token) < probability_of(target, token)
    # The residual is repeated for each token, so that every row draws a Y of its own.
    left = left_over(target, probs).expand(*token.shape[:-1], -1)
    return torch.where(accepted[..., 0], token[..., 0], sample(left, generator))


def left_over(target: Tensor, taken: Tensor) -> Tensor:
    """(target - taken)+ (..., V), to draw from. Never less than 1e-30 of the target: rounding may refuse
    a draft where nothing is left, and then too Y must be a token that the target says."""
    return torch.maximum(target - taken, 1e-30 * target)


class Coupling(NodeVerifier):
    """Optimal for one draft, and defined for one draft only."""

    name = "coupling"
    only_k = 1

    def _acceptance(self, draft: Tensor, target: Tensor, k: int, drafting: Drafting) -> Tensor:
        return torch.minimum(draft, target).sum(-1)

    def _given_drafts(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        return couple_winner(torch.ones_like(probability_of(draft, tokens)), draft, target, tokens)

    def _parameters(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Parameters:
        return ()

    def _accepted(
        self, parameters: Parameters, draft: Tensor, target: Tensor, tokens: Tensor, coins: Tensor
    ) -> Tensor:
        return first_passing(coins * probability_of(draft, tokens) < probability_of(target, tokens))

    def _left(self, parameters: Parameters, draft: Tensor, target: Tensor) -> Tensor:
        return left_over(target, draft)

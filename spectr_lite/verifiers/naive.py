"""Naive selection: maximal coupling with the first draft; the residual may hit another by luck.

    accept X_1 with probability min(1, target(X_1) / draft(X_1)); otherwise  Y ~ (target - draft)+
    P(Y in S) = sum_y min(draft, target) + sum_y (target - draft)+ (1 - (1 - draft)^(k-1))

This is what a single-draft verifier gains from further drafts that it does not look at. It requires
only that X_1 follows the draft, so it is valid for drafts without replacement too.
Source: Leviathan et al. (arXiv 2211.17192), run on several drafts. Explained in chapter 5.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from spectr_lite.distributions import IID, Drafting, WithoutReplacement, probability_of
from spectr_lite.verifiers.base import Verifier
from spectr_lite.verifiers.coupling import couple, couple_winner


class Naive(Verifier):
    """Couples Y with the first draft that is not dead, and ignores the others."""

    name = "naive"
    valid_for = (IID, WithoutReplacement)

    def _acceptance(self, draft: Tensor, target: Tensor, k: int, drafting: Drafting) -> Tensor:
        if not isinstance(drafting, IID):
            return super()._acceptance(draft, target, k, drafting)
        hit = -torch.expm1((k - 1) * torch.log1p(-draft.clamp_max(1))) if k > 1 else 0.0
        return (torch.minimum(draft, target) + (target - draft).clamp_min(0) * hit).sum(-1)

    def _given_drafts(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        first = _first_alive(tokens)
        return couple_winner(torch.ones_like(probability_of(draft, first)), draft, target, first)

    def _select(
        self, draft: Tensor, target: Tensor, tokens: Tensor, generator: Generator
    ) -> Tensor:
        lead = torch.broadcast_shapes(draft.shape[:-1], tokens.shape[:-1])
        return couple(_first_alive(tokens).expand(*lead, 1), draft, target, generator)


def _first_alive(tokens: Tensor) -> Tensor:
    """The first draft that is not -1, shape (..., 1)."""
    return tokens.gather(-1, (tokens >= 0).to(torch.int8).argmax(-1, keepdim=True))

"""Mistakes that are easy to make, most of them in K-SEQ. Each looks right, runs, and biases the output.

Their total variation from the target is known for the pair of `distributions.five_tokens`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectr_lite.distributions import probability_of, sample
from spectr_lite.verifiers import Verifier
from spectr_lite.verifiers.kseq import KSeq, residual


def one_after_another(
    draft: Tensor, target: Tensor, tokens: Tensor, rho: Tensor, left: Tensor
) -> Tensor:
    """K-SEQ's distribution of Y for a given rho and last resort; shape (..., V)."""
    scaled = rho.unsqueeze(-1) * probability_of(draft, tokens)
    accept = torch.where(scaled > 0, probability_of(target, tokens) / scaled, 0.0).clamp_max(1)
    reached = torch.cumprod(1 - accept, -1)
    first = accept * torch.cat([torch.ones_like(reached[..., :1]), reached[..., :-1]], -1)
    probs = reached[..., -1:] * left / left.sum(-1, keepdim=True)
    return probs.scatter_add(-1, tokens.clamp_min(0).expand_as(first), first)


def rho_of(draft: Tensor, target: Tensor, k: Tensor) -> Tensor:
    """K-SEQ's rho* for k (...) drafts, worked out once for each number of them."""
    return KSeq()._rho(draft, target, k, 2)


class Deduplicated(Verifier):
    """Tests each distinct draft once, with the parameters for all k."""

    def _given_drafts(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        same = tokens.unsqueeze(-1) == tokens.unsqueeze(-2)
        repeated = same.tril(-1).any(-1)
        k = (tokens >= 0).sum(-1)
        rho = rho_of(draft, target, k)
        left = residual(draft, target, rho, k)
        return one_after_another(draft, target, tokens.masked_fill(repeated, -1), rho, left)


class RhoOne(Verifier):
    """No discount: tests every draft as if it were the only one."""

    def _given_drafts(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        rho = torch.ones(tokens.shape[:-1], dtype=torch.float64)
        return one_after_another(draft, target, tokens, rho, (target - draft).clamp_min(0))


class PlainResidual(Verifier):
    """The right rho, and the residual of a single draft."""

    def _given_drafts(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        rho = rho_of(draft, target, (tokens >= 0).sum(-1))
        return one_after_another(draft, target, tokens, rho, (target - draft).clamp_min(0))


class StaleCount(Verifier):
    """Parameters for three drafts, whatever number is still alive."""

    def _given_drafts(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        k = torch.full(tokens.shape[:-1], 3)
        rho = rho_of(draft, target, k)
        return one_after_another(draft, target, tokens, rho, residual(draft, target, rho, k))


class OfTwoMore(Verifier):
    """Parameters for two drafts more than there are."""

    def _given_drafts(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        k = (tokens >= 0).sum(-1) + 2
        rho = rho_of(draft, target, k)
        return one_after_another(draft, target, tokens, rho, residual(draft, target, rho, k))


class NotOverdone(Verifier):
    """Keeps the first draft if the draft model does not say it too often, as chapter 1 tries."""

    def _given_drafts(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        first = tokens[..., :1]
        keep = probability_of(target, first) / probability_of(draft, first)
        left = target.expand(*tokens.shape[:-1], -1)
        return ((1 - keep.clamp_max(1)) * left).scatter_add(-1, first, keep.clamp_max(1))


class SelectsAs:
    """A stranger that draws from the distribution of `rule` and tells nothing about it."""

    def __init__(self, rule: Verifier) -> None:
        self.rule, self.name = rule, f"{type(rule).__name__}, draws only"
        self.default_drafting = rule.default_drafting

    def acceptance(self, draft: Tensor, target: Tensor, k: int) -> float:
        return 0.5

    def select(self, draft: Tensor, target: Tensor, tokens: Tensor, generator: object) -> Tensor:
        return sample(self.rule._given_drafts(draft, target, tokens), generator)


# (variant, number of drafts, total variation from the target), to four decimals
KNOWN_BIAS = [
    (Deduplicated, 2, 0.0412),
    (Deduplicated, 3, 0.0726),
    (Deduplicated, 4, 0.0999),
    (RhoOne, 2, 0.1500),
    (RhoOne, 3, 0.2100),
    (RhoOne, 4, 0.2340),
    (PlainResidual, 2, 0.0541),
    (PlainResidual, 3, 0.0726),
    (PlainResidual, 4, 0.0683),
    (StaleCount, 2, 0.1217),
]

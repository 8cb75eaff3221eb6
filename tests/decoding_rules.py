"""The rules that the tests of decoding run through: every registered one, and four that are wrong.

The wrong ones look right; each is a mistake that somebody could make. The tests must reject them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from spectr_lite import verifiers
from spectr_lite.distributions import at
from spectr_lite.laws import IID
from spectr_lite.verifiers import Verifier
from spectr_lite.verifiers.kseq import optimal_rho, residual


def token_rules() -> Iterator[tuple[str, int]]:
    """(name, K) for every rule that decodes from i.i.d. drafts, with every K <= 3 that it takes."""
    for name in verifiers.names():
        rule = verifiers.get(name)
        for num_drafts in (1, 2, 3):
            try:
                rule._check_drafts(num_drafts)
            except ValueError:
                continue
            if IID in rule.valid_for:
                yield name, num_drafts


def first_accepted(
    draft: Tensor, target: Tensor, rho: Tensor, left: Tensor, tokens: Tensor
) -> Tensor:
    """Accept X_i with min(1, q / (rho p)), in order; otherwise draw from `left`, unnormalised."""
    scaled = rho.unsqueeze(-1) * at(draft, tokens)
    accept = torch.where(scaled > 0, at(target, tokens) / scaled, 0.0).clamp_max(1)
    reached = torch.cumprod(torch.cat([torch.ones_like(accept[..., :1]), 1 - accept], -1), -1)
    total = left.sum(-1, keepdim=True)
    law = reached[..., -1:] * left / torch.where(total > 0, total, 1)
    accepted = accept * reached[..., :-1]
    return law.scatter_add(-1, tokens.clamp_min(0).expand_as(accepted), accepted)


class Deduplicated(Verifier):
    """K-SEQ that looks at equal drafts once: its parameters count them, its tests do not."""

    def conditional(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        k = (tokens >= 0).sum(-1)
        earlier = torch.ones(tokens.shape[-1], tokens.shape[-1], dtype=torch.bool).tril(-1)
        repeated = ((tokens.unsqueeze(-1) == tokens.unsqueeze(-2)) & earlier).any(-1)
        rho = optimal_rho(draft, target, k)
        left = residual(draft, target, rho, k)
        return first_accepted(draft, target, rho, left, tokens.masked_fill(repeated, -1))


class UndiscountedMaximalResidual(Verifier):
    """Speculative decoding's test on each draft, and its residual: rho = 1, (target - draft)+."""

    def conditional(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        rho = torch.ones(draft.shape[:-1], dtype=torch.float64)
        return first_accepted(draft, target, rho, (target - draft).clamp_min(0), tokens)


class MaximalResidual(Verifier):
    """K-SEQ's test at rho*, with speculative decoding's residual (target - draft)+."""

    def conditional(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        rho = optimal_rho(draft, target, (tokens >= 0).sum(-1))
        return first_accepted(draft, target, rho, (target - draft).clamp_min(0), tokens)


class FixedParameters(Verifier):
    """K-SEQ with the parameters of k drafts, however many are alive."""

    def __init__(self, k: int) -> None:
        self.k = k

    def conditional(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        rho = optimal_rho(draft, target, self.k).expand(draft.shape[:-1])
        left = residual(draft, target, rho, self.k)
        return first_accepted(draft, target, rho, left, tokens)


WRONG = [Deduplicated(), UndiscountedMaximalResidual(), MaximalResidual(), FixedParameters(3)]

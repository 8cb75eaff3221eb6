"""SpecHub: one draft is the likeliest token for certain; the other is coupled with the target.

    a = argmax draft, the hub;   X ~ draft without a, renormalised: p'
    accept X with probability min(1, target(X) / p'(X)); otherwise  Y ~ (target - p')+
    P(Y in S) = target(a) + sum_{y != a} min(p', target)

Y = a is always accepted, since a is always drafted. That is the optimum for this way of drafting.
The paper draws ordered pairs, (x, a) with probability draft(x) and (a, x) with draft(a) draft(x) /
(1 - draft(a)). Added up, the pair {a, x} has probability p'(x): `TopM(1)` with two drafts.
Source: SpecHub (arXiv 2411.05289), defined for two drafts. Explained in chapter 5.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from spectr_lite.distributions import Drafting, TopM, probability_of
from spectr_lite.verifiers.base import Verifier
from spectr_lite.verifiers.coupling import couple, couple_winner
from spectr_lite.verifiers.recursive_wor import without


class SpecHub(Verifier):
    """Two drafts drawn by TopM(1): column 0 of `tokens` is the hub, column 1 the other draft."""

    name = "spechub"
    valid_for = (TopM,)
    default_drafting = TopM(1)
    only_k = 2

    def _acceptance(self, draft: Tensor, target: Tensor, k: int, drafting: Drafting) -> Tensor:
        hub = draft.argsort(dim=-1, descending=True, stable=True)[..., :1]
        coupled = torch.minimum(without(draft, hub), target).sum(-1)
        return probability_of(target, hub).squeeze(-1) + coupled

    def _given_drafts(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        rest, other = self._beside_hub(draft, tokens)
        probs = couple_winner(torch.ones_like(probability_of(rest, other)), rest, target, other)
        return torch.where(other < 0, target, probs)  # no second draft: the hub has all the mass

    def _select(
        self, draft: Tensor, target: Tensor, tokens: Tensor, generator: Generator
    ) -> Tensor:
        rest, other = self._beside_hub(draft, tokens)
        return couple(other, rest, target, generator)

    def _beside_hub(self, draft: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The draft without its hub, p' (..., V), and the token drawn from p' (..., 1)."""
        lead = torch.broadcast_shapes(draft.shape[:-1], tokens.shape[:-1])
        hub, other = tokens.expand(*lead, -1).split(1, -1)
        return without(draft.expand(*lead, -1), hub), other

    def _check_drafting(self, drafting: Drafting | None) -> Drafting:
        drafting = super()._check_drafting(drafting)
        if drafting != TopM(1):
            raise ValueError(
                f"drafting: 'spechub' has one hub, found {drafting!r}. Use TopM(1), or "
                "'target-only', which is valid for every drafting."
            )
        return drafting

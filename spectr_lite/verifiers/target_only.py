"""Target-only selection: sample the target, and call it accepted when it was drafted.

    Y ~ target;   P(Y in S) = sum_y target(y) (1 - (1 - draft(y))^k)                       i.i.d. drafts

The only rule here that never reads the draft, so the only one that is valid for every way of
drafting, even for the deterministic top-k tokens of EAGLE-2 (arXiv 2406.16858).
Source: naive speculative sampling in SpecInfer (arXiv 2305.09781), there called NSS. Explained in
chapter 5.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from spectr_lite.distributions import IID, Drafting, TopM, WithoutReplacement, sample
from spectr_lite.verifiers.base import Verifier


class TargetOnly(Verifier):
    """Samples Y from the target, whatever was drafted."""

    name = "target-only"
    valid_for = (IID, WithoutReplacement, TopM)

    def _acceptance(self, draft: Tensor, target: Tensor, k: int, drafting: Drafting) -> Tensor:
        if not isinstance(drafting, IID):
            return super()._acceptance(draft, target, k, drafting)
        return (target * -torch.expm1(k * torch.log1p(-draft.clamp_max(1)))).sum(-1)

    def _given_drafts(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        lead = torch.broadcast_shapes(target.shape[:-1], tokens.shape[:-1])
        return target.expand(*lead, -1)

    def _select(
        self, draft: Tensor, target: Tensor, tokens: Tensor, generator: Generator
    ) -> Tensor:
        return sample(self._given_drafts(draft, target, tokens), generator)

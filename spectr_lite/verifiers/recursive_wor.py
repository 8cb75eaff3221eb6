"""Recursive rejection without replacement: a rejected token also leaves the draft.

    t_0 = target, p_0 = draft;   accept X_i with probability min(1, t_{i-1}(X_i) / p_{i-1}(X_i))
    after a rejection  t_i = (t_{i-1} - p_{i-1})+ / sum,   p_i = p_{i-1} without X_i / sum
    if none is accepted  Y ~ t_k

Valid for drafts drawn without replacement, in the order they were drawn: X_i follows p_{i-1} only then.
No closed form of P(Y in S) is known to us, as t_i depends on which tokens were rejected: it is summed
over all ordered tuples.
Source: Sequoia (arXiv 2402.12374), recursive rejection of RSD (arXiv 2402.14160), multi-candidate
speculative decoding (arXiv 2401.06706). Explained in chapter 5.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from spectr_lite.distributions import WithoutReplacement
from spectr_lite.verifiers.base import Verifier
from spectr_lite.verifiers.nodes import has_rows_to_look_at
from spectr_lite.verifiers.recursive import Recursive


def without(draft: Tensor, token: Tensor) -> Tensor:
    """`draft` with one token's mass set to 0, renormalised. `token`: (..., 1); -1 removes nothing."""
    removed = draft.scatter(-1, token.clamp_min(0), 0.0)
    total = removed.sum(-1, keepdim=True)
    removed = torch.where(total > 0, removed / total, removed)
    return torch.where(token >= 0, removed, draft)


class RecursiveWithoutReplacement(Recursive):
    """Recursive rejection sampling for drafts without replacement."""

    name = "recursive-wor"
    most_k = 1024
    valid_for = (WithoutReplacement,)
    default_drafting = WithoutReplacement()
    _acceptance = Verifier._acceptance

    def after_refusal(self, draft: Tensor, token: Tensor) -> Tensor:
        return without(draft, token)

    def _select(
        self, draft: Tensor, target: Tensor, tokens: Tensor, generator: Generator
    ) -> Tensor:
        kind = Recursive if has_rows_to_look_at(draft, target) else Verifier
        return kind._select(self, draft, target, tokens, generator)

    def _rest(self, draft: Tensor, refused: tuple[int, ...]) -> float:
        rest = draft.index_fill(0, torch.tensor(refused), 0).sum(dtype=torch.float64).item()
        return rest or 1.0

"""Recursive rejection: each draft is coupled with the residual after the rejections before it.

    t_0 = target;   accept X_i with probability min(1, t_{i-1}(X_i) / draft(X_i)),  i = 1..k
    after a rejection  t_i = (t_{i-1} - draft)+ / sum;    if none is accepted  Y ~ t_k
    P(Y in S) = 1 - prod_i (1 - sum_y min(t_{i-1}, draft))                          drafts with repeats

A rejected token has t_i = 0 from then on, so the last draw never hits a draft: the product is exact.
Source: SpecInfer (arXiv 2305.09781), multi-step speculative sampling. Its drafts are exchangeable, so
taking them in the order drawn or in a random order is the same rule. Explained in chapter 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectr_lite.distributions import Drafting, probability_of
from spectr_lite.verifiers.coupling import left_over
from spectr_lite.verifiers.nodes import Drafts, NodeVerifier, Parameters, first_passing


def residual(target: Tensor, draft: Tensor) -> Tensor:
    """(target - draft)+ normalised, shape (..., V); `target` itself where nothing is left.

    Nothing is left only when target and draft are equal; then the draft was accepted for certain.
    """
    left = (target - draft).clamp_min(0)
    total = left.sum(-1, keepdim=True)
    return torch.where(total > 0, left / total, target)


class Recursive(NodeVerifier):
    """Recursive rejection sampling with replacement."""

    name = "recursive"
    most_k = 1024

    def _acceptance(self, draft: Tensor, target: Tensor, k: int, drafting: Drafting) -> Tensor:
        missed = torch.ones(draft.shape[:-1], dtype=torch.float64, device=draft.device)
        for _ in range(k):
            missed = missed * (1 - torch.minimum(target, draft).sum(-1)).clamp_min(0)
            target = residual(target, draft)
        return 1 - missed

    def after_refusal(self, draft: Tensor, token: Tensor) -> Tensor:
        """The distribution of the next draft after `token` (..., 1) was rejected: the same again."""
        return draft

    def _given_drafts(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        lead = torch.broadcast_shapes(draft.shape[:-1], tokens.shape[:-1])
        left, offered = target.expand(*lead, -1), draft.expand(*lead, -1)
        probs = torch.zeros_like(left)
        reached = left.new_ones(*lead, 1)
        for token in tokens.expand(*lead, -1).split(1, -1):
            mass = probability_of(offered, token)
            accept = torch.where(mass > 0, probability_of(left, token) / mass, 0.0).clamp_max(1)
            probs = probs.scatter_add(-1, token.clamp_min(0), reached * accept)
            reached = reached * (1 - accept)
            left = torch.where(token >= 0, residual(left, offered), left)
            offered = self.after_refusal(offered, token)
        return probs + reached * left

    def _rest(self, draft: Tensor, refused: tuple[int, ...]) -> float:
        """The mass (of 1) that the next draft was drawn from, after these were refused."""
        return 1.0

    def _row(
        self, draft: Tensor, target: Tensor, drafts: Drafts, coins: list[float]
    ) -> tuple[int, Tensor | None]:
        """The sums of `_parameters`, made only as far as a draft was refused."""
        (tokens, p, q), left = drafts, torch.empty_like(target)
        taken, mass = 0.0, 1.0
        for i, token in enumerate(tokens):
            if (coins[i] * mass + taken) * p[i] < q[i]:
                return token, None
            taken += mass
            torch.sub(target, draft, alpha=taken, out=left).clamp_min_(0)
            mass = left.sum().item() / self._rest(draft, tokens[: i + 1])
            if mass <= 0:  # the refusal was one of rounding
                return -1, target
        return -1, left

    def _parameters(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Parameters:
        """a_i and S_i before each draft, (..., k), and a_i after the last.

        S_i t_i = (target - a_i draft)+;   a_0 = 0, S_0 = 1;   a_{i+1} = a_i + S_i,   S_i its sum
        """
        living = (tokens >= 0).to(torch.int64)
        taken = torch.zeros(living.shape[:-1], dtype=torch.float64, device=draft.device)
        mass = torch.ones_like(taken)
        before = []
        for _ in range(tokens.shape[-1]):
            before.append((taken, mass))
            taken = taken + mass
            left = (target - taken.unsqueeze(-1) * draft).clamp_min(0)
            mass = left.sum(-1, dtype=torch.float64)
        shifts, masses = (torch.stack(part, -1) for part in zip(*before, strict=True))
        rank = living.cumsum(-1) - living  # how many living drafts come before each
        ends = torch.cat([shifts, taken.unsqueeze(-1)], -1)
        after = ends.gather(-1, living.sum(-1, keepdim=True))
        return shifts.gather(-1, rank), masses.gather(-1, rank), after

    def _accepted(
        self, parameters: Parameters, draft: Tensor, target: Tensor, tokens: Tensor, coins: Tensor
    ) -> Tensor:
        shift, mass, _ = parameters
        tested = (coins * mass + shift) * probability_of(draft, tokens)
        return first_passing(tested < probability_of(target, tokens))

    def _left(self, parameters: Parameters, draft: Tensor, target: Tensor) -> Tensor:
        return left_over(target, parameters[2] * draft)

"""Optimal selection at full vocabulary: the winner of the nested-priority plan, coupled with the target.

    draw the winner by the plan (transport/nested.py); accept it with probability
    min(1, target(w) / winner(w)), otherwise  Y ~ (target - winner)+

Lossless whenever `winner` is the true distribution of the winner. So the plan may treat tokens of
similar target/draft as one class; only acceptance is lost. Explained in chapter 6.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from spectr_lite.distributions import Drafting, check_count, probability_of, uniform
from spectr_lite.transport.nested import NestedPlan, RowPlan, plan
from spectr_lite.verifiers.coupling import couple_winner, left_over
from spectr_lite.verifiers.nodes import Drafts, NodeVerifier, Parameters


class Optimal(NodeVerifier):
    """Nested priority. More than `classes` tokens are binned into so many classes; None never bins.

    >>> round(Optimal().acceptance([1 / 2, 1 / 3, 1 / 6], [0.1, 0.3, 0.6], k=2), 6)
    0.705556
    """

    name = "optimal"

    def __init__(self, classes: int | None = 256) -> None:
        # Two classes are for tokens that the target or the draft never says.
        self.classes = None if classes is None else check_count(classes, "classes", least=4)

    def plan(self, draft: Tensor, target: Tensor, k: Tensor | int) -> NestedPlan:
        return plan(draft, target, k, self.classes)

    def _plan_of(self, draft: Tensor, target: Tensor, tokens: Tensor) -> NestedPlan:
        k = (tokens >= 0).sum(-1)
        if draft.ndim > 1 or target.ndim > 1:
            return self.plan(draft, target, k)
        # One pair and many tuples: one plan for each number of drafts, not one for each tuple.
        counts, rows = k.unique(return_inverse=True)
        return self.plan(draft, target, counts).take(rows)

    def _acceptance(self, draft: Tensor, target: Tensor, k: int, drafting: Drafting) -> Tensor:
        """P(winner accepted). With bins P(Y in S) lies between this and the optimum alpha."""
        winner = self.plan(draft, target, k).winner(draft)
        return torch.minimum(winner, target).sum(-1)

    def _given_drafts(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        made = self._plan_of(draft, target, tokens)
        return couple_winner(made.chances(tokens), made.winner(draft), target, tokens)

    def _parameters(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Parameters:
        return self._plan_of(draft, target, tokens).fields

    def _coins(self, lead: tuple[int, ...], k: int, generator: Generator) -> Tensor:
        """Uniform numbers (*lead, k + 2): for Z, for the ties of the k drafts, for the coupling."""
        return torch.cat([uniform((*lead, n), generator) for n in (1, k, 1)], -1)

    def _accepted(
        self, parameters: Parameters, draft: Tensor, target: Tensor, tokens: Tensor, coins: Tensor
    ) -> Tensor:
        made = NestedPlan(*parameters)
        z, ties, eta = coins.split([1, tokens.shape[-1], 1], -1)
        place = made.draw(tokens, z, ties)
        token = tokens.gather(-1, place)
        slope = made.slope.gather(-1, made.classes(token).clamp_min(0))
        accepted = eta * slope * probability_of(draft, token) < probability_of(target, token)
        return torch.where(accepted & (token >= 0), place, -1).squeeze(-1)

    def _row(
        self, draft: Tensor, target: Tensor, drafts: Drafts, coins: list[float]
    ) -> tuple[int, Tensor | None]:
        if self.classes is None or self.classes >= draft.shape[-1]:
            return super()._row(draft, target, drafts, coins)
        (tokens, p, q), (z, *ties, eta) = drafts, coins
        made = RowPlan(draft, target, len(tokens), self.classes)
        place, slope = made.draw(tokens, z, ties)
        if eta * slope * p[place] < q[place]:
            return tokens[place], None
        return -1, left_over(target, made.winner(draft))

    def _left(self, parameters: Parameters, draft: Tensor, target: Tensor) -> Tensor:
        return left_over(target, NestedPlan(*parameters).winner(draft))

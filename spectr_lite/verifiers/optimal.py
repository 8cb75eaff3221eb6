"""Optimal selection at full vocabulary: the winner of the nested-priority plan, coupled with the target.

    draw the winner by the plan (transport/nested.py); accept it with probability
    min(1, target(w) / winner(w)), otherwise  Y ~ (target - winner)+

Lossless for whatever `winner` is, as long as it is the true distribution of the winner; so classes
may be bins of similar tokens, and only acceptance is lost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectr_lite.distributions import Drafting, check_count
from spectr_lite.transport.nested import NestedPlan, plan
from spectr_lite.verifiers.base import Verifier
from spectr_lite.verifiers.coupling import couple, couple_winner


class Optimal(Verifier):
    """Nested priority. A vocabulary of more than `classes` tokens is binned; None never bins."""

    name = "optimal"

    def __init__(self, classes: int | None = 256) -> None:
        # Two of the classes hold special tokens.
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

    def _acceptance(
        self, draft: Tensor, target: Tensor, k: int, drafting: Drafting | None = None
    ) -> Tensor:
        """P(winner accepted). With bins P(Y in S) can exceed it, by no more than the gap to alpha."""
        winner = self.plan(draft, target, k).winner(draft)
        return torch.minimum(winner, target).sum(-1)

    def _given_drafts(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        made = self._plan_of(draft, target, tokens)
        return couple_winner(made.chances(tokens), made.winner(draft), target, tokens)

    def _select(
        self, draft: Tensor, target: Tensor, tokens: Tensor, generator: torch.Generator
    ) -> Tensor:
        made = self._plan_of(draft, target, tokens)
        lead = made.class_of.shape[:-1]
        tokens = tokens.expand(*lead, -1)
        chosen = made.draw(tokens, generator)
        token = tokens.gather(-1, chosen).clamp_min(0)
        return couple(token, made.winner(draft), target, generator)

"""Optimal selection and block verification: the best child on the way down, the block on the way up.

    down   at a node with M living paths choose a child by the optimal plan for M drafts (nested
           priority); keep its paths. r_i = the true distribution of the child chosen at depth i
    up     block verification of the path so chosen, with r_i in place of the draft

Lossless for any way of choosing a child: given the choice, the paths below the child are still i.i.d.
The plan's r is the best distribution for every weight w with which block verification reaches a node:
    sum_y min(r(y), w target(y)) = min over A of [ w target(A) + 1 - draft(A)^M ]      for all w <= 1
With L = 1 it is `optimal`, with K = 1 it is `block`. Sources: optimal.py; block verification is Sun
et al. (arXiv 2403.10444). We are not aware of an earlier description of this rule; UniVer (Weng et
al., arXiv 2605.04543) composes local plans under prefix acceptance too, and we could read its
abstract only. Explained in chapter 10.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from spectr_lite.distributions import Drafting, draw, uniform
from spectr_lite.verifiers import paths as walk
from spectr_lite.verifiers.base import TreeVerifier
from spectr_lite.verifiers.nodes import down, nodes_at, offered_everywhere
from spectr_lite.verifiers.optimal import Optimal
from spectr_lite.verifiers.paths import (
    Block,
    BlockGivenPaths,
    draw_stop,
    emit,
    is_first,
    offered_at,
    probs_at,
    row_at,
    shared_prefix,
    verify_path,
)


class OptimalBlock(TreeVerifier):
    """Nested priority at every node, block verification along the path it chose."""

    name = "optimal-block"

    def __init__(self, classes: int | None = 256) -> None:
        self.selection = Optimal(classes)

    def _acceptance(self, draft: Tensor, target: Tensor, k: int, drafting: Drafting) -> Tensor:
        return self.selection._acceptance(draft, target, k, drafting)

    def _given_paths(
        self, draft_probs: Tensor, target_probs: Tensor, paths: Tensor
    ) -> BlockGivenPaths:
        """Plans every node, whether the walk comes there or not."""
        shared = shared_prefix(paths)
        chosen = torch.ones(paths.shape[:-1], dtype=target_probs.dtype, device=paths.device)
        marginals = []
        for i in range(paths.shape[-1]):
            offered = offered_at(paths, shared, i)
            chance, marginal = self._plan(
                draft_probs[..., i, :], target_probs[..., i, :], offered, (offered >= 0).sum(-1)
            )
            chosen = chosen * (chance * shared[..., i + 1]).sum(-1)
            marginals.append(marginal.to(target_probs.dtype))
        stop, extra = verify_path(torch.stack(marginals, -2), target_probs, paths)
        chosen = chosen * is_first(shared)[..., -1]
        return BlockGivenPaths(stop * chosen.unsqueeze(-1), extra)

    def _plan(
        self, draft: Tensor, target: Tensor, offered: Tensor, count: Tensor
    ) -> tuple[Tensor, Tensor]:
        """P(token i of `offered` wins), (..., K), and the winner's distribution, (..., V).

        One plan for each distinct node; `count` (...) is the number of drafts there.
        """
        vocabulary = draft.shape[-1]
        key = torch.cat([draft, target, count.unsqueeze(-1)], -1).flatten(0, -2)
        nodes, row = key.unique(dim=0, return_inverse=True)
        drafts, targets, counts = nodes.split([vocabulary, vocabulary, 1], -1)
        plan = self.selection.plan(drafts, targets, counts.squeeze(-1))
        chance = plan.take(row).chances(offered.flatten(0, -2))
        marginal = plan.winner(drafts)[row]
        return chance.view(offered.shape), marginal.view(draft.shape)

    def _verify(
        self, draft_probs: Tensor, target_probs: Tensor, paths: Tensor, generator: Generator
    ) -> Block:
        if paths.device.type not in walk.SYNC_IS_FREE:
            return self._in_three_steps(draft_probs, target_probs, paths, generator)
        # Only the nodes on the way down have plans: L and not K L.
        alive = paths[..., 0] >= 0
        path = alive.to(torch.int8).argmax(-1)
        marginals, targets = [], []
        for i in range(paths.shape[-1]):
            draft, target = probs_at(draft_probs, path, i), probs_at(target_probs, path, i)
            offered = torch.where(alive, paths[..., i], -1)
            plan = self.selection.plan(draft, target, alive.sum(-1))
            lead = plan.class_of.shape[:-1]
            z, ties = uniform((*lead, 1), generator), uniform(offered.shape, generator)
            winner = plan.draw(offered, z, ties)
            marginals.append(plan.winner(draft).to(target.dtype))
            targets.append(target)
            alive = alive & (offered == offered.gather(-1, winner))
            path = winner.squeeze(-1)
        targets.append(probs_at(target_probs, path, paths.shape[-1]))
        stop, extra = verify_path(
            torch.stack(marginals, -2), torch.stack(targets, -2), row_at(paths, path)
        )
        return emit(paths, path, *draw_stop(stop, extra, generator))

    def _in_three_steps(
        self, draft_probs: Tensor, target_probs: Tensor, paths: Tensor, generator: Generator
    ) -> Block:
        """As in nodes.py: the plans of all nodes, the way down by their winners, one draw."""
        lead, (count, length) = paths.shape[:-2], paths.shape[-2:]
        coins = uniform((*lead, length, count + 1), generator)
        last_coins = uniform((*lead, 2), generator)
        return in_three_steps(self.selection, draft_probs, target_probs, paths, coins, last_coins)


def in_three_steps(
    selection: Optimal,
    draft_probs: Tensor,
    target_probs: Tensor,
    paths: Tensor,
    coins: Tensor,
    last_coins: Tensor,
) -> Block:
    """One block for each row. `coins` (..., L, K + 1): Z and the ties; `last_coins` (..., 2): the
    length, the last token."""
    offered, shared = offered_everywhere(paths)
    plan = selection.plan(draft_probs, target_probs[..., :-1, :], (offered >= 0).sum(-1))
    coins = coins.unsqueeze(-3).expand(*offered.shape[:-1], -1)
    path, _ = down(plan.draw(offered, coins[..., :1], coins[..., 1:]).squeeze(-1), shared)
    # The nodes that were chosen at: those of the first path with the same tokens so far.
    first = row_at(shared.to(torch.int8).argmax(-2), path)
    classes, slope, draft = (
        nodes_at(part, first[..., :-1]) for part in (plan.class_of, plan.slope, draft_probs)
    )
    targets = nodes_at(target_probs, first).to(torch.float64)
    stop, extra = verify_path(slope.gather(-1, classes) * draft, targets, row_at(paths, path))
    accepted = draw(stop, stop, last_coins[..., 0])
    last = draw(row_at(extra, accepted), row_at(targets, accepted), last_coins[..., 1])
    path = first.gather(-1, accepted.unsqueeze(-1)).squeeze(-1)
    return emit(paths, path, accepted, last)

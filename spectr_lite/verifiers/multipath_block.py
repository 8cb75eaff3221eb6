"""Greedy multi-path block verification: the path that ranks highest is judged as a block.

    rank      at a node, tokens by target/draft ascending, ties by id; paths by their first difference
    select    the highest of the K paths. With lo, m the draft mass of all paths that rank below a prefix
              and of the prefix itself, and F(y) = lo + m draft(tokens ranked up to y):
                  the selected path goes on with y with probability
                  skewed(y) = [F(y)^K - (F(y) - m draft(y))^K] / [(lo + m)^K - lo^K]
    verify    block verification of that path, with `skewed` in place of the draft

`skewed` only needs the probabilities along the selected path. With K = 1 it is block verification.
Source: Thomas and Pal (arXiv 2602.16961), after public descriptions and two public copies of its code.
One copy caps target/draft at 1 before ranking. That makes ties, which its selection gives to the draft
it meets first, but its skewed distribution to the higher id. Here, as in the other copy, nothing is
capped, and one order serves both uses. Explained in chapter 10.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectr_lite.distributions import by_ratio, probability_of, ranks
from spectr_lite.verifiers.base import TreeVerifier
from spectr_lite.verifiers.paths import BlockGivenPaths, probs_at, row_at, verify_path


class MultipathBlock(TreeVerifier):
    """The path of highest rank, verified as a block."""

    name = "multipath-block"

    def _given_paths(
        self, draft_probs: Tensor, target_probs: Tensor, paths: Tensor
    ) -> BlockGivenPaths:
        alive = paths[..., 0] >= 0
        count = alive.sum(-1, keepdim=True)
        path = alive.to(torch.int8).argmax(-1)
        low = torch.zeros_like(count, dtype=target_probs.dtype)
        mass = torch.ones_like(low)
        skewed = []
        for i in range(paths.shape[-1]):
            draft, target = probs_at(draft_probs, path, i), probs_at(target_probs, path, i)
            order = by_ratio(draft, target)
            ordered = draft.gather(-1, order)
            below = torch.zeros_like(draft).scatter(-1, order, ordered.cumsum(-1) - ordered)
            skewed.append(skew(draft, below, low, mass, count, paths.shape[-2]))
            here = paths[..., i]
            held = ranks(order).gather(-1, here.clamp_min(0)).masked_fill(~alive, -1)
            alive = alive & (held == held.amax(-1, keepdim=True))
            path = alive.to(torch.int8).argmax(-1)
            token = here.gather(-1, path.unsqueeze(-1))
            low, mass = (
                low + mass * probability_of(below, token),
                mass * probability_of(draft, token),
            )
            # Only the ratio of the two matters, and both shrink with every token.
            low, mass = low / (low + mass), mass / (low + mass)
        targets = target_probs.take_along_dim(path[..., None, None, None], -3).squeeze(-3)
        stop, extra = verify_path(torch.stack(skewed, -2), targets, row_at(paths, path))
        selected = torch.arange(paths.shape[-2], device=paths.device) == path.unsqueeze(-1)
        stop = stop.unsqueeze(-2) * selected.unsqueeze(-1)
        return BlockGivenPaths(stop, extra.unsqueeze(-3).expand(*stop.shape, -1))


def skew(
    draft: Tensor, below: Tensor, low: Tensor, mass: Tensor, count: Tensor, most: int
) -> Tensor:
    """Probabilities of the selected path's next token, (..., V), among `count` (..., 1) <= `most` paths.

    `below` (..., V) is draft(tokens ranked below y); `low` and `mass`, (..., 1), are lo and m.
    a^n - b^n = (a - b) sum_i a^i b^(n-1-i): all terms are positive, so no digits are lost.
    """
    a, b = low + mass * (below + draft), low + mass * below
    total = torch.zeros_like(draft)
    for i in range(most):
        power = (count - 1 - i).clamp_min(0)
        total = total + torch.where(i < count, a**i * b**power, 0.0)
    weight = draft * total
    return weight / weight.sum(-1, keepdim=True)

"""Kernel: the walk down by the winners of the optimal plan; one program a row.

At each node a level Z picks the pool, a uniform choice in it the winner. `optimal` accepts the winner
w if  coin winner(w) < target(w), else it stops there. `optimal-block` always goes on, and weighs:

    w_0 = 1,   w_{i+1} = min(1, w_i target(x_i) / winner(x_i))

It leaves `stop` (B, D, 3): path, depth, living drafts; and weights (B, D). D = 1, or L + 1 for a block.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectr_lite.kernels.histogram import CELLS, cell_of
from spectr_lite.kernels.tree import first_of, masses, same_prefix


@triton.jit
def slope_of(class_of, slope, node, p, q, k, inside, EP: tl.constexpr):
    """winner / draft at tokens of draft and target mass `p`, `q`; 1 where one draft lives."""
    known = inside & (p * 0 + k > 1)
    name = tl.load(class_of + node * CELLS + cell_of(p, q), mask=known, other=0)
    return tl.where(known, tl.load(slope + node * EP + name, mask=known, other=1.0), 1.0)


@triton.jit
def put(stop, weights, at, path, depth, living, weight):
    tl.store(stop + at * 3, path)
    tl.store(stop + at * 3 + 1, depth)
    tl.store(stop + at * 3 + 2, living)
    tl.store(weights + at, weight)


@triton.jit
def winners(
    draft, target, paths, coins, class_of, activation, slope, stop, weights, K, L, V, C, width,
    KP: tl.constexpr, EP: tl.constexpr, BLOCK_RULE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    m, edge = tl.arange(0, KP), tl.arange(0, EP)
    path, depth, going, living = row * 0, row * 0, row * 0 + 1, row * 0 + K
    weight = (row * 0 + 1).to(tl.float64)
    deal = K + 1 if BLOCK_RULE else K + 2
    for i in range(0, L):
        if going > 0:
            node = (row * K + path) * L + i
            same = same_prefix(paths, row, path, i, K, L, KP)
            living = tl.sum(same.to(tl.int32), 0)
            token = tl.load(paths + (row * K + m) * L + i, mask=m < K, other=-1)
            p, q = masses(draft, target, row, path, i, token, same, K, L, V)
            mine = coins + row * width + i * deal
            pool = same
            if living > 1:
                name = tl.load(class_of + node * CELLS + cell_of(p, q), mask=same, other=-1)
                time = tl.load(activation + node * EP + edge, mask=edge < C, other=2.0)
                active = (time <= tl.load(mine)) & (edge <= tl.max(name, 0))
                pool = same & (name >= tl.max(tl.where(active, edge, 0), 0))
            tie = tl.load(mine + 1 + m, mask=m < K, other=0.0)
            key = tl.where(pool, tie + 1.0, 0.0)
            won = first_of(key == tl.max(key, 0), KP)
            rise = slope_of(class_of, slope, node, p, q, living, same, EP)
            winner = tl.sum(tl.where(m == won, rise * p, 0.0), 0)
            goal = tl.sum(tl.where(m == won, q, 0.0), 0)
            if BLOCK_RULE:
                put(stop, weights, row * (L + 1) + i, path, i, living, weight)
                ratio = goal / tl.where(winner > 0, winner, 1.0)
                weight = tl.minimum(weight * tl.where(winner > 0, ratio, 0.0), 1.0)
            else:
                going = (tl.load(mine + 1 + K) * winner < goal).to(tl.int32)
            if going > 0:
                path = first_of(same & (token == tl.sum(tl.where(m == won, token, 0), 0)), KP)
                depth = i + 1
    at = row * (L + 1) + L if BLOCK_RULE else row
    put(stop, weights, at, path, depth, living, weight)

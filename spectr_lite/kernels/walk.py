"""Kernel: K-SEQ's walk down the tree; one program a row, L levels of K look-ups each.

At each node the first living draft with  coin rho draft(x) < target(x)  is accepted, and the walk goes
on with the paths that begin so. It leaves `stop` (B, 3): path, depth, living drafts, and rho (B,).
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectr_lite.kernels.discount import first_safe, rho_at
from spectr_lite.kernels.tree import first_of, masses, same_prefix


@triton.jit
def walk(
    draft, target, paths, coins, sums, starts, stop, rhos, K, L, V, parts, width,
    KP: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    m = tl.arange(0, KP)
    path, depth, going = row * 0, row * 0, row * 0 + 1
    living, rho = row * 0 + K, (row * 0 + 1).to(tl.float64)
    for i in range(0, L):
        if going > 0:
            same = same_prefix(paths, row, path, i, K, L, KP)
            living = tl.sum(same.to(tl.int32), 0)
            rho = (row * 0 + 1).to(tl.float64)
            if living > 1:
                node = (row * K + path) * L + i
                start = tl.load(starts + node)
                found = first_safe(sums, node, start, 1, living, parts, PARTS)
                rho = rho_at(start + found, living)
            token = tl.load(paths + (row * K + m) * L + i, mask=m < K, other=-1)
            coin = tl.load(coins + row * width + i * K + m, mask=m < K, other=1.0)
            p, q = masses(draft, target, row, path, i, token, same, K, L, V)
            won = first_of(same & (coin * rho * p < q), KP)
            going = (won < KP).to(tl.int32)
            if going > 0:
                chosen = tl.sum(tl.where(m == won, token, 0), 0)
                path = first_of(same & (token == chosen), KP)
                depth = i + 1
    tl.store(stop + row * 3, path)
    tl.store(stop + row * 3 + 1, depth)
    tl.store(stop + row * 3 + 2, living)
    tl.store(rhos + row, rho)

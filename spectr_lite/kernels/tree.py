"""What the kernels know of the drafted tree: who shares a prefix, and where a node's rows lie.

paths (B, K, L) token ids;  draft (B, K, L, V);  target (B, 1 + K L, V): the root, then the node after
each token of each path. A node is (path, depth): what follows the first `depth` tokens of `path`.
All sums are in float64 and in a fixed order: the same seed gives the same text.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def same_prefix(paths, row, path, depth, K, L, KP: tl.constexpr):
    """(KP,) bool: the paths with the first `depth` tokens of `path`. KP: K or more, a power of 2."""
    m = tl.arange(0, KP)
    same = m < K
    for t in range(0, depth):
        token = tl.load(paths + (row * K + path) * L + t)
        same = same & (tl.load(paths + (row * K + m) * L + t, mask=m < K, other=-1) == token)
    return same


@triton.jit
def first_of(mask, KP: tl.constexpr):
    """The place of the first True of (KP,); KP where there is none."""
    return tl.min(tl.where(mask, tl.arange(0, KP), KP), 0)


@triton.jit
def living_at(node, paths, K, L, KP: tl.constexpr):
    """How many drafts live at a node, by its number (row K + path) L + depth: 0 where an earlier path
    has the same prefix, whose node is then the one that counts."""
    path = (node // L) % K
    same = same_prefix(paths, node // (K * L), path, node % L, K, L, KP)
    return tl.where(first_of(same, KP) == path, tl.sum(same.to(tl.int32), 0), 0)


@triton.jit
def masses(draft, target, row, path, depth, x, inside, K, L, V):
    """Draft and target mass of the tokens `x` at a node, float64. Behind the last token draft is 0."""
    drafted = (((row * K + path) * L + depth).to(tl.int64)) * V
    node = tl.where(depth > 0, path * L + depth, 0)
    covered = ((row * (1 + K * L) + node).to(tl.int64)) * V
    p = tl.load(draft + drafted + x, mask=inside & (x * 0 + depth < L), other=0.0)
    q = tl.load(target + covered + x, mask=inside, other=0.0)
    return p.to(tl.float64), q.to(tl.float64)

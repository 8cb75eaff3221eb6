"""Kernels: sums of what is left of the target where a walk may stop, then one token from it.

    K-SEQ           left(x) = target - c min(draft, target / rho),  c = p_acc / beta(rho)
    optimal         left(x) = (target - winner)+
    optimal-block   left(x) = (w target - winner)+ at the node of each depth, and these decide the depth
                    after L tokens: the target

The first kernel sums it over parts of the vocabulary; for K-SEQ it sums min(draft, target / rho), so
that beta is that of the very rho with which the drafts were tested. The second, one program a row,
finds the part and in it the token, and writes the block. Whatever sums round to, its token has weight.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectr_lite.kernels.discount import share
from spectr_lite.kernels.tree import masses
from spectr_lite.kernels.winners import slope_of


@triton.jit
def part_of(
    draft, target, class_of, slope, row, path, depth, k, weight, part, K, L, V,
    EP: tl.constexpr, CHUNK: tl.constexpr, KSEQ: tl.constexpr,
):  # fmt: skip
    """For a part of the vocabulary: what is left (for K-SEQ: min(draft, target / rho)), and target."""
    x = part * CHUNK + tl.arange(0, CHUNK)
    p, q = masses(draft, target, row, path, depth, x, x < V, K, L, V)
    if KSEQ:
        return tl.minimum(p, q / weight), q
    node = (row * K + path) * L + tl.minimum(depth, L - 1)
    winner = slope_of(class_of, slope, node, p, q, k, (x < V) & (x * 0 + depth < L), EP) * p
    return tl.maximum(weight * q - winner, 0.0), q


@triton.jit
def left_sums(
    draft, target, class_of, slope, stop, weights, sums, K, L, V, stops, parts,
    EP: tl.constexpr, CHUNK: tl.constexpr, KSEQ: tl.constexpr,
):  # fmt: skip
    at, part = tl.program_id(0), tl.program_id(1)
    path, depth = tl.load(stop + at * 3), tl.load(stop + at * 3 + 1)
    k, weight = tl.load(stop + at * 3 + 2), tl.load(weights + at)
    left, q = part_of(draft, target, class_of, slope, at // stops, path, depth, k, weight, part,
                      K, L, V, EP, CHUNK, KSEQ)  # fmt: skip
    tl.store(sums + (at * parts + part) * 2, tl.sum(left, 0))
    tl.store(sums + (at * parts + part) * 2 + 1, tl.sum(q, 0))


@triton.jit
def pick(weights, level, SIZE: tl.constexpr):
    """(place, mass before it): where the cumulative sum of (SIZE,) passes `level`, at some weight."""
    place = tl.arange(0, SIZE)
    above = tl.cumsum(weights, 0)
    found = tl.min(tl.where((above > level) & (weights > 0), place, SIZE), 0)
    last = tl.max(tl.where(weights > 0, place, 0), 0)
    found = tl.where(found < SIZE, found, last)
    return found, tl.sum(tl.where(place < found, weights, 0.0), 0)


@triton.jit
def write_block(
    block, accepted, taken, missing, paths, row, path, depth, token, K, L, LP: tl.constexpr
):
    """The block: `depth` tokens of the path and one more; -1 from a missing distribution on."""
    at = tl.arange(0, LP)
    drafted = tl.load(paths + (row * K + path) * L + at, mask=at < L, other=-1)
    node = tl.where(at > 0, path * L + at, 0)
    bad = tl.load(missing + row * (1 + K * L) + node, mask=at <= L, other=0) != 0
    sound = at < tl.min(tl.where(bad, at, LP), 0)
    token = tl.where(at < depth, drafted, tl.where(at == depth, token, -1))
    tl.store(block + row * (L + 1) + at, tl.where(sound, token, -1), mask=at <= L)
    tl.store(accepted + row, depth)
    tl.store(taken + row, path)


@triton.jit
def draw(
    draft, target, class_of, slope, paths, stop, weights, sums, coins, missing, block, accepted,
    taken, K, L, V, stops, parts, width, EP: tl.constexpr, LP: tl.constexpr, PARTS: tl.constexpr,
    CHUNK: tl.constexpr, KSEQ: tl.constexpr, BLOCK_RULE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    part = tl.arange(0, PARTS)
    at = row * stops
    if BLOCK_RULE:
        # Kept is the largest depth whose coin succeeds: the smallest with P(all above fail) > u.
        failed, u = (row * 0 + 1).to(tl.float64), tl.load(coins + row * width + width - 2)
        for n in range(0, stops):
            here = row * stops + stops - 1 - n
            at = tl.where(u < failed, here, at)
            weight = tl.load(weights + here)
            place = (here * parts + part) * 2
            total = tl.sum(tl.load(sums + place, mask=part < parts, other=0.0), 0)
            chance = total + 1 - weight
            coin = tl.where(chance > 0, total / tl.where(chance > 0, chance, 1.0), 1.0)
            failed = failed * (1 - tl.where(n > 0, coin, weight))
    path, depth = tl.load(stop + at * 3), tl.load(stop + at * 3 + 1)
    k, weight = tl.load(stop + at * 3 + 2), tl.load(weights + at)
    place = sums + (at * parts + part) * 2
    left = tl.load(place, mask=part < parts, other=0.0)
    covered = tl.load(place + 1, mask=part < parts, other=0.0)
    c = (row * 0).to(tl.float64)
    if KSEQ:
        c = share(tl.minimum(tl.sum(left, 0), 1.0), k)
        left = tl.maximum(covered - c * left, 0.0)
    # Rounding may leave nothing where nothing can be refused: then the target itself is drawn from.
    plain = (depth >= L) | (tl.sum(left, 0) <= 0)
    left = tl.where(part * 0 + plain.to(tl.int32) > 0, covered, left)
    level = tl.load(coins + row * width + width - 1) * tl.sum(left, 0)
    found, before = pick(left, level, PARTS)
    left, q = part_of(draft, target, class_of, slope, row, path, depth, k, weight, found,
                      K, L, V, EP, CHUNK, KSEQ)  # fmt: skip
    if KSEQ:
        left = tl.maximum(q - c * left, 0.0)
    left = tl.where(q * 0 + plain.to(tl.float64) > 0, q, left)
    token, _ = pick(left, level - before, CHUNK)
    token = found * CHUNK + token
    write_block(block, accepted, taken, missing, paths, row, path, depth, token, K, L, LP)

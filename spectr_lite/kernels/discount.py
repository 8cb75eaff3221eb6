"""Kernel: one round of the search for K-SEQ's rho at all nodes, 32 candidates at a time.

    rho = the smallest of k^(g / STEPS) with p_acc <= rho beta(rho), g = 0..STEPS = 32^3

As `kseq.stepped_rho`, by three rounds: of 32 neighbouring candidates the first safe one is found, and
the next round looks between it and its predecessor. A program sums min(rho draft, target) over a part
of the vocabulary; the next round adds up the parts. Nodes with one living draft have rho = 1, and
those of a shared prefix count once: in practice a few nodes near the root are all the work, so that
float64 is affordable on a T4 too.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectr_lite.kernels.tree import living_at, masses

STEPS = tl.constexpr(2**15)
EDGES = tl.constexpr(32)


@triton.jit
def share(beta, k):
    """c = p_acc / beta = sum over n < k of (1 - beta)^n."""
    total = beta * 0.0 + 1.0
    for _ in range(1, k):
        total = 1.0 + (1.0 - beta) * total
    return total


@triton.jit
def rho_at(step, k):
    return tl.exp2(step.to(tl.float64) / STEPS * tl.log2(k.to(tl.float64)))


@triton.jit
def first_safe(sums, node, start, unit, k, parts, PARTS: tl.constexpr):
    """Which of the candidates from `start` on, `unit` steps apart, is the first safe one; or 32."""
    e = tl.arange(0, EDGES)
    part = tl.arange(0, PARTS)
    place = (node * parts + part[:, None]) * EDGES + e[None, :]
    total = tl.sum(tl.load(sums + place, mask=part[:, None] < parts, other=0.0), 0)
    rho = rho_at(start + e * unit, k)
    safe = share(tl.minimum(total / rho, 1.0), k) <= rho
    return tl.min(tl.where(safe, e, EDGES), 0)


@triton.jit
def search(
    draft, target, paths, sums_before, starts_before, sums, starts, unit, K, L, V, parts,
    KP: tl.constexpr, PARTS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    FIRST: tl.constexpr,
):  # fmt: skip
    node, part = tl.program_id(0), tl.program_id(1)
    k = living_at(node, paths, K, L, KP)
    if k > 1:
        start = node * 0
        if not FIRST:
            before = tl.load(starts_before + node)
            found = first_safe(sums_before, node, before, unit * EDGES, k, parts, PARTS)
            start = before + tl.maximum(found - 1, 0) * unit * EDGES
        if part == 0:
            tl.store(starts + node, start)
        e = tl.arange(0, EDGES)
        rho = rho_at(start + e * unit, k)
        total = tl.zeros([EDGES], tl.float64)
        for at in range(0, CHUNK, BLOCK):
            x = part * CHUNK + at + tl.arange(0, BLOCK)
            p, q = masses(
                draft, target, node // (K * L), (node // L) % K, node % L, x, x < V, K, L, V
            )
            total += tl.sum(tl.minimum(rho[:, None] * p[None, :], q[None, :]), 1)
        tl.store(sums + (node * parts + part) * EDGES + e, total)

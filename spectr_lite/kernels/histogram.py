"""Kernels: the classes of the optimal plan at all nodes, as in `nested.binned_classes`.

histogram   draft and target mass in 6,146 cells of log2(target/draft), as whole numbers: atomic
            additions then give the same sum in any order. The two outer cells, where most tokens
            of a small draft lie, are summed before they are added.
classes     cells are grouped into C classes by the square root of the mass; then U, R and G = U^k
            at the class edges. One program a node.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectr_lite.kernels.tree import living_at, masses
from spectr_lite.transport import nested

PER_OCTAVE = tl.constexpr(nested.CELLS_PER_OCTAVE)
HALF = tl.constexpr(nested.CELLS_PER_OCTAVE * nested.OCTAVES)
CELLS = tl.constexpr(2 * nested.CELLS_PER_OCTAVE * nested.OCTAVES + 2)
UNIT = tl.constexpr(2.0**60)


@triton.jit
def cell_of(p, q):
    """The cell of target/draft = q/p; the first where the target, the last where the draft is 0."""
    octave = tl.log2(tl.where(q > 0, q, 1.0) / tl.where(p > 0, p, 1.0)) * PER_OCTAVE
    cell = tl.floor(tl.minimum(tl.maximum(octave, -1.0 * HALF), HALF - 1.0)).to(tl.int32) + HALF + 1
    cell = tl.where(p > 0, cell, CELLS - 1)
    return tl.where((q > 0) | (p <= 0), cell, 0)


@triton.jit
def histogram(
    draft, target, paths, cells, K, L, V, KP: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    node, part = tl.program_id(0), tl.program_id(1)
    k = living_at(node, paths, K, L, KP)
    if k > 1:
        drafted = cells + node.to(tl.int64) * 2 * CELLS
        covered = drafted + CELLS
        never_said, never_drafted = tl.zeros([BLOCK], tl.int64), tl.zeros([BLOCK], tl.int64)
        for at in range(0, CHUNK, BLOCK):
            x = part * CHUNK + at + tl.arange(0, BLOCK)
            p, q = masses(
                draft, target, node // (K * L), (node // L) % K, node % L, x, x < V, K, L, V
            )
            cell, mass, goal = cell_of(p, q), (p * UNIT).to(tl.int64), (q * UNIT).to(tl.int64)
            inner = (cell > 0) & (cell < CELLS - 1)
            tl.atomic_add(drafted + cell, mass, mask=inner, sem="relaxed")
            tl.atomic_add(covered + cell, goal, mask=inner, sem="relaxed")
            never_said += tl.where(cell == 0, mass, 0)
            never_drafted += tl.where(cell == CELLS - 1, goal, 0)
        tl.atomic_add(drafted, tl.sum(never_said, 0), sem="relaxed")
        tl.atomic_add(covered + CELLS - 1, tl.sum(never_drafted, 0), sem="relaxed")


@triton.jit
def power(u, k):
    total = u * 0.0 + 1.0
    for _ in range(0, k):
        total = total * u
    return total


@triton.jit
def step_of(mass, goal, below, gone, drafted, covered, k):
    """The square root of a cell's mass: its draft and target mass and what it adds to U^k."""
    u, r = (below + mass).to(tl.float64) / drafted, (gone + goal).to(tl.float64) / covered
    v, s = below.to(tl.float64) / drafted, gone.to(tl.float64) / covered
    added = (u + r + power(u, k)) - (v + s + power(v, k))
    return tl.sqrt(tl.maximum(added, 0.0))


@triton.jit
def classes(
    paths, cells, class_of, cuts, K, L, C, KP: tl.constexpr, EP: tl.constexpr, BLOCK: tl.constexpr
):
    node = tl.program_id(0)
    k = living_at(node, paths, K, L, KP)
    if k > 1:
        masses_at = cells + node.to(tl.int64) * 2 * CELLS
        drafted, covered = (node * 0).to(tl.int64), (node * 0).to(tl.int64)
        for at in range(0, CELLS, BLOCK):
            cell = at + tl.arange(0, BLOCK)
            drafted += tl.sum(tl.load(masses_at + cell, mask=cell < CELLS, other=0), 0)
            covered += tl.sum(tl.load(masses_at + CELLS + cell, mask=cell < CELLS, other=0), 0)
        whole = (node * 0).to(tl.float64)
        for turn in tl.static_range(2):  # the sum of all steps; then the level of each cell in it
            below, gone = (node * 0).to(tl.int64), (node * 0).to(tl.int64)
            level = (node * 0).to(tl.float64)
            for at in range(0, CELLS, BLOCK):
                cell = at + tl.arange(0, BLOCK)
                mass = tl.load(masses_at + cell, mask=cell < CELLS, other=0)
                goal = tl.load(masses_at + CELLS + cell, mask=cell < CELLS, other=0)
                u, r = below + tl.cumsum(mass, 0), gone + tl.cumsum(goal, 0)
                step = step_of(mass, goal, u - mass, r - goal, drafted.to(tl.float64),
                               covered.to(tl.float64), k)  # fmt: skip
                if turn == 1:
                    upper = (level + tl.cumsum(step, 0)) / whole
                    middle = upper - step / whole / 2
                    found = 1 + tl.minimum((middle * (C - 2)).to(tl.int32), C - 3)
                    found = tl.where(cell == 0, 0, tl.where(cell == CELLS - 1, C - 1, found))
                    tl.store(class_of + node * CELLS + cell, found, mask=cell < CELLS)
                    tl.store(masses_at + cell, u, mask=cell < CELLS)
                    tl.store(masses_at + CELLS + cell, r, mask=cell < CELLS)
                below += tl.sum(mass, 0)
                gone += tl.sum(goal, 0)
                level += tl.sum(step, 0)
            whole = level
        tl.debug_barrier()  # what other threads stored is read now: the masses below each class
        edge = tl.arange(0, EP)
        low, high = edge * 0, edge * 0 + CELLS
        for _ in range(0, 13):
            middle_cell = (low + high) // 2
            less = tl.load(class_of + node * CELLS + middle_cell, mask=low < high, other=0) < edge
            low, high = (
                tl.where(less & (low < high), middle_cell + 1, low),
                tl.where(less, high, middle_cell),
            )
        u = tl.load(masses_at + low - 1, mask=low > 0, other=0).to(tl.float64) / drafted.to(
            tl.float64
        )
        r = tl.load(masses_at + CELLS + low - 1, mask=low > 0, other=0).to(tl.float64)
        place = cuts + node * 3 * EP + edge
        tl.store(place, u)
        tl.store(place + EP, r / covered.to(tl.float64))
        tl.store(place + 2 * EP, power(u, k))

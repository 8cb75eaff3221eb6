"""Kernels: the nested-priority plan at all nodes, from U, R and G at its C + 1 class edges.

    hull     which edges are vertices of the upper concave hull of (R, G)      `nested._concave_hull`
    times    Dinkelbach's iteration for each edge: its activation time         `nested._activation_times`
    slopes   winner / draft in each class: chords averaged over the times      `nested._winner_slope`
    added    their sum, of parts by level

A program works on a few edges, or levels, beside all C + 1 edges of its node; EP: a power of 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectr_lite.kernels.tree import living_at
from spectr_lite.transport import nested

DINKELBACH_STEPS = tl.constexpr(nested.DINKELBACH_STEPS)


@triton.jit
def larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def smaller(a, b):
    return tl.minimum(a, b)


@triton.jit
def hull(paths, cuts, vertex, K, L, C, KP: tl.constexpr, EP: tl.constexpr, MINE: tl.constexpr):
    node, part = tl.program_id(0), tl.program_id(1)
    k = living_at(node, paths, K, L, KP)
    if k > 1:
        edge, mine = tl.arange(0, EP)[None, :], (part * MINE + tl.arange(0, MINE))[:, None]
        place = cuts + node * 3 * EP
        r, g = tl.load(place + EP + edge), tl.load(place + 2 * EP + edge)
        slope = g - tl.load(place + 2 * EP + mine)
        run = r - tl.load(place + EP + mine)
        known = ((run != 0) | (slope != 0)) & (edge <= C)
        # Where R stands still, the slope is infinite; to the left of an edge G is below it.
        upright = tl.where((slope > 0) == (edge > mine), float("inf"), -float("inf"))
        slope = tl.where(run != 0, slope / tl.where(run != 0, run, 1.0), upright)
        right = tl.max(tl.where(known & (edge > mine), slope, -float("inf")), 1)
        left = tl.min(tl.where(known & (edge < mine), slope, float("inf")), 1)
        mine = part * MINE + tl.arange(0, MINE)
        found = (left >= right) | (mine == 0) | (mine >= C)
        tl.store(vertex + node * EP + mine, found.to(tl.int32))


@triton.jit
def of_edge(values, edge, mine):
    """values[mine], (MINE, 1), of (1, EP)."""
    return tl.sum(tl.where(edge == mine, values, 0), 1)[:, None]


@triton.jit
def chosen(key, values, edge, best):
    """values, (MINE,), at the first edge where `key` is `best`; both (MINE, EP)."""
    first = tl.min(tl.where(key == best, edge, 2**30), 1)[:, None]
    return tl.sum(tl.where(edge == first, values, 0.0), 1)


@triton.jit
def times(
    paths, cuts, vertex, activation, K, L, C, KP: tl.constexpr, EP: tl.constexpr,
    MINE: tl.constexpr,
):  # fmt: skip
    node, part = tl.program_id(0), tl.program_id(1)
    k = living_at(node, paths, K, L, KP)
    if k > 1:
        inf = float("inf")
        edge = tl.arange(0, EP)
        place = cuts + node * 3 * EP
        u, g = tl.load(place + edge), tl.load(place + 2 * EP + edge)
        corner = tl.load(vertex + node * EP + edge, mask=edge <= C, other=1)
        # T at every edge, from the corners of the hull around it.
        below = tl.associative_scan(tl.where(corner > 0, edge, 0), 0, larger)
        above = tl.associative_scan(tl.where(corner > 0, edge, EP - 1), 0, smaller, reverse=True)
        start, base = tl.load(place + EP + below), tl.load(place + 2 * EP + below)
        run = tl.load(place + EP + above) - start
        share = tl.where(
            run > 0, (tl.load(place + EP + edge) - start) / tl.where(run > 0, run, 1.0), 0.0
        )
        top = tl.where(corner > 0, g, base + (tl.load(place + 2 * EP + above) - base) * share)
        count = tl.cumsum(corner, 0)

        edge, mine = edge[None, :], (part * MINE + tl.arange(0, MINE))[:, None]
        u, g, top, corner, count = (
            u[None, :],
            g[None, :],
            top[None, :],
            corner[None, :],
            count[None, :],
        )
        width = u - of_edge(u, edge, mine)
        my_count, my_corner = of_edge(count, edge, mine), of_edge(corner, edge, mine)
        ahead = (edge > mine) & (edge <= C) & (count - corner == my_count) & (width > 0)
        back = (edge < mine) & (my_count - my_corner == count) & (width < 0)
        seen = ahead | back
        width = tl.where(seen, width, 1.0)
        of_hull = tl.where(seen, (top - of_edge(top, edge, mine)) / width, 0.0)
        of_g = tl.where(seen, (g - of_edge(g, edge, mine)) / width, 0.0)
        hull_ahead, hull_back = tl.where(ahead, of_hull, 0.0), tl.where(back, of_hull, 0.0)
        g_ahead, g_back = tl.where(ahead, of_g, 0.0), tl.where(back, of_g, 0.0)
        s = tl.full([MINE], 1.0, tl.float64)
        mine_corner = tl.sum(tl.where(edge == mine, corner, 0), 1)
        for _ in range(0, DINKELBACH_STEPS):
            key = of_hull - s[:, None] * of_g
            low, high = tl.where(ahead, key, inf), tl.where(back, key, -inf)
            least, most = tl.min(low, 1)[:, None], tl.max(high, 1)[:, None]
            gain = chosen(low, hull_ahead, edge, least) - chosen(high, hull_back, edge, most)
            cost = chosen(low, g_ahead, edge, least) - chosen(high, g_back, edge, most)
            root = tl.where(cost > 0, gain / tl.where(cost > 0, cost, 1.0), 1.0)
            s = tl.where(mine_corner > 0, s, tl.minimum(s, tl.maximum(root, 0.0)))
        tl.store(activation + node * EP + part * MINE + tl.arange(0, MINE), 1.0 - s)


@triton.jit
def slopes(
    paths, cuts, activation, parts_of_slope, K, L, C, parts, KP: tl.constexpr, EP: tl.constexpr,
    LEVELS: tl.constexpr, MINE: tl.constexpr,
):  # fmt: skip
    node, part = tl.program_id(0), tl.program_id(1)
    k = living_at(node, paths, K, L, KP)
    if k > 1:
        edge = tl.arange(0, EP)
        place = cuts + node * 3 * EP
        time = tl.load(activation + node * EP + edge, mask=edge < C, other=2.0)[None, :]
        next_time = tl.load(activation + node * EP + edge + 1, mask=edge + 1 < C, other=2.0)[
            None, :
        ]
        edge = edge[None, :]
        slope = tl.zeros([EP], tl.float64)
        for at in range(0, LEVELS, MINE):
            mine = (part * LEVELS + at + tl.arange(0, MINE))[:, None]
            level = tl.load(activation + node * EP + mine, mask=mine < C, other=2.0)
            later = tl.min(tl.where((time > level) & (edge < C), time, 1.0), 1)[:, None]
            again = tl.max(((time == level) & (edge < mine)).to(tl.int32), 1)[:, None] > 0
            weight = tl.where(again | (mine >= C), 0.0, tl.maximum(later - level, 0.0))
            left = tl.associative_scan(tl.where(time <= level, edge, 0), 1, larger)
            right = tl.where(next_time <= level, edge + 1, C)
            right = tl.associative_scan(right, 1, smaller, reverse=True)
            width = tl.load(place + right) - tl.load(place + left)
            rise = tl.load(place + 2 * EP + right) - tl.load(place + 2 * EP + left)
            chord = tl.where(width > 0, rise / tl.where(width > 0, width, 1.0), 0.0)
            slope += tl.sum(weight * chord, 0)
        tl.store(parts_of_slope + (node * parts + part) * EP + tl.arange(0, EP), slope)


@triton.jit
def added(paths, parts_of_slope, slope, K, L, parts, KP: tl.constexpr, EP: tl.constexpr):
    node = tl.program_id(0)
    k = living_at(node, paths, K, L, KP)
    if k > 1:
        edge = tl.arange(0, EP)
        total = tl.zeros([EP], tl.float64)
        for part in range(0, parts):
            total += tl.load(parts_of_slope + (node * parts + part) * EP + edge)
        tl.store(slope + node * EP + edge, total)

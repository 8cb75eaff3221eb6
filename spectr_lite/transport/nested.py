"""The optimal transport plan, sampled at full vocabulary: nested priority.

Tokens stand in classes by target/draft ascending. U, R: draft and target mass below a class edge, and
G = U^k, the probability that every draft lies below it.

    marginal   T = upper concave hull of the points (R, G); the winner's distribution has cumulative T
    times      tau_c = 1 - max { s in [0, 1] : edge c is a vertex of the lower hull of (U, T - s G) }
    winner     draw Z ~ U(0, 1); the edges with tau <= Z cut the classes into pools; the winner is a
               uniform choice among the drafts that lie in the highest pool any draft reached
    output     accept the winner w with probability min(1, target(w) / winner(w)),
               otherwise  Y ~ (target - winner)+

    P(winner accepted) = sum_y min(winner(y), target(y)) = alpha_k      when every token is a class

The output step is lossless whenever `winner` is the true distribution of the winner. So a class may
hold several tokens of similar ratio; only acceptance is lost. "Choose a winner, then couple it with
the target" is the canonical decomposition of Khisti et al. (arXiv 2410.18234). We are not aware of a
prior closed form of an optimal winner. Proved on the book's proofs page, explained in chapter 6.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spectr_lite.distributions import by_ratio, fixed_point, ranks

CELLS_PER_OCTAVE = 128  # histogram cells of target/draft: each spans a factor 2^(1/128), 0.5%
OCTAVES = 24  # ratios beyond 2^-24 and 2^24 share the outermost cells
HALF = OCTAVES * CELLS_PER_OCTAVE
CELLS = 2 * HALF + 2  # with one for tokens that the target never says, one for those never drafted
BEYOND = 2.0**100
DINKELBACH_STEPS = 6  # four reach the root on every pair tried
DENSE_LIMIT = {"cpu": 64, "cuda": 1024}  # classes up to which tables of C x C are used


@dataclass(frozen=True)
class NestedPlan:
    """A nested-priority rule with C classes. The tensors share their leading dimensions.

    class_of     (..., V) class of each token
    activation   (..., C) tau of each class's lower edge; 0 for the first
    draft_below  (..., C + 1) U at the class edges
    target_below (..., C + 1) R at the class edges
    slope        (..., C) winner(y) = slope[class_of(y)] draft(y): the rule's true marginal
    """

    class_of: Tensor
    activation: Tensor
    draft_below: Tensor
    target_below: Tensor
    slope: Tensor

    @property
    def fields(self) -> tuple[Tensor, ...]:
        return self.class_of, self.activation, self.draft_below, self.target_below, self.slope

    def winner(self, draft: Tensor) -> Tensor:
        """The distribution of the winner, shape (..., V)."""
        return self.slope.gather(-1, self.class_of) * draft

    def classes(self, tokens: Tensor) -> Tensor:
        """The class of each draft, shape (..., k); -1 for a dead draft."""
        ids = tokens.clamp_min(0).expand(*self.class_of.shape[:-1], -1)
        return self.class_of.gather(-1, ids).masked_fill(tokens < 0, -1)

    def chances(self, tokens: Tensor) -> Tensor:
        """P(draft i is the winner), shape (..., k)."""
        # Which edges are active only changes at the activation times: Z takes one level for each.
        levels, weight = _levels(self.activation)
        in_pool = self._in_pool(tokens, levels)
        chance = in_pool.double() / in_pool.sum(-1, keepdim=True)
        return (chance * weight.unsqueeze(-1)).sum(-2)

    def draw(self, tokens: Tensor, z: Tensor, ties: Tensor) -> Tensor:
        """Position of the draft that wins, (..., 1); `z` (..., 1) and `ties` (..., k) are uniform."""
        in_pool = self._in_pool(tokens, z).squeeze(-2)
        # A uniform choice among the drafts of the pool.
        return (ties * in_pool + in_pool).argmax(-1, keepdim=True)

    def _in_pool(self, tokens: Tensor, z: Tensor) -> Tensor:
        """Which drafts lie in the highest pool that any draft reached, at each Z of `z` (..., n).

        Shape (..., n, k).
        """
        classes = self.classes(tokens).unsqueeze(-2)
        index = torch.arange(self.activation.shape[-1], device=z.device)
        active = self.activation.unsqueeze(-2) <= z.unsqueeze(-1)
        reached = index <= classes.amax(-1, keepdim=True)
        floor = torch.where(active & reached, index, 0).amax(-1, keepdim=True)
        return (classes >= floor) & (tokens >= 0).unsqueeze(-2)

    def take(self, rows: Tensor) -> NestedPlan:
        """The plans of these `rows` (n,), of a plan with one leading dimension."""
        fields = self.fields
        if len(self.slope) == 1:  # one row for all: repeated without a copy
            return NestedPlan(*(field[0].expand(*rows.shape, -1) for field in fields))
        return NestedPlan(*(field[rows] for field in fields))


def binned_classes(draft: Tensor, target: Tensor, k: Tensor, classes: int) -> Tensor:
    """The class of each token, (..., V), when classes are intervals of target/draft. O(V).

    The tokens are not sorted, but counted into a histogram of log2(target/draft). A class of mass m
    (draft mass + target mass + increase of U^k) whose ratios span a width w costs at most about m w
    of acceptance. For a given number of classes the sum of m w is least when the density of classes
    follows the square root of the mass. The first class is for tokens that the target never says and
    the last for tokens that are never drafted: neither kind may share a class with others.
    """
    cell = cells(draft.to(torch.float64), target.to(torch.float64)).long()
    drafted, covered = (class_masses(probs, cell, CELLS)[..., 1:] for probs in (draft, target))
    return grouped(drafted, covered, k, classes).gather(-1, cell)


def cells(draft: Tensor, target: Tensor) -> Tensor:
    """The cell of log2(target/draft) of each token, (..., V) int32."""
    octave = (target / draft).log2_().mul_(CELLS_PER_OCTAVE).floor_()
    octave.nan_to_num_(nan=BEYOND, posinf=BEYOND, neginf=-BEYOND)
    # The term in 1 / BEYOND takes the infinite ones, and no other, to the two outer cells.
    inner = octave.clamp(-HALF, HALF - 1).add_(octave, alpha=1 / BEYOND)
    return inner.add_(HALF + 1).to(torch.int32)


def grouped(drafted: Tensor, covered: Tensor, k: Tensor | int, classes: int) -> Tensor:
    """The class of each cell, (..., CELLS), from the masses up to the end of each."""
    mass = drafted + covered + drafted**k
    step = torch.diff(mass, prepend=torch.zeros_like(mass[..., :1])).clamp_min(0).sqrt()
    level = step.cumsum(-1)
    level = level / level[..., -1:]
    # The class of a cell is set by the middle of the level it spans.
    middle = (level + torch.nn.functional.pad(level[..., :-1], (1, 0))) / 2
    inner = 1 + (middle * (classes - 2)).long().clamp(0, classes - 3)
    inner[..., 0].fill_(0)
    inner[..., -1].fill_(classes - 1)
    return inner


def class_masses(values: Tensor, class_of: Tensor, classes: int) -> Tensor:
    """Mass of `values` (..., V) below each class edge, (..., C + 1), from 0 to exactly 1.

    The sums are those of whole numbers, so that no order of a GPU's threads changes them.
    """
    masses = torch.zeros(*values.shape[:-1], classes, dtype=torch.int64, device=values.device)
    below = masses.scatter_add(-1, class_of, fixed_point(values)).cumsum(-1).to(torch.float64)
    return torch.nn.functional.pad(below / below[..., -1:], (1, 0))


def plan(draft: Tensor, target: Tensor, k: Tensor | int, classes: int | None = None) -> NestedPlan:
    """The nested-priority plan for k drafts (a number, or a tensor with one per row).

    With `classes` None, or at least V, every token is its own class, which is optimal; otherwise
    tokens are binned. On a GPU, up to 1024 classes are worked on as tables of C x C, with fixed
    shapes and no loop over classes, so that a CUDA graph can hold the work. Beyond that, and on a CPU
    beyond 64, a heap takes O(C log C) steps in Python.
    """
    k = torch.as_tensor(k, dtype=torch.float64, device=draft.device).unsqueeze(-1)
    lead = torch.broadcast_shapes(draft.shape[:-1], k.shape[:-1])
    draft, target = draft.expand(*lead, -1), target.expand(*lead, -1)
    if classes is None or classes >= draft.shape[-1]:
        class_of, classes = ranks(by_ratio(draft, target)), draft.shape[-1]
    else:
        class_of = binned_classes(draft, target, k, classes)
    u = class_masses(draft, class_of, classes)
    r = class_masses(target, class_of, classes)
    g = u**k
    if classes <= DENSE_LIMIT.get(u.device.type, 64):
        vertex, hull = _concave_hull(u, r, g)
        activation = _activation_times(u, g, hull, vertex)
        slope = _winner_slope(u, g, activation)
    else:
        activation, slope = _heap(u, r, g)
    return NestedPlan(class_of, activation, u, r, slope)


def _between(x: Tensor, y: Tensor) -> Tensor:
    """Slopes (y_j - y_i) / (x_j - x_i) for all edges i, j; infinite or NaN where x_i = x_j."""
    return (y.unsqueeze(-2) - y.unsqueeze(-1)) / (x.unsqueeze(-2) - x.unsqueeze(-1))


def _concave_hull(u: Tensor, r: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Which edges are vertices of the upper concave hull of (R, G), and the hull T at every edge.

    An edge is a vertex when no slope to its right exceeds a slope to its left. Edges along which R
    stands still (tokens the target never says) count as vertices; their tokens are never accepted.
    """
    edges = torch.arange(u.shape[-1], device=u.device)
    slope = _between(r, g)
    ignored = (edges.unsqueeze(-2) <= edges.unsqueeze(-1)) | slope.isnan()
    rightward = slope.masked_fill(ignored, -torch.inf).amax(-1)
    leftward = slope.masked_fill(ignored, torch.inf).amin(-2)
    vertex = leftward >= rightward
    vertex[..., 0].fill_(True)
    vertex[..., -1].fill_(True)
    left, right = _gaps(vertex[..., :-1])
    start, base = r.gather(-1, left), g.gather(-1, left)
    run, rise = r.gather(-1, right) - start, g.gather(-1, right) - base
    share = torch.where(run > 0, (r[..., :-1] - start) / run, 0)
    hull = torch.cat([base + rise * share, g[..., -1:]], -1)
    return vertex, torch.where(vertex, g, hull)


def _activation_times(u: Tensor, g: Tensor, hull: Tensor, vertex: Tensor) -> Tensor:
    """tau of every lower edge, shape (..., C).

    Edge j is a vertex of the lower hull of T - s G as long as
        min over b > j of slope(j, b)  >=  max over a < j of slope(a, j),
    both within the block of j, the edges between two vertices of the concave hull. The difference is
    concave in s, so Dinkelbach's iteration falls from s = 1 to the largest root, in finitely many
    steps. Stopping it early stays lossless: the winner's distribution is computed from the times
    as they are.
    """
    edges = torch.arange(u.shape[-1], device=u.device)
    count = vertex.cumsum(-1)
    same_block = (count - vertex.long()).unsqueeze(-2) == count.unsqueeze(-1)
    seen = same_block & (edges.unsqueeze(-2) > edges.unsqueeze(-1))
    seen = seen & (u.unsqueeze(-2) > u.unsqueeze(-1))
    of_hull = _between(u, hull).masked_fill(~seen, 0.0)
    of_g = _between(u, g).masked_fill(~seen, 0.0)
    share = torch.ones_like(u)
    for _ in range(DINKELBACH_STEPS):
        right = (of_hull - share.unsqueeze(-1) * of_g).masked_fill(~seen, torch.inf)
        right = right.argmin(-1, keepdim=True)
        left = (of_hull - share.unsqueeze(-2) * of_g).masked_fill(~seen, -torch.inf)
        left = left.argmax(-2, keepdim=True)
        gain = of_hull.gather(-1, right).squeeze(-1) - of_hull.gather(-2, left).squeeze(-2)
        cost = of_g.gather(-1, right).squeeze(-1) - of_g.gather(-2, left).squeeze(-2)
        root = torch.where(cost > 0, gain / cost, 1)
        share = torch.where(vertex, share, torch.minimum(share, root.clamp_min(0)))
    return 1 - share[..., :-1]


def _gaps(active: Tensor) -> tuple[Tensor, Tensor]:
    """For each class: the last active edge at or below it, the first active edge above it."""
    classes = active.shape[-1]
    index = torch.arange(classes, device=active.device).expand(active.shape)
    left = torch.where(active, index, 0).cummax(-1).values
    above = torch.where(active, index, classes).flip(-1).cummin(-1).values.flip(-1)
    right = torch.nn.functional.pad(above[..., 1:], (0, 1), value=classes)
    return left, right


def _levels(activation: Tensor) -> tuple[Tensor, Tensor]:
    """The activation times in order, (..., C), and P(Z from this one up to the next)."""
    level = activation.sort(-1).values
    return level, torch.diff(level, append=torch.ones_like(level[..., :1])).clamp_min(0)


def _winner_slope(u: Tensor, g: Tensor, activation: Tensor) -> Tensor:
    """winner / draft in every class: the slope of G's chord over the class's pool, averaged over Z."""
    level, weight = _levels(activation)
    left, right = _gaps(activation.unsqueeze(-2) <= level.unsqueeze(-1))
    u, g = (edge.unsqueeze(-2).expand(*left.shape[:-1], -1) for edge in (u, g))
    width = u.gather(-1, right) - u.gather(-1, left)
    rise = g.gather(-1, right) - g.gather(-1, left)
    slope = torch.where(width > 0, rise / width, 0)
    return (weight.unsqueeze(-1) * slope).sum(-2)


def _heap(u: Tensor, r: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Activation times and slopes, (..., C) each, by removal: exact for any C, O(C log C).

    At s = 0 every edge inside a block is a vertex of T - s G, since T is convex in U. As s grows the
    vertices leave one at a time, and each that leaves changes the times of its two neighbours only.
    """
    edges = torch.stack([u, r, g], -2).reshape(-1, 3, u.shape[-1])
    rows = [_heap_row(*row) for row in edges.tolist()]
    found = torch.tensor(rows, dtype=torch.float64, device=u.device)
    times, slopes = found.view(*u.shape[:-1], 2, -1).unbind(-2)
    return times, slopes


def _heap_row(u: list[float], r: list[float], g: list[float]) -> tuple[list[float], list[float]]:
    """Activation times and slopes of one row (C each), from the masses below its C + 1 edges."""
    edges, corners = _corners(u, r, g)
    tau = [0.0] * (len(u) - 1)
    slope = [0.0] * (len(u) - 1)
    position = {edge: index for index, edge in enumerate(edges)}
    for first, last in itertools.pairwise(corners):
        block = edges[position[first] : position[last] + 1]
        run = r[last] - r[first]
        rate = (g[last] - g[first]) / run if run > 0 else 0.0
        # Where R stands still, at tokens that the target never says, every edge is a vertex.
        hull = [g[first] + rate * (r[j] - r[first]) if run > 0 else g[j] for j in block]
        times, slopes = _remove([u[j] for j in block], hull, [g[j] for j in block])
        for edge, time, rise in zip(block[:-1], times, slopes, strict=True):
            tau[edge], slope[edge] = time, rise
    for j in range(1, len(tau)):
        if u[j] == u[j - 1]:
            tau[j], slope[j] = tau[j - 1], slope[j - 1]
    return tau, slope


def _corners(u: list[float], r: list[float], g: list[float]) -> tuple[list[int], list[int]]:
    """The edges that differ in U, and those of them on the concave hull of (R, G)."""
    # Edges with no draft mass between them are one edge, or their times would differ by rounding.
    edges = [j for j in range(len(u)) if j == 0 or u[j] > u[j - 1]]
    corners: list[int] = []
    for j in edges:
        while len(corners) > 1:
            a, b = corners[-2:]
            if (g[b] - g[a]) * (r[j] - r[b]) > (g[j] - g[b]) * (r[b] - r[a]):
                break
            corners.pop()
        corners.append(j)
    return edges, corners


class RowPlan:
    """The binned plan of one row (V,) for one draw, without the times: O(V + C), on a CPU.

    The edges with tau <= Z are the vertices of the lower hull of T - (1 - Z) G, and inside a block of
    T the winner's distribution is a multiple of the target's.
    """

    def __init__(self, draft: Tensor, target: Tensor, k: int, classes: int) -> None:
        self.cell = cells(draft, target)
        pair = (torch.bincount(self.cell, probs.double(), CELLS) for probs in (draft, target))
        masses = torch.stack([*pair])
        below = masses.cumsum(-1)
        drafted, covered = below / below[:, -1:]
        self.class_of = grouped(drafted, covered, k, classes)
        below = (
            masses.new_zeros(2, classes + 1).index_add_(-1, self.class_of + 1, masses).cumsum(-1)
        )
        u, r = (below / below[:, -1:]).numpy()
        edges, corners = _corners(u.tolist(), r.tolist(), (u**k).tolist())
        self.edges, self.block = edges, np.searchsorted(edges, corners).tolist()
        u, r, g = u[edges], r[edges], u[edges] ** k
        run, rise = (np.diff(of[self.block]) for of in (r, g))
        rate = np.divide(rise, run, out=np.zeros_like(run), where=run > 0).repeat(
            np.diff(self.block)
        )
        # Where the target's mass stands still, and the rate is 0, T is G.
        won = np.where(rate > 0, rate * np.diff(r), np.diff(g))
        self.slope = np.zeros(classes)  # winner / draft
        self.slope[: edges[-1]] = (won / np.diff(u)).repeat(np.diff(edges))
        self.points = u, r, g, rate

    def draw(self, tokens: tuple[int, ...], z: float, ties: list[float]) -> tuple[int, float]:
        """The place of the draft that wins, and winner / draft there."""
        classes = self.class_of[self.cell[torch.tensor(tokens)].long()].tolist()
        highest = bisect.bisect_right(self.edges, max(classes)) - 1
        end = bisect.bisect_right(self.block, highest)
        start = self.block[end - 1]
        u, r, g, rate = (part[start : self.block[end] + 1] for part in self.points)
        height = (rate[0] * r if rate[0] > 0 else g) - (1 - z) * g
        kept, rises, x, y = [start], [-math.inf], [u[0]], [height[0]]
        for j, (a, b) in enumerate(zip(u.tolist(), height.tolist(), strict=True)):
            if j == 0:
                continue
            while (rise := (b - y[-1]) / (a - x[-1])) <= rises[-1]:
                del kept[-1], rises[-1], x[-1], y[-1]
            kept.append(start + j)
            rises.append(rise)
            x.append(a)
            y.append(b)
        floor = self.edges[kept[bisect.bisect_right(kept, highest) - 1]]
        place = max((tie, i) for i, tie in enumerate(ties) if classes[i] >= floor)[1]
        return place, float(self.slope[classes[place]])

    def winner(self, draft: Tensor) -> Tensor:
        """The distribution of the winner, (V,), in the precision of `draft`."""
        slope = draft.new_tensor(self.slope)[self.class_of]
        return slope.index_select(-1, self.cell).mul_(draft)


def _remove(u: list[float], hull: list[float], g: list[float]) -> tuple[list[float], list[float]]:
    """tau = 1 - s of each lower edge of one block, where s is when it leaves the hull; and the slopes.

    The slope of a class is the slope of G's chord over the pool that holds the class, averaged over s.
    Pools only merge, so they form a tree. earned[pool] is its chord's slope times the time it stood;
    the slope of a class is the sum of that over all the pools that ever held it.
    """
    classes = len(u) - 1
    before = list(range(-1, classes))
    after = list(range(1, classes + 2))

    def leaves(j: int) -> float:
        a, b = before[j], after[j]
        back, ahead = u[j] - u[a], u[b] - u[j]
        cost = (g[b] - g[j]) / ahead - (g[j] - g[a]) / back
        gain = (hull[b] - hull[j]) / ahead - (hull[j] - hull[a]) / back
        return min(1.0, max(0.0, gain / cost)) if cost > 0 else 1.0

    chord = [(g[c + 1] - g[c]) / (u[c + 1] - u[c]) for c in range(classes)]
    since = [0.0] * classes
    earned = [0.0] * classes
    parent = [-1] * classes
    pool = list(range(classes))  # the pool that starts at each edge still standing
    current = [1.0, *(leaves(j) for j in range(1, classes)), 1.0]
    queue = [(current[j], j) for j in range(1, classes)]
    heapq.heapify(queue)
    now = 0.0
    tau = [0.0] * classes
    while queue:
        s, j = heapq.heappop(queue)
        if s != current[j] or before[j] == after[j]:
            continue
        if s >= 1:
            break
        now = max(now, s)
        tau[j] = 1 - now
        a, b = before[j], after[j]
        merged = len(chord)
        for part in (pool[a], pool[j]):
            earned[part] = (now - since[part]) * chord[part]
            parent[part] = merged
        chord.append((g[b] - g[a]) / (u[b] - u[a]))
        since.append(now)
        earned.append(0.0)
        parent.append(-1)
        pool[a] = merged
        after[a], before[b] = b, a
        before[j] = after[j] = j
        for neighbour in (a, b):
            if 0 < neighbour < classes:
                current[neighbour] = max(now, leaves(neighbour))
                heapq.heappush(queue, (current[neighbour], neighbour))
    for part in reversed(range(len(chord))):
        if parent[part] < 0:
            earned[part] = (1 - since[part]) * chord[part]
        else:
            earned[part] += earned[parent[part]]
    return tau, earned[:classes]

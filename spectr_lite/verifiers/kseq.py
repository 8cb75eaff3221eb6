"""K-SEQ: look at the drafts one after another, with a discounted acceptance test.

    beta(rho) = sum_x min(draft(x), target(x) / rho),      p_acc(rho) = 1 - (1 - beta)^k,  1 <= rho <= k
    accept X_i with probability min(1, target(X_i) / (rho draft(X_i))), for i = 1..k;
    if none is accepted,  Y ~ [target - min(draft, target / rho) p_acc / beta] / (1 - p_acc)

Lossless for every rho >= rho*, the root of p_acc(rho) = rho beta(rho). The loop accepts most at rho*,
which a CPU finds to rounding; a GPU takes the next step of a fine grid above it:
    P(Y in S) = p_acc(rho*)  >=  [1 - (1 - 1/k)^k] sum_x min(target, k draft)      at rho = rho*
At a larger rho the residual may draw a refused draft, so that P(Y in S) can be larger there.
Source: Algorithm 2 and Theorem 1 of SpecTr (arXiv 2310.15141). Explained in chapter 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from spectr_lite.distributions import Drafting, fixed_point, probability_of
from spectr_lite.verifiers import paths
from spectr_lite.verifiers.coupling import left_over
from spectr_lite.verifiers.nodes import Drafts, NodeVerifier, Parameters, first_passing

MOST_STEPS = 100
ROUNDING = 1e-15  # Newton's method stops when p_acc - rho beta is zero to rounding
SINGLE = 4e-6  # a sum in float32 is right to this share: some 40 roundings in a row, of 2^-24 each
WIDTH = {torch.float32: 1e-6, torch.float64: 1e-13}  # of the last bracket: what p_acc may lose
PIECE = 2**15  # tokens
STEPS = 2**15  # of the grid k^(g / STEPS): p_acc is less than 5e-5 below its best for k <= 64


def acceptance_of_one(draft: Tensor, target: Tensor, rho: Tensor) -> Tensor:
    """beta(rho) = sum_x min(draft(x), target(x) / rho), shape (...)."""
    return torch.minimum(draft, target / rho.unsqueeze(-1)).sum(-1, dtype=torch.float64).clamp(0, 1)


def acceptance_of_any(beta: Tensor, k: Tensor | int) -> Tensor:
    """p_acc = 1 - (1 - beta)^k. expm1 and log1p keep a beta of 1e-9 from rounding to nothing."""
    return -torch.expm1(k * torch.log1p(-beta))


def acceptance_share(beta: Tensor, k: Tensor | int) -> Tensor:
    """c = p_acc / beta, from 1 to k: K-SEQ emits a token from S with c min(draft, target / rho)."""
    return torch.where(beta > 0, acceptance_of_any(beta, k) / beta, k)


def optimal_rho(draft: Tensor, target: Tensor, k: Tensor | int) -> Tensor:
    """rho*, the smallest rho for which K-SEQ is lossless; shape (...), float64. O(V) a step, no sort.

    `k` may be a tensor (...), one number of drafts per row. Let S(rho) = rho beta(rho) =
    sum_x min(rho draft, target), and let A = dS/drho be the draft mass of the tokens with
    rho draft < target. Newton's method from rho = 1 finds the root of
        h(rho) = p_acc - S,      -h' = k (1 - beta)^(k-1) (beta - A) / rho + A
    inside a bracket; a step that leaves the bracket is replaced by its middle. S grows with rho,
    psi(S) = S / (1 - (1 - S)^(1/k)) falls from k to 1, and rho* = psi(S(rho*)). So rho* lies between
    rho and psi(S(rho)) for any rho: both narrow the bracket, and its upper end, which is the answer,
    is lossless after any number of steps.

        >>> round(optimal_rho(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75]), 2).item(), 4)
        1.309
    """
    draft, target = draft.to(torch.float64), target.to(torch.float64)
    k = torch.as_tensor(k, dtype=torch.float64, device=draft.device)
    lead = torch.broadcast_shapes(draft.shape[:-1], target.shape[:-1], k.shape)
    low, high = torch.ones_like(k).expand(lead), k.expand(lead)
    following = low
    for _ in range(MOST_STEPS):
        rho = following
        scaled = rho.unsqueeze(-1) * draft
        total = torch.minimum(scaled, target).sum(-1).clamp_max(1)
        above = torch.where(scaled < target, draft, 0.0).sum(-1)
        beta = (total / rho).clamp_max(1)
        missed = (1 - beta) ** (k - 1)
        excess = 1 - (1 - beta) * missed - total
        one = -torch.expm1(torch.log1p(-total) / k)  # the beta of which p_acc would be `total`
        other = torch.where(one > 0, total / one, 1.0)
        below = excess > 0
        low = torch.where(below, rho, torch.maximum(low, other))
        high = torch.where(below, torch.minimum(high, other), rho)
        if bool(((excess.abs() < ROUNDING) | (low >= high)).all()):
            break
        newton = rho + excess / (k * missed * (beta - above) / rho + above)
        inside = newton.clamp(low, high) == newton  # False for what is no number
        following = torch.where(inside, newton, (low + high) / 2)
    return high.clamp(1.0, None).minimum(k)


def stake(total: float, k: int) -> float:
    """psi(S) = S / (1 - (1 - S)^(1/k)) for a number S, falling from k to 1."""
    if not 0 < total < 1:
        return 1.0 if total > 0 else float(k)
    return total / -math.expm1(math.log1p(-total) / k)


def covered(draft: Tensor, target: Tensor, rho: float) -> float:
    """S(rho) of one row (V,) in float64; in pieces, as fresh memory beyond a megabyte is slow."""
    pieces = zip(draft.split(PIECE), target.split(PIECE), strict=True)
    return sum(torch.minimum(p.double() * rho, q.double()).sum().item() for p, q in pieces)


def narrowed(
    sum_at: Callable[[float], float],
    k: int,
    bracket: tuple[float, float],
    error: float,
    enough: Callable[[float, float], bool],
) -> tuple[float, float]:
    """A bracket of rho* for one row, inside `bracket` and narrowed until it is `enough`.

    The secant rule for psi(S(rho)) = rho. rho* lies between rho and psi(S(rho)); each sum S, which
    `sum_at` gives, is trusted to a share of `error` only: the bracket holds rho* in float32 too.
    """
    low, high = bracket
    rho, before = math.sqrt(low * high), (0.0, 0.0)
    for step in range(MOST_STEPS):
        if enough(low, high):
            break
        total = sum_at(rho)
        least, most = stake(total * (1 + error), k), stake(total * (1 - error), k)
        low, high = max(low, min(rho, least)), min(high, max(rho, most))
        if least <= rho <= most or low >= high:
            break
        miss = stake(total, k) - rho
        change = (before[0] - rho) / (before[1] - miss) if step and before[1] != miss else -1.0
        before, rho = (rho, miss), rho - miss * change
        if not low <= rho <= high:
            rho = (low + high) / 2
    return low, high


def stepped_rho(draft: Tensor, target: Tensor, k: Tensor | int) -> Tensor:
    """The smallest of k^(g / STEPS), g = 0..STEPS, with p_acc <= rho beta; shape (...), float64. O(V).

    So rho >= rho*, and p_acc is at most (1 - 1/k)^(k-1) log(k) / STEPS below its best (proofs page).
    Fixed shapes, no value read. At an edge rho of bins of target/draft, with Q the target's mass up
    to it and P the draft's mass beyond it, beta(rho) = Q / rho + P is exact; so two histograms
    suffice, one of 256 bins and one of 128 bins inside the bin that was found.

        >>> round(stepped_rho(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75]), 2).item(), 4)
        1.309
    """
    k = torch.as_tensor(k, dtype=torch.float64, device=draft.device).clamp_min(1)
    lead = torch.broadcast_shapes(draft.shape[:-1], target.shape[:-1], k.shape)
    k = k.expand(lead).unsqueeze(-1)
    octaves = k.log2()
    ratio = (target.to(torch.float64) / draft).log2() / octaves.clamp_min(1e-300) * STEPS
    masses = [fixed_point(probs).expand(*lead, -1) for probs in (draft, target)]
    start = torch.zeros_like(k)
    for width, bins in ((STEPS // 256, 256), (1, STEPS // 256)):
        # A token of ratio r is in bin c when edge c is the first at or above r; the last has no edge.
        bin_of = ((ratio - start) / width).ceil().nan_to_num(0.0).clamp(0, bins + 1).long()
        empty = torch.zeros(*lead, bins + 2, dtype=torch.int64, device=draft.device)
        drafted, covered = (
            empty.scatter_add(-1, bin_of, mass).cumsum(-1).double() * 2.0**-60 for mass in masses
        )
        edge = torch.arange(bins + 1, device=draft.device)
        rho = torch.exp2((start + edge * width) / STEPS * octaves)
        beta = covered[..., :-1] / rho + (drafted[..., -1:] - drafted[..., :-1])
        safe = acceptance_share(beta.clamp_max(1), k) <= rho
        safe = safe | (edge == bins)
        first = safe.to(torch.int8).argmax(-1, keepdim=True)
        # Edge 0 of the whole grid may be the answer; otherwise the answer ends the bin found.
        start = start + (first - 1).clamp_min(0) * width if width > 1 else start
    return rho.gather(-1, first).squeeze(-1)


def bisected_rho(draft: Tensor, target: Tensor, k: int, halvings: int = 60) -> Tensor:
    """rho* by bisection of [1, k], as the paper finds it; shape (...), float64. O(V) a halving.

    Returns the UPPER end of the last bracket: below rho* the residual has negative mass.
    """
    low = torch.ones(draft.shape[:-1], dtype=torch.float64, device=draft.device)
    high = torch.full_like(low, k)
    for _ in range(halvings):
        middle = (low + high) / 2
        beta = acceptance_of_one(draft, target, middle)
        positive = acceptance_of_any(beta, k) > middle * beta
        low, high = torch.where(positive, middle, low), torch.where(positive, high, middle)
    return high


def residual(draft: Tensor, target: Tensor, rho: Tensor, k: Tensor | int) -> Tensor:
    """What Y follows once all k drafts are rejected, (..., V), unnormalised: its mass is 1 - p_acc."""
    share = acceptance_share(acceptance_of_one(draft, target, rho), k)
    kept = torch.minimum(draft, target / rho.unsqueeze(-1)).to(torch.float64)
    return left_over(target, kept * share.unsqueeze(-1))


def guarantee(draft: Tensor, target: Tensor, k: int) -> Tensor:
    """Theorem 1's lower bound [1 - (1 - 1/k)^k] sum_x min(target, k draft), shape (...)."""
    return (1 - (1 - 1 / k) ** k) * torch.minimum(target, k * draft).sum(-1)


class KSeq(NodeVerifier):
    """K-SEQ at rho*, or at a given rho >= rho* (a number, the same for every row)."""

    name = "kseq"

    def __init__(self, rho: float | None = None) -> None:
        self.rho = rho

    def _rho(self, draft: Tensor, target: Tensor, k: Tensor, most: int) -> Tensor:
        """rho of each row, (...), with k of `most` drafts alive."""
        if self.rho is not None:
            return torch.full(draft.shape[:-1], self.rho, dtype=torch.float64, device=draft.device)
        if most == 1:
            lead = torch.broadcast_shapes(draft.shape[:-1], target.shape[:-1], k.shape)
            return torch.ones(lead, dtype=torch.float64, device=draft.device)
        if draft.ndim == target.ndim == 1:
            # One pair and many tuples: one root for each number of drafts, not one for each tuple.
            counts, rows = k.unique(return_inverse=True)
            return optimal_rho(draft, target, counts)[rows]
        find = optimal_rho if draft.device.type in paths.SYNC_IS_FREE else stepped_rho
        return find(draft, target, k)

    def _acceptance(self, draft: Tensor, target: Tensor, k: int, drafting: Drafting) -> Tensor:
        """p_acc + P(the residual hits a rejected draft); the second term is 0 at rho*."""
        rho = self._rho(draft, target, torch.as_tensor(k, device=draft.device), k)
        beta = acceptance_of_one(draft, target, rho)
        in_loop = acceptance_of_any(beta, k)
        if self.rho is None:
            return in_loop
        refused = draft - torch.minimum(draft, target / rho.unsqueeze(-1))
        refused = refused / (1 - beta).clamp_min(torch.finfo(torch.float64).tiny).unsqueeze(-1)
        hit = residual(draft, target, rho, k) * acceptance_of_any(refused.clamp(0, 1), k)
        return in_loop + hit.sum(-1)

    def _given_drafts(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        k = (tokens >= 0).sum(-1)
        rho = self._rho(draft, target, k, tokens.shape[-1])
        scaled = rho.unsqueeze(-1) * probability_of(draft, tokens)
        accept = torch.where(scaled > 0, probability_of(target, tokens) / scaled, 0.0).clamp_max(1)
        reached = torch.cumprod(1 - accept, -1)
        first = accept * torch.cat([torch.ones_like(reached[..., :1]), reached[..., :-1]], -1)
        left = residual(draft, target, rho, k)
        total = left.sum(-1, keepdim=True)
        corrected = torch.where(total > 0, reached[..., -1:] * left / total, 0.0)
        return corrected.scatter_add(-1, tokens.clamp_min(0).expand_as(first), first)

    def _parameters(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Parameters:
        k = (tokens >= 0).sum(-1)
        rho = self._rho(draft, target, k, tokens.shape[-1])
        return rho.unsqueeze(-1), k.unsqueeze(-1)

    def _accepted(
        self, parameters: Parameters, draft: Tensor, target: Tensor, tokens: Tensor, coins: Tensor
    ) -> Tensor:
        # Strict, and without dividing: a token the target never says is never accepted.
        tested = coins * parameters[0] * probability_of(draft, tokens)
        return first_passing(tested < probability_of(target, tokens))

    def _left(self, parameters: Parameters, draft: Tensor, target: Tensor) -> Tensor:
        rho, k = (part.squeeze(-1) for part in parameters)
        return residual(draft, target, rho, k)

    def _row(
        self, draft: Tensor, target: Tensor, drafts: Drafts, coins: list[float]
    ) -> tuple[int, Tensor | None]:
        """A draft is accepted as soon as both ends of the bracket of rho* accept it.

        In float32 until then. If that does not tell, rho is the upper end of a bracket in float64.
        """

        def accepted(rho: float) -> int:
            tested = enumerate(zip(*drafts[1:], coins, strict=True))
            return next((i for i, (p, q, coin) in tested if coin * rho * p < q), -1)

        def told(low: float, high: float) -> bool:
            return accepted(low) == accepted(high) >= 0

        k, scaled = len(drafts[0]), torch.empty_like(draft)

        def single(rho: float) -> float:
            return torch.minimum(torch.mul(draft, rho, out=scaled), target, out=scaled).sum().item()

        bracket = (1.0, float(k)) if self.rho is None else (self.rho, self.rho)
        if bracket[0] < bracket[1] and draft.dtype == torch.float32:
            bracket = narrowed(single, k, bracket, SINGLE, told)
        if bracket[0] < bracket[1] and not told(*bracket):
            double, width = partial(covered, draft, target), WIDTH[draft.dtype]
            bracket = narrowed(double, k, bracket, 0.0, lambda a, b: b - a <= width * b)
        rho = bracket[1]
        place = accepted(rho)
        if place >= 0:
            return drafts[0][place], None
        beta = torch.tensor(covered(draft, target, rho) / rho, dtype=torch.float64).clamp(0, 1)
        share = float(acceptance_share(beta, k))
        left = torch.sub(target, draft, alpha=share)
        return -1, torch.maximum(left, target * max(1 - share / rho, 1e-30), out=left)

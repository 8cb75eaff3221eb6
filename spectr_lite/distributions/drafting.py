"""How the k drafts of a node are drawn. A selection rule is only valid for the drafting it is made for.

    IID()                 X_1, ..., X_k independent from the draft
    WithoutReplacement()  Plackett-Luce: each from the draft without the earlier ones, renormalised
    TopM(m)               the m likeliest tokens for certain, then k - m i.i.d. from the others

`TopM(m)` with m >= k is the deterministic top-k of EAGLE-2 (arXiv 2406.16858). Explained in chapter 3.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from spectr_lite.distributions.vectors import check_count, sample

ENUMERATION_LIMIT = 5_000_000  # tuples x vocabulary: 40 MB in float64
MANY = 1_000.0  # exp(-1,000) is 0; an infinite rate would make 0 x inf


class TooManyTuples(ValueError):
    """An enumeration would need more numbers than its limit allows."""


class Drafting(ABC):
    """The joint distribution of k drafted tokens. `draft`, `target`: probabilities, (..., V).

    S is the set of drafted tokens. A worst set is a set A of tokens that maximises
    P(S subset of A) - target(A); it decides the optimum (`optimal_acceptance`).

        >>> p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        >>> order = torch.tensor([0, 1, 2])
        >>> IID().containment(p, order, 2)
        tensor([0.2500, 0.6400, 1.0000], dtype=torch.float64)
        >>> WithoutReplacement().containment(p, order, 2).round(decimals=4)
        tensor([0.0000, 0.5143, 1.0000], dtype=torch.float64)
        >>> TopM(1).containment(p, order, 2)
        tensor([0.0000, 0.6000, 1.0000], dtype=torch.float64)
    """

    @abstractmethod
    def sample(self, draft: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """Drafted ids, (..., k); -1 where the draft has no further token to give."""

    @abstractmethod
    def tuples(
        self, draft: Tensor, k: int, limit: int = ENUMERATION_LIMIT
    ) -> tuple[Tensor, Tensor]:
        """Every tuple of drafted ids (N, k) and its probability (N,), for one tiny draft (V,).

        Raises TooManyTuples, a ValueError, when N V exceeds `limit`.

            >>> tokens, mass = TopM(1).tuples(torch.tensor([0.5, 0.25, 0.25]), 2)
            >>> tokens.tolist(), mass.tolist()
            ([[0, 0], [0, 1], [0, 2]], [0.0, 0.5, 0.5])
        """

    def order(self, draft: Tensor, target: Tensor, k: int) -> Tensor:
        """All token ids (..., V), in an order of which some prefix is a worst set for `target`."""
        return by_ratio(draft, target)

    @abstractmethod
    def containment(self, draft: Tensor, order: Tensor, k: int) -> Tensor:
        """P(S subset of A) for A = the first 1, 2, ..., V tokens of `order`; shape (..., V)."""


def check_drafting(drafting: Drafting | None) -> Drafting:
    """`drafting`, or IID() for None; TypeError for anything else."""
    if drafting is not None and not isinstance(drafting, Drafting):
        raise TypeError(f"drafting: expected a Drafting such as IID(), found {drafting!r}.")
    return drafting or IID()


def by_ratio(draft: Tensor, target: Tensor) -> Tensor:
    """Token ids (..., V) by target/draft ascending, tokens that are never drafted last."""
    largest = torch.finfo(
        draft.dtype
    ).max  # a ratio that overflows still comes before "never drafted"
    return torch.where(draft > 0, (target / draft).clamp_max(largest), torch.inf).argsort(dim=-1)


def ranks(order: Tensor) -> Tensor:
    """The position of each token id in `order`, (..., V): the inverse permutation."""
    position = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter(-1, order, position)


def tail_mass(ordered: Tensor) -> Tensor:
    """Mass after each position (..., V), summed from the end: a tiny tail keeps its digits."""
    backwards = ordered.flip(-1).cumsum(-1, dtype=torch.float64).flip(-1)
    return torch.cat([backwards[..., 1:], torch.zeros_like(backwards[..., :1])], -1)


def spelled(count: int) -> str:
    """`count` for a message: 1,234,567, or 10^1234 for a number too long to read."""
    return f"{count:,}" if count < 1e15 else f"10^{math.log10(count):.0f}"


def check_enumeration(tuples: int, vocabulary: int, limit: int = ENUMERATION_LIMIT) -> None:
    """Raises TooManyTuples where `tuples` x `vocabulary` numbers are more than `limit`."""
    if tuples * vocabulary > limit:
        raise TooManyTuples(
            f"k: enumeration needs {spelled(tuples)} tuples x {vocabulary} tokens, more than "
            f"{limit:,} numbers. Use a smaller vocabulary or fewer drafts, or sample."
        )


@dataclass(frozen=True)
class IID(Drafting):
    """X_1, ..., X_k independent from the draft. P(S subset of A) = draft(A)**k."""

    def sample(self, draft: Tensor, k: int, generator: torch.Generator) -> Tensor:
        return sample(draft, generator, count=k)

    def tuples(
        self, draft: Tensor, k: int, limit: int = ENUMERATION_LIMIT
    ) -> tuple[Tensor, Tensor]:
        vocabulary = draft.shape[-1]
        check_enumeration(vocabulary**k, vocabulary, limit)
        axes = torch.meshgrid(*[torch.arange(vocabulary)] * k, indexing="ij")
        tokens = torch.stack([axis.flatten() for axis in axes], -1)
        return tokens, draft[tokens].prod(-1)

    def containment(self, draft: Tensor, order: Tensor, k: int) -> Tensor:
        # u**k as exp(k log1p(-(1 - u))): for large k the digits that matter are those of 1 - u.
        tail = tail_mass(draft.gather(-1, order)).clamp(0, 1)
        return torch.exp(k * torch.log1p(-tail))


@dataclass(frozen=True)
class WithoutReplacement(Drafting):
    """Plackett-Luce: X_i from the draft without X_1..X_{i-1} (Sequoia, arXiv 2402.12374; RSD)."""

    def sample(self, draft: Tensor, k: int, generator: torch.Generator) -> Tensor:
        # Exponential clocks of rate draft(x): the first k to ring are k draws without replacement.
        # They tick in units of 2^-600, so that a mass of 1e-310 rings late and not never.
        shape = draft.shape
        clock = torch.empty(shape, dtype=torch.float64, device=draft.device)
        clock = clock.exponential_(2.0**600, generator=generator) / draft
        rings, tokens = clock.topk(min(k, shape[-1]), largest=False)
        tokens = tokens.masked_fill(rings.isinf(), -1)
        return torch.nn.functional.pad(tokens, (0, k - tokens.shape[-1]), value=-1)

    def tuples(
        self, draft: Tensor, k: int, limit: int = ENUMERATION_LIMIT
    ) -> tuple[Tensor, Tensor]:
        support = [x for x, mass in enumerate(draft.tolist()) if mass > 0]
        length = min(k, len(support))
        check_enumeration(math.perm(len(support), length), draft.shape[-1], limit)
        tokens = torch.tensor(list(itertools.permutations(support, length)))
        # The mass left is summed anew: 1 - 0.999999999, as a difference, would have few digits.
        left = draft.expand(len(tokens), -1)
        mass = draft.new_ones(len(tokens))
        for token in tokens.split(1, -1):
            mass = mass * (left.gather(-1, token) / left.sum(-1, keepdim=True)).squeeze(-1)
            left = left.scatter(-1, token, 0.0)
        return torch.nn.functional.pad(tokens, (0, k - length), value=-1), mass

    def containment(self, draft: Tensor, order: Tensor, k: int) -> Tensor:
        """1 - integral of lambda exp(-lambda u) P(N_A(u) < k) over u > 0, lambda = 1 - draft(A).

        Each token x has an exponential clock of rate draft(x), and the first k clocks to ring are the
        drafts. N_A(u) is the number of tokens of A whose clock rang before u. Trapezoid rule in log u
        with step 0.2, about 250 nodes of O(V k) each; error below 1e-12.
        """
        rows = draft.gather(-1, order).to(torch.float64).reshape(-1, draft.shape[-1])
        return torch.stack([_plackett_luce_containment(row, k) for row in rows]).view(draft.shape)


@dataclass(frozen=True)
class TopM(Drafting):
    """The m likeliest tokens for certain (the hub), then k - m i.i.d. draws from the others."""

    m: int

    def __post_init__(self) -> None:
        check_count(self.m, "m")

    def _hub(self, draft: Tensor, k: int) -> Tensor:
        """Ids (..., min(m, k, V)) of the certain tokens; ties go to the lower id."""
        count = min(self.m, k, draft.shape[-1])
        return draft.argsort(dim=-1, descending=True, stable=True)[..., :count]

    def _rest(self, draft: Tensor, hub: Tensor) -> Tensor:
        """The draft without its hub, renormalised, (..., V); zero when the hub holds everything."""
        rest = draft.scatter(-1, hub, 0.0)
        total = rest.sum(-1, keepdim=True)
        return torch.where(total > 0, rest / total, 0.0)

    def sample(self, draft: Tensor, k: int, generator: torch.Generator) -> Tensor:
        hub = self._hub(draft, k)
        rest = self._rest(draft, hub)
        others = sample(rest, generator, count=k - hub.shape[-1])
        others = others.masked_fill(rest.sum(-1, keepdim=True) == 0, -1)
        return torch.cat([hub, others], -1)

    def tuples(
        self, draft: Tensor, k: int, limit: int = ENUMERATION_LIMIT
    ) -> tuple[Tensor, Tensor]:
        hub = self._hub(draft, k)
        rest = self._rest(draft, hub)
        others = k - len(hub)
        if others == 0:
            return hub.unsqueeze(0), draft.new_ones(1)
        if rest.sum() == 0:
            return torch.cat([hub, hub.new_full((others,), -1)]).unsqueeze(0), draft.new_ones(1)
        tokens, mass = IID().tuples(rest, others, limit)
        return torch.cat([hub.expand(len(tokens), -1), tokens], -1), mass

    def order(self, draft: Tensor, target: Tensor, k: int) -> Tensor:
        # A set without the whole hub contains S with probability 0, so the hub goes first.
        hub = self._hub(draft, k)
        ratio = torch.where(draft > 0, target / draft, torch.inf)
        return ratio.scatter(-1, hub, -1.0).argsort(dim=-1, stable=True)

    def containment(self, draft: Tensor, order: Tensor, k: int) -> Tensor:
        count = min(self.m, k, draft.shape[-1])
        others = k - count
        ordered = draft.gather(-1, order).to(torch.float64)
        ordered[..., :count] = 0
        total = ordered.sum(-1, keepdim=True)
        tail = torch.where(total > 0, tail_mass(ordered) / total, 0.0).clamp(0, 1)
        inside = torch.exp(others * torch.log1p(-tail)) if others else torch.ones_like(tail)
        inside[..., : count - 1] = 0
        return inside


def _plackett_luce_containment(mass: Tensor, k: int, step: float = 0.2) -> Tensor:
    """P(the first k clocks to ring all belong to the first j tokens), j = 1..V; `mass` is (V,)."""
    outside = tail_mass(mass)
    drawn = min(k, int((mass > 0).sum()))
    positive = outside[outside > 0]
    if len(positive) == 0:
        return torch.ones_like(mass)
    # Only mass x time matters, and a time of 45 / 1e-310 is too large: 2^600 goes over to the masses.
    latest = math.log(45) - math.log(float(positive.min().detach()))
    grid = torch.arange(-30.0, latest + step, step, dtype=torch.float64)
    times, mass, outside = torch.exp(grid - 600 * math.log(2)), mass * 2.0**600, outside * 2.0**600
    # P(N = 0..drawn-1) is updated token by token, for blocks of about sqrt(V) tokens at once, so that
    # Python loops over about 2 sqrt(V) positions and not over V.
    width = max(1, int(len(mass) ** 0.5))
    blocks = torch.nn.functional.pad(mass, (0, -len(mass) % width)).view(-1, width)
    late = torch.nn.functional.pad(outside, (0, blocks.numel() - len(mass))).view_as(blocks)
    missed = torch.zeros_like(late)
    for part in times.split(max(1, 2_000_000 // (len(blocks) * drawn))):
        rung = torch.zeros(len(blocks), len(part), drawn, dtype=torch.float64)
        rung[..., 0] = 1  # [block, time, n]: P(n clocks of the block have rung by that time)
        for position in range(width):
            rung = _ring(rung, (blocks[:, position, None] * part).clamp_max(MANY))
        before = torch.zeros_like(rung)  # the same for all the blocks before it
        before[0, :, 0] = 1
        for block in range(1, len(blocks)):
            for j in range(drawn):
                before[block, :, j:] += (
                    before[block - 1, :, j, None] * rung[block - 1, :, : drawn - j]
                )
        for position in range(width):
            before = _ring(before, (blocks[:, position, None] * part).clamp_max(MANY))
            rate = (late[:, position, None] * part).clamp_max(MANY)
            missed[:, position] += step * (rate * torch.exp(-rate) * before.sum(-1)).sum(-1)
    return (1 - missed.flatten()[: len(mass)]).clamp(0, 1)


def _ring(rung: Tensor, exposure: Tensor) -> Tensor:
    """P(N = n), the last axis, after one more clock that rings with probability 1 - exp(-exposure)."""
    grown = rung * torch.exp(-exposure).unsqueeze(-1)
    grown[..., 1:] += rung[..., :-1] * -torch.expm1(-exposure).unsqueeze(-1)
    return grown

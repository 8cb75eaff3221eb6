"""Importance sampling: a tournament picks one draft, the winner is coupled with the target.

    champion W_1 = X_1 with distribution r_1 = draft;   match i: W_{i-1} against X_i, i = 2..k
    match       of two different tokens the first in the order of target - r_{i-1} draft, descending,
                wins; but between two of the first s tokens the win is a biased coin, whose bias solves
                    maximise sum_y min(r_i(y), target(y)),      r_i the distribution of the match's
                    winner
    output      accept W_k with probability min(1, target / r_k); otherwise  Y ~ (target - r_k)+

Lossless for any coins, because r_k is the winner's true distribution. With s >= V, two drafts reach
the optimum; beyond two each match is solved on its own, so the tournament is not optimal. With s <
V the first s tokens beat all others, wanted or not: dear where the target is spread out.
Source: Khisti et al. (arXiv 2410.18234): canonical decomposition, truncated linear program, tournament.
The paper's text was not at hand; the order, the truncation and the sequence of matches follow public
code that cites its appendix. That code has a coin for each ordered pair; one per unordered pair loses
nothing. HiGHS solves the program, one per match and pair of distributions: a rule for study, not for a
GPU.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import csr_array, eye_array, hstack
from torch import Tensor

from spectr_lite.distributions import ENUMERATION_LIMIT, Drafting, check_count
from spectr_lite.verifiers.base import Verifier
from spectr_lite.verifiers.coupling import couple_winner


def match(champion: np.ndarray, draft: np.ndarray, target: np.ndarray, s: int):
    """One match: rank (V,), coins (s, s) = P(row token wins), and the winner's distribution (V,)."""
    order = np.argsort(-(target - champion * draft), kind="stable")
    r, p, q = champion[order], draft[order], target[order]
    behind_r, behind_p = 1 - np.cumsum(r), 1 - np.cumsum(p)
    probs = r * p + r * behind_p + p * behind_r
    s = min(s, len(q))
    coins = np.triu(np.ones((s, s)), 1)
    first, second = np.triu_indices(s, 1)
    mass = r[first] * p[second] + p[first] * r[second]
    if mass.sum() > 0:
        # The mass of every pair that goes to its first token, and accepted mass a <=
        # min(distribution, target).
        certain = probs[:s] - np.bincount(first, mass, s)
        pairs = len(mass)
        column = np.arange(pairs)
        gained = csr_array(
            (np.r_[-np.ones(pairs), np.ones(pairs)], (np.r_[first, second], np.r_[column, column])),
            shape=(s, pairs),
        )
        limit = certain + np.bincount(second, mass, s)
        found = linprog(
            np.r_[np.zeros(pairs), -np.ones(s)],
            A_ub=hstack([gained, eye_array(s)]),
            b_ub=limit,
            bounds=np.r_[np.c_[np.zeros(pairs), mass], np.c_[np.full(s, -1.0), q[:s]]],
            method="highs",
        )
        if found.status == 0:  # otherwise the first of the two wins, which is a rule too
            share = np.clip(found.x[:pairs], 0, mass)
            coins[first, second] = np.where(mass > 0, share / np.where(mass > 0, mass, 1), 1)
            taken = coins[first, second] * mass
            probs[:s] = (
                certain + np.bincount(first, taken, s) + np.bincount(second, mass - taken, s)
            )
    coins[second, first] = 1 - coins[first, second]
    rank = np.empty(len(q), dtype=np.int64)
    rank[order] = np.arange(len(q))
    winner = np.clip(probs, 0, None)[rank]
    return rank, coins, winner / winner.sum()


class Importance(Verifier):
    """Importance-weighted tournament; the program of a match ranges over `truncation` tokens."""

    name = "importance"

    def __init__(self, truncation: int = 20) -> None:
        self.truncation = check_count(truncation, "truncation")

    def _tournament(self, draft: np.ndarray, target: np.ndarray, k: int):
        """The matches 2..k, and the champion's distribution after 1..k drafts, (k, V)."""
        distributions, matches = [draft], []
        for _ in range(k - 1):
            rank, coins, probs = match(distributions[-1], draft, target, self.truncation)
            matches.append((rank, coins))
            distributions.append(probs)
        return matches, np.stack(distributions)

    def _acceptance(
        self, draft: Tensor, target: Tensor, k: int, drafting: Drafting | None = None
    ) -> Tensor:
        """P(Y in S) by enumeration where V^(k+1) allows; else P(winner accepted), which P(Y in S) may
        exceed: the residual can hit a draft that lost."""
        if draft.shape[-1] ** (k + 1) <= ENUMERATION_LIMIT:
            return super()._acceptance(draft, target, k, drafting)
        rows = zip(*(_rows(values) for values in (draft, target)), strict=True)
        distributions = [self._tournament(p, q, k)[1][-1] for p, q in rows]
        winner = torch.as_tensor(np.stack(distributions), device=draft.device).view(draft.shape)
        return torch.minimum(winner, target).sum(-1)

    def _given_drafts(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        lead = torch.broadcast_shapes(draft.shape[:-1], target.shape[:-1], tokens.shape[:-1])
        vocabulary, width = draft.shape[-1], tokens.shape[-1]
        both = torch.cat([draft.expand(*lead, -1), target.expand(*lead, -1)], -1)
        pairs, row = torch.unique(both.reshape(-1, 2 * vocabulary), dim=0, return_inverse=True)
        drafted = tokens.expand(*lead, -1).reshape(-1, width)
        probs = draft.new_zeros(len(drafted), vocabulary)
        for index, pair in enumerate(pairs.double().cpu().numpy()):
            matches, champions = self._tournament(pair[:vocabulary], pair[vocabulary:], width)
            mine = row == index
            probs[mine] = _play(
                torch.as_tensor(pair[vocabulary:], dtype=probs.dtype, device=probs.device),
                torch.as_tensor(champions, dtype=probs.dtype, device=probs.device),
                matches,
                drafted[mine],
            )
        return probs.view(*lead, vocabulary)


def _rows(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy().reshape(-1, values.shape[-1])


def _play(target: Tensor, champions: Tensor, matches: list, tokens: Tensor) -> Tensor:
    """The distribution of Y for each tuple of `tokens` (N, k); champions (k, V)."""
    # Living drafts first: the number of matches a row plays is the number of drafts it has.
    tokens = tokens.gather(-1, (tokens < 0).to(torch.int8).argsort(dim=-1, stable=True))
    chance = torch.zeros(tokens.shape, dtype=target.dtype, device=tokens.device)
    chance[:, 0] = 1  # P(draft i is the champion)
    for i, (rank, coins) in enumerate(matches, start=1):
        rank = torch.as_tensor(rank, device=tokens.device)
        coins = torch.as_tensor(coins, dtype=target.dtype, device=tokens.device)
        s = len(coins)
        place = rank[tokens.clamp_min(0)]
        held, new = place[:, :i], place[:, i : i + 1]
        tossed = coins[new.clamp_max(s - 1), held.clamp_max(s - 1)]
        wins = torch.where((held < s) & (new < s), tossed, (new < held).to(target.dtype))
        wins = torch.where((held == new) | (tokens[:, i : i + 1] < 0), 0.0, wins)
        lost = chance[:, :i] * wins
        chance[:, :i] -= lost
        chance[:, i] = lost.sum(-1)
    winner = champions[(tokens >= 0).sum(-1) - 1]
    return couple_winner(chance, winner, target, tokens)

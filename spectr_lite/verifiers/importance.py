"""Importance sampling: a tournament picks one draft, the winner is coupled with the target.

    champion  W_1 = X_1 with distribution r_1 = draft;   match i: W_{i-1} against X_i, i = 2..k
    match     tokens stand in the order of target - r_{i-1} draft, descending. Of two different tokens
              the earlier wins; but between two of the first s, a coin decides, whose bias solves
                  maximise sum_y min(r_i(y), target(y)),    r_i the distribution of the winner W_i
    output    accept W_k with probability min(1, target / r_k); otherwise  Y ~ (target - r_k)+

Lossless for any coins, because r_k is the winner's true distribution. With s >= V, two drafts reach
the optimum; with more, each match is solved on its own, so the tournament is not optimal. With s < V
the first s tokens beat all others, however little the target wants them; that costs most where the
target is spread over many tokens.
Source: Khisti et al. (arXiv 2410.18234): canonical decomposition, truncated linear program, tournament.
The paper's text was not at hand; the order, the truncation and the sequence of matches follow public
code that cites its appendix. That code has a coin for each ordered pair; one per unordered pair loses
nothing. HiGHS solves one linear program for each match and each pair of distributions, so the rule is
for study and not for a GPU. Explained in chapter 5.
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

Match = tuple[np.ndarray, np.ndarray]  # rank (V,) of each token; coins (s, s), P(row's token wins)


def match(
    champion: np.ndarray, draft: np.ndarray, target: np.ndarray, s: int
) -> tuple[Match, np.ndarray]:
    """The match of a token drawn from `champion` against one from `draft`, and its winner's (V,)."""
    order = np.argsort(-(target - champion * draft), kind="stable")
    r, p, q = champion[order], draft[order], target[order]
    behind_r, behind_p = 1 - np.cumsum(r), 1 - np.cumsum(p)
    probs = r * p + r * behind_p + p * behind_r
    s = min(s, len(q))
    coins = np.triu(np.ones((s, s)), 1)
    first, second = np.triu_indices(s, 1)
    mass = r[first] * p[second] + p[first] * r[second]
    if mass.sum() > 0:
        # Variables: the mass of each pair that goes to its first token; and -a for each token, where
        # its accepted mass a is at most min(winner, target).
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
    rank = np.argsort(order)
    winner = np.clip(probs, 0, None)[rank]
    return (rank, coins), winner / winner.sum()


class Importance(Verifier):
    """The tournament; `truncation` is s, the number of tokens between which coins decide."""

    name = "importance"
    most_k = 64  # a linear program for each

    def __init__(self, truncation: int = 20) -> None:
        self.truncation = check_count(truncation, "truncation")

    def _tournament(
        self, draft: np.ndarray, target: np.ndarray, k: int
    ) -> tuple[list[Match], np.ndarray]:
        """The matches 2..k, and the champion's distribution after 1..k drafts, (k, V)."""
        champions, matches = [draft], []
        for _ in range(k - 1):
            played, winner = match(champions[-1], draft, target, self.truncation)
            matches.append(played)
            champions.append(winner)
        return matches, np.stack(champions)

    def _acceptance(self, draft: Tensor, target: Tensor, k: int, drafting: Drafting) -> Tensor:
        """P(Y in S) by enumeration, up to ENUMERATION_LIMIT; beyond it P(winner accepted), which is
        less where the residual can hit a draft that lost.
        """
        if draft.shape[-1] ** (k + 1) <= ENUMERATION_LIMIT:
            return super()._acceptance(draft, target, k, drafting)
        pairs = (
            torch.stack([draft, target], -2)
            .detach()
            .double()
            .cpu()
            .numpy()
            .reshape(-1, 2, draft.shape[-1])
        )
        winners = np.stack([self._tournament(p, q, k)[1][-1] for p, q in pairs])
        winner = torch.as_tensor(winners, device=draft.device).view(draft.shape)
        return torch.minimum(winner, target).sum(-1)

    def _given_drafts(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        lead = torch.broadcast_shapes(draft.shape[:-1], target.shape[:-1], tokens.shape[:-1])
        vocabulary, width = draft.shape[-1], tokens.shape[-1]
        both = torch.stack([draft.expand(*lead, -1), target.expand(*lead, -1)], -2)
        pairs, row = both.reshape(-1, 2, vocabulary).unique(dim=0, return_inverse=True)
        drafted = tokens.expand(*lead, -1).reshape(-1, width)
        probs = draft.new_zeros(len(drafted), vocabulary)
        for index, pair in enumerate(pairs):
            p, q = pair.detach().double().cpu().numpy()
            matches, champions = self._tournament(p, q, width)
            mine = row == index
            probs[mine] = _play(pair[1], probs.new_tensor(champions), matches, drafted[mine])
        return probs.view(*lead, vocabulary)


def _play(target: Tensor, champions: Tensor, matches: list[Match], tokens: Tensor) -> Tensor:
    """P(Y = y | drafted tuple), (N, V), for `tokens` (N, k) and `champions` (k, V)."""
    # Dead drafts go last, so that a row with n drafts plays the first n - 1 matches.
    tokens = tokens.gather(-1, (tokens < 0).to(torch.int8).argsort(dim=-1, stable=True))
    chance = torch.zeros(tokens.shape, dtype=target.dtype, device=tokens.device)
    chance[:, 0] = 1  # P(draft i is the champion)
    for i, played in enumerate(matches, start=1):
        rank = torch.as_tensor(played[0], device=tokens.device)
        coins = target.new_tensor(played[1])
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

"""From tokens to blocks: the top-down walk with which any token rule verifies K drafted paths.

`paths` (..., K, L) holds token ids, -1 all along a dead path. `draft_probs` (..., K, L, V) and
`target_probs` (..., K, L + 1, V) hold the next-token probabilities along each path, at index i those
after i of its tokens: paths that share a prefix repeat its probabilities.

    alive = all K;  for i = 1..L: Y_i from the rule on the living paths' i-th tokens, with repeats;
    alive = those whose i-th token is Y_i; stop when none is left;  after L tokens Y ~ target

Source: Algorithm 3 of SpecTr (arXiv 2310.15141). Explained in chapter 7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from spectr_lite.distributions import probability_of, sample

GivenDrafts = Callable[[Tensor, Tensor, Tensor], Tensor]  # Verifier._given_drafts
Select = Callable[[Tensor, Tensor, Tensor, Generator], Tensor]  # Verifier._select

SYNC_IS_FREE = {"cpu"}  # devices on which reading a value makes no one wait: a loop may stop early


@dataclass(frozen=True)
class Block:
    """What a rule emits for K drafted paths: the first tokens of one path, and one more.

    tokens    (..., L + 1) the kept tokens, the extra token, then -1
    accepted  (...) how many drafted tokens are kept, 0 to L
    path      (...) the path they are from
    """

    tokens: Any  # torch tensors; from `verify_tree`, of the caller's kind
    accepted: Any
    path: Any


@dataclass(frozen=True)
class BlockGivenPaths:
    """The exact distribution of the block, given the paths.

    stop   (..., K, L + 1) P(the block keeps exactly i tokens of path j)
    extra  (..., K, L + 1, V) the distribution of the token after them

    A prefix that several paths share is counted once, on one of them.
    """

    stop: Tensor
    extra: Tensor


def shared_prefix(paths: Tensor) -> Tensor:
    """[j, m, i]: are paths j and m alive, with the same first i tokens? (..., K, K, L + 1) bool."""
    alive = paths[..., :1] >= 0
    both = alive.unsqueeze(-2) & alive.unsqueeze(-3)
    equal = paths.unsqueeze(-2) == paths.unsqueeze(-3)
    return torch.cat([both, equal], -1).to(torch.int8).cumprod(-1).bool()


def is_first(shared: Tensor) -> Tensor:
    """[j, i]: is path j the first that starts with its first i tokens? (..., K, L + 1) bool."""
    index = torch.arange(shared.shape[-2], device=shared.device).unsqueeze(-1)
    return (shared.to(torch.int8).argmax(-2) == index) & shared.any(-2)


def offered_at(paths: Tensor, shared: Tensor, i: int) -> Tensor:
    """The drafts at the node after i tokens of each path, (..., K, K): those of the paths through it.

    A rule needs at least one draft: a dead path, whose probability is 0, is given token 0 for its own.
    """
    itself = torch.eye(paths.shape[-2], dtype=torch.bool, device=paths.device)
    offered = torch.where(shared[..., i], paths[..., i].unsqueeze(-2), -1)
    return torch.where(itself & (paths[..., i] < 0).unsqueeze(-1), 0, offered)


def top_down_distribution(
    given_drafts: GivenDrafts, draft_probs: Tensor, target_probs: Tensor, paths: Tensor
) -> BlockGivenPaths:
    """The exact distribution of the block that `top_down` draws, from the rule at every node."""
    shared = shared_prefix(paths)
    vocabulary = target_probs.shape[-1]
    reached = torch.ones(paths.shape[:-1], dtype=target_probs.dtype, device=paths.device)
    stop, extra = [], []
    for i in range(paths.shape[-1]):
        offered = offered_at(paths, shared, i)
        probs = _at_distinct_nodes(
            given_drafts, draft_probs[..., i, :], target_probs[..., i, :], offered
        )
        outside = torch.nn.functional.pad(probs, (0, 1))  # a last column, on which -1 falls
        outside = outside.scatter(-1, offered % (vocabulary + 1), 0.0)[..., :-1]
        total = outside.sum(-1, keepdim=True)
        stop.append(reached * total.squeeze(-1))
        extra.append(torch.where(total > 0, outside / total, 0.0))
        reached = reached * probability_of(probs, paths[..., i : i + 1]).squeeze(-1)
    stop.append(reached)
    extra.append(target_probs[..., -1, :].expand_as(extra[0]))
    return BlockGivenPaths(torch.stack(stop, -1) * is_first(shared), torch.stack(extra, -2))


def _at_distinct_nodes(
    given_drafts: GivenDrafts, draft: Tensor, target: Tensor, offered: Tensor
) -> Tensor:
    """The rule's distribution at every node, (..., V), computed once for nodes that are equal."""
    sizes = draft.shape[-1], target.shape[-1], offered.shape[-1]
    nodes = torch.cat([draft, target, offered], -1).flatten(0, -2)
    distinct, row = nodes.unique(dim=0, return_inverse=True)
    drafts, targets, tokens = distinct.split(sizes, -1)
    probs = given_drafts(drafts, targets, tokens.long())
    return probs[row].view(*offered.shape[:-1], -1)


def top_down(
    select: Select,
    paths: Tensor,
    draft_probs_at: Callable[[Tensor, int], Tensor],
    target_probs_at: Callable[[Tensor, int], Tensor],
    generator: Generator,
) -> Block:
    """One walk for each row. draft_probs_at(path, depth) gives (..., V) for a path of each row (...)."""
    length = paths.shape[-1]
    index = torch.arange(paths.shape[-2], device=paths.device)
    alive = (paths >= 0).all(-1)
    path = alive.to(torch.int8).argmax(-1)
    running = torch.ones_like(path, dtype=torch.bool)
    accepted = torch.zeros_like(path)
    tokens = paths.new_full((*path.shape, length + 1), -1)
    for i in range(length):
        here = paths[..., i]
        offered = torch.where(alive, here, -1)
        token = select(draft_probs_at(path, i), target_probs_at(path, i), offered, generator)
        tokens[..., i] = torch.where(running, token, -1)
        survivors = alive & (here == token.unsqueeze(-1))
        running = running & survivors.any(-1)
        if running.device.type in SYNC_IS_FREE and not running.any():
            return Block(tokens, accepted, path)
        accepted = accepted + running
        path = torch.where(running, survivors.to(torch.int8).argmax(-1), path)
        # A rule needs at least one draft: a row that has stopped goes on with one path, unread.
        alive = torch.where(running.unsqueeze(-1), survivors, index == path.unsqueeze(-1))
    last = sample(target_probs_at(path, length), generator)
    tokens[..., -1] = torch.where(running, last, -1)
    return Block(tokens, accepted, path)


def probs_at(probs: Tensor, path: Tensor, depth: int) -> Tensor:
    """probs[..., path, depth, :], (..., V), of each row's `path` (...); `probs` is (..., K, n, V)."""
    return row_at(probs[..., depth, :], path)


def row_at(rows: Tensor, index: Tensor) -> Tensor:
    """rows[..., index, :], (..., D), for `rows` (..., N, D) and an `index` of each, (...)."""
    if index.device.type in SYNC_IS_FREE:  # whole rows are copied faster than gathered
        lead = np.ogrid[tuple(slice(size) for size in index.shape)]
        return rows.expand(*index.shape, -1, -1)[(*map(torch.from_numpy, lead), index)]
    place = index[..., None, None].expand(*index.shape, 1, rows.shape[-1])
    return rows.expand(*index.shape, -1, -1).gather(-2, place).squeeze(-2)


# --- what the rules for whole paths share ---


def draw_stop(stop: Tensor, extra: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """A place drawn from `stop` (..., N), and a token drawn from its row of `extra` (..., N, V)."""
    place = sample(stop, generator)
    return place, sample(row_at(extra, place), generator)


def emit(paths: Tensor, path: Tensor, accepted: Tensor, last: Tensor) -> Block:
    """The block that keeps `accepted` (...) tokens of `path` (...) and ends in `last` (...)."""
    tokens = torch.nn.functional.pad(row_at(paths, path), (0, 1), value=-1)
    column = torch.arange(tokens.shape[-1], device=tokens.device)
    tokens = tokens.masked_fill(column >= accepted.unsqueeze(-1), -1)
    tokens = tokens.scatter(-1, accepted.unsqueeze(-1), last.unsqueeze(-1))
    return Block(tokens, accepted, path)


def block_coins(draft_probs: Tensor, target_probs: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
    """Block verification of one path (..., L) whose tokens were drawn from `draft_probs` (..., L, V).

        w_0 = 1,   w_i = min(1, w_{i-1} target(x_i) / draft(x_i))
        h_i = Z_i / (Z_i + 1 - w_i),  Z_i = sum_x (w_i target - draft)+ at node i < L;    h_L = w_L

    Returns the coins' biases h_0..h_L, (..., L + 1), and for each i the distribution of the extra
    token if i tokens are kept, (..., L + 1, V): (w_i target - draft)+ normalised for i < L, and the
    target for i = L. Source: Sun et al. (arXiv 2403.10444).
    """
    weight = torch.ones(path.shape[:-1], dtype=target_probs.dtype, device=path.device)
    coins, extra = [], []
    for i in range(path.shape[-1]):
        target, draft = target_probs[..., i, :], draft_probs[..., i, :]
        left = (weight.unsqueeze(-1) * target - draft).clamp_min(0)
        total = left.sum(-1, keepdim=True)
        # Z = 0 and w = 1: draft and target agree, and the next token is accepted for certain.
        chance = total.squeeze(-1) + (1 - weight)
        coins.append(torch.where(chance > 0, total.squeeze(-1) / chance, 1))
        extra.append(torch.where(total > 0, left / total, target))
        token = path[..., i : i + 1]
        mass = probability_of(draft, token)
        ratio = torch.where(mass > 0, probability_of(target, token) / mass, 0.0).squeeze(-1)
        ratio = ratio.clamp_max(torch.finfo(ratio.dtype).max)  # 0 times infinity is no weight
        weight = (weight * ratio).clamp_max(1)
    coins.append(weight)
    extra.append(target_probs[..., -1, :].expand_as(extra[0]))
    return torch.stack(coins, -1), torch.stack(extra, -2)


def verify_path(draft_probs: Tensor, target_probs: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
    """P(keep exactly i tokens), (..., L + 1), and `extra` as in `block_coins`.

    Kept is the LARGEST i whose coin, of bias h_i, succeeds.
    """
    coin, extra = block_coins(draft_probs, target_probs, path)
    failed = torch.cumprod(1 - coin.flip(-1), -1).flip(-1)  # P(every coin from i on fails)
    above = torch.nn.functional.pad(failed[..., 1:], (0, 1), value=1.0)
    return coin * above, extra

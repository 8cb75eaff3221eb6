"""From tokens to blocks: the top-down walk that lets any token rule verify K drafted paths.

`paths` (..., K, L) holds token ids, -1 all along a path that is not alive. `draft_probs` (..., K, L, V)
and `target_probs` (..., K, L + 1, V) hold the next-token distributions at the nodes of each path:
index i is the node after i of its tokens, so paths that share a prefix repeat its distributions.

    alive = all K;  for i = 1..L: Y_i from the rule on the living paths' i-th tokens, with repeats;
    alive = those whose i-th token is Y_i; stop when none is left;  after L tokens Y ~ target

Source: Algorithm 3 of SpecTr (arXiv 2310.15141).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectr_lite.distributions import probability_of, sample

GivenDrafts = Callable[[Tensor, Tensor, Tensor], Tensor]  # Verifier._given_drafts
Select = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]  # Verifier._select

SYNC_IS_FREE = {"cpu"}  # devices on which a look at a value costs nothing: the walk may stop early


@dataclass(frozen=True)
class Block:
    """What a rule emits for K drafted paths: `accepted` tokens of `path`, and one more.

    tokens (..., L + 1), -1 behind the extra token;  accepted (...);  path (...)
    """

    tokens: Any
    accepted: Any
    path: Any


@dataclass(frozen=True)
class BlockGivenPaths:
    """The exact distribution of the block, given the paths.

    stop   (..., K, L + 1)     P(the block keeps i tokens of path j, and no more)
    extra  (..., K, L + 1, V)  the distribution of the token behind them
    A prefix that several paths share is counted once, on one of them.
    """

    stop: Tensor
    extra: Tensor


def shared_prefix(paths: Tensor) -> Tensor:
    """[j, m, i]: are paths j and m alive, with the same first i tokens? (..., K, K, L + 1) bool."""
    alive = paths[..., 0] >= 0
    both = alive.unsqueeze(-1) & alive.unsqueeze(-2)
    equal = paths.unsqueeze(-2) == paths.unsqueeze(-3)
    steps = torch.cat([both.unsqueeze(-1), equal], -1)
    return steps.to(torch.int8).cumprod(-1).bool()


def is_first(shared: Tensor) -> Tensor:
    """[j, i]: is path j the first that starts with its first i tokens? (..., K, L + 1) bool."""
    index = torch.arange(shared.shape[-2], device=shared.device).unsqueeze(-1)
    return (shared.to(torch.int8).argmax(-2) == index) & shared.any(-2)


def top_down_distribution(
    given_drafts: GivenDrafts, draft_probs: Tensor, target_probs: Tensor, paths: Tensor
) -> BlockGivenPaths:
    """The exact distribution of the walk: the rule is asked at every node, as if the walk had come
    there.
    """
    shared = shared_prefix(paths)
    vocabulary = target_probs.shape[-1]
    itself = torch.eye(paths.shape[-2], dtype=torch.bool, device=paths.device)
    reached = torch.ones(paths.shape[:-1], dtype=target_probs.dtype, device=paths.device)
    stop, extra = [], []
    for i in range(paths.shape[-1]):
        here = paths[..., i]
        offered = torch.where(shared[..., i], here.unsqueeze(-2), -1)
        # A dead path is never reached; one draft stands in, for no rule is asked about none.
        offered = torch.where((itself & (here < 0).unsqueeze(-1)), 0, offered)
        probs = _at_distinct_nodes(
            given_drafts, draft_probs[..., i, :], target_probs[..., i, :], offered
        )
        drafted = torch.zeros_like(probs[..., :1]).expand(*probs.shape[:-1], vocabulary + 1)
        drafted = drafted.scatter(-1, offered % (vocabulary + 1), 1.0)[..., :-1]
        outside = probs * (1 - drafted)
        total = outside.sum(-1)
        stop.append(reached * total)
        extra.append(outside / torch.where(total > 0, total, 1).unsqueeze(-1))
        reached = reached * probability_of(probs, here.unsqueeze(-1)).squeeze(-1)
    stop.append(reached)
    extra.append(target_probs[..., -1, :].expand_as(extra[0]))
    return BlockGivenPaths(torch.stack(stop, -1) * is_first(shared), torch.stack(extra, -2))


def _at_distinct_nodes(
    given_drafts: GivenDrafts, draft: Tensor, target: Tensor, offered: Tensor
) -> Tensor:
    """The rule's distribution at every node, worked out once for nodes that are equal."""
    sizes = draft.shape[-1], target.shape[-1], offered.shape[-1]
    rows, row = (
        torch.cat([draft, target, offered], -1).flatten(0, -2).unique(dim=0, return_inverse=True)
    )
    drafts, targets, tokens = rows.split(sizes, -1)
    probs = given_drafts(drafts, targets, tokens.long())
    return probs[row].view(*offered.shape[:-1], -1)


def top_down(
    select: Select,
    paths: Tensor,
    draft_probs_at: Callable[[Tensor, int], Tensor],
    target_probs_at: Callable[[Tensor, int], Tensor],
    generator: torch.Generator,
) -> Block:
    """One walk for each row. Distributions are asked for at a `path` (...) and a depth, and are
    (..., V).
    """
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
        # A row that has stopped walks on, unread, with one path: no rule is asked about none.
        alive = torch.where(running.unsqueeze(-1), survivors, index == path.unsqueeze(-1))
    last = sample(target_probs_at(path, length), generator)
    tokens[..., -1] = torch.where(running, last, -1)
    return Block(tokens, accepted, path)


def probs_at(probs: Tensor, path: Tensor, depth: int) -> Tensor:
    """The distribution at `depth` of each row's `path`: (..., K, ?, V) and (...) to (..., V)."""
    index = path[..., None, None].expand(*path.shape, 1, probs.shape[-1])
    return probs[..., depth, :].expand(*path.shape, -1, -1).gather(-2, index).squeeze(-2)


# --- what the rules for whole paths share ---


def emit(paths: Tensor, path: Tensor, accepted: Tensor, last: Tensor) -> Block:
    """The block that keeps `accepted` tokens of `path` (both (...)) and ends in `last`."""
    index = path[..., None, None].expand(*path.shape, 1, paths.shape[-1])
    kept = paths.gather(-2, index).squeeze(-2)
    tokens = torch.nn.functional.pad(kept, (0, 1), value=-1)
    column = torch.arange(tokens.shape[-1], device=tokens.device)
    tokens = tokens.masked_fill(column >= accepted.unsqueeze(-1), -1)
    tokens = tokens.scatter(-1, accepted.unsqueeze(-1), last.unsqueeze(-1))
    return Block(tokens, accepted, path)


def block_coins(draft_probs: Tensor, target_probs: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
    """Block verification of one path (..., L) whose tokens were drawn from `draft_probs` (..., L, V).

        w_0 = 1,   w_i = min(1, w_{i-1} target(x_i) / draft(x_i))
        h_i = Z_i / (Z_i + 1 - w_i),  Z_i = sum_x (w_i target - draft)+ at node i < L;    h_L = w_L

    Answers the biases h_0..h_L, (..., L + 1), and the distributions of a token behind each node,
    (..., L + 1, V):
    (w_i target - draft)+ normalised, and the target itself after L tokens.
    Source: Sun et al. (arXiv 2403.10444).
    """
    weight = torch.ones(path.shape[:-1], dtype=target_probs.dtype, device=path.device)
    coins, extra = [], []
    for i in range(path.shape[-1]):
        target, draft = target_probs[..., i, :], draft_probs[..., i, :]
        left = (weight.unsqueeze(-1) * target - draft).clamp_min(0)
        total = left.sum(-1)
        # Nothing left and nothing missing: draft and target agree, and the next token is accepted.
        chance = total + (1 - weight)
        coins.append(torch.where(chance > 0, total / torch.where(chance > 0, chance, 1), 1))
        some = (total > 0).unsqueeze(-1)
        extra.append(torch.where(some, left / torch.where(some, total.unsqueeze(-1), 1), target))
        token = path[..., i : i + 1]
        mass = probability_of(draft, token)
        ratio = torch.where(mass > 0, probability_of(target, token) / mass, 0.0).squeeze(-1)
        weight = (weight * ratio).clamp_max(1)
    coins.append(weight)
    extra.append(target_probs[..., -1, :].expand_as(extra[0]))
    return torch.stack(coins, -1), torch.stack(extra, -2)


def verify_path(draft_probs: Tensor, target_probs: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
    """P(keep i tokens), (..., L + 1): i is the LARGEST that passes its own coin; and `extra`."""
    coin, extra = block_coins(draft_probs, target_probs, path)
    failed = torch.cumprod(1 - coin.flip(-1), -1).flip(-1)  # every coin from i on
    above = torch.nn.functional.pad(failed[..., 1:], (0, 1), value=1.0)
    return coin * above, extra

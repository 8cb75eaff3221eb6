"""From tokens to blocks: the top-down walk that lets any token rule verify K drafted paths.

`paths` (..., K, L) holds token ids, -1 all along a path that is not alive. `draft_laws` (..., K, L, V)
and `target_laws` (..., K, L + 1, V) hold the next-token laws at the nodes of each path: index i is the
node after i of its tokens, so paths that share a prefix repeat its laws.

    alive = all K;  for i = 1..L: Y_i from the rule on the living paths' i-th tokens, with repeats;
    alive = those whose i-th token is Y_i; stop when none is left;  after L tokens Y ~ target

Source: Algorithm 3 of SpecTr (arXiv 2310.15141).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spectr_lite.distributions import at, sample

if TYPE_CHECKING:
    from spectr_lite.verifiers.base import Verifier

LOOKS = {"cpu"}  # devices on which a look at a value costs nothing: the walk may stop early


@dataclass(frozen=True)
class Block:
    """What a rule emits for K drafted paths: `accepted` tokens of `path`, and one more.

    tokens (..., L + 1), -1 behind the extra token;  accepted (...);  path (...)
    """

    tokens: Any
    accepted: Any
    path: Any


@dataclass(frozen=True)
class BlockLaw:
    """The exact law of the block, given the paths.

    stop   (..., K, L + 1)     P(the block keeps i tokens of path j, and no more)
    extra  (..., K, L + 1, V)  the law of the token behind them
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


def top_down_law(
    rule: Verifier, draft_laws: Tensor, target_laws: Tensor, paths: Tensor
) -> BlockLaw:
    """The exact law of the walk: the rule is asked at every node, as if the walk had come there."""
    shared = shared_prefix(paths)
    vocabulary = target_laws.shape[-1]
    itself = torch.eye(paths.shape[-2], dtype=torch.bool, device=paths.device)
    reached = torch.ones(paths.shape[:-1], dtype=target_laws.dtype, device=paths.device)
    stop, extra = [], []
    for i in range(paths.shape[-1]):
        here = paths[..., i]
        offered = torch.where(shared[..., i], here.unsqueeze(-2), -1)
        # A dead path is never reached; one draft stands in, for no rule is asked about none.
        offered = torch.where((itself & (here < 0).unsqueeze(-1)), 0, offered)
        law = _conditional(rule, draft_laws[..., i, :], target_laws[..., i, :], offered)
        drafted = torch.zeros_like(law[..., :1]).expand(*law.shape[:-1], vocabulary + 1)
        drafted = drafted.scatter(-1, offered % (vocabulary + 1), 1.0)[..., :-1]
        outside = law * (1 - drafted)
        total = outside.sum(-1)
        stop.append(reached * total)
        extra.append(outside / torch.where(total > 0, total, 1).unsqueeze(-1))
        reached = reached * at(law, here.unsqueeze(-1)).squeeze(-1)
    stop.append(reached)
    extra.append(target_laws[..., -1, :].expand_as(extra[0]))
    return BlockLaw(torch.stack(stop, -1) * is_first(shared), torch.stack(extra, -2))


def _conditional(rule: Verifier, draft: Tensor, target: Tensor, offered: Tensor) -> Tensor:
    """The rule's law at every node, worked out once for nodes that are equal."""
    sizes = draft.shape[-1], target.shape[-1], offered.shape[-1]
    rows, row = (
        torch.cat([draft, target, offered], -1).flatten(0, -2).unique(dim=0, return_inverse=True)
    )
    drafts, targets, tokens = rows.split(sizes, -1)
    law = rule.conditional(drafts, targets, tokens.long())
    return law[row].view(*offered.shape[:-1], -1)


def top_down(
    rule: Verifier,
    paths: Tensor,
    draft_law: Callable[[Tensor, int], Tensor],
    target_law: Callable[[Tensor, int], Tensor],
    generator: torch.Generator,
) -> Block:
    """One walk for each row. Laws are asked for at a `path` (...) and a depth, and are (..., V)."""
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
        token = rule.pick(draft_law(path, i), target_law(path, i), offered, generator)
        tokens[..., i] = torch.where(running, token, -1)
        survivors = alive & (here == token.unsqueeze(-1))
        running = running & survivors.any(-1)
        if running.device.type in LOOKS and not running.any():
            return Block(tokens, accepted, path)
        accepted = accepted + running
        path = torch.where(running, survivors.to(torch.int8).argmax(-1), path)
        # A row that has stopped walks on, unread, with one path: no rule is asked about none.
        alive = torch.where(running.unsqueeze(-1), survivors, index == path.unsqueeze(-1))
    last = sample(target_law(path, length), generator)
    tokens[..., -1] = torch.where(running, last, -1)
    return Block(tokens, accepted, path)


def node(laws: Tensor, path: Tensor, depth: int) -> Tensor:
    """The law at `depth` of each row's `path`: (..., K, ?, V) and (...) to (..., V)."""
    index = path[..., None, None].expand(*path.shape, 1, laws.shape[-1])
    return laws[..., depth, :].expand(*path.shape, -1, -1).gather(-2, index).squeeze(-2)

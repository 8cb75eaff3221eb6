"""Verification in three steps, for a GPU: all nodes side by side, one walk over scalars, one draw.

The number of living drafts at a node, those of the paths that share its prefix, is known before any
token is chosen. So a turn need not work its way down from node to node:

    1. nodes   the rule's parameters at all K L nodes at once, and which draft each would accept
    2. walk    L times: on to the draft that this node accepts; stop where there is none
    3. draw    one token, from what is left of the target where the walk stopped; after L tokens, from
               the target itself

This is `paths.top_down` with one difference: a token drawn from what is left ends the block, even if
it happens to equal a draft. That is lossless too, as the next turn goes on from there. For rules at
their optimum it never happens; `optimal` with binned classes loses a little. A CPU, which can stop
early, takes `paths.top_down`: it looks at the nodes that it comes to, and at no other.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from spectr_lite.distributions import draw, sample, uniform
from spectr_lite.verifiers import paths as walk
from spectr_lite.verifiers.base import Verifier
from spectr_lite.verifiers.paths import Block, emit, row_at, shared_prefix

FEW_ROWS, WIDE = 16, 2048  # pairs and tokens, see has_rows_to_look_at
Parameters = tuple[Tensor, ...]  # what a rule knows of a node: tensors (..., n), n its own for each
Drafts = tuple[
    tuple[Any, ...], ...
]  # of a row's living drafts: ids, draft and target probabilities


class NodeVerifier(Verifier):
    """A token rule that says which draft it accepts, and of what the target is left otherwise.

    `tokens`: (..., k) ids, -1 for a dead draft. `coins`: as many uniform numbers as `_coins` draws.
    """

    @abstractmethod
    def _parameters(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Parameters:
        """What the rule needs to know of each node, from its distributions (..., V)."""

    @abstractmethod
    def _accepted(
        self, parameters: Parameters, draft: Tensor, target: Tensor, tokens: Tensor, coins: Tensor
    ) -> Tensor:
        """The place of the draft that is accepted, (...); -1 where none is."""

    @abstractmethod
    def _left(self, parameters: Parameters, draft: Tensor, target: Tensor) -> Tensor:
        """The weights (..., V) of Y when no draft is accepted, in units of the target's."""

    def _coins(self, lead: tuple[int, ...], k: int, generator: Generator) -> Tensor:
        """Uniform numbers for a choice among k drafts, (*lead, k)."""
        return uniform((*lead, k), generator)

    def _row(
        self, draft: Tensor, target: Tensor, drafts: Drafts, coins: list[float]
    ) -> tuple[int, Tensor | None]:
        """For one row (V,) on a CPU: the token accepted; or -1, and what is left, only then made."""
        tokens, dealt = torch.tensor(drafts[0]), torch.tensor(coins, dtype=torch.float64)
        parameters = self._parameters(draft, target, tokens)
        place = int(self._accepted(parameters, draft, target, tokens, dealt))
        if place >= 0:
            return drafts[0][place], None
        return -1, self._left(parameters, draft, target)

    def _row_by_row(
        self, draft: Tensor, target: Tensor, tokens: Tensor, coins: Tensor, generator: Generator
    ) -> Tensor:
        """`_select` where a value may be looked at: the work ends with the draft that is accepted."""
        lead, flat = tokens.shape[:-1], tokens.reshape(-1, tokens.shape[-1])
        pairs = [probs.expand(*lead, -1).flatten(0, -2) for probs in (draft, target)]
        values = coins.flatten(0, -2), flat, *(p.gather(-1, flat.clamp_min(0)) for p in pairs)
        found = []
        for p, q, dealt, *of_drafts in zip(
            *pairs, *(value.tolist() for value in values), strict=True
        ):
            living = [each for each in zip(*of_drafts, strict=True) if each[0] >= 0]
            del dealt[1 : 1 + tokens.shape[-1] - len(living)]  # a dead draft needs no coin
            token, left = -1, q  # without a living draft Y follows the target
            if living:
                token, left = self._row(p, q, tuple(zip(*living, strict=True)), dealt)
            found.append(token if left is None else int(sample(left, generator)))
        return tokens.new_tensor(found).view(lead)

    def _select(
        self, draft: Tensor, target: Tensor, tokens: Tensor, generator: Generator
    ) -> Tensor:
        lead = np.broadcast_shapes(draft.shape[:-1], target.shape[:-1], tokens.shape[:-1])
        tokens = tokens.expand(*lead, -1)
        coins = self._coins(lead, tokens.shape[-1], generator)
        if has_rows_to_look_at(draft, target):
            return self._row_by_row(draft, target, tokens, coins, generator)
        parameters = self._parameters(draft, target, tokens)
        place = self._accepted(parameters, draft, target, tokens, coins)
        # What is left is repeated for each tuple, so that every row draws a Y of its own.
        left = self._left(parameters, draft, target).expand(*lead, -1)
        token = tokens.gather(-1, place.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        return torch.where(place >= 0, token, sample(left, generator))

    def _verify(
        self, draft_probs: Tensor, target_probs: Tensor, paths: Tensor, generator: Generator
    ) -> Block:
        if paths.device.type in walk.SYNC_IS_FREE:
            return super()._verify(draft_probs, target_probs, paths, generator)
        lead, (count, length) = paths.shape[:-2], paths.shape[-2:]
        coins = self._coins((*lead, length), count, generator)
        return in_three_steps(
            self, draft_probs, target_probs, paths, coins, uniform(lead, generator)
        )


def has_rows_to_look_at(draft: Tensor, target: Tensor) -> bool:
    """Pairs of their own on a CPU: not many, or wide. Many narrow ones are faster all at once, and so is
    one pair for many tuples, with one set of parameters."""
    rows = max(draft.shape[:-1].numel(), target.shape[:-1].numel())
    worth_it = rows <= FEW_ROWS or draft.shape[-1] >= WIDE
    on_a_cpu = draft.device.type in walk.SYNC_IS_FREE
    return on_a_cpu and max(draft.ndim, target.ndim) > 1 and worth_it


def in_three_steps(
    rule: NodeVerifier,
    draft_probs: Tensor,
    target_probs: Tensor,
    paths: Tensor,
    coins: Tensor,
    last_coin: Tensor,
) -> Block:
    """One block for each row, shapes as in `Verifier.verify_tree`; `coins` (..., L, n), `last_coin`
    (...). All paths share the coins of a depth: a walk looks at one node of each."""
    length = paths.shape[-1]
    offered, shared = offered_everywhere(paths)
    target = target_probs[..., :-1, :]
    parameters = rule._parameters(draft_probs, target, offered)
    chosen = rule._accepted(
        parameters,
        draft_probs,
        target,
        offered,
        coins.unsqueeze(-3).expand(*offered.shape[:-1], -1),
    )
    path, accepted = down(chosen, shared)
    place = path, accepted.clamp_max(length - 1)
    draft, target = node_at(draft_probs, *place), node_at(target_probs, path, accepted)
    here = tuple(node_at(part, *place) for part in parameters)
    ended = (accepted == length).unsqueeze(-1)
    last = draw(torch.where(ended, target, rule._left(here, draft, target)), target, last_coin)
    return emit(paths, path, accepted, last)


def offered_everywhere(paths: Tensor) -> tuple[Tensor, Tensor]:
    """The drafts at every node, (..., K, L, K), -1 for those of other prefixes; `shared_prefix`."""
    shared = shared_prefix(paths)
    here = shared[..., :-1].movedim(-1, -2)
    return torch.where(here, paths.movedim(-1, -2).unsqueeze(-3), -1), shared


def down(chosen: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
    """The walk by the drafts that each node chooses, (..., K, L): the path and how much of it is kept.

    A path stands for all that share its tokens so far: the first of them, as in `paths.top_down`.
    """
    path = shared[..., 0].diagonal(dim1=-2, dim2=-1).to(torch.int8).argmax(-1)
    first = shared.to(torch.int8).argmax(-2)  # (..., K, L + 1): who stands for each prefix
    # The node each node leads to, or -1: then a walk is L look-ups.
    after = first[..., 1:].gather(-2, chosen.clamp_min(0)).masked_fill(chosen < 0, -1)
    accepted = torch.zeros_like(path)
    for i in range(chosen.shape[-1]):
        on = after[..., i].gather(-1, path.unsqueeze(-1)).squeeze(-1)
        going = (on >= 0) & (accepted == i)
        accepted = accepted + going
        path = torch.where(going, on, path)
    return path, accepted


def node_at(values: Tensor, path: Tensor, depth: Tensor) -> Tensor:
    """values[..., path, depth, :] (..., D), of `values` (..., K, n, D)."""
    return row_at(values.flatten(-3, -2), path * values.shape[-2] + depth)


def nodes_at(values: Tensor, path: Tensor) -> Tensor:
    """values[..., path[..., i], i, :] (..., n, D), of `values` (..., K, n, D), for all depths i."""
    place = path.unsqueeze(-2).unsqueeze(-1).expand(*path.shape[:-1], 1, -1, values.shape[-1])
    return values.gather(-3, place).squeeze(-3)


def first_passing(passed: Tensor) -> Tensor:
    """The place of the first True of (..., k), -1 where there is none; shape (...)."""
    return torch.where(passed.any(-1), passed.to(torch.int8).argmax(-1), -1)

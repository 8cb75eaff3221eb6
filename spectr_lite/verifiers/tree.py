"""Rules that look at whole paths: what they share, and their exact law on tiny models.

A path rule answers one question, `conditional_block`: given K drafted paths, with which probability is
each prefix kept, and what is the law of the token behind it? With L = 1 it is a token rule, so its
other methods follow from that answer. A block, finished by the target to L + 1 tokens, must follow the
target: `block_law` adds up all paths that can be drafted and shows it.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from spectr_lite.distributions import ArrayLike, at, check_count, check_distribution, sample
from spectr_lite.laws import IID, check_enumeration
from spectr_lite.verifiers.base import Verifier
from spectr_lite.verifiers.walk import Block, BlockLaw

NextLaw = Callable[[tuple[int, ...]], ArrayLike]


class TreeVerifier(Verifier):
    """A rule for K i.i.d. paths. Shapes as in `Verifier.verify_tree`."""

    @abstractmethod
    def conditional_block(
        self, draft_laws: Tensor, target_laws: Tensor, paths: Tensor
    ) -> BlockLaw: ...

    def pick_block(
        self,
        draft_laws: Tensor,
        target_laws: Tensor,
        paths: Tensor,
        generator: torch.Generator,
    ) -> Block:
        law = self.conditional_block(draft_laws, target_laws, paths)
        place = sample(law.stop.flatten(-2), generator)
        nodes = law.extra.flatten(-3, -2)
        index = place[..., None, None].expand(*place.shape, 1, nodes.shape[-1])
        last = sample(nodes.gather(-2, index).squeeze(-2), generator)
        width = paths.shape[-1] + 1
        return emit(paths, place // width, place % width, last)

    def conditional(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        """The law of Y with one-token paths. What follows them does not matter; the target will do."""
        lead = torch.broadcast_shapes(draft.shape[:-1], target.shape[:-1], tokens.shape[:-1])
        count, vocabulary = tokens.shape[-1], draft.shape[-1]
        tokens = tokens.expand(*lead, count)
        law = self.conditional_block(
            draft.unsqueeze(-2).unsqueeze(-2).expand(*lead, count, 1, vocabulary),
            target.unsqueeze(-2).unsqueeze(-2).expand(*lead, count, 2, vocabulary),
            tokens.unsqueeze(-1),
        )
        refused = (law.stop[..., :1] * law.extra[..., 0, :]).sum(-2)
        return refused.scatter_add(-1, tokens.clamp_min(0), law.stop[..., 1])


def emit(paths: Tensor, path: Tensor, accepted: Tensor, last: Tensor) -> Block:
    """The block that keeps `accepted` tokens of `path` (both (...)) and ends in `last`."""
    index = path[..., None, None].expand(*path.shape, 1, paths.shape[-1])
    kept = paths.gather(-2, index).squeeze(-2)
    tokens = torch.nn.functional.pad(kept, (0, 1), value=-1)
    column = torch.arange(tokens.shape[-1], device=tokens.device)
    tokens = tokens.masked_fill(column >= accepted.unsqueeze(-1), -1)
    tokens = tokens.scatter(-1, accepted.unsqueeze(-1), last.unsqueeze(-1))
    return Block(tokens, accepted, path)


def block_coins(draft_laws: Tensor, target_laws: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
    """Block verification of one path (..., L) whose tokens were drawn from `draft_laws` (..., L, V).

        w_0 = 1,   w_i = min(1, w_{i-1} target(x_i) / draft(x_i))
        h_i = Z_i / (Z_i + 1 - w_i),  Z_i = sum_x (w_i target - draft)+ at node i < L;    h_L = w_L

    Answers the biases h_0..h_L, (..., L + 1), and the laws of a token behind each node, (..., L + 1, V):
    (w_i target - draft)+ normalised, and the target itself after L tokens.
    Source: Sun et al. (arXiv 2403.10444).
    """
    weight = torch.ones(path.shape[:-1], dtype=target_laws.dtype, device=path.device)
    coins, extra = [], []
    for i in range(path.shape[-1]):
        target, draft = target_laws[..., i, :], draft_laws[..., i, :]
        left = (weight.unsqueeze(-1) * target - draft).clamp_min(0)
        total = left.sum(-1)
        # Nothing left and nothing missing: draft and target agree, and the next token is accepted.
        chance = total + (1 - weight)
        coins.append(torch.where(chance > 0, total / torch.where(chance > 0, chance, 1), 1))
        some = (total > 0).unsqueeze(-1)
        extra.append(torch.where(some, left / torch.where(some, total.unsqueeze(-1), 1), target))
        token = path[..., i : i + 1]
        mass = at(draft, token)
        ratio = torch.where(mass > 0, at(target, token) / mass, 0.0).squeeze(-1)
        weight = (weight * ratio).clamp_max(1)
    coins.append(weight)
    extra.append(target_laws[..., -1, :].expand_as(extra[0]))
    return torch.stack(coins, -1), torch.stack(extra, -2)


def verify_path(draft_laws: Tensor, target_laws: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
    """P(keep i tokens), (..., L + 1): i is the LARGEST that passes its own coin; and `extra`."""
    coin, extra = block_coins(draft_laws, target_laws, path)
    failed = torch.cumprod(1 - coin.flip(-1), -1).flip(-1)  # every coin from i on
    above = torch.nn.functional.pad(failed[..., 1:], (0, 1), value=1.0)
    return coin * above, extra


# --- exactness by enumeration, for models small enough to list every path ---


def next_laws(model: NextLaw, length: int, context: Sequence[int] = ()) -> list[np.ndarray]:
    """The model's laws after every prefix of 0..length tokens: arrays of shape (V,) * i + (V,)."""
    tables = [np.asarray(model(tuple(context)), np.float64)]
    vocabulary = tables[0].size
    for i in range(1, length + 1):
        prefixes = itertools.product(range(vocabulary), repeat=i)
        rows = [np.asarray(model((*context, *prefix)), np.float64) for prefix in prefixes]
        tables.append(np.stack(rows).reshape((vocabulary,) * (i + 1)))
    return tables


def block_law(
    target: NextLaw,
    draft: NextLaw,
    rule: Verifier,
    num_drafts: int,
    draft_length: int,
    context: Sequence[int] = (),
) -> tuple[np.ndarray, float]:
    """The law of the block, finished by the target to L + 1 tokens, (V,) * (L + 1); and the expected
    number of accepted tokens. Sums over all V^(K L) ways to draft K i.i.d. paths.
    """
    rule._check_law(IID())
    k, length = rule.check_drafts(num_drafts), check_count(draft_length, "draft_length")
    drafts, targets = next_laws(draft, length - 1, context), next_laws(target, length, context)
    for laws, name in ((drafts, "draft"), (targets, "target")):
        for table in laws:
            check_distribution(table, name)
    vocabulary = targets[0].size
    check_enumeration(vocabulary ** (k * length), vocabulary)
    path = np.stack(list(itertools.product(range(vocabulary), repeat=length)))
    node = [np.zeros(len(path), dtype=np.int64)]  # the number of each path's prefix of i tokens
    for token in path.T:
        node.append(node[-1] * vocabulary + token)
    draft_laws, target_laws = (
        np.stack([t.reshape(-1, vocabulary)[n] for t, n in zip(tables, node, strict=False)], 1)
        for tables in (drafts, targets)
    )
    single = np.take_along_axis(draft_laws, path[:, :, None], -1)[..., 0].prod(-1)
    chosen = np.stack(list(itertools.product(range(len(path)), repeat=k)))
    mass = single[chosen].prod(-1)
    chosen, mass = chosen[mass > 0], mass[mass > 0]
    law = rule.conditional_block(
        *(torch.from_numpy(table[chosen]) for table in (draft_laws, target_laws, path))
    )
    finished, accepted = np.zeros(()), 0.0
    for i in range(length + 1):
        stop = law.stop[..., i].numpy() * mass[:, None]
        emitted = np.zeros((vocabulary**i, vocabulary))
        np.add.at(emitted, node[i][chosen], stop[..., None] * law.extra[..., i, :].numpy())
        emitted = emitted.reshape((vocabulary,) * (i + 1))
        finished = emitted if i == 0 else finished[..., None] * targets[i] + emitted
        accepted += i * stop.sum()
    return finished, float(accepted)

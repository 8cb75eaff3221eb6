"""Traversal verification: from the leaves to the root, one drafted node after the other.

    w(root) = 1,   w(c x) = min(1, w(c) t_c(x) / p_c(x));     at first t = target and p = draft
    take the first leaf in depth-first order and accept its whole path with probability w
    otherwise delete it; its parent c takes new values, computed from its old ones:
        t_c = (w(c) t_c - p_c)+ / Z,   w(c) = Z / (Z + 1 - w(c)),   Z = sum (w(c) t_c - p_c)+
        p_c = p_c without the deleted token / sum;   the weights below c are computed anew
    a node that has lost its children is a leaf; the root always accepts;   Y ~ t at the accepted node

Children with the same token are one child, placed where the token first occurs: i.i.d. draws without
their repeats are draws without replacement. With one path it is block verification.
Source: Weng et al. (arXiv 2505.12398). Explained in chapter 10.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectr_lite.distributions import probability_of
from spectr_lite.verifiers.base import TreeVerifier
from spectr_lite.verifiers.paths import BlockGivenPaths, shared_prefix
from spectr_lite.verifiers.recursive_wor import without


class Traversal(TreeVerifier):
    """Leaf-to-root verification of the tree that K paths span."""

    name = "traversal"

    def _given_paths(
        self, draft_probs: Tensor, target_probs: Tensor, paths: Tensor
    ) -> BlockGivenPaths:
        count, length = paths.shape[-2:]
        order = depth_first(paths)
        paths = paths.take_along_dim(order[..., None], -2)
        draft_probs = draft_probs.take_along_dim(order[..., None, None], -3)
        target_probs = target_probs.take_along_dim(order[..., None, None], -3)
        shared = shared_prefix(paths)
        # How many tokens each path shares with the one before it; -1 where either is dead.
        common = shared[..., 1:, :, :].diagonal(dim1=-3, dim2=-2).long().sum(-2) - 1
        before = torch.nn.functional.pad(common, (1, 0), value=-1)
        after = torch.nn.functional.pad(common, (0, 1), value=-1)
        reached = torch.ones_like(paths[..., 0, 0], dtype=target_probs.dtype)
        weight = [torch.ones_like(reached) for _ in range(length + 1)]
        target = [target_probs[..., 0, i, :] for i in range(length + 1)]
        draft = [draft_probs[..., 0, i, :] for i in range(length)]
        stop, extra = [], []
        for j in range(count):
            alive = paths[..., j, 0] >= 0
            for i in range(length + 1):  # nodes not shared with the path before take fresh values
                fresh = before[..., j] < i
                target[i] = torch.where(fresh[..., None], target_probs[..., j, i, :], target[i])
                if i < length:
                    draft[i] = torch.where(fresh[..., None], draft_probs[..., j, i, :], draft[i])
                if i == 0:
                    weight[0] = torch.where(fresh, 1.0, weight[0])
                    continue
                token = paths[..., j, i - 1 : i]
                mass = probability_of(draft[i - 1], token).squeeze(-1)
                ratio = torch.where(
                    mass > 0, probability_of(target[i - 1], token).squeeze(-1) / mass, 0.0
                )
                weight[i] = torch.where(fresh, (weight[i - 1] * ratio).clamp_max(1), weight[i])
            kept, behind = [], []
            for i in range(length, -1, -1):  # from the leaf up, the nodes that the next path lacks
                leaf = alive & (after[..., j] < i)
                kept.append(torch.where(leaf, reached * weight[i], 0.0))
                behind.append(target[i])
                reached = torch.where(leaf, reached * (1 - weight[i]), reached)
                if i > 0:
                    self._delete(i, leaf, paths[..., j, i - 1 : i], weight, target, draft)
            stop.append(torch.stack(kept[::-1], -1))
            extra.append(torch.stack(behind[::-1], -2))
        back = order.argsort(-1)
        return BlockGivenPaths(
            torch.stack(stop, -2).take_along_dim(back[..., None], -2),
            torch.stack(extra, -3).take_along_dim(back[..., None, None], -3),
        )

    def _delete(
        self,
        i: int,
        leaf: Tensor,
        token: Tensor,
        weight: list[Tensor],
        target: list[Tensor],
        draft: list[Tensor],
    ) -> None:
        """Deletes the node at depth i, where `leaf` (...) is true: its parent takes new values."""
        parent = weight[i - 1]
        left = (parent[..., None] * target[i - 1] - draft[i - 1]).clamp_min(0)
        total = left.sum(-1)
        some = (total > 0) & leaf
        residual = left / torch.where(some, total, 1)[..., None]
        target[i - 1] = torch.where(some[..., None], residual, target[i - 1])
        chance = total + 1 - parent
        chance = torch.where(chance > 0, total / chance, 1)
        weight[i - 1] = torch.where(leaf, chance, parent)
        draft[i - 1] = torch.where(leaf[..., None], without(draft[i - 1], token), draft[i - 1])


def depth_first(paths: Tensor) -> Tensor:
    """Indices of the paths in depth-first order (..., K): children by first occurrence, dead first."""
    first = shared_prefix(paths).to(torch.int8).argmax(-2)[..., 1:]
    first = first.masked_fill(paths[..., :1] < 0, -1)
    order = torch.arange(paths.shape[-2], device=paths.device).expand(paths.shape[:-1])
    for i in reversed(range(paths.shape[-1])):
        key = first[..., i].gather(-1, order)
        order = order.gather(-1, key.argsort(dim=-1, stable=True))
    return order

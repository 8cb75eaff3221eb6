"""Drafted trees whose distributions depend on the whole prefix, and have zeros."""

from __future__ import annotations

import itertools

import torch

from spectr_lite.distributions import sample


def prefix_tree(rows, count, length, vocabulary, seed, dead=False):
    """draft (B, K, L, V), target (B, K, L + 1, V), paths (B, K, L): distributions of the prefix."""
    generator = torch.Generator().manual_seed(seed)
    known: dict[tuple, torch.Tensor] = {}

    def probs(prefix):
        if prefix not in known:
            logits = torch.randn(2, vocabulary, generator=generator).double() * 1.5
            logits[1] = logits[0] + 0.7 * logits[1]
            logits[torch.rand(2, vocabulary, generator=generator) < 0.1] = -1e3
            known[prefix] = logits.softmax(-1)
        return known[prefix]

    draft = torch.zeros(rows, count, length, vocabulary).double()
    target = torch.zeros(rows, count, length + 1, vocabulary).double()
    paths = torch.zeros(rows, count, length, dtype=torch.int64)
    for row, path in itertools.product(range(rows), range(count)):
        prefix = (row,)
        for depth in range(length):
            draft[row, path, depth], target[row, path, depth] = probs(prefix)
            paths[row, path, depth] = sample(draft[row, path, depth], generator)
            prefix = (*prefix, int(paths[row, path, depth]))
        target[row, path, length] = probs(prefix)[1]
    if dead:
        paths[:, 0] = -1
    return draft, target, paths

"""The exact distribution of one turn of the decoding loop, on models small enough to list every outcome.

At a node with k drafts alive every tuple x in V^k is listed with its probability; the rule's
distribution of Y given x then gives M(y, j) = P(Y = y, and j of the k drafts are y). The j go on,
still i.i.d.:

    block(prefix, k):  Y = y with M(y, 0), and the target finishes alone;
                       Y = y with M(y, j), and block(prefix + y, j) follows one token deeper
    E(k, 0) = 1,     E(k, l) = 1 + sum_{y, j >= 1} M(y, j) E(j, l - 1)     expected tokens emitted

When the rule is lossless the block, finished by the target to L + 1 tokens, has the target's own
joint distribution. That is Theorem 2 of SpecTr (arXiv 2310.15141); comparing the two arrays checks
it, to rounding, for the models at hand.

A rule that judges whole paths has no such M: for it every drafted tree is listed instead.

A model is any function from a prefix (a tuple of token ids) to the distribution of the next token,
such as `MarkovModel.next_probs`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from spectr_lite import verifiers
from spectr_lite.distributions import (
    IID,
    ArrayLike,
    check_count,
    check_distribution,
    check_enumeration,
    check_pair,
)
from spectr_lite.verifiers import TreeVerifier, Verifier

NextProbs = Callable[[tuple[int, ...]], ArrayLike]


def joint_distribution(model: NextProbs, length: int, context: Sequence[int] = ()) -> np.ndarray:
    """The distribution of the next `length` tokens after `context`, shape (V,) * length."""
    if check_count(length, "length", least=0) == 0:
        return np.ones(())
    first = np.asarray(model(tuple(context)), np.float64)
    rest = [joint_distribution(model, length - 1, (*context, token)) for token in range(first.size)]
    return np.stack([mass * probs for mass, probs in zip(first, rest, strict=True)])


def block_distribution(
    target: NextProbs,
    draft: NextProbs,
    verifier: str | Verifier,
    num_drafts: int,
    draft_length: int,
    context: Sequence[int] = (),
) -> np.ndarray:
    """The distribution of one turn's block, finished by the target to L + 1 tokens, shape (V,) * (L
    + 1).
    """
    rule = _check_tree(verifier, num_drafts, draft_length)
    if isinstance(rule, TreeVerifier) and num_drafts:
        return path_block_distribution(target, draft, rule, num_drafts, draft_length, context)[0]
    outcomes = _outcomes(target, draft, rule)

    def probs(prefix: tuple[int, ...], k: int, left: int) -> np.ndarray:
        if k == 0 or left == 0:
            return joint_distribution(target, left + 1, prefix)
        return np.stack(
            [
                sum(mass * probs((*prefix, y), j, left - 1) for j, mass in enumerate(row))
                for y, row in enumerate(outcomes(prefix, k))
            ]
        )

    return probs(tuple(context), num_drafts, draft_length)


def expected_tokens(
    target: NextProbs,
    draft: NextProbs,
    verifier: str | Verifier,
    num_drafts: int,
    draft_length: int,
    context: Sequence[int] = (),
) -> float:
    """The expected number of tokens that one turn emits: between 1 and L + 1."""
    rule = _check_tree(verifier, num_drafts, draft_length)
    if num_drafts == 0:
        return 1.0
    if isinstance(rule, TreeVerifier):
        return (
            1 + path_block_distribution(target, draft, rule, num_drafts, draft_length, context)[1]
        )
    outcomes = _outcomes(target, draft, rule)

    def emitted(prefix: tuple[int, ...], k: int, left: int) -> float:
        if k == 0 or left == 0:
            return k > 0
        return 1 + sum(
            mass * emitted((*prefix, y), j, left - 1)
            for y, row in enumerate(outcomes(prefix, k))
            for j, mass in enumerate(row)
            if j and mass
        )

    return float(emitted(tuple(context), num_drafts, draft_length))


def _outcomes(
    target: NextProbs, draft: NextProbs, rule: Verifier
) -> Callable[[tuple[int, ...], int], np.ndarray]:
    """M(y, j) at (prefix, k), shape (V, k + 1). Nodes that are equal share one table: on a Markov
    model that is one table per last token and k."""
    tables: dict[tuple[bytes, bytes, int], np.ndarray] = {}

    def outcomes(prefix: tuple[int, ...], k: int) -> np.ndarray:
        pair = check_pair(np.asarray(draft(prefix)), np.asarray(target(prefix)))
        key = (pair.draft.numpy().tobytes(), pair.target.numpy().tobytes(), k)
        if key not in tables:
            drafted, mass = IID().tuples(pair.draft, k)
            joint = mass[:, None] * rule._given_drafts(pair.draft, pair.target, drafted)
            vocabulary = torch.arange(joint.shape[1])
            copies = (drafted[:, :, None] == vocabulary).sum(1)
            table = torch.zeros(joint.shape[1], k + 1, dtype=joint.dtype)
            tables[key] = table.scatter_add(1, copies.T, joint.T).numpy()
        return tables[key]

    return outcomes


def probs_by_prefix(model: NextProbs, length: int, context: Sequence[int] = ()) -> list[np.ndarray]:
    """The model's distributions after every prefix of 0..length tokens: arrays of shape (V,) * i +
    (V,).
    """
    tables = [np.asarray(model(tuple(context)), np.float64)]
    vocabulary = tables[0].size
    for i in range(1, length + 1):
        prefixes = itertools.product(range(vocabulary), repeat=i)
        rows = [np.asarray(model((*context, *prefix)), np.float64) for prefix in prefixes]
        tables.append(np.stack(rows).reshape((vocabulary,) * (i + 1)))
    return tables


def path_block_distribution(
    target: NextProbs,
    draft: NextProbs,
    rule: Verifier,
    num_drafts: int,
    draft_length: int,
    context: Sequence[int] = (),
) -> tuple[np.ndarray, float]:
    """The block, finished by the target to L + 1 tokens: its distribution, (V,) * (L + 1), and the
    expected
    number of accepted tokens. Sums over all V^(K L) ways to draft K i.i.d. paths.
    """
    rule._check_drafting(IID())
    k, length = rule.check_drafts(num_drafts), check_count(draft_length, "draft_length")
    drafts, targets = (
        probs_by_prefix(draft, length - 1, context),
        probs_by_prefix(target, length, context),
    )
    for distributions, name in ((drafts, "draft"), (targets, "target")):
        for table in distributions:
            check_distribution(table, name)
    vocabulary = targets[0].size
    check_enumeration(vocabulary ** (k * length), vocabulary)
    path = np.stack(list(itertools.product(range(vocabulary), repeat=length)))
    node = [np.zeros(len(path), dtype=np.int64)]  # the number of each path's prefix of i tokens
    for token in path.T:
        node.append(node[-1] * vocabulary + token)
    draft_probs, target_probs = (
        np.stack([t.reshape(-1, vocabulary)[n] for t, n in zip(tables, node, strict=False)], 1)
        for tables in (drafts, targets)
    )
    single = np.take_along_axis(draft_probs, path[:, :, None], -1)[..., 0].prod(-1)
    chosen = np.stack(list(itertools.product(range(len(path)), repeat=k)))
    mass = single[chosen].prod(-1)
    chosen, mass = chosen[mass > 0], mass[mass > 0]
    probs = rule._given_paths(
        *(torch.from_numpy(table[chosen]) for table in (draft_probs, target_probs, path))
    )
    finished, accepted = np.zeros(()), 0.0
    for i in range(length + 1):
        stop = probs.stop[..., i].numpy() * mass[:, None]
        emitted = np.zeros((vocabulary**i, vocabulary))
        np.add.at(emitted, node[i][chosen], stop[..., None] * probs.extra[..., i, :].numpy())
        emitted = emitted.reshape((vocabulary,) * (i + 1))
        finished = emitted if i == 0 else finished[..., None] * targets[i] + emitted
        accepted += i * stop.sum()
    return finished, float(accepted)


def _check_tree(verifier: str | Verifier, num_drafts: int, draft_length: int) -> Verifier:
    """The rule, if it is lossless for this many i.i.d. drafts."""
    rule = verifiers.get(verifier)
    check_count(draft_length, "draft_length")
    if check_count(num_drafts, "num_drafts", least=0):
        rule._check_drafting(IID())
        rule.check_drafts(num_drafts)
    return rule

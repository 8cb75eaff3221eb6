"""The exact distribution of one turn, on models so small that every outcome can be listed.

Explained in chapter 7; chapter 10 uses it for rules that judge whole paths.

A token rule is asked at each node with k drafts alive. All V^k tuples of their tokens are listed with
their probabilities, and the rule's distribution of Y given a tuple then gives

    M(y, j) = P(Y = y, and j of the k drafted tokens equal y)

The j drafts that said y survive, and what follows in them is i.i.d. as before. So after `prefix`:

    block(prefix, k):  with M(y, 0), y ends the block, and the target finishes the text;
                       with M(y, j), y is followed by block(prefix + y, j), one token deeper
    E(k, 0) = 1,     E(k, l) = 1 + sum_{y, j >= 1} M(y, j) E(j, l - 1)     expected tokens emitted

For a rule that judges whole paths there is no such M: every way to draft K paths is listed instead.

If the rule is lossless, the block, finished by the target to L + 1 tokens, has the target's own joint
distribution: Theorem 2 of SpecTr (arXiv 2310.15141). Comparing the two arrays checks it, to rounding.

A model is any function from a prefix (a tuple of token ids) to the probabilities of the next token,
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
    """The distribution of the next `length` tokens after `context`, shape (V,) * length.

    Raises ValueError where the model gives no distribution, see `check_distribution`.

    >>> print(joint_distribution(lambda prefix: [0.75, 0.25], 2))
    [[0.5625 0.1875]
     [0.1875 0.0625]]
    """
    if check_count(length, "length", least=0) == 0:
        return np.ones(())
    first = check_distribution(np.asarray(model(tuple(context))), "model").numpy()
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
    """The distribution of one turn's block, finished by the target to L + 1 tokens: (V,) * (L + 1).

    For every rule that is made for i.i.d. drafts and any number of them; otherwise ValueError, as for
    more tuples than can be listed.

    >>> target, draft = lambda prefix: [0.75, 0.25], lambda prefix: [0.5, 0.5]
    >>> found = block_distribution(target, draft, "kseq", num_drafts=2, draft_length=1)
    >>> bool(abs(found - joint_distribution(target, 2)).max() < 1e-12)
    True
    """
    return _one_turn(target, draft, verifier, num_drafts, draft_length, context)[0]


def expected_tokens(
    target: NextProbs,
    draft: NextProbs,
    verifier: str | Verifier,
    num_drafts: int,
    draft_length: int,
    context: Sequence[int] = (),
) -> float:
    """The expected number of tokens that one turn emits: from 1 to L + 1. Rules and errors as above.

    >>> target, draft = lambda prefix: [0.75, 0.25], lambda prefix: [0.5, 0.5]
    >>> round(expected_tokens(target, draft, "coupling", num_drafts=1, draft_length=2), 4)
    2.3125
    """
    return 1 + _one_turn(target, draft, verifier, num_drafts, draft_length, context)[1]


def _one_turn(
    target: NextProbs,
    draft: NextProbs,
    verifier: str | Verifier,
    num_drafts: int,
    draft_length: int,
    context: Sequence[int],
) -> tuple[np.ndarray, float]:
    """The finished block's distribution, (V,) * (L + 1), and the expected number of accepted tokens."""
    rule = verifiers.get(verifier)
    check_count(draft_length, "draft_length")
    if check_count(num_drafts, "num_drafts", least=0):
        rule._check_drafting(IID())
        rule.check_drafts(num_drafts)
        if isinstance(rule, TreeVerifier):
            return path_block_distribution(target, draft, rule, num_drafts, draft_length, context)
    # M(y, j), (V, k + 1). Nodes with equal probabilities share a table: on a Markov model, all with
    # one last token and k.
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

    def block(prefix: tuple[int, ...], k: int, left: int) -> tuple[np.ndarray, float]:
        if k == 0 or left == 0:
            return joint_distribution(target, left + 1, prefix), 0.0
        table = outcomes(prefix, k)
        finished, accepted = np.zeros((len(table),) * (left + 1)), 0.0
        for y, j in zip(*table.nonzero(), strict=True):
            rest, more = block((*prefix, int(y)), int(j), left - 1)
            finished[y] += table[y, j] * rest
            accepted += table[y, j] * (more + 1 if j else 0)
        return finished, float(accepted)

    return block(tuple(context), num_drafts, draft_length)


def probs_by_prefix(model: NextProbs, length: int, context: Sequence[int] = ()) -> list[np.ndarray]:
    """The next-token probabilities after every prefix: entry i, (V,) * i + (V,), is for those of i
    tokens, i = 0..length."""
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
    """As `block_distribution`, and the expected number of accepted tokens, from whole paths.

    Lists all V^(K L) ways to draft K i.i.d. paths and asks `rule._given_paths` about each. It serves
    token rules too, and so checks the recursion over nodes independently.
    """
    rule._check_drafting(IID())
    k, length = rule.check_drafts(num_drafts), check_count(draft_length, "draft_length")
    drafts = probs_by_prefix(draft, length - 1, context)
    targets = probs_by_prefix(target, length, context)
    for tables, name in ((drafts, "draft"), (targets, "target")):
        for table in tables:
            check_distribution(table, name)
    vocabulary = targets[0].size
    check_enumeration(vocabulary ** (k * length), vocabulary)
    path = np.stack(list(itertools.product(range(vocabulary), repeat=length)))
    node = [np.zeros(len(path), dtype=np.int64)]  # node[i]: which of the V^i prefixes of i tokens
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

"""The exact law of one turn of the decoding loop, on models small enough to list every outcome.

At a node with k drafts alive every tuple x in V^k is listed with its probability; the rule's law of
Y given x then gives M(y, j) = P(Y = y, and j of the k drafts are y). The j go on, still i.i.d.:

    law(prefix, k):  Y = y with M(y, 0), and the target finishes alone;
                     Y = y with M(y, j), and law(prefix + y, j) follows one token deeper
    E(k, 0) = 1,     E(k, l) = 1 + sum_{y, j >= 1} M(y, j) E(j, l - 1)     expected tokens emitted

When the rule is lossless the block, finished by the target to L + 1 tokens, has the target's own
joint law. That is Theorem 2 of SpecTr (arXiv 2310.15141); comparing the two arrays checks it, to
rounding, for the models at hand.

A rule that judges whole paths has no such M: for it every drafted tree is listed instead.

A model is any function from a prefix (a tuple of token ids) to the law of the next token, such as
`MarkovModel.next_law`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from spectr_lite import verifiers
from spectr_lite.distributions import ArrayLike, check_count, check_pair
from spectr_lite.laws import IID
from spectr_lite.verifiers import Verifier, tree

NextLaw = Callable[[tuple[int, ...]], ArrayLike]


def joint_law(model: NextLaw, length: int, context: Sequence[int] = ()) -> np.ndarray:
    """The law of the next `length` tokens after `context`, shape (V,) * length."""
    if check_count(length, "length", least=0) == 0:
        return np.ones(())
    first = np.asarray(model(tuple(context)), np.float64)
    rest = [joint_law(model, length - 1, (*context, token)) for token in range(first.size)]
    return np.stack([mass * law for mass, law in zip(first, rest, strict=True)])


def block_law(
    target: NextLaw,
    draft: NextLaw,
    verifier: str | Verifier,
    num_drafts: int,
    draft_length: int,
    context: Sequence[int] = (),
) -> np.ndarray:
    """The law of one turn's block, finished by the target to L + 1 tokens, shape (V,) * (L + 1)."""
    rule = _check_tree(verifier, num_drafts, draft_length)
    if isinstance(rule, tree.TreeVerifier) and num_drafts:
        return tree.block_law(target, draft, rule, num_drafts, draft_length, context)[0]
    outcomes = _outcomes(target, draft, rule)

    def law(prefix: tuple[int, ...], k: int, left: int) -> np.ndarray:
        if k == 0 or left == 0:
            return joint_law(target, left + 1, prefix)
        return np.stack(
            [
                sum(mass * law((*prefix, y), j, left - 1) for j, mass in enumerate(row))
                for y, row in enumerate(outcomes(prefix, k))
            ]
        )

    return law(tuple(context), num_drafts, draft_length)


def expected_tokens(
    target: NextLaw,
    draft: NextLaw,
    verifier: str | Verifier,
    num_drafts: int,
    draft_length: int,
    context: Sequence[int] = (),
) -> float:
    """The expected number of tokens that one turn emits: between 1 and L + 1."""
    rule = _check_tree(verifier, num_drafts, draft_length)
    if num_drafts == 0:
        return 1.0
    if isinstance(rule, tree.TreeVerifier):
        return 1 + tree.block_law(target, draft, rule, num_drafts, draft_length, context)[1]
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
    target: NextLaw, draft: NextLaw, rule: Verifier
) -> Callable[[tuple[int, ...], int], np.ndarray]:
    """M(y, j) at (prefix, k), shape (V, k + 1). Nodes with equal laws share one table: on a Markov
    model that is one table per last token and k."""
    tables: dict[tuple[bytes, bytes, int], np.ndarray] = {}

    def outcomes(prefix: tuple[int, ...], k: int) -> np.ndarray:
        pair = check_pair(np.asarray(draft(prefix)), np.asarray(target(prefix)))
        key = (pair.draft.numpy().tobytes(), pair.target.numpy().tobytes(), k)
        if key not in tables:
            drafted, mass = IID().tuples(pair.draft, k)
            joint = mass[:, None] * rule.conditional(pair.draft, pair.target, drafted)
            vocabulary = torch.arange(joint.shape[1])
            copies = (drafted[:, :, None] == vocabulary).sum(1)
            table = torch.zeros(joint.shape[1], k + 1, dtype=joint.dtype)
            tables[key] = table.scatter_add(1, copies.T, joint.T).numpy()
        return tables[key]

    return outcomes


def _check_tree(verifier: str | Verifier, num_drafts: int, draft_length: int) -> Verifier:
    """The rule, if it is lossless for this many i.i.d. drafts."""
    rule = verifiers.get(verifier)
    check_count(draft_length, "draft_length")
    if check_count(num_drafts, "num_drafts", least=0):
        rule._check_law(IID())
        rule.check_drafts(num_drafts)
    return rule

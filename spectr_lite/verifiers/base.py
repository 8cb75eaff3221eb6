"""What every selection rule offers, and how to add one.

A rule is the conditional distribution of its output Y given the drafted tuple. A new rule must supply
that, as `_given_drafts`; every other method has an exact default, which a rule replaces where it has
a closed form. The public methods check their input and accept NumPy or torch. The hooks, whose names
begin with an underscore, take tensors and check nothing, and must not make the CPU wait for a GPU:
they are what the decoder calls. Explained in chapters 2 and 5.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

from spectr_lite.distributions import (
    IID,
    MOST_DRAFTS,
    Array,
    ArrayLike,
    Drafting,
    as_generator,
    as_tensor,
    check_count,
    check_distribution,
    check_pair,
    sample,
)
from spectr_lite.verifiers.paths import (
    Block,
    BlockGivenPaths,
    draw_stop,
    emit,
    probs_at,
    top_down,
    top_down_distribution,
)


@dataclass(frozen=True)
class Selection:
    """The selected token ids, and whether each is one of the drafted tokens (Y in S)."""

    token: Tensor | np.ndarray | np.integer
    accepted: Tensor | np.ndarray | np.bool


class Verifier(ABC):
    """A token-level selection rule. `draft`, `target`: (..., V) probabilities on one vocabulary.

    The public methods raise ValueError for bad distributions, for a k that the rule is not defined
    for, and for drafts drawn in a way for which the rule is not lossless.
    """

    name: ClassVar[str] = "unnamed"
    valid_for: ClassVar[tuple[type[Drafting], ...]] = (IID,)
    default_drafting: ClassVar[Drafting] = IID()
    only_k: ClassVar[int | None] = None  # the one number of drafts that a rule is made for
    most_k: ClassVar[int] = MOST_DRAFTS  # beyond it the rule takes minutes
    for_any_pair: bool = (
        True  # False for a rule that was made for one pair and is right there alone
    )

    # --- public: checked, NumPy or torch ---

    def acceptance(
        self, draft: ArrayLike, target: ArrayLike, k: int, drafting: Drafting | None = None
    ) -> Array:
        """P(Y in S), the probability that Y is one of k drafted tokens, shape (...).

        >>> from spectr_lite import verifiers
        >>> verifiers.get("kseq").acceptance([1 / 3, 2 / 3], [5 / 9, 4 / 9], k=2)  # the optimum is 1
        0.888888...
        """
        pair = check_pair(draft, target)
        k = self.check_drafts(k)
        drafting = self._check_drafting(drafting)
        return pair.restore(self._acceptance(pair.draft, pair.target, k, drafting))

    def select(
        self,
        draft: ArrayLike,
        target: ArrayLike,
        tokens: ArrayLike,
        generator: int | np.random.Generator | torch.Generator | None = None,
    ) -> Selection:
        """One token per row. `tokens`: (..., k) drafted ids, repeats kept, in the order drawn.

        >>> from spectr_lite import verifiers
        >>> rule, tokens = verifiers.get("kseq"), [[0, 0], [0, 1]]
        >>> found = rule.select([0.5, 0.5], [0.0, 1.0], tokens, generator=0)
        >>> found.token.tolist(), found.accepted.tolist()
        ([1, 1], [False, True])
        """
        pair = check_pair(draft, target)
        drafted = _check_tokens(tokens, pair.draft)
        self.check_drafts(drafted.shape[-1])
        source = as_generator(generator, pair.draft.device)
        # Rows of a batch that share their drafts still draw their own random numbers.
        lead = torch.broadcast_shapes(drafted.shape[:-1], pair.draft.shape[:-1])
        drafted = drafted.expand(*lead, -1)
        token = self._select(pair.draft, pair.target, drafted, source)
        accepted = (drafted == token.unsqueeze(-1)).any(-1)
        if pair.is_torch or isinstance(tokens, Tensor):
            return Selection(token, accepted)
        return Selection(token.numpy()[()], accepted.numpy()[()])

    def output_distribution(
        self, draft: ArrayLike, target: ArrayLike, k: int, drafting: Drafting | None = None
    ) -> Array:
        """The exact distribution of Y, shape (..., V): sum over tuples x of P(x) P(Y = y | x).

        Equals `target` if and only if the rule is lossless for this pair. Enumerates every tuple, so
        it is for tiny vocabularies; raises ValueError when V**(k+1) exceeds five million.

            >>> from spectr_lite import verifiers
            >>> rule = verifiers.get("kseq")
            >>> rule.output_distribution([0.5, 0.3, 0.2], [0.1, 0.3, 0.6], k=2).round(9).tolist()
            [0.1, 0.3, 0.6]
        """
        pair = check_pair(draft, target)
        k = self.check_drafts(k)
        drafting = self._check_drafting(drafting)
        shape = pair.draft.shape
        rows = [
            mass @ self._given_drafts(p, q, tokens)
            for p, q, tokens, mass in _enumerate(pair.draft, pair.target, k, drafting)
        ]
        return pair.restore(torch.stack(rows).view(shape))

    def verify_tree(
        self,
        draft_probs: ArrayLike,
        target_probs: ArrayLike,
        paths: ArrayLike,
        generator: int | np.random.Generator | torch.Generator | None = None,
    ) -> Block:
        """Verify K i.i.d. paths of L tokens each: how many tokens of which path are kept, and the next.

        `paths` (..., K, L) holds token ids. `draft_probs` (..., K, L, V) and `target_probs`
        (..., K, L + 1, V) hold the next-token probabilities along each path, at index i those after i
        of its tokens. A token-level rule walks down from the root (Algorithm 3 of SpecTr). Raises
        ValueError when a shape does not fit, or when the rule is not lossless for i.i.d. drafts.
        """
        self._check_drafting(IID())
        draft = check_distribution(draft_probs, "draft_probs")
        target = check_distribution(target_probs, "target_probs")
        drafted = as_tensor(paths, "paths", "an array of integer ids")
        length = drafted.shape[-1] if drafted.ndim else 0
        if (
            drafted.ndim < 2
            or draft.shape[:-1] != drafted.shape
            or target.shape != (*drafted.shape[:-1], length + 1, draft.shape[-1])
        ):
            raise ValueError(
                f"paths, draft_probs, target_probs: shapes {tuple(drafted.shape)}, "
                f"{tuple(draft.shape)}, {tuple(target.shape)}. They must be (..., K, L), "
                "(..., K, L, V) and (..., K, L + 1, V)."
            )
        self.check_drafts(drafted.shape[-2])
        drafted = _check_tokens(drafted.unsqueeze(-1), draft).squeeze(-1)
        dtype = torch.promote_types(draft.dtype, target.dtype)
        source = as_generator(generator, draft.device)
        block = self._verify(draft.to(dtype), target.to(dtype), drafted, source)
        if isinstance(draft_probs, Tensor) or isinstance(paths, Tensor):
            return block
        return Block(*(value.numpy()[()] for value in (block.tokens, block.accepted, block.path)))

    # --- hooks: tensors only ---

    @abstractmethod
    def _given_drafts(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        """P(Y = y | drafted tuple), (..., V). `tokens`: (..., k) ids, -1 for a dead draft."""

    def _acceptance(self, draft: Tensor, target: Tensor, k: int, drafting: Drafting) -> Tensor:
        """P(Y in S), shape (...), by enumeration unless the rule has a closed form."""
        rows = []
        for p, q, tokens, mass in _enumerate(draft, target, k, drafting):
            inside = torch.zeros(len(tokens), draft.shape[-1] + 1, dtype=torch.float64)
            inside.scatter_(-1, tokens % (draft.shape[-1] + 1), 1.0)  # -1 falls on the spare column
            rows.append(mass @ (self._given_drafts(p, q, tokens) * inside[:, :-1]).sum(-1))
        return torch.stack(rows).view(draft.shape[:-1])

    def _select(
        self, draft: Tensor, target: Tensor, tokens: Tensor, generator: Generator
    ) -> Tensor:
        """Ids of the tokens selected, (...). `tokens`: (..., k) ids, -1 for a dead draft."""
        return sample(self._given_drafts(draft, target, tokens), generator)

    def _given_paths(
        self, draft_probs: Tensor, target_probs: Tensor, paths: Tensor
    ) -> BlockGivenPaths:
        """The exact distribution of the block given the paths, shapes as in `verify_tree`."""
        return top_down_distribution(self._given_drafts, draft_probs, target_probs, paths)

    def _verify(
        self, draft_probs: Tensor, target_probs: Tensor, paths: Tensor, generator: Generator
    ) -> Block:
        """One block for each row, shapes as in `verify_tree`."""
        draft, target = (partial(probs_at, probs) for probs in (draft_probs, target_probs))
        return top_down(self._select, paths, draft, target, generator)

    # --- checks ---

    def check_drafts(self, k: int) -> int:
        """k as an int; ValueError if the rule is not defined for so many drafts."""
        k = check_count(k, "k", most=MOST_DRAFTS)
        if k > self.most_k:
            raise ValueError(
                f"k: {self.name!r} works on one draft after another, found {k}. Give at most "
                f"{self.most_k}; 'kseq' and 'optimal' take any number."
            )
        if self.only_k not in (None, k):
            raise ValueError(
                f"k: {self.name!r} is defined for k={self.only_k} only, found {k}. 'kseq', 'optimal' "
                "and 'optimal-block' take any number."
            )
        return k

    def _check_drafting(self, drafting: Drafting | None) -> Drafting:
        drafting = self.default_drafting if drafting is None else drafting
        if not isinstance(drafting, self.valid_for):
            raise ValueError(
                f"drafting: {self.name!r} is not lossless for drafts drawn by {drafting!r}, only "
                f"for {', '.join(kind.__name__ for kind in self.valid_for)}. Choose a rule made for "
                "that drafting; 'target-only' is valid for every one."
            )
        return drafting


class TreeVerifier(Verifier):
    """A rule for K i.i.d. paths. Shapes as in `Verifier.verify_tree`."""

    @abstractmethod
    def _given_paths(
        self, draft_probs: Tensor, target_probs: Tensor, paths: Tensor
    ) -> BlockGivenPaths: ...

    def _verify(
        self, draft_probs: Tensor, target_probs: Tensor, paths: Tensor, generator: Generator
    ) -> Block:
        given = self._given_paths(draft_probs, target_probs, paths)
        place, last = draw_stop(given.stop.flatten(-2), given.extra.flatten(-3, -2), generator)
        width = paths.shape[-1] + 1
        return emit(paths, place // width, place % width, last)

    def _given_drafts(self, draft: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        """P(Y = y | drafted tuple), taking each draft for a path of one token.

        What the target says after that token has no effect on Y, so its `target` is used again.
        """
        lead = torch.broadcast_shapes(draft.shape[:-1], target.shape[:-1], tokens.shape[:-1])
        count, vocabulary = tokens.shape[-1], draft.shape[-1]
        tokens = tokens.expand(*lead, count)
        given = self._given_paths(
            draft[..., None, None, :].expand(*lead, count, 1, vocabulary),
            target[..., None, None, :].expand(*lead, count, 2, vocabulary),
            tokens.unsqueeze(-1),
        )
        refused = (given.stop[..., :1] * given.extra[..., 0, :]).sum(-2)
        return refused.scatter_add(-1, tokens.clamp_min(0), given.stop[..., 1])


def _check_tokens(tokens: ArrayLike, draft: Tensor) -> Tensor:
    """`tokens` as int64 of shape (..., k); TypeError or ValueError if that is not what they are."""
    drafted = as_tensor(tokens, "tokens", "an array of integer ids")
    if drafted.is_floating_point() or drafted.is_complex() or drafted.dtype == torch.bool:
        raise TypeError(f"tokens: expected integer ids, found dtype {drafted.dtype}.")
    if drafted.ndim == 0 or drafted.shape[-1] == 0:
        raise ValueError(
            f"tokens: shape {tuple(drafted.shape)} has no drafts. The last axis must hold k >= 1 ids."
        )
    drafted, vocabulary = drafted.to(torch.int64), draft.shape[-1]
    outside = drafted[(drafted < 0) | (drafted >= vocabulary)]
    if len(outside):
        raise ValueError(
            f"tokens: found id {outside[0].item()}; the vocabulary has ids 0 to {vocabulary - 1}. "
            "Drafted ids must come from the same vocabulary as the distributions."
        )
    try:
        torch.broadcast_shapes(drafted.shape[:-1], draft.shape[:-1])
    except RuntimeError as error:
        raise ValueError(
            f"tokens: shape {tuple(drafted.shape)} does not match distributions of shape "
            f"{tuple(draft.shape)}. Leading dimensions must broadcast."
        ) from error
    return drafted.to(draft.device)


def _enumerate(
    draft: Tensor, target: Tensor, k: int, drafting: Drafting
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """For each pair of the batch: draft (V,), target (V,), tuples (N, k), their probabilities (N,)."""
    vocabulary = draft.shape[-1]
    draft, target = draft.to(torch.float64), target.to(torch.float64)
    for p, q in zip(draft.reshape(-1, vocabulary), target.reshape(-1, vocabulary), strict=True):
        tokens, mass = drafting.tuples(p, k)
        yield p, q, tokens, mass

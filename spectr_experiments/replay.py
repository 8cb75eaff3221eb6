"""Expected tokens per call of every rule and every smaller shape, from turns decoded once.

A turn of K-SEQ drafts K paths of L tokens and scores them. The same scored tree tells what ANY rule
would emit from it: given the paths, a rule's block has an exact distribution, so that

    E[tokens | tree] = 1 + sum_{i = 1..L} P(the block keeps at least i drafted tokens | tree)

is computed and not sampled. The first k paths, cut to l tokens, are the tree of the shape k x l. So
one turn serves every rule and every smaller shape, and differences between rules are paired: the same
trees, the same texts.

The turns are those that K-SEQ begins. Another rule would begin its turns at other places of the text,
and its mean over those may differ a little. Explained in chapter 10.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectr_lite.decoding import Decoder, Turn
from spectr_lite.decoding.state import State
from spectr_lite.distributions import IID
from spectr_lite.transport import optimal_acceptance
from spectr_lite.verifiers import TreeVerifier, Verifier
from spectr_lite.verifiers.paths import shared_prefix

NUMBERS_AT_ONCE = 2**22  # rows x V in one question to a rule


@dataclass(frozen=True)
class ScoredTree:
    """K paths (K, L), and both models' next-token probabilities along each: (K, L, V) and
    (K, L + 1, V), at index i those after i of its tokens."""

    paths: Tensor
    draft_probs: Tensor
    target_probs: Tensor

    def cut(self, num_drafts: int, draft_length: int) -> ScoredTree:
        """The first `num_drafts` paths, with their first `draft_length` tokens."""
        return ScoredTree(
            self.paths[:num_drafts, :draft_length],
            self.draft_probs[:num_drafts, :draft_length],
            self.target_probs[:num_drafts, : draft_length + 1],
        )


class Watched(Decoder):
    """A decoder that keeps what its last turn drafted and scored. It records no graph."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.graphs.disabled = True

    def _scored(self, state: State, span: int) -> tuple[Tensor, list[Tensor], Tensor]:
        self.scored = super()._scored(state, span)
        return self.scored

    def scored_logits(self, row: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Paths (K, L) of one row, and the logits of draft and target along them, as in a dump."""
        paths, draft, target = self.scored
        root, behind = target[row, :1], target[row, 1:].unflatten(0, paths.shape[1:])
        target = torch.cat([root.expand(len(behind), 1, -1), behind], 1)
        return paths[row], torch.stack(draft, 2)[row].log(), target

    def scored_tree(self, row: int = 0) -> ScoredTree:
        """One row's tree in float64, on the CPU."""
        paths, draft, target = (part.cpu() for part in self.scored_logits(row))
        draft = draft.double().softmax(-1)  # what was drawn from, normalised anew
        return ScoredTree(paths, draft, self.sampling.probs(target.double()))


def turns_of_text(
    decoder: Watched, prompt: Sequence[int], max_new_tokens: int, seed: int
) -> Iterator[tuple[Turn, ScoredTree]]:
    """All turns with which `decoder` continues the prompt, each with its tree."""
    for turn in decoder.decode([prompt], max_new_tokens=max_new_tokens, generator=seed):
        yield turn, decoder.scored_tree()


def visited(
    tree: ScoredTree, turn: Turn | None, rules: Mapping[str, Verifier]
) -> list[tuple[float, dict[str, float]]]:
    """At each node that the turn walked to: the optimum for the drafts alive there, and what each
    token rule accepts. Without a turn only at the root, which every turn visits."""
    path, kept = (0, 0) if turn is None else (int(turn.path[0]), int(turn.accepted[0]))
    alive = shared_prefix(tree.paths)[path].sum(0).tolist()
    found = []
    for depth in range(min(kept + 1, tree.paths.shape[1])):
        pair = tree.draft_probs[path, depth], tree.target_probs[path, depth]
        accepted = {
            name: float(rule._acceptance(*pair, alive[depth], IID()))
            for name, rule in rules.items()
            if not isinstance(rule, TreeVerifier)
        }
        found.append((float(optimal_acceptance(*pair, alive[depth])), accepted))
    return found


def expected_tokens(
    rule: Verifier, tree: ScoredTree, num_drafts: Sequence[int], draft_lengths: Sequence[int]
) -> Tensor:
    """E[tokens | tree] of a rule at each shape, (len(num_drafts), len(draft_lengths)).

    nan for a number of drafts that the rule does not take.
    """
    found = torch.full((len(num_drafts), len(draft_lengths)), torch.nan, dtype=torch.float64)
    taken = [row for row, k in enumerate(num_drafts) if rule.only_k in (None, k)]
    if not isinstance(rule, TreeVerifier):
        at_least = reach(rule, tree, [num_drafts[row] for row in taken])
        found[taken] = (1 + at_least.cumsum(-1))[:, [length - 1 for length in draft_lengths]]
        return found
    for row, (column, length) in itertools.product(taken, enumerate(draft_lengths)):
        part = tree.cut(num_drafts[row], length)
        given = rule._given_paths(part.draft_probs, part.target_probs, part.paths)
        found[row, column] = 1 + (given.stop * torch.arange(length + 1)).sum()
    return found


def reach(rule: Verifier, tree: ScoredTree, num_drafts: Sequence[int]) -> Tensor:
    """P(a token rule keeps at least i tokens | tree), i = 1..L, (len(num_drafts), L).

    The rule is asked once about each node and each set of paths that is alive there. Then
    P(node reached) = P(its parent reached) P(the rule says its token | drafts at the parent).
    """
    count, length = max(num_drafts), tree.paths.shape[1]
    shared = shared_prefix(tree.paths[:count])
    first = shared.to(torch.int8).argmax(-2)  # (K, L + 1): the path that stands for the node
    asked: dict[tuple[int, int, int], int] = {}  # node (path, depth) and its living paths: a row
    for depth in range(length):
        for path in first[:, depth].unique().tolist():
            alive = shared[path, :, depth]
            for k in num_drafts:
                if path < k:
                    asked.setdefault((path, depth, int(alive[:k].sum())), len(asked))
    chance = torch.zeros(len(asked), count, dtype=torch.float64)
    questions = list(asked)
    at_once = max(1, NUMBERS_AT_ONCE // tree.draft_probs.shape[-1])
    for start in range(0, len(questions), at_once):
        part = questions[start : start + at_once]
        path, depth, living = torch.tensor(part).unbind(1)
        alive = shared[path, :, depth]
        alive = alive & (alive.cumsum(-1) <= living[:, None])  # the first of those that pass here
        tokens = torch.where(alive, tree.paths[:count].T[depth], -1)
        probs = rule._given_drafts(
            tree.draft_probs[path, depth], tree.target_probs[path, depth], tokens
        )
        chance[start : start + at_once] = probs.gather(-1, tokens.clamp_min(0)).double()
    found = torch.zeros(len(num_drafts), length, dtype=torch.float64)
    for row, k in enumerate(num_drafts):
        reached = {0: 1.0}  # by the path that stands for the node
        for depth in range(length):
            below: dict[int, float] = {}
            for path, probability in reached.items():
                alive = shared[path, :k, depth]
                at = asked[path, depth, int(alive.sum())]
                for child in first[:k, depth + 1][alive].unique().tolist():
                    below[child] = probability * float(chance[at, child])
            reached = below
            found[row, depth] = sum(below.values())
    return found

"""A Markov chain with a language model's interface: the decoding loop runs on it unchanged.

    logits(token) = log transition[token];   for the start token, id V, log initial

Its distributions are exact, in float64: what the loop emits can be listed and compared to the last
digit. Explained in chapter 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectr_lite.distributions import ArrayLike, check_distribution
from spectr_lite.models.interface import ANY_LENGTH


class NoCache:
    """The last token is the whole state: nothing to store and nothing to move."""

    def move(self, source: Tensor, destination: Tensor) -> None:
        pass


class MarkovModel:
    """The chain with rows `transition` (V, V) and first-token distribution `initial` (V,), both float64.

    Its vocabulary has V + 1 ids: 0..V-1, and the start token V, which no distribution ever emits.
    """

    def __init__(self, transition: ArrayLike, initial: ArrayLike) -> None:
        size = np.shape(initial)[0]
        if np.shape(transition) != (size, size):
            raise ValueError(
                f"transition and initial: shapes {np.shape(transition)} and {np.shape(initial)}. "
                "They must be (V, V) and (V,)."
            )
        rows = np.vstack([transition, initial])
        self.probs = check_distribution(rows, f"transition (initial is row {size})").numpy()
        self.start_token = size
        self.vocab_size = size + 1
        self.config = ANY_LENGTH
        with_start = np.hstack([self.probs, np.zeros((size + 1, 1))])
        self._logits = torch.from_numpy(with_start).log()
        self.device = self._logits.device

    def next_probs(self, prefix: Sequence[int]) -> np.ndarray:
        """The distribution (V,) of the token after `prefix`; the empty prefix gives `initial`."""
        return self.probs[prefix[-1] if len(prefix) else self.start_token]

    def new_cache(self, batch: int, slots: int) -> NoCache:
        return NoCache()

    def forward(self, tokens: Tensor, *_: Any, **__: Any) -> Tensor:
        """Logits (B, N, V + 1) of the token after each of `tokens` (B, N)."""
        return self._logits[tokens]

    __call__ = forward


def worked_pair() -> tuple[MarkovModel, MarkovModel]:
    """The book's (target, draft): three tokens, a draft that is right about half of the time."""
    target = MarkovModel(
        transition=[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.6, 0.2, 0.2]], initial=[0.3, 0.4, 0.3]
    )
    draft = MarkovModel(
        transition=[[0.2, 0.5, 0.3], [0.25, 0.25, 0.5], [0.1, 0.1, 0.8]], initial=[0.6, 0.3, 0.1]
    )
    return target, draft

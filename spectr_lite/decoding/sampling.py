"""From logits to the probabilities of the next token: temperature, top-k, top-p.

Explained in chapter 8; chapter 7 says whose distribution the text then follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectr_lite.distributions import check_count


@dataclass(frozen=True)
class Sampling:
    """How logits become probabilities, for both models alike. In this order, as in transformers:

        divide by `temperature`
        keep the `top_k` largest logits, and what ties with the last of them
        keep the fewest tokens, likeliest first, whose mass reaches `top_p` (ties: the lower id)
        softmax

    At temperature 0 the likeliest token has probability one. The text follows the target's
    distribution after this truncation; only its speed depends on the draft's.

    Precision: probabilities are float32, or float64 from float64 logits. The text follows those that
    the target's logits give, up to float32's rounding, about 1e-7 of each. But low-precision logits
    change a little with the number of tokens that a call reads, which no rule can mend: in bfloat16
    the target's probabilities are only known to about 1e-2.
    Raises ValueError for a setting out of its range, TypeError for a `top_k` that is no integer.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not (_is_number(self.temperature) and 0 <= self.temperature < float("inf")):
            raise ValueError(
                f"temperature: found {self.temperature!r}. Give a finite number >= 0; 0 decodes "
                "greedily."
            )
        if self.top_k is not None:
            check_count(self.top_k, "top_k")
        if self.top_p is not None and not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ValueError(
                f"top_p: found {self.top_p!r}. Give a number above 0 and up to 1; None keeps every "
                "token."
            )

    def probs(self, logits: Tensor) -> Tensor:
        """Probabilities (..., V) from logits (..., V), in float32 at least.

        >>> Sampling(temperature=0.5, top_k=2).probs(torch.tensor([1.0, 4.0, 2.0]).log())
        tensor([0.0000, 0.8000, 0.2000])
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p is not None:
            ordered, ids = logits.flip(-1).sort(dim=-1, stable=True)
            dropped = ordered.softmax(-1).cumsum(-1) <= 1 - self.top_p
            dropped[..., -1].fill_(False)
            dropped = dropped.scatter(-1, ids, dropped).flip(-1)
            logits = logits.masked_fill(dropped, -torch.inf)
        return logits.softmax(-1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)

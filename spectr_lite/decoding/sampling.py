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

    At temperature 0 the likeliest token has probability one, of equal ones the lowest id. As the
    temperature falls to 0, equally likely tokens keep equal shares; in float32 a temperature counts
    as the nearest one from 1.2e-38 to 8.5e37. The text follows the target's distribution after this
    truncation; only its speed depends on the draft's.

    Precision: probabilities are float32, or float64 from float64 logits. In float32 a row sums to 1
    within 3e-7, for 256,000 tokens too, and a probability p is right to a share of about
    2e-7 (2 + log 1/p). In total variation the token that a rule selects is within 3e-7 of the target,
    and the distribution that it draws from when it refuses every draft, which happens with
    probability m, within 3e-7 / m of the exact residual. But low-precision logits change a little
    with the number of tokens that a call reads, which no rule can mend: in bfloat16 the target's
    probabilities are only known to about 1e-2.
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

        Logits that are no distribution, with a NaN, with +inf or with -inf alone, give a row of NaN.

        >>> Sampling(temperature=0.5, top_k=2).probs(torch.tensor([1.0, 4.0, 2.0]).log())
        tensor([0.0000, 0.8000, 0.2000])
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.temperature == 0:
            best, token = logits.max(-1, keepdim=True)
            others = best - best  # 0, or NaN
            return others.expand_as(logits).scatter(-1, token, others + 1)
        if self.temperature < 1:  # a quotient then cannot overflow
            logits = logits - logits.amax(-1, keepdim=True)
        if self.temperature != 1:
            tiny = torch.finfo(logits.dtype).tiny
            logits = logits / min(max(self.temperature, tiny), 1 / tiny)
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p is not None:
            ordered, ids = logits.flip(-1).sort(dim=-1, stable=True)
            dropped = ordered.softmax(-1).cumsum(-1) <= 1 - self.top_p
            dropped[..., -1].fill_(False)
            dropped = dropped.scatter(-1, ids, dropped).flip(-1)
            logits = logits.masked_fill(dropped, -torch.inf)
        probs = logits.softmax(-1)
        return probs.div_(probs.sum(-1, keepdim=True))  # a float32 softmax is off by up to 1e-5

    def probs_or_uniform(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """`probs`, but uniform where the logits are no distribution; and where that is, (...) bool.

        A draft may be replaced so: a rule is lossless for any draft whose tokens were drawn from the
        distribution that the rule is shown. So may a target where the text does not come: a rule is
        lossless for the target so changed, and both targets give equal probabilities to the texts
        that do not pass such a place. A text that does pass one has none, and `decode` raises.
        """
        probs = self.probs(logits)
        missing = probs[..., 0].isnan()
        return probs.nan_to_num_(1 / probs.shape[-1]), missing


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)

"""What a turn costs in autoregressive steps, and what that makes of a block efficiency.

cost(K, L) = c + d L + s (1 + K L)      in turns of autoregressive decoding
c  what every turn pays;   d  a step of the draft;   s  a token more in the target's call
speed = block efficiency / cost
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, nnls


@dataclass(frozen=True)
class Costs:
    """The fitted formula above. `error`: the worst relative error at the points it was fitted to."""

    fixed: float
    draft: float
    score: float
    error: float

    def turn(self, num_drafts: int, draft_length: int) -> float:
        tokens = 1 + num_drafts * draft_length
        return self.fixed + self.draft * draft_length + self.score * tokens


def fit_costs(cost: Mapping[tuple[int, int], float]) -> Costs:
    """From the cost of a turn for some (K, L), in autoregressive steps: least squares of the relative
    errors, no term below zero."""
    design = np.array([[1, length, 1 + k * length] for k, length in cost], float)
    seen = np.array(list(cost.values()))
    (fixed, draft, score), _ = nnls(design / seen[:, None], np.ones(len(seen)))
    error = np.abs(design @ [fixed, draft, score] / seen - 1).max()
    return Costs(float(fixed), float(draft), float(score), float(error))


def acceptance_for(efficiency: float, draft_length: int) -> float | None:
    """The a with 1 + a + ... + a^L = `efficiency`, were every token accepted with one probability.
    None for more than L + 1 tokens, which no turn can emit."""
    if efficiency > draft_length + 1:
        return None
    return brentq(lambda a: sum(a**i for i in range(draft_length + 1)) - efficiency, 0.0, 1.0)

"""What a turn costs in autoregressive steps, and the speed that follows. Explained in chapters 8 and 9.

    cost(K, L) = c + d L + s (1 + K L)          in turns of autoregressive decoding
    speed      = block efficiency / cost(K, L)

c is paid by every turn, d by each step of the draft, s by each token that the target's call reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, nnls


@dataclass(frozen=True)
class Costs:
    """The fitted c, d and s, and the largest relative error at the points they were fitted to."""

    fixed: float
    draft: float
    score: float
    error: float

    def turn(self, num_drafts: int, draft_length: int) -> float:
        tokens = 1 + num_drafts * draft_length
        return self.fixed + self.draft * draft_length + self.score * tokens


def fit_costs(cost: Mapping[tuple[int, int], float]) -> Costs:
    """Fit c, d, s >= 0 to {(K, L): cost of a turn in autoregressive steps}, by least squares of the
    relative errors.

    >>> fit = fit_costs({(1, 4): 1.5, (8, 4): 1.78, (1, 8): 1.94, (8, 8): 2.5})
    >>> print(f"{fit.fixed:.2f} {fit.draft:.2f} {fit.score:.2f}, cost {fit.turn(4, 4):.2f}")
    1.05 0.10 0.01, cost 1.62
    """
    design = np.array([[1, length, 1 + k * length] for k, length in cost], float)
    seen = np.array(list(cost.values()))
    (fixed, draft, score), _ = nnls(design / seen[:, None], np.ones(len(seen)))
    error = np.abs(design @ [fixed, draft, score] / seen - 1).max()
    return Costs(float(fixed), float(draft), float(score), float(error))


def acceptance_for(efficiency: float, draft_length: int) -> float | None:
    """The probability a with 1 + a + ... + a^L = `efficiency`: the acceptance of each token, if all
    had the same. None above L + 1 tokens, which no turn can emit.

    >>> round(acceptance_for(1.75, draft_length=2), 4)
    0.5
    """
    if efficiency > draft_length + 1:
        return None
    return brentq(lambda a: sum(a**i for i in range(draft_length + 1)) - efficiency, 0.0, 1.0)

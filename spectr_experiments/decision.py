"""Which setting is the fastest, on a machine where a draft step costs d and a scored token s.

    speed = tokens per call / (1 + d L + s K L),    d and s in autoregressive steps

is costs.Costs with c + s = 1: a call for one token is one step. Selection is free in it. Tokens per
call are recorded; d and s take a few calls of both models (`costs_here`). Explained in chapter 10.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from spectr_experiments import clocks
from spectr_lite.book.costs import Costs
from spectr_lite.models import ModelPair

NOTHING = {
    "verifier": "autoregressive",
    "num_drafts": 0,
    "draft_length": 0,
    "block_efficiency": 1.0,
}
ROUNDS, DRAFTS, READ, SLOTS = 9, 8, 65, 256


def settings_of(run: dict[str, Any], temperature: float = 1.0) -> list[dict[str, Any]]:
    """A recorded run's settings with drafts at one temperature; first, not to draft at all."""
    return [NOTHING] + [
        cell
        for cell in run["cells"]
        if cell["num_drafts"] and cell["temperature"] == temperature and cell["block_efficiency"]
    ]


def speeds(settings: Sequence[dict[str, Any]], draft: Any, score: Any) -> np.ndarray:
    """Speed of every setting over autoregressive decoding, (len(settings), *shape of draft and score):
    what a step of the draft costs and one more token in the target's call, in autoregressive steps."""
    draft, score = np.broadcast_arrays(np.asarray(draft, float), np.asarray(score, float))
    turn = Costs(fixed=1 - score, draft=draft, score=score, error=0.0).turn
    return np.stack(
        [s["block_efficiency"] / turn(s["num_drafts"], s["draft_length"]) for s in settings]
    )


@dataclass(frozen=True)
class Region:
    """Where one rule with one draft length is the fastest: `mask` over the grid, `area`, its share of
    it, the numbers of drafts that win there, and the place deepest inside, by its costs and speed."""

    verifier: str
    draft_length: int
    mask: np.ndarray
    area: float
    drafts: list[int]
    draft: float
    score: float
    speed: float


def regions(
    settings: Sequence[dict[str, Any]], draft: np.ndarray, score: np.ndarray
) -> list[Region]:
    """The map over costs `draft` (M,) and `score` (N,), each rising: masks are (N, M)."""
    found = []
    speed = speeds(settings, draft[None], score[:, None])
    first = speed.argmax(0)
    for rule, length in dict.fromkeys((s["verifier"], s["draft_length"]) for s in settings):
        members = [
            i
            for i, s in enumerate(settings)
            if (s["verifier"], s["draft_length"]) == (rule, length)
        ]
        if (mask := np.isin(first, members)).any():
            depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
            row, column = np.unravel_index(depth.argmax(), depth.shape)
            winners = sorted({settings[i]["num_drafts"] for i in np.unique(first[mask])})
            place = float(draft[column]), float(score[row]), float(speed[:, row, column].max())
            found.append(Region(rule, length, mask, float(mask.mean()), winners, *place))
    return found


def costs_here(pair: ModelPair) -> tuple[float, float]:
    """d and s of this machine: medians of a few calls, those of a round one after another."""
    asked = (pair.target, 1), (pair.target, READ), (pair.draft, DRAFTS)
    calls = [clocks.call(model, tokens, SLOTS) for model, tokens in asked]
    rounds = [[call() for call in calls] for _ in range(ROUNDS + 1)][1:]  # the first warms up
    one, many, draft = (statistics.median(column) for column in zip(*rounds, strict=True))
    return draft / one, max(many / one - 1, 0.0) / (READ - 1)

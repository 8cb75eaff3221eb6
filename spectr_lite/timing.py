"""How long the loop's turns take, stage by stage, and what a turn costs in autoregressive steps.

    cost(K, L) = c + d L + s (1 + K L)      in turns of autoregressive decoding
    c  what every turn pays;   d  a step of the draft;   s  a token more in the target's call
    speed = block efficiency / cost

The first turn, which also reads the prompt, is left out everywhere.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq, nnls

from spectr_lite import decoding

STAGES = {
    "draft": ("draft_paths",),
    "score": ("score_paths",),
    "verify": ("walk_down", "verify_paths"),
    "commit": ("commit",),
    "copy": ("_to_host",),
}


def wait(device: torch.device) -> float:
    """The time, once the device has done all it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass
class Clock:
    """Seconds spent in named stages. A clock waits for the device at both ends of a stage, so that
    turns under it take longer than without."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = wait(self.device)
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + wait(self.device) - start

    @contextlib.contextmanager
    def watching(self, models: Mapping[str, torch.nn.Module]) -> Iterator[None]:
        """Time the loop's STAGES, and inside them the calls of `models` as "<name> forward"."""
        kept = {name: getattr(decoding, name) for names in STAGES.values() for name in names}

        def timed(stage: str, function: Callable) -> Callable:
            def call(*arguments: Any, **keywords: Any) -> Any:
                with self.stage(stage):
                    return function(*arguments, **keywords)

            return call

        for stage, names in STAGES.items():
            for name in names:
                setattr(decoding, name, timed(stage, kept[name]))
        for name, model in models.items():
            model.forward = timed(f"{name} forward", model.forward)
        try:
            yield
        finally:
            for name, function in kept.items():
                setattr(decoding, name, function)
            for model in models.values():
                del model.forward  # the class has its own


@dataclass(frozen=True)
class Turns:
    """Turns of the loop, all rows of the batch in each: their number, their time, what they emitted."""

    count: int
    seconds: float
    emitted: int
    trace: list[decoding.Iteration]

    @property
    def per_turn(self) -> float:
        return self.seconds / self.count

    @property
    def block_efficiency(self) -> float:
        return self.emitted / (self.count * len(self.trace[0].kept))


def run_turns(
    target: Any,
    draft: Any,
    rows: Sequence[Sequence[int]],
    *,
    new_tokens: int = 64,
    after_first: Callable[[], Any] = lambda: None,
    **settings: Any,
) -> Turns:
    """Decode `rows` and time the turns after the first, until a row nears its end of `new_tokens`.

    `settings` are those of `decode`; `after_first` is called between the first turn and the others.
    """
    device = torch.device(target.device)
    stream = decoding.decode(target, draft, rows, max_new_tokens=new_tokens, **settings)
    left = new_tokens - int(next(stream).kept.max())
    after_first()
    trace, start = [], wait(device)
    for turn in stream:
        trace.append(turn)
        left -= int(turn.kept.max())
        if left <= turn.drafted.shape[2]:  # the next turn could end a row
            break
    seconds = wait(device) - start
    stream.close()
    emitted = sum(int((turn.accepted + 1).sum()) for turn in trace)
    return Turns(len(trace), seconds, emitted, trace)


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

"""From the loop's turns to what transformers' `generate` returns, stops at and streams.

`generate` writes one token of every row at a time; a turn writes several, not as many in each row. So
the tokens wait until every row has its next one, and then stopping criteria and streamer meet them
as they would in `generate`. Explained in chapter 8.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from inspect import unwrap
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor
from transformers.generation import (
    EosTokenCriteria,
    GenerateDecoderOnlyOutput,
    GenerationMixin,
    MaxLengthCriteria,
    StoppingCriteriaList,
)

from spectr_lite.decoding import Generation, Turn


@dataclass
class DecoderOutput(GenerateDecoderOnlyOutput):
    """What `generate` returns with return_dict_in_generate=True, and what the drafts were worth.

    target_calls      (B,)    calls of the target for each row; reading the prompt is not counted
    accepted          (B, L)  the turns of each row that accepted at least 1, 2, ..., L drafted tokens
    block_efficiency  float   tokens emitted per call of the target, as in `decoding.Generation`
    """

    target_calls: Tensor | None = None
    accepted: Tensor | None = None
    block_efficiency: float | None = None

    @classmethod
    def of(cls, sequences: Tensor, turns: list[Turn]) -> DecoderOutput:
        made = Generation([], turns)
        depth = torch.arange(turns[0].drafted.shape[2])
        accepted = sum((t.accepted[:, None] > depth) & t.active[:, None] for t in turns)
        return cls(
            sequences=cast(torch.LongTensor, sequences),
            target_calls=torch.tensor(made.calls),
            accepted=cast(Tensor, accepted),
            block_efficiency=made.block_efficiency,
        )


def write(
    turns: Iterable[Turn],
    input_ids: Tensor,
    criteria: StoppingCriteriaList,
    pad_token: Tensor | None,
    streamer: Any = None,
) -> tuple[Tensor, list[Turn]]:
    """Take turns until `generate` would stop: the texts (B, T), and the turns taken.

    With an end token among the criteria `generate` pads a row that has stopped, and without one it
    writes the row on, as long as any row goes on.
    """
    ends = any(hasattr(stop, "eos_token_id") for stop in criteria)
    if ends and pad_token is None:
        raise ValueError(
            "pad_token_id: found None beside a stopping criterion with an eos_token_id. Set "
            "pad_token_id."
        )
    # These two give one answer on any device, and on the CPU nothing waits.
    known = {type(stop) for stop in criteria} <= {EosTokenCriteria, MaxLengthCriteria}
    texts = input_ids.cpu() if known else input_ids
    unfinished = torch.ones(len(texts), dtype=torch.bool)
    waiting: list[list[int]] = [[] for _ in texts]
    taken = []
    for turn in turns:
        taken.append(turn)
        for row, tokens in enumerate(waiting):
            tokens += turn.tokens(row)
        while unfinished.any():
            written = (unfinished | (not ends)).tolist()
            if not all(
                tokens or not wanted for tokens, wanted in zip(waiting, written, strict=True)
            ):
                break
            step = texts.new_tensor(
                [
                    tokens.pop(0) if wanted else int(pad_token)  # type: ignore[arg-type]
                    for tokens, wanted in zip(waiting, written, strict=True)
                ]
            )
            texts = torch.cat([texts, step[:, None]], 1)
            unfinished &= ~criteria(cast(torch.LongTensor, texts), None).cpu()
            if streamer is not None:
                streamer.put(step.cpu())
        if not unfinished.any():
            break
    if streamer is not None:
        streamer.end()
    return texts.to(input_ids.device), taken


def streamer_of_generate() -> Any:
    """The `streamer` that `generate` was given. It hands none to a loop of one's own (transformers
    5.23), so without this look at the caller a reader of the stream would wait for ever."""
    code = unwrap(GenerationMixin.generate).__code__
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame.f_locals.get("streamer") if frame is not None else None

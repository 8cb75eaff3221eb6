"""Text that a model writes, with what its distributions there can be rebuilt from: for both
distillations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectr_lite.models.transformer import Transformer


@torch.no_grad()
def write_text(
    model: Transformer, forced: Tensor, length: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Text sampled at temperature 1 from a model whose head is its embedding.

    forced (R, P): the tokens that a row begins with, -1 where the model is free. Returns, on the CPU:
    tokens (R, N) int32; hidden (R, N - 1, width) float16, what the head reads after each token;
    log_normaliser (R, N - 1) float32, log sum exp of the logits.
    """
    rows, weight, device = len(forced), model.embed_tokens.weight.t(), model.device
    tokens = torch.zeros(rows, length, dtype=torch.int64, device=device)
    hidden = torch.empty(rows, length - 1, len(weight), dtype=torch.float16, device=device)
    log_normaliser = torch.empty(rows, length - 1, device=device)
    logits = torch.empty(rows, weight.shape[1], dtype=weight.dtype, device=device)
    few = rows if device.type == "cuda" else min(rows, 32)  # fits a CPU's cache
    scratch = torch.empty(few, weight.shape[1], device=device)
    cache = model.new_cache(rows, length - 1)  # the last token is not read
    token = forced[:, 0].to(device)
    for step in range(length):
        if step:
            uniform = torch.rand(rows, generator=generator, device=device)
            for start in range(0, rows, few):
                part = slice(start, min(start + few, rows))
                law = scratch[: part.stop - start].copy_(logits[part])
                top = law.amax(-1, keepdim=True)
                mass = law.sub_(top).exp_().cumsum_(-1)
                total = mass[:, -1]
                log_normaliser[part, step - 1] = total.log() + top[:, 0]
                drawn = torch.searchsorted(mass, (uniform[part] * total)[:, None])[:, 0]
                token[part] = drawn.clamp_max(weight.shape[1] - 1)
            if step < forced.shape[1]:
                given = forced[:, step].to(device)
                token = torch.where(given >= 0, given, token)
        tokens[:, step] = token
        if step + 1 < length:
            slot = torch.full((rows, 1), step, device=device)
            mask = torch.ones(rows, 1, step + 1, dtype=torch.bool, device=device)
            last = model.hidden(token[:, None], slot, cache, slot, mask)[:, 0]
            hidden[:, step] = last.half()
            torch.mm(last, weight, out=logits)
    found = {"tokens": tokens.int(), "hidden": hidden, "log_normaliser": log_normaliser}
    return {name: tensor.cpu() for name, tensor in found.items()}

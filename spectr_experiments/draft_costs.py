"""What a draft costs and is worth, and text that its target writes: for drafts.py and for training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spectr_lite.models import Transformer

DRAFT_LENGTH = 4  # of every predicted block efficiency
END = 0  # ends a text of SmolLM2 and, as a first token, stands for the empty context


def multiply_adds(model: nn.Module) -> int:
    """Per token, of the matrix products alone; attention over a context is left out."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, dtype=torch.int64, device=model.device))
    products = counter.get_flop_counts().get("Global", {})
    return sum(count for name, count in products.items() if "mm" in str(name)) // 2


def own_parameters(draft: nn.Module) -> int:
    """Without the embedding, which a draft shares with its target."""
    return sum(p.numel() for name, p in draft.named_parameters() if name != "embed_tokens.weight")


def speed(acceptance: float, cost: float) -> float:
    """Predicted gain of drafting one path, if a call of the target costs the same for all of it."""
    tokens = sum(acceptance**depth for depth in range(DRAFT_LENGTH + 1))
    return tokens / (1 + DRAFT_LENGTH * cost)


def predicted(first: float, later: float) -> float:
    """Tokens per call of the target: `first`, then `later` at every place down, independently."""
    return 1 + first * sum(later**depth for depth in range(DRAFT_LENGTH))


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
                probs = scratch[: part.stop - start].copy_(logits[part])
                top = probs.amax(-1, keepdim=True)
                mass = probs.sub_(top).exp_().cumsum_(-1)
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

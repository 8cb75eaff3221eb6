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
    """Text sampled at temperature 1, and what the teacher's distributions on it can be rebuilt from.

    tokens (R, N) int32; hidden (R, N - 1, width) float16, what the head reads after each token;
    log_normaliser (R, N - 1) float32, log sum exp of the logits.
    """
    rows, weight = len(forced), model.embed_tokens.weight.t()
    device = model.device
    tokens = torch.zeros(rows, length, dtype=torch.int64, device=device)
    hidden = torch.empty(rows, length - 1, len(weight), dtype=torch.float16, device=device)
    log_normaliser = torch.empty(rows, length - 1, device=device)
    logits = torch.empty(rows, weight.shape[1], dtype=weight.dtype, device=device)
    scratch = torch.empty(
        rows if device.type == "cuda" else 32, weight.shape[1], device=device
    )  # fits a CPU's cache
    cache = model.new_cache(rows, length)
    token = forced[:, 0].to(device)
    for step in range(length):
        if step:
            uniform = torch.rand(rows, generator=generator, device=device)
            for start in range(0, rows, len(scratch)):
                part = slice(start, min(start + len(scratch), rows))
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

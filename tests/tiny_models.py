"""Models for tests of the loop: random weights, and distributions that depend on all of their
context.
"""

from __future__ import annotations

import torch

from spectr_lite.models.transformer import Transformer, TransformerConfig

TINY = TransformerConfig(
    vocab_size=20, width=32, layers=3, heads=4, kv_heads=2, ffn=48, context=40, rope_theta=5e5,
    norm_eps=1e-6,
)  # fmt: skip


def random_model(config=TINY, seed=0):
    """Weights far from the origin, norms too, so that every one of them shows."""
    torch.manual_seed(seed)
    model = Transformer(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.3)
    return model


def make_pair(device="cpu", dtype=torch.float64):
    """(target, draft): Transformers over 11 tokens, a context of 200."""
    shape = {"vocab_size": 11, "width": 16, "heads": 4, "kv_heads": 2, "ffn": 24, "context": 200}

    def model(layers, seed):
        made = Transformer(TransformerConfig(layers=layers, **shape)).double().requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        for matrix in (weight for weight in made.parameters() if weight.dim() == 2):
            matrix.normal_(std=1.2 / matrix.shape[1] ** 0.5, generator=generator)
        made.embed_tokens.weight.normal_(std=0.4, generator=generator)
        return made.eval()

    target, draft = model(3, seed=1), model(2, seed=2)
    draft.embed_tokens.weight.copy_(target.embed_tokens.weight)
    return target.to(device, dtype), draft.to(device, dtype)

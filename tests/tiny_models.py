"""Models for tests of the loop: random weights, and distributions that depend on all of their
context.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE

from spectr_lite.models import END_OF_TEXT
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


def write_pair(folder: Path) -> Path:
    """A directory that load_pair reads: random models over bytes, which decode in no time."""
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate([*alphabet, END_OF_TEXT])}
    tokenizer = Tokenizer(BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    shape = {"vocab_size": 257, "heads": 2, "kv_heads": 2, "context": 512, "layers": 1}
    shape |= {"rope_theta": 10000.0, "norm_eps": 1e-5}
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    config = {"tokenizer": {"file": "tokenizer.json", "sha256": digest}}
    torch.manual_seed(0)
    for role, width in (("target", 16), ("draft", 8)):
        architecture = {**shape, "width": width, "ffn": 2 * width}
        model = Transformer(TransformerConfig(**architecture))
        model.embed_tokens.weight.data *= 10  # so that the two disagree at times
        path = folder / f"{role}.safetensors"
        save_file(model.state_dict(), path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        config[role] = {"file": path.name, "sha256": sha256, "architecture": architecture}
    (folder / "config.json").write_text(json.dumps(config))
    return folder

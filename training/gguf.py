"""SmolLM2 from llama.cpp's file format to the one the package reads, once, when it is fetched.

    convert(Path("data/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"), Path("data/smollm2"))

A GGUF file holds quantised tensors, the architecture and the vocabulary together. Its query and key
rows are interleaved per head, channel pair (i, i + D/2) as rows (2i, 2i + 1): undone here. The
weights are written in float32, the only precision that keeps the four-bit values exactly.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from spectr_lite.models.transformer import TransformerConfig
from spectr_lite.models.weights import sha256_of
from training import gguf_file

CONTROL_TOKEN = 3  # in tokenizer.ggml.token_type
NAMES = {  # of the tensors: GGUF's, then the Transformer's
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(path: Path, folder: Path) -> None:
    """Write model.safetensors, tokenizer.json and config.json with their SHA-256 into `folder`.

    Nothing is done when they are there, whole, and made from the file at `path`. config.json is
    written last: a conversion that was killed half-way is done again.
    Raises FileNotFoundError without the file, and ValueError for another architecture, tokenizer or
    kind of tensor, scaled positions, or an untied output matrix.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; give the path of a .gguf file")
    source = {"file": path.name, "sha256": sha256_of(path)}
    if is_converted(folder, source):
        print(f"{folder} is converted")
        return
    architecture, weights, tokenizer = read_gguf(path)
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for role, file in (("target", "model.safetensors"), ("tokenizer", "tokenizer.json")):
        partial = folder / f"{file}.partial"
        if role == "target":
            save_file(weights, partial)
        else:
            tokenizer.save(str(partial))
        written[role] = {"file": file, "sha256": sha256_of(partial)}
        partial.replace(folder / file)  # under its own name only when it is whole
    written["target"] |= {"architecture": asdict(architecture)}
    partial = folder / "config.json.partial"
    partial.write_text(json.dumps({"source": source, **written}, indent=1) + "\n")
    partial.replace(folder / "config.json")
    print(f"{folder} is converted")


def is_converted(folder: Path, source: dict[str, str]) -> bool:
    """Whether `folder` holds a whole conversion of the file that `source` describes."""
    try:
        config = json.loads((folder / "config.json").read_text())
        return config["source"] == source and all(
            sha256_of(folder / config[role]["file"]) == config[role]["sha256"]
            for role in ("target", "tokenizer")
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_gguf(path: Path) -> tuple[TransformerConfig, dict[str, Tensor], Tokenizer]:
    """Architecture, float32 weights by the Transformer's names, and tokenizer of a GGUF file."""
    fields, tensors = gguf_file.read(path)
    if fields["general.architecture"] != "llama":
        raise ValueError(
            f"{path}: found architecture {fields['general.architecture']!r}; only 'llama' is served"
        )
    if scaled := sorted(name for name in fields if name.startswith("llama.rope.scaling")):
        raise ValueError(f"{path}: rotary positions are scaled ({scaled}), which is not served")
    tokenizer = read_tokenizer(path, fields)
    config = TransformerConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        width=fields["llama.embedding_length"],
        layers=fields["llama.block_count"],
        heads=fields["llama.attention.head_count"],
        kv_heads=fields["llama.attention.head_count_kv"],
        ffn=fields["llama.feed_forward_length"],
        context=fields["llama.context_length"],
        rope_theta=fields.get("llama.rope.freq_base", 1e4),
        norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
    )
    heads = {"attn_q": config.heads, "attn_k": config.kv_heads}
    weights = {}
    for name, rows in tensors:
        match = re.fullmatch(r"(blk\.(\d+)\.)?(\w+)\.weight", name)
        if match is None or match[3] not in NAMES:
            raise ValueError(
                f"{path}: tensor {name!r} has no place in a Llama with tied embeddings"
            )
        values = torch.tensor(rows)
        if match[3] in heads:
            values = half_rotation_rows(values, heads[match[3]])
        layer = "" if match[2] is None else f"layers.{match[2]}."
        weights[f"{layer}{NAMES[match[3]]}.weight"] = values
    return config, weights, tokenizer


def half_rotation_rows(rows: Tensor, heads: int) -> Tensor:
    """Rows (heads * D, width) of q or k, from neighbours (2i, 2i + 1) to halves (i, i + D/2)."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def read_tokenizer(path: Path, fields: dict[str, Any]) -> Tokenizer:
    """SmolLM's tokenizer: every digit alone, then GPT-2's words, bytes as characters, and merges."""
    kind = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"{path}: found tokenizer {kind}; only ('gpt2', 'smollm') is served")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    special = [token for token, type in zip(tokens, types, strict=True) if type == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer

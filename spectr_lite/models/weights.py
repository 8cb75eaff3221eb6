"""Weights of Llama-style models, read from other people's files into our Transformer.

GGUF, llama.cpp's one file: quantised tensors, architecture and vocabulary together.
    Its q and k rows are interleaved per head, pair (i, i + D/2) as rows (2i, 2i + 1): undone here.
    Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; needs the package `gguf`.
Folder, as Hugging Face's save_pretrained writes it: config.json and model*.safetensors.
    Served: LlamaForCausalLM and Qwen2ForCausalLM (Llama with biases on q, k and v).

A config that asks for what the Transformer does not do raises ValueError and names it: a model that
loads computes what its authors' code computes.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import textwrap
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from spectr_lite.models.transformer import Transformer, TransformerConfig, rotary_tables

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM")
NEEDED = (  # in config.json
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "rms_norm_eps",
)
CONTROL_TOKEN = 3  # in tokenizer.ggml.token_type
GGUF_NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
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


# --- files: there, whole, and fitting the model they are for ---

REMEDY = "reinstall spectr-lite or train the pair again"


def read(path: Path, sha256: str | None = None, remedy: str = REMEDY) -> bytes:
    """The bytes of a file: FileNotFoundError without it, ValueError if it is not the one promised."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {remedy}")
    content = path.read_bytes()
    if sha256 not in (None, found := hashlib.sha256(content).hexdigest()):
        raise ValueError(
            f"{path} is corrupt: SHA-256 {sha256} is promised, found {found}; {remedy}"
        )
    return content


def read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file."""
    try:
        return safetensors.torch.load(read(path, sha256))
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}); {REMEDY}") from error


def architecture(values: dict, source: Path) -> TransformerConfig:
    """A configuration from config.json's "architecture"."""
    try:
        for name in ("vocab_size", "layers", "heads", "kv_heads", "ffn", "context", "norm_eps"):
            if not values[name] > 0:
                raise ValueError(f"{name} must be above 0")
        return TransformerConfig(**values)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{source} does not fit an architecture of ours: found {values} in config.json "
            f"({type(error).__name__}: {error}); {REMEDY}"
        ) from error


def fill(model: Transformer, weights: dict[str, Tensor], source: str | Path) -> Transformer:
    """`model`, made on the meta device, with `weights` themselves, not a copy; frozen."""
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), 300, placeholder=" ...")
        raise ValueError(f"{source}: the weights do not fit its architecture. {reason}") from error
    model.cos, model.sin = (
        table.to(model.embed_tokens.weight) for table in rotary_tables(model.config)
    )
    return model.eval().requires_grad_(False)


def from_weights(
    config: TransformerConfig, weights: dict[str, Tensor], source: str | Path
) -> Transformer:
    """A Transformer that holds `weights`; ValueError if they misfit."""
    with torch.device("meta"):  # no memory, no random start
        model = Transformer(config)
    return fill(model, weights, source)


def drop_layers(model: Transformer, layers: Collection[int]) -> Transformer:
    """`model` without some of its layers: an untrained draft that shares every tensor it keeps.

    Raises ValueError when a layer does not exist or none would be left.
    """
    count = model.config.layers
    kept = [layer for layer in range(count) if layer not in set(layers)]
    if len(kept) != count - len(set(layers)) or not kept:
        raise ValueError(
            f"layers: found {sorted(layers)}; give numbers from 0 to {count - 1}, and not all"
        )
    weights = {}
    for name, tensor in model.state_dict().items():
        if match := re.match(r"layers\.(\d+)\.", name):
            if int(match[1]) not in kept:
                continue
            name = f"layers.{kept.index(int(match[1]))}.{name[match.end() :]}"
        weights[name] = tensor
    return from_weights(replace(model.config, layers=len(kept)), weights, "the kept layers")


# --- GGUF ---------------------------------------------------------------------------------------


def load_gguf(path: Path) -> tuple[Transformer, Tokenizer]:
    """The float32 model and the tokenizer in a GGUF file of a Llama with a byte-level BPE.

    Raises FileNotFoundError, ImportError without the package `gguf`, and ValueError when the file
    holds another architecture or tokenizer, or scaled rotary positions.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; give the path of a .gguf file")
    gguf = import_gguf()
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"{path} is no GGUF file, or half of one ({error}); fetch it again"
        ) from error
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise ValueError(
            f"{path}: found architecture {fields['general.architecture']!r}; only 'llama' is served"
        )
    if scaled := sorted(name for name in fields if name.startswith("llama.rope.scaling")):
        raise ValueError(f"{path}: rotary positions are scaled ({scaled}), which is not served")
    tokenizer = gguf_tokenizer(path, fields)
    names = {tensor.name for tensor in reader.tensors}
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
        tied="output.weight" not in names,
    )
    heads = {"attn_q": config.heads, "attn_k": config.kv_heads}
    weights = {}
    for tensor in reader.tensors:
        match = re.fullmatch(r"(blk\.(\d+)\.)?(\w+)\.weight", tensor.name)
        if match is None or match[3] not in GGUF_NAMES:
            raise ValueError(f"{path}: tensor {tensor.name!r} has no place in a plain Llama")
        values = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        if match[3] in heads:
            values = half_rotation_rows(values, heads[match[3]])
        layer = "" if match[2] is None else f"layers.{match[2]}."
        weights[f"{layer}{GGUF_NAMES[match[3]]}.weight"] = values
    return from_weights(config, weights, str(path)), tokenizer


def half_rotation_rows(rows: Tensor, heads: int) -> Tensor:
    """Rows (heads * D, width) of q or k, from neighbours (2i, 2i + 1) to halves (i, i + D/2)."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def gguf_tokenizer(path: Path, fields: dict[str, Any]) -> Tokenizer:
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


def import_gguf() -> ModuleType:
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise ImportError("reading a GGUF file needs the package gguf: pip install gguf") from error


# --- Hugging Face folders -----------------------------------------------------------------------


def load_folder(
    folder: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    vocab_size: int | None = None,
) -> Transformer:
    """The model in a folder with config.json and model.safetensors, or its numbered parts.

    `vocab_size` keeps that many rows of the embedding and output: what lies behind is padding.
    Raises FileNotFoundError for a missing file and ValueError for a model that is not served.
    """
    weights: dict[str, Tensor] = {}
    config = huggingface_config(read_json(folder / "config.json"), str(folder))
    index = folder / "model.safetensors.index.json"
    parts = set(read_json(index)["weight_map"].values()) if index.is_file() else None
    for part in sorted(parts or {"model.safetensors"}):
        if not (folder / part).is_file():
            raise FileNotFoundError(f"{folder / part} is missing; give a folder with its weights")
        try:
            tensors = load_file(folder / part)
        except SafetensorError as error:
            raise ValueError(
                f"{folder / part} is corrupt ({error}); fetch or save the model again"
            ) from error
        for name, tensor in tensors.items():
            if not name.endswith("rotary_emb.inv_freq"):  # old files hold what the config says
                weights[name.removeprefix("model.")] = tensor.to(device, dtype)
    if config.tied:
        weights.pop("lm_head.weight", None)  # some files hold the tied matrix twice
    if vocab_size is not None:
        if vocab_size > config.vocab_size:
            raise ValueError(
                f"{folder}: the tokenizer has {vocab_size} tokens, the model {config.vocab_size}; "
                "give the model's own tokenizer"
            )
        config = replace(config, vocab_size=vocab_size)
        for name in {"embed_tokens.weight", "lm_head.weight"} & set(weights):
            weights[name] = weights[name][:vocab_size].clone()
    return from_weights(config, weights, str(folder))


def huggingface_config(values: dict[str, Any], source: str) -> TransformerConfig:
    """Our configuration from the contents of a config.json; ValueError names what is not served."""
    architecture = (values.get("architectures") or ["none"])[0]
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{source}: found architecture {architecture}; served: {', '.join(ARCHITECTURES)}"
        )
    if missing := [name for name in NEEDED if name not in values]:
        raise ValueError(f"{source}: config.json lacks {', '.join(missing)}; fetch the model again")
    qwen = architecture == "Qwen2ForCausalLM"
    heads = values["num_attention_heads"]
    # transformers 5 writes rope_parameters, 4 wrote rope_theta and rope_scaling.
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    head_dim = values["hidden_size"] // heads
    expected = {
        "hidden_act": (values.get("hidden_act", "silu"), "silu"),
        "attention_bias": (values.get("attention_bias", False), False),
        "mlp_bias": (values.get("mlp_bias", False), False),
        "use_sliding_window": (values.get("use_sliding_window", False), False),
        "head_dim": (values.get("head_dim") or head_dim, head_dim),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
    }
    for name, (found, served) in expected.items():
        if found != served:
            raise ValueError(f"{source}: found {name}={found!r} in config.json; served: {served!r}")
    return TransformerConfig(
        vocab_size=values["vocab_size"],
        width=values["hidden_size"],
        layers=values["num_hidden_layers"],
        heads=heads,
        kv_heads=values.get("num_key_value_heads") or heads,
        ffn=values["intermediate_size"],
        context=values["max_position_embeddings"],
        rope_theta=rope.get("rope_theta") or values.get("rope_theta") or 1e4,
        norm_eps=values["rms_norm_eps"],
        tied=values.get("tie_word_embeddings", False),
        qkv_bias=qwen,
    )


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; give a folder written by save_pretrained")
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is corrupt ({error}); fetch or save the model again") from error

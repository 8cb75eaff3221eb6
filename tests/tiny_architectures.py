"""Every causal language model of transformers, tiny and random, with a window of 8 tokens."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig

CONTEXT, WINDOW = 24, 8
SIZES: dict[str, int] = {}
for size, names in [
    (32, "hidden_size d_model n_embd dim embedding_size embed_dim"),
    (48, "intermediate_size ffn_dim n_inner d_ff ffn_hidden_size decoder_ffn_dim encoder_ffn_dim"),
    (2, "num_hidden_layers n_layer num_layers n_layers decoder_layers encoder_layers"),
    (2, "num_key_value_heads num_experts_per_tok top_k_experts index_n_heads indexer_n_heads"),
    (2, "eos_token_id"),
    (4, "num_attention_heads n_head num_heads n_heads decoder_attention_heads"),
    (4, "encoder_attention_heads num_experts num_local_experts n_routed_experts"),
    (4, "indexer_compress_ratio"),
    (8, "head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim rotary_dim index_head_dim"),
    (8, "mamba_n_heads mamba_d_head hidden_size_per_layer_input indexer_head_dim"),
    (16, "moe_intermediate_size q_lora_rank kv_lora_rank"),
    (40, "vocab_size vocab_size_per_layer_input"),
    (64, "mamba_d_ssm"),
    (0, "pad_token_id"),
    (1, "bos_token_id n_group topk_group n_shared_experts indexer_kv_heads"),
    (WINDOW, "sliding_window sliding_window_size window_size attention_chunk_size index_topk"),
    (WINDOW, "attention_window_size local_attention local_attention_window_len keep_window_size"),
    (WINDOW, "indexer_budget"),
    (CONTEXT, "max_position_embeddings n_positions n_ctx"),
]:
    SIZES |= {name: size for name in names.split()}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
CHANGES: dict[str, dict[str, Any]] = {  # what some configurations ask for besides
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8}},
    "falcon": {"head_dim": None},
    "gemma3n_text": {"num_hidden_layers": 8, "num_kv_shared_layers": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "lfm2_moe": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "prophetnet": {"num_hidden_layers": None, "num_encoder_layers": 2, "num_decoder_layers": 2},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xlnet": {"max_position_embeddings": None},
    "xlstm": {"v_head_dim": None},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"]},
    "zaya": {"num_experts_per_tok": 1},
}
DEEP = (
    "bailing_hybrid jamba kimi_linear lfm3 qwen3_5_text qwen3_5_moe_text qwen3_next qwen4_exp_text"
)
CHANGES |= {kind: {"num_hidden_layers": 4} for kind in DEEP.split()}
CHANGES |= {kind: {"num_hidden_layers": 8} for kind in ("recurrent_gemma", "zamba")}
CHANGES |= {
    kind: {"text_config": {"num_hidden_layers": 4}}
    for kind in ("qwen3_5", "qwen3_5_moe", "qwen4_exp")
}


def tiny_sizes(config_class: type[PretrainedConfig], changes: dict[str, Any]) -> dict[str, Any]:
    """Arguments for a configuration: a small number for every size that it knows."""
    default = config_class()
    sizes: dict[str, Any] = {name: size for name, size in SIZES.items() if _has(default, name)}
    if "kv_lora_rank" in sizes and "num_key_value_heads" in sizes:
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    sizes |= changes
    for name in config_class.sub_configs:
        part = getattr(default, name, None)
        if isinstance(part, PretrainedConfig):
            sizes[name] = tiny_sizes(type(part), changes.get(name, {}))
    return {name: size for name, size in sizes.items() if size is not None}


def _has(config: PretrainedConfig, name: str) -> bool:
    try:
        return hasattr(config, name)
    except Exception:  # a size that differs from layer to layer
        return False


def tiny_model(kind: str, seed: int = 0, **changes: Any) -> Any:
    """Weights larger than a trainer's, so that the distributions are neither flat nor alike."""
    config_class = CONFIG_MAPPING[kind]
    config = config_class(**tiny_sizes(config_class, CHANGES.get(kind, {}) | changes))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            parameter.data.mul_(6)
    return model.eval()

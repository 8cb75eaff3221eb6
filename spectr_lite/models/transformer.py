"""A Llama-style Transformer whose KV cache is addressed slot by slot.

A drafted tree, a ragged batch and a roll-back are the same thing here: every token says which cache
slot it is written to (`slots`), where it stands in its text (`positions`) and which slots it may
see (`mask`).

    x <- x + Attention(RMSNorm(x));   x <- x + W_down(silu(W_gate h) * W_up h),  h = RMSNorm(x)

Rotary positions in the half-rotation layout, grouped-query attention, SwiGLU, no biases; the
embedding is also the output matrix. Matrices that read one input are held as one, for fewer kernels:
16 a layer. In a file all carry the names of Hugging Face's Llama without the leading "model.".
Sources: LLaMA (arXiv 2302.13971), rotary positions (arXiv 2104.09864), grouped queries
(arXiv 2305.13245). Explained in chapter 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel

from spectr_lite.models.interface import ATTENTION


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes of a Transformer. ValueError if the heads do not divide the width and each other."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    context: int
    rope_theta: float = 1e4
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width must be an even multiple of heads, got width={self.width}, "
                f"heads={self.heads}; rotary positions turn pairs of channels in each head"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads must be a multiple of kv_heads, got heads={self.heads}, "
                f"kv_heads={self.kv_heads}"
            )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class KVCache:
    """Preallocated `entries` (layers, batch, 2 kv_heads, slots, head_dim): all keys, then all values."""

    entries: Tensor

    @property
    def slots(self) -> int:
        return self.entries.shape[3]

    def move(self, source: Tensor, destination: Tensor) -> None:
        """Copy slots `source` to `destination`, both (batch, M). All reads precede all writes."""
        rows = torch.arange(len(source), device=source.device).unsqueeze(1)
        by_slot = self.entries.permute(1, 3, 0, 2, 4)  # batch and slots first
        by_slot[rows, destination] = by_slot[rows, source]


def rotary_tables(config: TransformerConfig) -> tuple[Tensor, Tensor]:
    """cos and sin (context, D) of -a in channel i, of a in i + D/2, with a = position theta^(-2i/D)."""
    frequency = config.rope_theta ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
    angle = torch.outer(torch.arange(config.context), torch.cat((-frequency, frequency)))
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel pairs (i, i + D/2) of x (B, heads, N, D) by cos, sin, of that shape; contiguous."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(torch.cat((second, first), dim=-1) * sin, x, cos)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention (B, N, heads * D) of query (B, heads, N, D) over key and value (B, kv_heads, S, D).

    `mask` is what `grouped_mask` makes; None means causal attention. Query heads that share a key
    head are stacked as further queries of that head, so that no key is copied.
    """
    if mask is None:
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    else:
        grouped = query.reshape(len(key), key.shape[1], -1, key.shape[3])
        out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask)
    return out.unflatten(2, (-1, query.shape[2])).permute(0, 3, 1, 2, 4).flatten(2)


def grouped_mask(mask: Tensor, config: TransformerConfig, dtype: torch.dtype) -> Tensor:
    """What attention adds to its scores, for a boolean mask (B, N, S): 0 where True, -inf elsewhere.

    Of shape (B, 1, heads / kv_heads * N, S), the mask repeated for all query heads that share a key
    head, as `attend` stacks them. Made once for all layers.
    """
    added = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
    if mask.is_cuda:
        # Rows at multiples of 16, or else every layer makes a copy that has them.
        added = F.pad(added, (0, -mask.shape[-1] % 16))
    added = added.repeat(1, config.heads // config.kv_heads, 1).unsqueeze(1)
    return added[..., : mask.shape[-1]]


def keep_names(module: nn.Module, joined: str, rows: dict[str, int]) -> None:
    """Save and load the matrix `joined` of `module` as those it consists of, each of so many `rows`."""

    def split(_: nn.Module, state: dict[str, Tensor], prefix: str, __: Any) -> None:
        parts = state.pop(f"{prefix}{joined}.weight").split(list(rows.values()))
        state.update(zip((f"{prefix}{name}.weight" for name in rows), parts, strict=True))

    def join(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        own, errors = module.get_parameter(f"{joined}.weight"), rest[-1]
        parts = [state.pop(f"{prefix}{name}.weight", own[:0]) for name in rows]
        needed = [(count, own.shape[1]) for count in rows.values()]
        fits = [part.shape for part in parts] == needed
        state[f"{prefix}{joined}.weight"] = torch.cat(parts) if fits else own
        for name, part, shape in zip(rows, parts, needed, strict=True):
            if part.shape != shape:
                found = tuple(part.shape) if len(part) else "nothing"
                errors.append(f"{prefix}{name}.weight: found {found}, needed {shape}")

    module.register_state_dict_post_hook(split)
    module.register_load_state_dict_pre_hook(join)


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        kv_width = config.kv_heads * config.head_dim
        self.qkv_proj = nn.Linear(config.width, config.width + 2 * kv_width, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)
        keep_names(self, "qkv_proj", dict(q_proj=config.width, k_proj=kv_width, v_proj=kv_width))

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        entries: Tensor | None,
        write: Any,
        mask: Any,
    ) -> Tensor:
        """Attention of the tokens of x (B, N, width), of that shape.

        `rotary` is cos and sin (B, heads + 2 kv_heads, N, D) of their positions, and of position 0 for
        the values, which do not turn. `entries` (B, 2 kv_heads, slots, D) is this layer's part of the
        cache, or None without one: the new keys and values are written there first, at `write`, a
        pair of indices (rows (B, 1), slots (B, N)), and attention reads the first S slots.
        """
        heads, kv_heads = self.config.heads, self.config.kv_heads
        states = self.qkv_proj(x).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
        query, new = rotate(states, *rotary).tensor_split((heads,), 1)
        if entries is not None:
            entries.transpose(1, 2)[write] = new.transpose(1, 2)
            new = entries[:, :, : mask.shape[-1]]
        key, value = new.split(kv_heads, 1)
        return self.o_proj(attend(query, key, value, mask))


class FeedForward(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.width, 2 * config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.width, bias=False)
        keep_names(self, "gate_up_proj", {"gate_proj": config.ffn, "up_proj": config.ffn})

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, *where: Any) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), *where)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """A language model: `forward` gives logits, `new_cache` the cache that it reads and writes."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all matrices from Normal(0, 0.02); the norms stay at one.

        Those whose output is added to the residual stream, two in a layer, are divided by
        sqrt(2 * layers), so that the sum does not grow with the number of layers.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                added = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = math.sqrt(2 * self.config.layers) if added else 1.0
                nn.init.normal_(parameter, std=0.02 / scale)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    def new_cache(self, batch: int, slots: int) -> KVCache:
        """An empty cache for `batch` texts, in the model's dtype and on its device.

        It is zeroed, since attention spreads even a masked NaN. Slots are places, not positions: a
        drafted tree may need more of them than the context has.
        """
        config = self.config
        shape = (config.layers, batch, 2 * config.kv_heads, slots, config.head_dim)
        return KVCache(self.embed_tokens.weight.new_zeros(shape))

    def forward(self, tokens: Tensor, *where: Any, **named: Any) -> Tensor:
        """Logits (B, N, V) of the token after each of `tokens` (B, N); arguments as in `hidden`."""
        return self.head(self.hidden(tokens, *where, **named))

    def embed(self, tokens: Tensor) -> Tensor:
        """What the first layer reads, (B, N, width), for `tokens` (B, N)."""
        return self.embed_tokens(tokens)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) from the last hidden states (..., width)."""
        return F.linear(hidden, self.embed_tokens.weight)

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        slots: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The last hidden states (B, N, width) of `tokens` (B, N), which `head` reads.

        Without a cache the N tokens attend to each other causally. With one, `positions` and `slots`
        (B, N) and `mask` (B, N, S) are needed: token [b, n] is written into slot slots[b, n], then
        attends to the slots s with mask[b, n, s] True, its own among them. Nothing has to be erased:
        a slot that no mask shows any more is forgotten.
        Raises ValueError for more tokens than the context, or a cache without the other three.
        """
        if cache is None:
            if tokens.shape[1] > self.config.context:
                raise ValueError(
                    f"tokens has {tokens.shape[1]} columns but the model's context is "
                    f"{self.config.context}; pass a shorter text"
                )
        elif positions is None or slots is None or mask is None:
            raise ValueError("a forward with a cache needs positions, slots and mask; one is None")
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        heads, kv_heads = self.config.heads, self.config.kv_heads
        # Position 0, whose angle is 0, for the values: all heads then turn in one go.
        turns = F.pad(positions.unsqueeze(1).expand(-1, heads + kv_heads, -1), (0, 0, 0, kv_heads))
        rotary = self.cos[turns], self.sin[turns]
        write = torch.arange(len(tokens), device=tokens.device).unsqueeze(1), slots
        x = self.embed(tokens)
        if mask is not None:
            mask = grouped_mask(mask, self.config, x.dtype)
        with sdpa_kernel(ATTENTION):
            for layer, block in enumerate(self.layers):
                entries = None if cache is None else cache.entries[layer]
                x = block(x, rotary, entries, write, mask)
        return self.norm(x)

    fill = hidden  # how the loop reads a prompt

"""Any causal language model of transformers, as the decoding loop wants it.

The loop tells every token its position, the cache slot it is written to, and the slots it may see.
A model of transformers takes positions and a mask (B, 1, N, S); it knows no slots, so it is given a
cache that has them. A model that cannot be steered so is refused: one with a recurrent state, a
window that the text would outgrow, or an attention kernel without masks. Before its first use a
model reads a small tree, and its logits must be those of the two texts that the tree holds.

Needs transformers >= 5. Explained in chapter 8.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel
from transformers import Cache, PreTrainedModel

from spectr_lite.models.interface import ATTENTION
from spectr_lite.models.weights import check_finite


class SlotCache(Cache):
    """A cache for transformers' attention layers that stores each token where the loop says.

    Keys and values of a layer, each (B, heads, slots, D), are made at its first call, as only then
    their shape is known. Set `write` and `seen` before every call of the model.
    """

    def __init__(self, slots: int) -> None:
        super().__init__(layers=[])
        self.slots = slots
        self.entries: dict[int, tuple[Tensor, Tensor]] = {}
        self.write: Tensor  # (B, N), the slots of the tokens in this call
        self.seen: int  # how many slots the mask of this call covers

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the keys and values (B, heads, N, D) of new tokens; give all that the mask covers.

        Every attention layer calls it, with its number.
        """
        new = key_states, value_states
        if layer_idx not in self.entries:
            keys, values = (
                states.new_zeros(*states.shape[:2], self.slots, states.shape[3]) for states in new
            )
            self.entries[layer_idx] = keys, values
        rows = torch.arange(len(self.write), device=self.write.device).unsqueeze(1)
        for entry, states in zip(self.entries[layer_idx], new, strict=True):
            entry.transpose(1, 2)[rows, self.write] = states.transpose(1, 2)
        keys, values = self.entries[layer_idx]
        return keys[:, :, : self.seen], values[:, :, : self.seen]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0  # positions are always given

    def move(self, source: Tensor, destination: Tensor) -> None:
        """Copy slots `source` to `destination`, both (B, M). All reads precede all writes."""
        rows = torch.arange(len(source), device=source.device).unsqueeze(1)
        for entry in (entry for layer in self.entries.values() for entry in layer):
            by_slot = entry.transpose(1, 2)
            by_slot[rows, destination] = by_slot[rows, source]


class CausalLM:
    """A `LanguageModel` for the loop, from a model of transformers, whose weights it shares.

    `vocab_size`, if given, cuts the model's vocabulary or extends it by tokens of probability zero:
    models of one family are often padded to different widths.
    Raises TypeError for what is no such model and ValueError for one that cannot read a tree.
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int | None = None) -> None:
        if not isinstance(model, PreTrainedModel):
            raise TypeError(
                f"model: found {type(model).__name__}. Give a causal language model of transformers, "
                "such as AutoModelForCausalLM.from_pretrained(...)."
            )
        self.reach = check_architecture(model)
        self.model = model
        context = model.config.get_text_config().max_position_embeddings
        self.config = SimpleNamespace(context=context)
        try:
            first = torch.tensor([[0]], device=self.device)
            self.own_size = model(input_ids=first)[0].shape[-1]
            self.vocab_size = vocab_size or self.own_size
            wrong = self._read_a_tree()
        except (RuntimeError, IndexError, TypeError) as error:
            raise ValueError(
                f"{type(model).__name__}: it cannot read a tree of drafts. {error}"
            ) from error
        if not wrong <= torch.finfo(model.dtype).eps ** 0.5:
            check_finite(model, self._read_a_tree, type(model).__name__)
            raise ValueError(
                f"{type(model).__name__}: it does not read a tree of drafts as it reads the texts in "
                f"it (logits off by {wrong:.2g} of their range). It may ignore the mask or the "
                "positions it is given. Choose a Transformer with plain causal attention."
            )

    @property
    def device(self) -> torch.device:
        return self.model.device

    def new_cache(self, batch: int, slots: int) -> SlotCache:
        if self.reach is not None and slots > self.reach:
            raise ValueError(
                f"{type(self.model).__name__}: its attention changes beyond {self.reach} tokens (a "
                f"sliding window or scaled positions), and text and drafts may take {slots}. Lower "
                "max_new_tokens, num_drafts or draft_length, or shorten the prompt."
            )
        return SlotCache(slots)

    @sdpa_kernel(ATTENTION)
    def __call__(self, tokens: Tensor, *where: Any, **more: Any) -> Tensor:
        """Logits (B, N, V); arguments as in `Transformer.hidden`, and more that the model takes."""
        positions, cache, slots, mask = where
        cache.write, cache.seen = slots, mask.shape[-1]
        dtype = self.model.dtype
        hidden = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        hidden = hidden.masked_fill(~mask, torch.finfo(dtype).min).unsqueeze(1)
        logits = self.model(
            input_ids=tokens.clamp_max(self.own_size - 1),
            position_ids=positions,
            attention_mask=hidden,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
            **more,
        ).logits
        extra = self.vocab_size - logits.shape[-1]
        return torch.nn.functional.pad(logits, (0, extra), value=-torch.inf) if extra else logits

    def fill(self, *where: Any) -> None:
        """Write the cache; logits are made of the last token alone, if the model can be told so."""
        named = inspect.signature(self.model.forward).parameters
        short: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in named else {}
        self(*where, **short)

    @torch.no_grad()
    def _read_a_tree(self) -> float:
        """How far the logits on a small tree are off, as a share of their range.

        The tree forks; after reading it the second branch is moved into the slots of the first, and one
        more token is read behind it. The reference reads the two texts one by one, without a cache.
        """
        a, b, c, d, e, f = ids = [i % self.own_size for i in range(1, 7)]
        sees = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 4, 5]]
        tokens, positions, slots = (
            torch.tensor([row], device=self.device) for row in (ids, [0, 1, 2, 3, 2, 3], range(6))
        )
        mask = torch.zeros(1, 6, 6, dtype=torch.bool, device=self.device)
        for node, seen in enumerate(sees):
            mask[0, node, seen] = True
        cache = self.new_cache(1, 6)
        for part in (slice(0, 2), slice(2, 6)):
            tree = self(tokens[:, part], positions[:, part], cache, slots[:, part], mask[:, part])
        cache.move(slots[:, 4:], slots[:, 2:4])
        after = slots[None] <= 4
        tree = torch.cat(
            [tree, self(tokens[:, 2:3], slots[:, 4:5], cache, slots[:, 4:5], after)], 1
        )
        texts = torch.tensor([[a, b, c, d, e], [a, b, e, f, c]], device=self.device)
        plain = self.model(input_ids=texts, use_cache=False, return_dict=True).logits.double()
        plain = torch.cat([plain[0, 2:4], plain[1, 2:]])[:, : self.vocab_size]
        error = (tree[0, :, : self.own_size] - plain).abs().max()
        return float(error / (plain.max() - plain.min()))


def check_architecture(model: PreTrainedModel) -> int | None:
    """How many tokens the model reads with plain attention; None if any number.

    Raises ValueError, with the reason, for a model that a mask and positions cannot steer.
    """
    name, config = type(model).__name__, model.config.get_text_config()
    kernel = config._attn_implementation
    if kernel not in ("sdpa", "eager"):
        raise ValueError(
            f"{name}: found attn_implementation={kernel!r}, which takes no tree mask. Call "
            "model.set_attn_implementation('sdpa') first."
        )
    if model.config.is_encoder_decoder or not model.can_generate():
        raise ValueError(f"{name}: it is not a decoder-only language model. Choose one that is.")
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise ValueError(
            f"{name}: it takes no position_ids, and drafts side by side share their positions. "
            "Choose a model with rotary or learned positions."
        )
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if model._is_stateful or kinds - {"full_attention", "sliding_attention", "chunked_attention"}:
        raise ValueError(
            f"{name}: it carries a recurrent state ({', '.join(sorted(kinds))}), which cannot be "
            "rolled back to where a draft was refused. Choose a model whose layers all attend."
        )
    limits = []
    if kinds != {"full_attention"} or getattr(config, "use_sliding_window", True):
        limits += [getattr(config, "sliding_window", None)]
        limits += [getattr(config, "attention_chunk_size", None)]
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):  # their angles depend on the length
        limits += [rope.get("original_max_position_embeddings") or config.max_position_embeddings]
    return min((limit for limit in limits if limit is not None), default=None)

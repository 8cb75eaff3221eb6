"""Any causal language model of transformers, as the decoding loop wants it.

The loop tells every token its position, the cache slot it is written to, and the slots it may see.
A model of transformers takes positions and a mask (B, 1, N, S); it knows no slots, so it is given a
cache that has them. A model that cannot be steered so is refused: one with a recurrent state, or an
attention kernel without masks. A model that reads short texts alone with plain attention, as behind
a window it no longer does, is refused for longer ones. Before its first use a model reads a tree
with a prefix of up to 48 tokens and slots far apart, and its logits must be those of the two texts
that the tree holds.

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

from spectr_lite.models.interface import ANY_LENGTH, ATTENTION
from spectr_lite.models.weights import check_finite

PREFIX, FAR = 48, 1024  # of the tree that a model reads first: tokens before the fork, and slots
# Up to so many tokens the attention is plain: names in the configurations of transformers.
# fmt: off
WINDOWS = ("sliding_window", "sliding_window_size", "window_size", "attention_window_size", "index_topk",
           "attention_chunk_size", "local_attention", "local_attention_window_len", "keep_window_size")
# fmt: on


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
        model = getattr(model, "_orig_mod", model)  # what torch.compile was given
        if not isinstance(model, PreTrainedModel):
            raise TypeError(
                f"model: found {type(model).__name__}. Give a causal language model of transformers, "
                "such as AutoModelForCausalLM.from_pretrained(...); of a PeftModel give "
                "peft_model.base_model.model."
            )
        self.model, name = model, type(model).__name__
        self.parameters, self.state_dict = model.parameters, model.state_dict
        self.reach = check_architecture(model)
        self.checked = fingerprint(model)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.config = SimpleNamespace(context=context or ANY_LENGTH.context)
        try:
            first = torch.tensor([[0]], device=self.device)
            self.rows = embedding_rows(model) or model(input_ids=first)[0].shape[-1]
            wrong = self._read_a_tree(vocab_size)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # models of other kinds raise whatever they like
            raise ValueError(
                f"{name}: it cannot read a tree of drafts. Choose a Transformer with plain causal "
                f"attention. {error}"
            ) from error
        right = wrong <= torch.finfo(model.dtype).eps ** 0.5
        noisy = any(isinstance(part, torch.nn.Dropout) and part.p for part in model.modules())
        if model.training and (noisy or not right):
            raise ValueError(f"{name}: it is in training mode, with dropout. Call model.eval().")
        if not right:
            check_finite(model, lambda: self._read_a_tree(vocab_size), name)
            raise ValueError(
                f"{name}: it does not read a tree of drafts as it reads the texts in it (logits off by "
                f"{wrong:.2g} of their range). It may ignore the mask or the positions it is given, or "
                "its logits may depend on the other tokens of a call, as with activations quantised "
                "at run time. Choose a Transformer with plain causal attention."
            )

    @property
    def device(self) -> torch.device:
        return self.model.device

    def new_cache(self, batch: int, slots: int) -> SlotCache:
        if self.checked != (now := fingerprint(self.model)):
            raise ValueError(
                f"{type(self.model).__name__}: it was checked with {self.checked} and has {now} now "
                "(attention, training, dtype, vocabulary). Make a new decoder or load the pair again."
            )
        if self.reach is not None and slots > self.reach:
            raise ValueError(
                f"{type(self.model).__name__}: its attention changes beyond {self.reach} tokens (a "
                f"window or scaled positions), and text and drafts may take {slots}. Lower "
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
            input_ids=tokens.clamp_max(self.rows - 1),
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
    def _read_a_tree(self, vocab_size: int | None) -> float:
        """How far the logits on a tree are off, as a share of their range.

        The tree forks behind a prefix; after reading it the second branch is moved from far slots
        into those of the first, and one more token is read behind it. The reference reads the two
        texts one by one, without a cache.
        """
        limit = min(self.reach or FAR, FAR)
        n = max(min(PREFIX, limit - 4, self.config.context // 2), 1)
        ids = [1 + 5 * i % max(self.rows - 1, 1) for i in range(n + 4)]
        (*prefix, c, d, e, f), far = ids, max(limit, n + 4) - 2
        texts = torch.tensor([[*prefix, c, d, e], [*prefix, e, f, c]], device=self.device)
        plain = self.model(input_ids=texts, use_cache=False, return_dict=True).logits.double()
        self.own_size = plain.shape[-1]
        self.vocab_size = vocab_size or self.own_size
        places = [*range(n + 2), n, n + 1], [*range(n + 2), far, far + 1]
        tokens, positions, slots = (
            torch.tensor([row], device=self.device) for row in (ids, *places)
        )
        slot = torch.arange(far + 2, device=self.device)
        mask = slot <= slots[0, :, None]  # the second branch does not see the first
        mask[-2:] &= (slot < n) | (slot >= far)
        cache = self.new_cache(1, far + 2)
        found = [
            self(tokens[:, p], positions[:, p], cache, slots[:, p], mask[None, p])
            for p in (slice(0, n), slice(n, n + 4))
        ]
        cache.move(slots[:, n + 2 :], slots[:, n : n + 2])
        last, behind = positions[:, n + 1 : n + 2] + 1, slot[None, None] <= n + 2
        found.append(self(tokens[:, n : n + 1], last, cache, last, behind))
        tree = torch.cat(found, 1)[0, :, : self.own_size]
        plain = torch.cat([plain[0, : n + 2], plain[1, n:]])[:, : self.vocab_size]
        return float((tree - plain).abs().max() / (plain.max() - plain.min()))


def fingerprint(model: PreTrainedModel) -> tuple[Any, ...]:
    """What may be changed on a model after its check, and would call for another."""
    kernel = model.config.get_text_config()._attn_implementation
    return kernel, model.training, model.dtype, embedding_rows(model)


def embedding_rows(model: PreTrainedModel) -> int | None:
    """How many tokens the model knows; None where its embedding is wrapped and does not say."""
    weight: Any = getattr(model.get_input_embeddings(), "weight", None)
    return None if weight is None else weight.shape[0]


def check_architecture(model: PreTrainedModel) -> int | None:
    """How many tokens the model reads with plain attention; None if any number.

    Raises ValueError, with the reason, for a model that a mask and positions cannot steer.
    """
    name = type(model).__name__
    if model.config.is_encoder_decoder or not model.can_generate():
        raise ValueError(f"{name}: it is not a decoder-only language model. Choose one that is.")
    config = model.config.get_text_config()
    kernel = config._attn_implementation
    if kernel not in ("sdpa", "eager"):
        raise ValueError(
            f"{name}: found attn_implementation={kernel!r}, which takes no tree mask. Call "
            "model.set_attn_implementation('sdpa') first."
        )
    alibi = getattr(config, "alibi", False)
    if alibi or "position_ids" not in inspect.signature(model.forward).parameters:
        state = ", and carries a recurrent state" if model._is_stateful else ""
        found = (
            "found alibi=True, which counts slots" if alibi else f"it takes no position_ids{state}"
        )
        raise ValueError(
            f"{name}: {found}, and drafts side by side share their positions. Choose a model with "
            "rotary or learned positions."
        )
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if model._is_stateful or kinds - {"full_attention", "sliding_attention", "chunked_attention"}:
        raise ValueError(
            f"{name}: it attends sparsely or carries a recurrent state ({', '.join(sorted(kinds))}), "
            "which cannot be rolled back to where a draft was refused. Choose a model whose layers "
            "all attend."
        )
    limits = []
    if kinds != {"full_attention"} or getattr(config, "use_sliding_window", True):
        limits += [getattr(config, window, None) for window in WINDOWS]
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):  # their angles depend on the length
        limits += [rope.get("original_max_position_embeddings") or config.max_position_embeddings]
    # A mask that the layers hold themselves (GPT-Neo) has a row and a column for every slot.
    limits += [
        held.shape[-1]
        for held in model.buffers()
        if held.dtype == torch.bool and held.dim() > 1 and held.shape[-2] == held.shape[-1]
    ]
    return min((int(limit) for limit in limits if limit), default=None)

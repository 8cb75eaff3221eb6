"""K drafts and any selection rule inside transformers' own `generate`.

    from spectr_lite import huggingface
    model.generate(**inputs, do_sample=True, temperature=0.8, top_p=0.95, max_new_tokens=200,
                   custom_generate=huggingface.decoder(draft_model, verifier="kseq", num_drafts=8))

The text follows the distribution of the same call without `custom_generate`; with do_sample=False
it is the same text. What `generate` does around the loop stays: padded batches, max_new_tokens, end
tokens, stopping criteria, and the logits processors (temperature, top-k, top-p, repetition penalty,
...). A processor is a function of the text so far and of the scores of the next token, so every node
of the drafted tree is processed with its own text. The draft's scores are processed too: the output
would be right without it, but more drafts are accepted when both models are processed alike.

Processors of the scores alone, such as temperature, top-k and top-p, run inside the loop's CUDA
graph. One that reads the text is called node by node, a number of times that depends on the data:
such a call decodes without graphs. Stopping criteria are called row by row. Refused: beams, processors
that remember earlier calls, scores and hidden states as output. transformers hands a custom loop
neither `streamer` nor `stop_strings`; a StopStringCriteria in `stopping_criteria` works. Beyond the
context a model was made for, `generate` goes on and this loop refuses to.

Needs transformers >= 5. Explained in chapter 8.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.generation import GenerateDecoderOnlyOutput, GenerationMode, logits_process

from spectr_lite.decoding import Turn, decode
from spectr_lite.huggingface.causal_lm import CausalLM
from spectr_lite.models.interface import LanguageModel
from spectr_lite.verifiers import Verifier

# Functions of the scores, whatever the text: all nodes of a tree go through them in one call.
SCORES_ALONE = (
    logits_process.TemperatureLogitsWarper,
    logits_process.TopKLogitsWarper,
    logits_process.TopPLogitsWarper,
    logits_process.MinPLogitsWarper,
    logits_process.TypicalLogitsWarper,
    logits_process.EpsilonLogitsWarper,
    logits_process.EtaLogitsWarper,
)
REFUSED = (  # they remember earlier calls
    logits_process.UnbatchedClassifierFreeGuidanceLogitsProcessor,
    logits_process.SynthIDTextWatermarkLogitsProcessor,
)
INPUTS = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def decoder(
    draft_model: Any,
    *,
    verifier: str | Verifier = "kseq",
    num_drafts: int = 8,
    draft_length: int = 8,
) -> Callable[..., Any]:
    """A loop for `model.generate(..., custom_generate=...)`. The arguments are those of `decode`.

    `draft_model`: a causal language model of transformers, or anything else that `decode` takes as a
    draft; None with num_drafts=0. It shares the model's tokenizer, though its vocabulary may be padded
    to another width. As for `generate`, torch.manual_seed makes the text reproducible. Raises
    ValueError or TypeError, before any work, for a model, processor or setting that is not served.
    """
    adapters: dict[tuple[int, int | None], CausalLM] = {}  # a model is checked once

    def adapted(model: Any, vocab_size: int | None = None) -> LanguageModel:
        if hasattr(model, "new_cache") or model is None:
            return model
        key = id(model), vocab_size
        if key not in adapters:
            adapters[key] = CausalLM(model, vocab_size)
        return adapters[key]

    def custom_generate(
        model: Any,
        input_ids: Tensor,
        logits_processor: Sequence[Any],
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        mask = _check_request(input_ids, logits_processor, generation_config, model_kwargs)
        target = adapted(model)
        draft = adapted(draft_model, target.vocab_size) if num_drafts else None
        processors = list(logits_processor)
        prompts = [row[seen].tolist() for row, seen in zip(input_ids, mask, strict=True)]
        ends = {int(i) for stop in stopping_criteria for i in getattr(stop, "eos_token_id", ())}
        longest = stopping_criteria.max_length or generation_config.max_length
        turns = decode(
            Processed(target, processors, input_ids, mask),
            Processed(draft, processors, input_ids, mask) if draft is not None else None,
            prompts,
            verifier=verifier,
            num_drafts=num_drafts,
            draft_length=draft_length,
            max_new_tokens=longest - input_ids.shape[1],
            temperature=1.0 if generation_config.do_sample else 0,
            generator=int(torch.randint(2**62, ())),
            stop_tokens=sorted(ends),
        )
        served = {"max_length", "eos_token_id"}
        others = [stop for stop in stopping_criteria if not served & set(vars(stop))]
        texts, length = read_until_stopped(turns, input_ids, others, bool(ends))
        pad = generation_config.pad_token_id
        pad = min(ends, default=0) if pad is None else pad
        padded = [text + [pad] * (length - len(text)) for text in texts]
        sequences = torch.cat([input_ids, input_ids.new_tensor(padded)], 1)
        if generation_config.return_dict_in_generate:
            return GenerateDecoderOnlyOutput(sequences=cast(torch.LongTensor, sequences))
        return sequences

    return custom_generate


@dataclass
class TextCache:
    """A model's cache, and the token in each of its slots."""

    entries: Any
    tokens: Tensor  # (B, slots)

    def move(self, source: Tensor, destination: Tensor) -> None:
        self.entries.move(source, destination)
        self.tokens.scatter_(1, destination, self.tokens.gather(1, source))


class Processed:
    """A `LanguageModel` whose logits, at every node of a tree, go through `generate`'s processors.

    A processor sees the node's own text: `input_ids` (B, P), as `generate` has them, and the drafted
    tokens above the node. `mask` (B, P) is False where input_ids is padding.
    """

    def __init__(
        self, model: LanguageModel, processors: list[Any], input_ids: Tensor, mask: Tensor
    ) -> None:
        self.model, self.processors, self.input_ids = model, processors, input_ids
        self.config, self.vocab_size, self.device = model.config, model.vocab_size, model.device
        self.prompt_length = mask.sum(1)
        self.synchronizes = not all(isinstance(processor, SCORES_ALONE) for processor in processors)

    def new_cache(self, batch: int, slots: int) -> TextCache:
        tokens = torch.zeros(batch, slots, dtype=torch.int64, device=self.device)
        return TextCache(self.model.new_cache(batch, slots), tokens)

    def fill(self, tokens: Tensor, *where: Any) -> None:
        """Write the cache: a prompt has no use for scores."""
        positions, cache, slots, mask = where
        getattr(self.model, "fill", self.model)(tokens, positions, cache.entries, slots, mask)
        cache.tokens.scatter_(1, slots, tokens)

    def __call__(
        self, tokens: Tensor, positions: Tensor, cache: TextCache, slots: Tensor, mask: Tensor
    ) -> Tensor:
        """Scores (B, N, V) in float32; arguments as in `Transformer.forward`.

        The text of a node is `input_ids`, then the tokens in the slots it sees behind the prompt.
        """
        scores = self.model(tokens, positions, cache.entries, slots, mask).float()
        cache.tokens.scatter_(1, slots, tokens)
        if not self.synchronizes:
            return self._process(self.input_ids, scores.flatten(0, 1)).view_as(scores)
        slot = torch.arange(mask.shape[-1], device=mask.device)
        new = mask & (slot >= self.prompt_length[:, None])[:, None]
        count = new.sum(-1).masked_fill(slots < self.prompt_length[:, None] - 1, -1)
        # A processor may treat rows by their number, and takes texts of one length: it is called with
        # one node of every row. A row with no node of that length left is filled up with any text.
        for length in count.unique().tolist():
            nodes = [(found == length).nonzero()[:, 0].tolist() for found in count]
            for chosen in itertools.zip_longest(*nodes) if length >= 0 else ():
                rows = [row for row, node in enumerate(chosen) if node is not None]
                text = torch.nn.functional.pad(self.input_ids, (0, length))
                batch = scores[:, 0].clone()
                for row in rows:
                    seen = new[row, chosen[row]].nonzero()[:, 0]
                    text[row, self.input_ids.shape[1] :] = cache.tokens[row, seen]
                    batch[row] = scores[row, chosen[row]]
                batch = self._process(text, batch)
                for row in rows:
                    scores[row, chosen[row]] = batch[row]
        return scores

    def _process(self, text: Tensor, scores: Tensor) -> Tensor:
        for processor in self.processors:
            scores = processor(text, scores)
        return scores


def read_until_stopped(
    turns: Iterable[Turn], input_ids: Tensor, criteria: list[Any], has_end: bool
) -> tuple[list[list[int]], int]:
    """Take turns until `generate` would stop: the new tokens of each row, and the length to pad to.

    `criteria` are asked after every token of every row. `generate` goes on while any row does. With
    an end token (`has_end`) it pads a row that has stopped; without one such a row grows on, so that
    here too each row keeps as many tokens as the one that stops last.
    """
    texts: list[list[int]] = [[] for _ in input_ids]
    stopped: dict[int, int] = {}
    for turn in turns:
        for row, text in enumerate(texts):
            before, text[len(text) :] = len(text), turn.tokens(row)
            for length in range(before + 1, len(text) + 1) if criteria else ():
                so_far = torch.cat([input_ids[row], input_ids.new_tensor(text[:length])])[None]
                if row not in stopped and any(bool(stop(so_far, None)) for stop in criteria):
                    stopped[row] = length
            if not turn.active[row]:  # it met its end token
                stopped.setdefault(row, len(text))
        longest = max(stopped.values(), default=0)
        if len(stopped) == len(texts) and (has_end or min(map(len, texts)) >= longest):
            break
    ends = [stopped.get(row, len(text)) for row, text in enumerate(texts)]
    length = max(ends)
    return [
        text[: end if has_end else length] for text, end in zip(texts, ends, strict=True)
    ], length


def _check_request(
    input_ids: Tensor, processors: Sequence[Any], config: Any, inputs: dict[str, Any]
) -> Tensor:
    """Where `input_ids` (B, P) is text and not padding: a boolean mask (B, P).

    Raises ValueError for a request that the loop cannot fulfil.
    """
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH):
        raise ValueError(
            f"generate: found mode {mode.value!r}. This loop samples or, with do_sample=False, is "
            "greedy: set num_beams=1 and leave other modes out."
        )
    if wanted := [name for name in OUTPUTS if getattr(config, name)]:
        raise ValueError(
            f"generate: found {wanted[0]}=True. A turn emits many tokens from one call; this loop "
            "returns the sequences alone."
        )
    for processor in processors:
        if isinstance(processor, REFUSED):
            raise ValueError(
                f"generate: found {type(processor).__name__}. It remembers earlier calls, "
                "which on a tree of drafts are not the text so far. Decode without it."
            )
    given = {name for name, value in inputs.items() if value is not None and value is not False}
    if unknown := sorted(given - INPUTS):
        raise ValueError(f"generate: found input {unknown[0]!r}. This loop reads token ids alone.")
    cache = inputs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise ValueError(
            "generate: found past_key_values that hold a text. Pass the whole text as input_ids."
        )
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask.to(input_ids.device)
    if mask.shape != input_ids.shape or not bool(mask[:, -1].all()):
        raise ValueError(
            f"attention_mask: found shape {tuple(mask.shape)} for input_ids "
            f"{tuple(input_ids.shape)}, or a text that ends in padding. Pad on the left: "
            "tokenizer.padding_side = 'left'."
        )
    mask = mask.bool()
    positions = inputs.get("position_ids")
    usual = mask.cumsum(1) - 1
    if positions is not None and bool((positions.to(mask.device) != usual)[mask].any()):
        raise ValueError(
            "position_ids: found positions that do not count the text. Leave position_ids out."
        )
    return mask
